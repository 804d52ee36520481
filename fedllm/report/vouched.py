"""A deployed run's report: the accounts that the silos vouch for, and what the statement owes to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedllm.budget.limits import protected_from
from fedllm.budget.plan import colluding_numbers
from fedllm.report.accounting import Accounts
from fedllm.report.extract.compose import Vouching, compose
from fedllm.report.extract.store import Expected, Found
from fedllm.report.guarantee import STATED, Headline
from fedllm.report.record import RunRecord, unfinished
from fedllm.run.folder import SCHEDULE, RunFolderError, read_json_file
from privacy.guarantee import OUTSIDER, SERVER, SUM_ONLY, Adversary, Relation, Unit

WORD = (
    "On the word of {whose}: {each} vouches for its own ledger by an extract that is signed with its node key; what a "
    "silo really released is not proven by its word."
)
SHOWN = 5
"""Silos named in a sentence at most."""


def vouch(
    run: RunRecord, unit: Unit, relation: Relation, delta: float, accounts: Accounts
) -> Vouching | None:
    """Make the accounts of a deployed run, and give the run the rows that the silos sent.

    Returns:
        None for a run with a ledger of its own (simulation).
    """
    if run.extracts is None:
        return None
    for name in run.silos:  # whose extracts no one expected
        missing = Found(name, Expected(), problem="no extract of its ledger was expected")
        run.extracts.silos.setdefault(name, missing)
    names = {*run.extracts.silos, *_drawn_from(run)}
    settings = run.settings
    colluding = () if settings is None else colluding_numbers(settings.privacy, len(names))
    against = SERVER if settings is None else protected_from(settings)
    sums = set[Adversary]()
    if against.sees_sums:
        sums = {against, SUM_ONLY, *(Adversary(f"sum-only:{m}") for m in colluding)}
    found = compose(
        run.extracts,
        unit=unit,
        relation=relation,
        delta=delta,
        adversaries={OUTSIDER, SERVER, *(Adversary(f"colluding:{m}") for m in colluding), *sums},
        against=against if against.sees_sums else SERVER,
        accounts=accounts,
    )
    run.entries, run.complete = found.entries, found.whole
    run.notes = unfinished(run) + _notes(found.part)
    run.problems += [f"silo {name}: {why}" for name, why in found.unvouched.items()]
    for row in found.part:
        run.problems += [f"silo {row['silo']}: {text}" for text in row["disagreements"]]
    return found


def _drawn_from(run: RunRecord) -> list[str]:
    """Return the silos that the run was begun with; none where that is lost."""
    try:
        names = read_json_file(run.path / SCHEDULE)["silos"]
    except (RunFolderError, KeyError, TypeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def lost_extracts(run: RunRecord, found: Vouching) -> list[str]:
    """Say why no epsilon can be stated for any silo; empty where one vouches."""
    assert run.extracts is not None
    if run.extracts.problem:
        return [run.extracts.problem]
    if found.silos:
        return []
    whys = "; ".join(f"{name}: {why}" for name, why in list(found.unvouched.items())[:SHOWN])
    return [f"no silo vouches for its ledger ({whys})" if whys else "no silo is known"]


def vouched_headline(statement: Headline, found: Vouching) -> Headline:
    """Add to a statement about the silos that vouch on whose word it stands, and for whom nothing is stated."""
    silos = [silo.name for silo in found.silos]
    if statement.level in ("unknown", "none", "nothing-released") and not found.unvouched:
        return statement
    if not silos:
        return statement
    whose = "the silo" if len(silos) == 1 else f"the {len(silos)} silos"
    word = WORD.format(whose=whose, each="it" if len(silos) == 1 else "each")
    if not found.unvouched:
        return replace(statement, sentence=f"{statement.sentence} {word}")
    reasons = tuple(f"silo {name}: {why}" for name, why in found.unvouched.items())
    without = (
        f"NO GUARANTEE for {len(reasons)} of {len(silos) + len(reasons)} silos: nothing is known of "
        f"{listed(list(found.unvouched))}. {_explained(found.unvouched)}"
    )
    if statement.level not in STATED:
        sentence = f"{statement.sentence} {without}"
        return replace(statement, sentence=sentence, reasons=(*statement.reasons, *reasons))
    return replace(
        statement,
        level="some-silos",
        sentence=f"{without} For the other {len(silos)} alone ({listed(silos)}): {statement.sentence} {word}",
        epsilon=math.inf,
        others=dict.fromkeys(statement.others, math.inf),
        reasons=(*reasons, *statement.reasons),
    )


def listed(names: Sequence[str]) -> str:
    """Return names as text, the first few of many."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _explained(unvouched: Mapping[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for name, why in unvouched.items():
        by_reason.setdefault(why, []).append(name)
    return " ".join(f"{listed(names)}: {why}." for why, names in list(by_reason.items())[:SHOWN])


def _notes(part: Sequence[Mapping[str, Any]]) -> list[str]:
    adopted = [
        f'The silo {row["silo"]} states: "{text}".' for row in part for text in row["adoptions"]
    ]
    late = [row["silo"] for row in part if row["vouches"] and not row["final"]]
    if not late:
        return adopted
    return [
        *adopted,
        f"What {listed(late)} vouched for last is of before the end of the run: no answer came when the server asked at "
        "its end. What a silo released since is counted where the epsilon is that of its plan or a budget, as far as its "
        "client kept to it.",
    ]
