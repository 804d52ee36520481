"""Membership attack on one finished simulation: compare its members' losses with unused texts.

    python -m simulations.attacks.membership.run RUN [--texts 500] [--json]

The loss threshold attack (Yeom et al. 2018, "Privacy risk in machine learning") on the model that the run
released: members are the silos' training texts, others are texts of the same source that trained
nothing. Written into the run folder as ``membership.json``, which the report shows.

A measurement of one attack on one model, and no bound: another attack, or a model trained again, may give
more. It is computed from the silos' texts without noise, so it may be published only where those may.
Where members and others differ by themselves (another file, another length), the attack sees that
too: the row ``blind`` tells members by the length of the text alone, without the model. A ``loss`` that is
not above ``blind`` shows no memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.stats import norm

from fedllm.data.formats.records import Record, normalise_text
from fedllm.data.holdout import text_hash
from fedllm.data.silos import Federation, load_federation
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from simulations.attacks import auditing
from simulations.attacks.membership.federated_runs import candidate_losses, proven_rates
from simulations.output import (
    AsJson,
    OneLineErrors,
    make_table,
    print_json,
    print_parts,
    require,
)

FILE = "membership.json"
LABEL = (
    "a measurement of one attack on one model, made of the silos' texts without noise: no bound, and to be "
    "published only where those texts may be"
)
_FEWEST = 20


def groups(settings: Settings) -> tuple[list[Record], list[Record], str]:
    """Return members, non-members and the source of the non-members.

    Others are, where there are enough of them: texts of the same source that ``data.limit`` left out;
    the silos' held-out texts; the server's evaluation texts. A text that is in both (after
    normalisation) counts as a member only; each text counts once. Both come in the order of a hash of the
    text.

    Raises:
        DataError: the data cannot be read.
        ValueError: fewer than 20 texts of a kind.
    """
    federation = load_federation(settings)
    columns = settings.task.text

    def once(records: Iterable[Record]) -> dict[tuple[str, ...], Record]:
        return {tuple(normalise_text(str(r[c])) for c in columns): r for r in records}

    def ordered(found: dict[tuple[str, ...], Record]) -> list[Record]:
        return sorted(found.values(), key=lambda r: text_hash(r, columns, settings.seed + 5))

    members = once(_of_silos(federation))
    sources = [
        ("the silos' held-out texts", [r for s in federation.silos for r in s.held_out.records]),
        ("the server's evaluation texts", federation.evaluation.records),
    ]
    if settings.data.limit is not None:
        data = settings.data.model_copy(update={"limit": None})
        whole = load_federation(settings.model_copy(update={"data": data}))
        sources.insert(0, ("texts of the same source beyond data.limit", _of_silos(whole)))
    found = [
        (origin, {key: r for key, r in once(records).items() if key not in members})
        for origin, records in sources
    ]
    enough = [one for one in found if len(one[1]) >= _FEWEST]
    origin, others = enough[0] if enough else found[-1]
    if min(len(members), len(others)) < _FEWEST:
        raise ValueError(
            f"Expected at least {_FEWEST} members and {_FEWEST} others, got {len(members)} members and "
            f"{len(others)} of {origin}"
        )
    return ordered(members), ordered(others), origin


def _of_silos(federation: Federation) -> list[Record]:
    return [record for silo in federation.silos for record in silo.train.records]


def measure_run(run: RunFolder, texts: int = 500) -> dict[str, Any]:
    """Return the attack on a finished run, as plain values; what ``membership.json`` holds.

    Args:
        texts: members, and others, at most.

    Returns:
        ``attacks``: for ``loss threshold`` and ``blind (length of the text)`` the AUC with DeLong's 95 %
        interval ``low`` and ``high`` (over texts, taken as independent), and ``runs`` (1); ``members``,
        ``others`` (numbers), ``origin``, ``proven_auc`` (None without a guarantee), ``label``.

    Raises:
        ValueError: no checkpoint, or too few texts.
    """
    settings = run.settings()
    members, others, origin = groups(settings)
    members, others = members[:texts], others[:texts]
    losses = candidate_losses(run, [*members, *others])
    columns = settings.task.text
    lengths = np.array(
        [sum(len(str(r[c]).split()) for c in columns) for r in (*members, *others)], dtype=float
    )
    count = len(members)
    attacks = [
        _attack("loss threshold", -losses[:count], -losses[count:]),
        _attack("blind (length of the text)", -lengths[:count], -lengths[count:]),
    ]
    if attacks[1]["auc"] < 0.5:  # whichever is shorter: the better of the two guesses
        attacks[1] = _attack(str(attacks[1]["attack"]), lengths[:count], lengths[count:])
    proven = proven_rates(run)
    return {
        "attacks": attacks,
        "members": count,
        "others": len(others),
        "origin": origin,
        "member_loss": float(losses[:count].mean()),
        "other_loss": float(losses[count:].mean()),
        "proven_auc": None if proven is None else proven["auc"],
        "label": LABEL,
    }


def _attack(name: str, members: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    area, error = auditing.area_under_curve(members, others)
    half = float(norm.ppf(0.975)) * error
    return {
        "attack": name,
        "auc": area,
        "low": max(0.0, area - half),
        "high": min(1.0, area + half),
        "runs": 1,
    }


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(cls=OneLineErrors, help=__doc__.splitlines()[0])
def main(
    path: Annotated[Path, typer.Argument(help="A run folder of a simulation.", metavar="RUN")],
    texts: Annotated[int, typer.Option(help="Members, and others, at most.")] = 500,
    as_json: AsJson = False,
) -> None:
    """Attack, write membership.json, and print."""
    require("--texts", texts, texts >= _FEWEST, f"at least {_FEWEST}")
    run = RunFolder.open(path)
    found = measure_run(run, texts)
    run.write_json(FILE, found)
    if as_json:
        print_json(found)
        return
    table = make_table("attack", "AUC %", "95 % interval")
    for row in found["attacks"]:
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        table.add_row(row["attack"], f"{100 * row['auc']:.1f}", interval)
    proven = found["proven_auc"]
    print_parts(
        table,
        f"{found['members']} members, {found['others']} others: {found['origin']}; mean loss "
        f"{found['member_loss']:.4f} and {found['other_loss']:.4f}.",
        "No guarantee bounds it."
        if proven is None
        else f"Theoretical upper bound of any attack on one text: AUC {100 * proven:.1f} %.",
        f"This is {found['label']}.",
        f"{run.path / FILE} (`fedllm report {run.path}` shows it)",
    )


if __name__ == "__main__":
    app(prog_name="python -m simulations.attacks.membership.run")
