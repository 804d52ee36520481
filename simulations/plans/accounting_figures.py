"""Compute the cost of a schedule or a ledger by every accountant, as the plain tree that is printed as JSON."""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dp_accounting.dp_event import DpEvent

from fedllm.budget.recorded_rows import composes, notes_on, proven_relation
from fedllm.report.accounting import EVERYBODY, no_guarantee_reasons
from fedllm.report.plan_figures import SO_FAR, plan_epsilons
from privacy.accountants import (
    ACCOUNTANTS,
    UnsupportedEvent,
    make_accountant,
)
from privacy.accountants.dominating import DominatingGdpAccountant
from privacy.copies import events_of_copies
from privacy.events.constructors import dp_sgd
from privacy.events.multiset import multiset
from privacy.guarantee import Adversary, Relation, Unit
from privacy.ledger.heads import Head
from privacy.ledger.ledger import Ledger, LedgerEntry, LedgerError, VerifyReport, composed
from privacy.ledger.storage import APPLICATION_ID

Figures = dict[str, Any]
_KEYS = {name: name.replace("-", "_") for name in ACCOUNTANTS}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence dp_accounting's (absl) output about orders that it tries and drops."""
    logger = logging.getLogger("absl")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def assumes(unit: Unit, relation: Relation, adversary: Adversary) -> str:
    """Return the assumptions under which a planned schedule's numbers hold."""
    return (
        f"each {unit.value} is in each step's sample independently with the sample rate (Poisson); "
        "its contribution is clipped to the clipping norm; Gaussian noise of noise multiplier x "
        f"clipping norm protects each step's sum against the adversary ({adversary}); neighbours "
        f"({relation.value}): {relation.describe(unit)}"
    )


def account_schedule(
    *,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
    unit: Unit,
    relation: Relation,
    adversary: Adversary,
    copies: int = 1,
) -> Figures:
    """Return the figures of a planned DP-SGD schedule, under the accountants' names with underscores.

    Args:
        copies: how often a record is in the data; the figures are of the removal of all of them.

    Raises:
        ValueError: a value out of range.
    """
    events = events_of_copies(multiset(dp_sgd(sample_rate, noise_multiplier, steps)), copies)
    return {
        "delta": delta,
        "unit": unit.value,
        "relation": relation.value,
        "adversary": str(adversary),
        **_figures(events, relation, delta),
        "noise_multiplier": noise_multiplier,
        "sample_rate": sample_rate,
        "steps": steps,
        "copies": copies,
        "assumes": assumes(unit, relation, adversary),
    }


def verify_ledger(path: Path, kept_head: tuple[int, str] | None = None) -> VerifyReport:
    """Verify a ledger's chain; a ledger that is too damaged to open fails, too.

    Raises:
        LedgerError: the file is absent or no ledger at all.
    """
    try:
        with Ledger(path, read_only=True) as ledger:
            return ledger.verify(kept_head)
    except LedgerError as error:
        if not _marked_as_ledger(path):
            raise
        return VerifyReport(False, 0, [str(error)], Head(0, ""))


def chain(found: VerifyReport) -> dict[str, Any]:
    """Return a verification as JSON."""
    return {
        "ok": found.ok,
        "rows": found.rows,
        "head": {"id": found.head[0], "hash": found.head[1]},
        "problems": found.problems,
        "adoptions": found.adoptions,
        "notes": found.notes,
    }


def _marked_as_ledger(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return int.from_bytes(file.read(100)[68:72], "big") == APPLICATION_ID
    except OSError:
        return False


def account_ledger(
    path: Path,
    *,
    party: str | None,
    unit: Unit | None,
    relation: Relation | None,
    adversary: Adversary,
    delta: float | None,
    together: Sequence[str] = (),
    copies: int = 1,
) -> Figures:
    """Return the figures of each party, by all that the ledger holds about it; the whole is the largest.

    Rows of the party "server" concern all parties and are counted for each. A ledger whose chain
    is broken gives no guarantee: every epsilon is then infinite.

    Args:
        party: one party only; None for all.
        together: parties that all hold the record: their events compose, and the whole is that sum. Rows of
            the party "server" are counted once.
        copies: how often the record is in each party's data.
        unit: None for the unit of the rows.
        relation: None for the relation that the rows are proven for.
        delta: None for the delta that the rows record, the smallest where they differ.

    Raises:
        LedgerError: no ledger, or it holds no view for the adversary or a stronger one.
        ValueError: no such party; or rows of several units or relations, and none was chosen; or no
            delta, and none is recorded.
    """
    verification = verify_ledger(path)
    rows = _rows_by_party(path, party) if verification.ok else {}
    if together and verification.ok:
        rows = {" and ".join(together): _rows_together(path, together)}
    everything = [entry for entries in rows.values() for entry in entries]
    units = {entry.unit.value for entry in everything}
    relations = _relations(everything)
    stated = Unit(_only("--unit", unit, units, Unit.EXAMPLE))
    neighbours = Relation(_only("--relation", relation, relations, Relation.ZERO_OUT))
    delta = _recorded_delta(everything) if delta is None else delta
    memory: dict[frozenset[tuple[DpEvent, int]], Figures] = {}
    parties: dict[str, Figures] = {
        name: {"rows": len(entries)}
        | _account_rows(entries, stated, neighbours, adversary, delta, memory, copies)
        for name, entries in rows.items()
    }
    if not verification.ok:
        broken = [f"the ledger fails its verification: {p}" for p in verification.problems]
        total = _nothing(neighbours, broken)
    else:
        total = _largest(parties) if parties else _figures(Counter(), neighbours, delta)
    plans = {}
    if verification.ok and copies == 1 and not together:
        plans = _plans(path, rows, stated, neighbours, adversary, delta)
    return {
        "delta": delta,
        "unit": stated.value,
        "relation": neighbours.value,
        "adversary": str(adversary),
        **total,
        "seeded_noise": any(e.details.get("randomness") == "seeded" for e in everything),
        "ledger": str(path),
        "chain": chain(verification),
        "parties": parties,
        "copies": copies,
        "meaning": SO_FAR,
        "plans": plans,
        "notes": notes_on(everything),
    }


def _plans(
    path: Path,
    parties: Iterable[str],
    unit: Unit,
    relation: Relation,
    adversary: Adversary,
    delta: float,
) -> dict[str, dict[str, float | None]]:
    """Map party to run to the epsilon of the run's whole plan, by PLD; parties without a plan are left out."""
    with Ledger(path, read_only=True) as ledger:
        found = {
            name: plan_epsilons(
                ledger, name, unit=unit, relation=relation, adversary=adversary, delta=delta
            )
            for name in parties
        }
    return {name: plans for name, plans in found.items() if plans}


def _relations(rows: Sequence[LedgerEntry]) -> set[str]:
    """Return the relations that rows are proven for; zero-out alone where all of them imply it."""
    found = {proven for row in rows if (proven := proven_relation(row)) is not None}
    if len(found) > 1 and all(proven.implies(Relation.ZERO_OUT) for proven in found):
        return {Relation.ZERO_OUT.value}
    return {proven.value for proven in found}


def _rows_by_party(path: Path, party: str | None) -> dict[str, list[LedgerEntry]]:
    """Return the rows that count for each party, or for one."""
    found: dict[str, list[LedgerEntry]] = defaultdict(list)
    with Ledger(path, read_only=True) as ledger:
        for entry in ledger.entries():
            found[entry.party].append(entry)
    if party is not None and party not in found:
        names = ", ".join(sorted(found)[:10]) or "it is empty"
        raise ValueError(f"Expected --party in the ledger ({names}), got --party={party}")
    if party == EVERYBODY or set(found) == {EVERYBODY}:
        return {EVERYBODY: found[EVERYBODY]}
    common = found.pop(EVERYBODY, [])
    names_wanted = sorted(found) if party is None else [party]
    return {name: found[name] + common for name in names_wanted}


def _rows_together(path: Path, parties: Sequence[str]) -> list[LedgerEntry]:
    """Return the rows of several parties that hold the same record, and those that concern all, once."""
    found: list[LedgerEntry] = []
    for name in dict.fromkeys(parties):
        alone = _rows_by_party(path, name)[name]
        found += [entry for entry in alone if entry.party == name]
        common = [entry for entry in alone if entry.party == EVERYBODY]
    return found + common


def _recorded_delta(rows: Sequence[LedgerEntry]) -> float:
    """Return the smallest delta that the runs recorded: epsilon there holds at the larger ones too."""
    found = [float(str(r.details["delta"])) for r in rows if r.details.get("delta") is not None]
    if not found:
        raise ValueError("Expected --delta above 0 and below 1 (the ledger records none), got none")
    return min(found)


def _only(option: str, chosen: str | None, found: set[str], default: str) -> str:
    """Return the chosen value, or the only one that the ledger holds."""
    if chosen is not None:
        return chosen
    if len(found) > 1:
        raise ValueError(
            f"Expected {option} ({' or '.join(sorted(found))}): the ledger holds rows of each, "
            "which do not compose; got none"
        )
    return next(iter(found), default)


def _account_rows(
    rows: Sequence[LedgerEntry],
    unit: Unit,
    relation: Relation,
    adversary: str,
    delta: float,
    memory: dict[frozenset[tuple[DpEvent, int]], Figures],
    copies: int = 1,
) -> Figures:
    """Return the figures of one party; equal multisets of events are accounted once."""
    reasons = set()
    for row in rows:
        if row.unit is not unit or not composes(row, relation):
            other = proven_relation(row) or relation
            reasons.add(
                f"run {row.run} recorded releases for unit {row.unit.value}, relation {other}: "
                f"they do not compose with unit {unit.value}, relation {relation.value}"
            )
    if reasons:
        return _nothing(relation, sorted(reasons))
    events = events_of_copies(composed(rows, adversary), copies)
    key = frozenset(events.items())
    if key not in memory:
        memory[key] = figures(events, relation, delta)
    return memory[key]


def figures(events: Counter[DpEvent], relation: Relation, delta: float) -> Figures:
    """Return every accountant's answer under its JSON name; infinite where an event has no guarantee, with the
    reasons under ``no_guarantee``."""
    lost = no_guarantee_reasons(events)
    return _nothing(relation, lost) if lost else _figures(events, relation, delta)


def _figures(events: Counter[DpEvent], relation: Relation, delta: float) -> Figures:
    """Return every accountant's answer under its JSON name; why, where it cannot give one."""
    found: Figures = {}
    for name, key in _KEYS.items():
        accountant = make_accountant(name, relation)
        figure: dict[str, Any] = {"epsilon": None, "bound": accountant.is_bound}
        try:
            figure["epsilon"] = float(accountant.epsilon(events, delta))
            mu = accountant.mu(events)
            if mu is not None:
                figure["mu"] = float(mu)
            if isinstance(accountant, DominatingGdpAccountant) and events:
                figure["delta_floor"] = accountant.floor(events)
        except UnsupportedEvent as error:
            if name == "gdp-exact":
                continue  # holds for schedules without sampling only
            figure["unsupported"] = str(error)
        except (ArithmeticError, ValueError) as error:
            figure["unsupported"] = f"The {name} accountant cannot compute it: {error}"
        figure["trust"] = accountant.trust
        found[key] = figure
    return found


def _nothing(relation: Relation, reasons: Sequence[str]) -> Figures:
    """Return infinite figures: no accountant can help."""
    found: Figures = {}
    for name, key in _KEYS.items():
        accountant = make_accountant(name, relation)
        figure = {"epsilon": math.inf, "bound": accountant.is_bound, "trust": accountant.trust}
        found[key] = figure | ({"mu": math.inf} if "gdp" in name else {})
    return found | {"no_guarantee": list(reasons)}


def _largest(parties: Mapping[str, Figures]) -> Figures:
    """Return the largest epsilon and mu per accountant, since a record is in one party only.

    Where an accountant cannot represent an event of some party, it has no figure for the whole.
    """
    total: Figures = {}
    for key in _KEYS.values():
        known = {party: figures[key] for party, figures in parties.items() if key in figures}
        if len(known) < len(parties):
            continue  # the exact one applies to some parties only
        refusing = [party for party, figure in known.items() if figure["epsilon"] is None]
        worst = refusing[0] if refusing else max(known, key=lambda p: known[p]["epsilon"])
        total[key] = known[worst] | {"party": worst}
        for name in ("mu", "delta_floor"):
            if name in total[key]:
                total[key][name] = max(f[name] for f in known.values() if name in f)
    lost = [
        f"{reason} (party {party})" if len(parties) > 1 else reason
        for party, figures in parties.items()
        for reason in figures.get("no_guarantee", [])
    ]
    return total | ({"no_guarantee": lost} if lost else {})
