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

    def having(**changes: object) -> Settings:
        changed = settings.evaluation.model_copy(update=changes)
        return settings.model_copy(update={"evaluation": changed})

    off, privacy = having(clients="off"), settings.privacy
    possible = (
        evaluation_source(settings.data, settings.public) == "none"
        and settings.task.facts.accuracy
        and settings.data.sizes == "public"
        and settings.model.access == "white-box"
        and settings.client.max_batch is None
        and (privacy.unit, privacy.noise_by, privacy.ledger) == ("example", "client", None)
    )
    if not possible:
        return off
    share = settings.evaluation.clients_holdout or HELD_OUT
    chosen = having(clients="private", clients_holdout=share)
    counts = make_count_release(chosen)
    whole = having(clients="off", clients_holdout=0.0)
    sizes = {silo.name: len(silo.train) for silo in load_federation(whole).silos}
    if not counts.private or min(sizes.values()) < FEWEST:
        return off
    if noise_error([share * size for size in sizes.values()], counts.sigma) > MOST_ERROR:
        return off
    for name in sizes:
        own = chosen.for_silo(name)
        if own.privacy.noise_multiplier is not None or own.privacy.epsilon is None:
            return off  # noise by hand leaves no known room
        mu = math.sqrt(planned_evaluations(own).total()) / counts.sigma
        if not affordable(mu, own.privacy.epsilon, own.privacy.delta):
            return off
    try:
        load_federation(chosen)
    except DataError:
        return off
    return chosen


def affordable(mu: float, epsilon: float, delta: float) -> bool:
    """Return True if releases that are mu-GDP take at most :data:`MOST_COST` of a target, as squared mu."""
    return gaussian_epsilon(mu / math.sqrt(MOST_COST), delta) <= epsilon


def noise_error(held_out: Sequence[float], sigma: float) -> float:
    """Return the standard error of an accuracy that the noise of both counts gives, at an accuracy of one half or more.

    The ratio of two sums, correct + A over count + B, moves by (A - accuracy B) / count to first order; A and B are
    sums of one independent noise a silo.

    Args:
        held_out: number of held-out examples of each silo.
        sigma: standard deviation of the noise of one count.
    """
    return sigma * math.sqrt(2 * len(held_out)) / sum(held_out)
