"""The first line of the report: what is guaranteed, to whom, against whom; or that nothing is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedllm.report.accounting import ACCOUNTANTS, Figure, SiloAccounting
from privacy.vocabulary import OUTSIDER, SERVER, Adversary, Relation, Unit

Level = Literal["guaranteed", "conditional", "outsider-only", "none", "nothing-released"]
_NAMES = dict(ACCOUNTANTS)
_SUBJECTS = {Unit.EXAMPLE: "one training example", Unit.CLIENT: "all data of one silo"}
_RELATIONS = {
    Relation.ADD_OR_REMOVE_ONE: "adding or removing {subject}",
    Relation.REPLACE_ONE: "replacing {subject}",
}
SEEDED = (
    "The noise was drawn from a seed (privacy.randomness = seeded): whoever knows or guesses the "
    "seed can compute the noise and subtract it, and against them there is no protection"
)


@dataclass(frozen=True)
class Headline:
    """The statement of the report.

    Attributes:
        level: "guaranteed"; "conditional" (seeded noise); "outsider-only" (none against the
            server); "none"; "nothing-released" (no data was used yet).
        sentence: the statement in words.
        epsilon: the largest over the silos against ``adversary``; infinite where there is none.
        reasons: why there is no guarantee, or on what it depends.
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


def headline(
    silos: Sequence[SiloAccounting],
    *,
    unit: Unit,
    relation: Relation,
    delta: float,
    seeded: bool,
    defects: Sequence[str] = (),
    released: bool = True,
) -> Headline:
    """Choose and word the statement.

    Args:
        defects: why the ledger cannot be relied on, or the mode that has no guarantee; each is a
            reason for no guarantee at all.
        released: whether anything was released yet.
    """
    subject = _SUBJECTS[unit]

    def make(
        level: Level, sentence: str, figure: Figure, adversary: str, reasons: Sequence[str]
    ) -> Headline:
        epsilon = math.inf if figure.epsilon is None else figure.epsilon
        return Headline(
            level=level,
            sentence=sentence,
            epsilon=epsilon,
            delta=delta,
            unit=unit.value,
            relation=relation.value,
            adversary=adversary,
            accountant=figure.accountant,
            bound=figure.bound,
            reasons=tuple(reasons),
        )

    worst = {name: _worst(silos, name) for name in (OUTSIDER, SERVER)}
    reasons = {name: _reasons(silos, name) for name in (OUTSIDER, SERVER)}
    lost = list(dict.fromkeys([*defects, *(reasons[OUTSIDER] if released else [])]))
    if lost or (released and math.isinf(_epsilon(worst[OUTSIDER]))):
        lost = lost or [worst[OUTSIDER].note]
        sentence = (
            f"NO GUARANTEE: epsilon is infinite. No privacy is guaranteed to {subject}, against "
            f"anybody (unit: {unit.value}; relation: {relation.value}; any delta; no accountant can "
            f"bound it). {_listed(lost)}"
        )
        none = Figure("none", math.inf, True)
        return make("none", sentence, none, str(SERVER), lost)
    if not released:
        sentence = (
            f"NOTHING RELEASED YET: no use of {subject} is in the ledger, and this run has "
            "finished no round; there is nothing to guarantee."
        )
        return make("nothing-released", sentence, Figure("none", 0.0, True), str(SERVER), [])
    server_safe = math.isfinite(_epsilon(worst[SERVER]))
    adversary = SERVER if server_safe else OUTSIDER
    statement = _statement(worst[adversary], adversary, unit, relation, delta, len(silos))
    if not server_safe:
        sentence = (
            "NO GUARANTEE against the server: epsilon is infinite. "
            f"{_listed(reasons[SERVER] or [worst[SERVER].note])} "
            f"Guaranteed only if the server is trusted: {statement}"
        )
        if seeded:
            sentence += f" {SEEDED}."
        why = [*reasons[SERVER], *([SEEDED] if seeded else [])]
        return make("outsider-only", sentence, worst[adversary], str(adversary), why)
    if seeded:
        sentence = f"Guaranteed ONLY against those who do not know the seed: {statement} {SEEDED}."
        return make("conditional", sentence, worst[adversary], str(adversary), [SEEDED])
    return make("guaranteed", f"Guaranteed: {statement}", worst[adversary], str(adversary), [])


def shown(epsilon: float | None) -> str:
    """Epsilon as printed: rounded up to 3 decimals, so that the printed number holds as well."""
    if epsilon is None:
        return "n/a"
    if math.isinf(epsilon):
        return "∞"
    return f"{math.ceil(epsilon * 1000 - 1e-9) / 1000:.3f}"


def accountant_title(name: str) -> str:
    """An accountant's name as written in text."""
    return _NAMES.get(name, name)


def _statement(
    figure: Figure, adversary: Adversary, unit: Unit, relation: Relation, delta: float, silos: int
) -> str:
    subject = _SUBJECTS[unit]
    whom = adversary.describe()
    if adversary == SERVER:
        whom += ", and so against an outsider who sees the released model"
    among = f" (the largest of {silos} silos)" if silos > 1 else ""
    kind = "an upper bound" if figure.bound else "AN APPROXIMATION, NO BOUND"
    return (
        f"epsilon = {shown(figure.epsilon)}{among} at delta = {delta:g} for {subject} "
        f"(neighbouring relation {relation.value}: {_RELATIONS[relation].format(subject=subject)}), "
        f"against {whom}; by the {accountant_title(figure.accountant)} accountant, {kind}."
    )


def _worst(silos: Sequence[SiloAccounting], adversary: str) -> Figure:
    figures = [silo.headline(adversary) for silo in silos]
    if not figures:
        return Figure("none", math.inf, True, note="no silo is in the ledger")
    return max(figures, key=_epsilon)


def _epsilon(figure: Figure) -> float:
    return math.inf if figure.epsilon is None else figure.epsilon


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
