"""Check the rows of every silo of a simulation against model and task, before a run folder or a ledger row is made.

Whoever simulates holds all data; in a deployment each silo checks its own (:mod:`fedllm.silo.opened`), and tells nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedllm.data.formats.records import BadRows, DataError
from fedllm.data.silos import Silo
from fedllm.silo.opened import open_silo_data
from fedllm.tasks.base import Task

SHOWN = 3
"""Silos whose faults are named at most."""


def require_usable(silos: Sequence[Silo], rule: BadRows, task: Task) -> None:
    """Open the data of every silo.

    Args:
        rule: ``data.bad_rows``.

    Raises:
        DataError: at some silo a record cannot be used and the rule is ``refuse``, or no record is left; the silos,
            with file and line of their first bad rows.
    """
    faults: dict[str, str] = {}
    for silo in silos:
        try:
            open_silo_data(silo, rule, task)
        except DataError as error:
            faults[silo.name] = str(error)
    if not faults:
        return
    named = "; ".join(f"silo {name}: {fault}" for name, fault in list(faults.items())[:SHOWN])
    more = f"; and {len(faults) - SHOWN} more silos" if len(faults) > SHOWN else ""
    raise DataError(
        f"Expected records that can be used at all {len(silos)} silos, before anything is spent, got {len(faults)} with "
        f"others: {named}{more}"
    )
