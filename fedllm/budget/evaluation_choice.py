"""Decide ``evaluation.clients = "auto"`` before a simulation begins, from the silos' public sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedllm.budget.plan import planned_evaluations
from fedllm.data.formats.records import DataError
from fedllm.data.public import evaluation_source
from fedllm.data.silos import load_federation
from fedllm.settings.experiment import Settings
from fedllm.silo.evaluation import make_count_release
from privacy.accountants.gaussian_curve import gaussian_epsilon

HELD_OUT = 0.1
"""Share of a silo's examples that it holds out where the settings name none."""
FEWEST = 100
"""Least number of examples of a silo."""
MOST_ERROR = 0.05
"""Largest standard error of the accuracy, of the noise alone."""
MOST_COST = 0.1
"""Largest share of the budget, as squared GDP parameters."""


def decide_evaluation(settings: Settings) -> Settings:
    """Return the settings with ``evaluation.clients`` decided: ``private`` where it is sensible, else ``off``.

    Nothing is decided that the settings name themselves. The choice depends on settings and numbers of examples, which
    are public here (``data.sizes = "public"``), and on whether each silo's share is neither empty nor all.

    Raises:
        DataError: as :func:`fedllm.data.silos.load_federation`.
    """
    if settings.evaluation.clients != "auto":
        return settings
    off = _with(settings, clients="off")
    if not _possible(settings):
        return off
    share = settings.evaluation.clients_holdout or HELD_OUT
    chosen = _with(settings, clients="private", clients_holdout=share)
    whole = _with(settings, clients="off", clients_holdout=0.0)
    sizes = {silo.name: len(silo.train) for silo in load_federation(whole).silos}
    error = noise_error([share * size for size in sizes.values()], make_count_release(chosen).sigma)
    affordable = all(_affordable(chosen.for_silo(name)) for name in sizes)
    if min(sizes.values()) < FEWEST or error > MOST_ERROR or not affordable:
        return off
    try:
        load_federation(chosen)
    except DataError:
        return off
    return chosen


def noise_error(held_out: Sequence[float], sigma: float) -> float:
    """Return the standard error of an accuracy that the noise of both counts gives, at an accuracy of one half or more.

    The ratio of two sums, correct + A over count + B, moves by (A - accuracy B) / count to first order; A and B are
    sums of one independent noise a silo.

    Args:
        held_out: number of held-out examples of each silo.
        sigma: standard deviation of the noise of one count.
    """
    return sigma * math.sqrt(2 * len(held_out)) / sum(held_out)


def _possible(settings: Settings) -> bool:
    """Return True if the settings alone rule nothing out."""
    privacy = settings.privacy
    return (
        evaluation_source(settings) == "none"
        and settings.task.facts.accuracy
        and settings.data.sizes == "public"
        and settings.model.access == "white-box"
        and settings.client.max_batch is None
        and (privacy.mode, privacy.unit, privacy.noise_by) == ("dp", "example", "client")
        and privacy.ledger is None
        and privacy.noise_multiplier is None
    )


def _affordable(own: Settings) -> bool:
    """Return True if a silo's evaluations of the whole run cost at most :data:`MOST_COST` of its target."""
    privacy = own.privacy
    if privacy.epsilon is None or privacy.noise_multiplier is not None:
        return False
    sigma = make_count_release(own).sigma
    mu = math.sqrt(planned_evaluations(own).total()) / sigma
    return gaussian_epsilon(mu / math.sqrt(MOST_COST), privacy.delta) <= privacy.epsilon


def _with(settings: Settings, **changes: object) -> Settings:
    changed = settings.evaluation.model_copy(update=changes)
    return settings.model_copy(update={"evaluation": changed})
