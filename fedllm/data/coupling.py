"""List the steps of data division in which one record decides where others go.

The guarantee compares data sets of the silos that differ in one record. Where silos are cut from one data set, in
a simulation, that is a statement about the data *as divided*: if the record was not in the data set that was
divided, some steps would have put other records elsewhere too, and the data of the silos would differ in more
than one record. Steps that look at each record alone (`natural` by a column, `hash`, a holdout by a hash) have no
such effect; silos that bring their own data are not divided at all.
"""

from __future__ import annotations

from fedllm.settings.sections import DataSettings

AS_DIVIDED = (
    "Where silos are parts of one data set (a simulation), the guarantee is for their data as divided, and says "
    "nothing of a record's presence in that data set before"
)


def couplings(data: DataSettings) -> dict[str, str]:
    """Return why one record may move others, by the setting as written (``data.limit=100``).

    Empty where each record's place depends on the record alone.
    """
    found = {}
    if data.limit is not None:
        found[f"data.limit={data.limit}"] = (
            "the records with the smallest hashes are used: without one of them the next takes its place"
        )
    if data.partition == "natural":
        if data.silos is not None and data.silo_names is None:
            found[f"data.silos={data.silos}"] = (
                "the silos with the most records are kept: one record may decide which silo that is"
            )
    elif data.partition == "iid":
        found["data.partition=iid"] = (
            "the records are shuffled together: one record more or less sends nearly all others to another silo "
            "(one that is replaced, their number being the same, sends none)"
        )
    elif data.partition in ("dirichlet", "pathological"):
        found[f"data.partition={data.partition}"] = (
            "each class is shuffled and cut in pieces by its size: one record moves others of its class"
        )
    return found


def minor_couplings(data: DataSettings) -> dict[str, str]:
    """Return couplings that touch few records, or none, in most data sets."""
    found = {}
    if data.source == "tweets":
        found["data.source=tweets"] = (
            "of equal texts of a silo one record is kept: without it a copy takes its place"
        )
    if data.min_size > 1:
        found[f"data.min_size={data.min_size}"] = (
            "a silo with fewer records is left out: one record may decide whether its whole silo takes part"
        )
    return found
