"""Check a run's plan once its silos are known, before any of them trains."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence

from dp_accounting.dp_event import DpEvent

from fedllm.budget.limits import bounds_of
from fedllm.budget.schedule import planned_evaluation_rounds
from fedllm.data.coupling import AS_DIVIDED, couplings
from fedllm.flatness.duplicate import RAW_DUPLICATE
from fedllm.settings.experiment import Settings
from fedllm.settings.privacy import PrivacySettings
from fedllm.silo.evaluation import make_count_release
from fedllm.training.perturbation import UNBOUNDED_ASCENT
from privacy.events.multiset import is_private

_SHOWN = 20
_MISMATCH = 2.0


def for_silos(settings: Settings, names: Sequence[str]) -> Settings:
    """Return the settings of a run with these silos: checked, and ``privacy.colluding`` as numbers.

    Args:
        names: all silos of the run.

    Raises:
        ValueError: ``privacy.silos`` names none of these silos, ``privacy.colluding`` holds a number
            that is not below theirs, or a silo's evaluations alone cost more than its target.
    """
    privacy = settings.privacy
    for name in sorted(set(privacy.silos) - set(names)):
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        shown = ", ".join(sorted(names)[:_SHOWN])
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise ValueError(
            f"Expected a silo of this run in privacy.silos ({shown}{more}), got {name!r}{hint}"
        )
    others = len(names) - 1
    colluding = colluding_numbers(privacy, len(names))
    for m in colluding:
        if m > others:
            raise ValueError(
                f"Expected numbers below {len(names)}, the number of silos, in privacy.colluding, "
                f"got {m}"
            )
    for name in sorted(privacy.silos):
        check_evaluations(settings.for_silo(name), name)
    for name in sorted(set(names) - set(privacy.silos))[:1]:  # all others have the same targets
        check_evaluations(settings.for_silo(name), name)
    changed = privacy.model_copy(update={"colluding": colluding})
    return settings.model_copy(update={"privacy": changed})


def colluding_numbers(privacy: PrivacySettings, silos: int) -> tuple[int, ...]:
    """Return the numbers of colluding silos that ``privacy.colluding`` names in a run with so many silos."""
    if privacy.colluding == "others":
        return (silos - 1,) if silos > 1 else ()
    return tuple(sorted(set(privacy.colluding)))


def warnings(settings: Settings, sizes: Mapping[str, int | None]) -> list[str]:
    """Return a sentence for each setting that is allowed but probably unintended.

    Args:
        sizes: number of training examples of each silo, None where it is not public.
    """
    if settings.privacy.mode == "none":
        return []
    found: dict[str, list[str]] = {}
    if settings.teacher.kind == "nonprivate":
        found[f"NO GUARANTEE: {RAW_DUPLICATE}. Every epsilon is infinite"] = sorted(sizes)
    if settings.awp.form == "batch" and settings.privacy.unit == "example":
        found[f"NO GUARANTEE: {UNBOUNDED_ASCENT}. Every epsilon is infinite"] = sorted(sizes)
    for setting, why in couplings(settings.data).items():
        found[f"{setting}: {why}. {AS_DIVIDED} (use data.partition=natural or hash)"] = sorted(
            sizes
        )
    for name, examples in sorted(sizes.items()):
        own = settings.for_silo(name)
        for what in _silo_warnings(own, len(sizes), examples):
            found.setdefault(what, []).append(name)
    return [f"{_named(names)}: {what}" for what, names in found.items()]


def _silo_warnings(own: Settings, silos: int, examples: int | None) -> list[str]:
    privacy, client = own.privacy, own.client
    found = []
    both = privacy.epsilon is not None and privacy.run_epsilon is not None
    if both and float(privacy.run_epsilon or 0) > float(privacy.epsilon or 0):
        found.append(
            f"privacy.run_epsilon={privacy.run_epsilon:g} never decides, since privacy.epsilon="
            f"{privacy.epsilon:g} bounds all runs together"
        )
    by_example = privacy.unit == "example"
    records = examples if by_example else silos
    if records and privacy.delta > 1 / records:
        found.append(
            f"privacy.delta={privacy.delta:g} is above 1/{records} (one over the number of "
            f"{'examples' if by_example else 'silos'}): such a delta would allow to publish a "
            f"whole {privacy.unit} now and then"
        )
    if not examples or not client.batch_size:
        return found
    if client.sampling_rate is None:
        if client.batch_size > examples:
            found.append(
                f"batch_size={client.batch_size} is above the silo's {examples} examples: each is "
                f"in every step (no amplification by sampling), and sums are divided by "
                f"{client.batch_size} all the same"
            )
        return found
    expected = client.sampling_rate * examples
    if not 1 / _MISMATCH <= expected / client.batch_size <= _MISMATCH:
        found.append(
            f"sampling_rate={client.sampling_rate:g} draws {expected:.3g} of {examples} examples a "
            f"step on average, sums are divided by batch_size={client.batch_size}: the silo's "
            f"updates are scaled by {expected / client.batch_size:.3g}"
        )
    return found


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more silos"


def planned_evaluations(settings: Settings) -> Counter[DpEvent]:
    """All evaluation events of a run that have a guarantee: what calibration leaves room for."""
    rounds = planned_evaluation_rounds(settings)
    events = make_count_release(settings).events().items()
    return Counter({event: count * rounds for event, count in events if is_private(event)})


def check_evaluations(settings: Settings, party: str) -> None:
    """Refuse a target that the silo's own evaluations alone exceed, whatever the training's noise.

    Raises:
        ValueError: it does; the message names the settings.
    """
    planned = planned_evaluations(settings)
    for bound in bounds_of(settings) if planned else ():
        cost = bound.budget.cost(planned)
        if cost >= bound.budget.epsilon:
            raise ValueError(
                f"Expected {bound.setting} of the silo {party} to be above what its "
                f"{sum(planned.values())} private evaluations cost alone, epsilon={cost:.6g} at "
                f"delta={bound.budget.delta:g}; got {bound.setting}={bound.budget.epsilon:g} "
                "(raise evaluation.clients_noise or evaluation.every, or set "
                "evaluation.clients=off)"
            )
