"""The first line of the report: what is guaranteed, to whom, against whom; or that nothing is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Context, Decimal
from typing import Literal

from pydantic import Field

from fedllm.report.accounting import ACCOUNTANTS, Figure, SiloAccounting
from fedllm.report.prose.secure_sum import SumAssumption
from fedllm.report.schema_base import Part, Real
from privacy.guarantee import OUTSIDER, SERVER, Adversary, Relation, Unit

Level = Literal[
    "guaranteed",
    "not-as-asked",
    "conditional",
    "if-fixed",
    "sum-only",
    "outsider-only",
    "some-silos",
    "none",
    "unknown",
    "nothing-released",
]
STATED: tuple[Level, ...] = (
    "guaranteed",
    "not-as-asked",
    "conditional",
    "if-fixed",
    "sum-only",
    "outsider-only",
)
"""The levels with a finite epsilon, the better ones first."""
_NAMES = dict(ACCOUNTANTS)
_SUBJECTS = {Unit.EXAMPLE: "one training example", Unit.CLIENT: "all data of one silo"}
SEEDED = (
    "The noise was drawn from a seed (privacy.randomness = seeded): anyone who knows or guesses the seed can "
    "compute the noise and subtract it, and there is no protection against them"
)


class GuaranteePart(Part):
    """The statement of the report's first line, in words and as values."""

    level: Literal[
        "guaranteed",
        "not-as-asked",
        "conditional",
        "if-fixed",
        "sum-only",
        "outsider-only",
        "some-silos",
        "none",
        "unknown",
        "nothing-released",
    ] = Field(
        description="guaranteed; not-as-asked: at another epsilon than the settings name; conditional: only against those who do not know the seed of the "
        "noise; if-fixed: only if what was released was fixed beforehand, since no budget was held over it; sum-only: against a server that learns sums over the silos alone, which rests on cryptography; outsider-only: none against the server; some-silos: none for the silos whose ledgers nothing vouches for, what holds for the others is in the sentence and under silos; none: no guarantee; unknown: what would tell "
        "is missing or damaged, no epsilon is stated; nothing-released: no data was used yet."
    )
    sentence: str
    epsilon: Real = Field(
        description="Largest over the silos; Infinity where nothing is guaranteed."
    )
    delta: float
    unit: Literal["example", "client"]
    relation: Literal["zero-out", "add-or-remove-one", "replace-one"]
    adversary: str = Field(description="outsider, sum-only, sum-only:m, server, or colluding:m.")
    accountant: str
    bound: bool = Field(description="Whether epsilon is a proven upper bound.")
    reasons: list[str]
    others: dict[str, Real] = Field(description="Adversary to the largest epsilon over the silos.")


@dataclass(frozen=True)
class Headline:
    """The statement of the report.

    Attributes:
        level: "guaranteed"; "not-as-asked" (at another epsilon than the settings name, on purpose);
            "conditional" (seeded noise); "if-fixed" (only if what was released was fixed beforehand: no budget
            was held over it); "sum-only" (against a server that learns sums over the silos alone, which rests on
            cryptography); "outsider-only" (none against the server); "some-silos" (none for silos whose ledger
            nothing vouches for); "none"; "unknown" (the record is lost, no epsilon can be stated); "nothing-released"
            (no data was used yet).
        sentence: the statement in words.
        epsilon: the largest over the silos against ``adversary``; infinite if there is none.
        reasons: why there is no guarantee, or on what it depends.
        others: adversary -> the largest epsilon over the silos, for every adversary in the ledger.
    """

    level: Level
    sentence: str
    epsilon: float
    delta: float
    unit: str
    relation: str
    adversary: str
    accountant: str
    bound: bool
    reasons: tuple[str, ...] = ()
    others: Mapping[str, float] = field(default_factory=dict)


def headline(
    silos: Sequence[SiloAccounting],
    *,
    unit: Unit,
    relation: Relation,
    delta: float,
    seeded: bool,
    defects: Sequence[str] = (),
    lost: Sequence[str] = (),
    released: bool = True,
    unproven: str | None = None,
    assumed: SumAssumption | None = None,
) -> Headline:
    """Choose and word the statement.

    Args:
        defects: why the ledger cannot be relied on, or the mode that has no guarantee; each is a
            reason for no guarantee at all.
        lost: why no epsilon can be stated at all: what tells it is missing.
        released: whether anything was released yet.
        assumed: what the statement rests on where noise adds up in sums over the silos.
        unproven: why the settings' epsilon is none that is guaranteed; goes before the statement.
    """
    subject = _SUBJECTS[unit]

    def make(
        level: Level, sentence: str, figure: Figure, adversary: str, reasons: Sequence[str]
    ) -> Headline:
        if unproven is not None:
            sentence, reasons = f"{unproven} {sentence}", [unproven, *reasons]
            level = "not-as-asked" if level == "guaranteed" else level
        return Headline(
            level=level,
            sentence=sentence,
            epsilon=figure.epsilon_or_inf,
            delta=delta,
            unit=unit.value,
            relation=relation.value,
            adversary=adversary,
            accountant=figure.accountant,
            bound=figure.bound,
            reasons=tuple(reasons),
            others={str(name): figure.epsilon_or_inf for name, figure in worst.items()},
        )

    names = dict.fromkeys([OUTSIDER, SERVER, *(a for silo in silos for a in silo.figures)])
    colluding = [Adversary(name) for name in names if Adversary(name).strength > SERVER.strength]
    worst = {Adversary(name): _worst(silos, name) for name in names}
    reasons = {Adversary(name): _reasons(silos, name) for name in names}
    none = Figure("none", math.inf, True)
    if lost:
        sentence = (
            f"NO GUARANTEE: no epsilon can be stated. {_listed(lost)} Whatever privacy was meant for "
            f"{subject} (unit: {unit.value}), nothing here proves it, against anybody."
        )
        worst = dict.fromkeys(worst, none)
        return make("unknown", sentence, none, str(SERVER), lost)
    missing = list(dict.fromkeys([*defects, *(reasons[OUTSIDER] if released else [])]))
    if missing or (released and math.isinf(worst[OUTSIDER].epsilon_or_inf)):
        missing = missing or [worst[OUTSIDER].note]
        sentence = (
            f"NO GUARANTEE: epsilon is infinite. No privacy is guaranteed to {subject}, against "
            f"anybody (unit: {unit.value}; relation: {relation.value}; any delta; no accountant can "
            f"bound it). {_listed(missing)}"
        )
        return make("none", sentence, none, str(SERVER), missing)
    if not released:
        sentence = (
            f"NOTHING RELEASED YET: no use of {subject} is in the ledger, and this run has "
            "finished no round; there is nothing to guarantee."
        )
        return make("nothing-released", sentence, Figure("none", 0.0, True), str(SERVER), [])
    server_safe = math.isfinite(worst[SERVER].epsilon_or_inf)
    adversary = SERVER if server_safe else OUTSIDER
    summed = (
        assumed is not None
        and assumed.adversary in worst
        and math.isfinite(worst[assumed.adversary].epsilon_or_inf)
    )
    if assumed is not None and summed:
        adversary = assumed.adversary
    statement = _statement(worst[adversary], adversary, unit, relation, delta, len(silos))
    conditions = _conditions(silos, adversary)
    if more := [c for c in conditions if c != worst[adversary].note]:
        statement += " CONDITION of other silos: " + "; ".join(c.rstrip(".") for c in more) + "."
    if worst[adversary].accountant == "filter":
        fixed = max(silo.headline(adversary).epsilon_or_inf for silo in silos)
        statement += f" Had all runs been fixed beforehand: epsilon = {shown(fixed)} (PLD)."
    if assumed is not None and summed:
        stronger = [a for a in map(Adversary, worst) if a.strength > adversary.strength]
        in_sums = [a for a in stronger if a.sees_sums]
        alone = [a for a in stronger if not a.sees_sums]
        found = [_collusion(worst[a], a, worst[adversary], reasons[a]) for a in in_sums]
        found += ["Without the assumption, by a silo's own share of the noise alone:"]
        found += [
            _collusion(worst[a], a, worst[SERVER], reasons[a])
            for a in alone
            if a == SERVER or worst[a] != worst[SERVER]
        ]
        statement = " ".join([assumed.text, statement, *found])
    elif server_safe:
        found = [_collusion(worst[a], a, worst[SERVER], reasons[a]) for a in colluding]
        statement = " ".join([statement, *found])
    if not server_safe and not summed:
        sentence = (
            "NO GUARANTEE against the server: epsilon is infinite. "
            f"{_listed(reasons[SERVER] or [worst[SERVER].note])} "
            f"Guaranteed only if the server is trusted: {statement}"
        )
        if seeded:
            sentence += f" {SEEDED}."
        why = [*reasons[SERVER], *([SEEDED] if seeded else []), *conditions]
        return make("outsider-only", sentence, worst[adversary], str(adversary), why)
    if seeded:
        sentence = f"Guaranteed ONLY against those who do not know the seed: {statement} {SEEDED}."
        return make(
            "conditional", sentence, worst[adversary], str(adversary), [SEEDED, *conditions]
        )
    if conditions:
        sentence = f"Guaranteed ONLY UNDER A CONDITION: {statement}"
        return make("if-fixed", sentence, worst[adversary], str(adversary), conditions)
    if summed:
        return make("sum-only", f"Guaranteed: {statement}", worst[adversary], str(adversary), [])
    return make("guaranteed", f"Guaranteed: {statement}", worst[adversary], str(adversary), [])


def shown(epsilon: float | None) -> str:
    """Return epsilon as printed: rounded up to 3 decimals, so that the printed number holds as well."""
    if epsilon is None:
        return "n/a"
    return round_up(epsilon, 3)


_WRITTEN_OUT = 1e12


def round_up(value: float, decimals: int) -> str:
    """Return a number printed with so many decimals, never below its value (as Python writes it).

    Of a larger one than anybody reads the first four digits and the power of ten are printed.
    """
    if math.isinf(value):
        return "∞"
    if value >= _WRITTEN_OUT:
        return f"{Context(prec=4, rounding=ROUND_CEILING).create_decimal(repr(float(value))):.3e}"
    step = Decimal(1).scaleb(-decimals)
    return str(Decimal(repr(float(value))).quantize(step, rounding=ROUND_CEILING))


def accountant_title(name: str) -> str:
    """Return an accountant's name as written in text."""
    return _NAMES.get(name, name)


def _statement(
    figure: Figure, adversary: Adversary, unit: Unit, relation: Relation, delta: float, silos: int
) -> str:
    subject = _SUBJECTS[unit]
    whom = adversary.describe()
    if adversary == SERVER or adversary.sees_sums:
        whom += ", and so against an outsider who sees the released model"
    among = f" (the largest of {silos} silos)" if silos > 1 else ""
    return (
        f"epsilon = {shown(figure.epsilon)}{among} at delta = {delta:g} for {subject} "
        f"(neighbouring relation {relation.value}: {relation.describe(unit, 'silo')}), "
        f"against {whom}; {_by(figure)}."
    )


def _by(figure: Figure) -> str:
    """Return the accountant or proof of the figure, and its condition."""
    kind = "an upper bound" if figure.bound else "AN APPROXIMATION, NO BOUND"
    if figure.accountant in ("filter", "plan"):
        return f"{figure.note.rstrip('.')}, {kind}"
    by = f"by the {accountant_title(figure.accountant)} accountant, {kind}"
    return f"{by}; CONDITION: {figure.note.rstrip('.')}" if figure.note else by


def _collusion(figure: Figure, adversary: Adversary, server: Figure, reasons: Sequence[str]) -> str:
    """Return one sentence about an adversary that sees more than the server."""
    whom = adversary.describe()
    if math.isinf(figure.epsilon_or_inf):
        return f"NO GUARANTEE against {whom}. {_listed(reasons or [figure.note])}"
    if figure == server and adversary != SERVER:
        return f"The same epsilon holds against {whom}."
    return f"Against {whom}: epsilon = {shown(figure.epsilon)}, {_by(figure)}."


def _worst(silos: Sequence[SiloAccounting], adversary: str) -> Figure:
    figures = [silo.stated(adversary) for silo in silos]
    if not figures:
        return Figure("none", math.inf, True, note="no silo is in the ledger")
    return max(figures, key=lambda figure: figure.epsilon_or_inf)


def _conditions(silos: Sequence[SiloAccounting], adversary: str) -> list[str]:
    """Return the conditions under which alone the silos' finite figures hold; see :mod:`fedllm.report.held`."""
    held = [
        silo.held[adversary]
        for silo in silos
        if adversary in silo.held and math.isfinite(silo.stated(adversary).epsilon_or_inf)
    ]
    return list(dict.fromkeys(figure.note for figure in held if figure.epsilon is None))


def _reasons(silos: Sequence[SiloAccounting], adversary: str) -> list[str]:
    by_reason: Mapping[str, list[str]] = {}
    by_reason = {}
    for silo in silos:
        for reason in silo.reasons[adversary]:
            by_reason.setdefault(reason, []).append(silo.name)
    return [
        reason if len(names) == len(silos) else f"{reason} (silos: {', '.join(names)})"
        for reason, names in by_reason.items()
    ]


def _listed(reasons: Sequence[str]) -> str:
    found = [reason.rstrip(".") for reason in reasons if reason]
    if not found:
        return ""
    if len(found) == 1:
        return f"Reason: {found[0]}."
    return "Reasons: " + " ".join(f"({i}) {reason}." for i, reason in enumerate(found, 1))
