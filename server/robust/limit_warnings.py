"""Warn before a run of what the limits of honest updates (:mod:`server.robust.update_law`) leave open."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from fedllm.budget.schedule import sampling_rate
from fedllm.settings.experiment import Settings
from fedllm.training.mechanism import make_mechanism
from fedllm.training.sum_share.mechanism import SumShare
from server.robust.update_law import is_unknown, why_no_law

_SHOWN = 5  # names in a warning


def _expected_noise(settings: Settings, examples: int | None) -> float | None:
    """Estimate, up to a factor, the noise per divisor of one silo's calibration; None if unknown.

    Noise grows at most about as the sampling rate, and as one over epsilon: no bound, for a warning alone.
    """
    privacy, client = settings.privacy, settings.client
    targets = [float(t) for t in (privacy.epsilon, privacy.run_epsilon) if t is not None]
    if not targets:
        return None
    if privacy.unit == "client":
        return 1 / min(targets)
    if client.sampling_rate is None and not examples:
        return None
    return sampling_rate(settings, examples or 1) / (
        min(targets) * float(settings.client.batch_size or 1)
    )


def _loud_silos(settings: Settings, sizes: Mapping[str, int | None]) -> list[str]:
    """Return silos whose calibrated noise is expected above ``server.max_noise_ratio`` times the median silo's."""
    privacy = settings.privacy
    if privacy.mode != "dp" or privacy.noise_by != "client" or privacy.noise_multiplier is not None:
        return []
    each = {name: _expected_noise(settings.for_silo(name), size) for name, size in sizes.items()}
    known = {name: noise for name, noise in each.items() if noise is not None}
    if not known:
        return []
    most = settings.server.max_noise_ratio * statistics.median_high(known.values())
    return sorted(name for name, noise in known.items() if noise > most)


def limit_warnings(settings: Settings, sizes: Mapping[str, int | None]) -> list[str]:
    """Return a run's warnings about its limits: missing laws, silos that may be refused for honest noise, and
    aggregation that cannot drop any silo.

    Args:
        sizes: public number of examples of each silo, None where private.
    """
    mechanism = make_mechanism(settings, sampling_rate=1.0, noise_multiplier=1.0)
    if isinstance(mechanism, SumShare):
        return []  # nobody sees a single update; the sum has a law of its own
    reasons = {why_no_law(settings.for_silo(name), size) for name, size in sizes.items()}
    if is_unknown(mechanism):
        reasons = {"its mechanism is one of another package"}
    found = [
        f"an honest update has no known bound on its norm ({reason}): the limit is server.max_update_norm="
        f"{settings.server.max_update_norm:g}"
        for reason in sorted(reason for reason in reasons if reason is not None)
    ]
    if loud := _loud_silos(settings, sizes):
        shown = ", ".join(loud[:_SHOWN]) + (
            f" and {len(loud) - _SHOWN} more" * (len(loud) > _SHOWN)
        )
        found.append(
            f"{shown}: the noise that its data and target ask for is expected above server.max_noise_ratio="
            f"{settings.server.max_noise_ratio:g} times the median silo's, and then every update of it is refused: "
            "raise server.max_noise_ratio or set privacy.noise_multiplier"
        )
    how, chosen = settings.server.aggregation, settings.server.fraction * len(sizes)
    if how in ("median", "trimmed-mean") and chosen < 3:
        found.append(
            f"server.aggregation={how} is the mean with fewer than 3 silos in a round, {chosen:g} are expected"
        )
    return found
