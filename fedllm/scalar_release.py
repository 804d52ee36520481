"""The noise on the numbers that silos release beside training: chosen once, by the server, for the plan.

The numbers are the two counts of each private evaluation by a silo. (Quantile counts of adaptive clipping share one
Gaussian mechanism with the sum beside them, exactly; scores of layers are vectors; votes are pure choices; and the
number of a silo's examples is either public or never sent.) The choice is in the settings that travel with every task,
so that silos, ledger and the server's view have the same.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from typing import Any

from fedllm.embedded import cache_folder
from fedllm.schedule import planned_evaluation_rounds
from fedllm.settings import Settings
from fedllm.settings_zeroth_order import noises_numbers
from fedllm.silo_bounds import evaluation_sigma, planned_evaluations
from privacy.calibration import calibrate_noise_multiplier
from privacy.events import dp_sgd
from privacy.scalar_choice import choose_noise


def with_scalar_noise(
    settings: Settings, sizes: Mapping[str, int | None]
) -> tuple[Settings, dict[str, Any] | None]:
    """The settings with the noise of the silos' evaluations, and what was compared; None where nothing was.

    The plan is that of a silo of median size: which noise is chosen depends on it, what is guaranteed does not.

    Args:
        sizes: number of training examples of each silo, where public.

    Raises:
        ValueError: a family is named that ``privacy.accountant`` cannot account for.
    """
    privacy, evaluation = settings.privacy, settings.evaluation
    if evaluation.clients != "private" or privacy.mode == "none" or evaluation.clients_scalar:
        return settings, None
    family = evaluation.clients_family
    if privacy.accountant != "pld":
        if family not in ("auto", "discrete-gaussian"):
            raise ValueError(
                f"Expected privacy.accountant=pld for evaluation.clients_family={family}, got "
                f"privacy.accountant={privacy.accountant}"
            )
        return settings, None
    rate = planned_rate(settings, sizes)
    if rate is None:
        return settings, None
    steps = planned_rounds(settings) * settings.client.local_steps
    multiplier = _multiplier(settings, rate, steps)
    if multiplier is None:
        return settings, None
    choice = choose_noise(
        sigma=evaluation_sigma(settings),
        count=2 * planned_evaluation_rounds(settings),
        beside={dp_sgd(rate, multiplier, steps): 1},
        delta=privacy.delta,
        family=family,
        cache_dir=cache_folder() / "noise",
    )
    told = {
        "family": "discrete-gaussian" if choice.noise is None else choice.noise.family,
        "noise": None if choice.noise is None else choice.noise.to_dict(),
        "sigma": choice.sigma,
        "ratios": choice.ratios,
    }
    return with_choice(settings, told), told


def planned_rate(settings: Settings, sizes: Mapping[str, int | None]) -> float | None:
    """Probability of an example to be in a local step at a silo of median size; None where no size is public.

    Args:
        sizes: number of training examples of each silo, where public.
    """
    if settings.client.sampling_rate is not None:
        return settings.client.sampling_rate
    known = [size for size in sizes.values() if size]
    if not known:
        return None
    return min(1.0, float(settings.client.batch_size or 1) / statistics.median(known))


def planned_rounds(settings: Settings) -> int:
    """Rounds in which a silo is planned to count."""
    rounds = settings.server.rounds
    if settings.server.sampling == "poisson":
        return rounds
    return max(1, math.ceil(rounds * settings.server.fraction))


def with_choice(settings: Settings, told: Mapping[str, Any]) -> Settings:
    """The settings with a choice that :func:`with_scalar_noise` told of, such as at a resume."""
    if told["noise"] is None:
        return settings
    text = json.dumps(told["noise"], sort_keys=True)
    changed = settings.evaluation.model_copy(update={"clients_scalar": text})
    return settings.model_copy(update={"evaluation": changed})


def _multiplier(settings: Settings, rate: float, steps: int) -> float | None:
    """The training's noise multiplier in the plan; None where none reaches the target, which is told later."""
    privacy = settings.privacy
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    targets = [value for value in (privacy.epsilon, privacy.run_epsilon) if value is not None]
    if not targets or privacy.mechanism != "gaussian" or noises_numbers(settings):
        return None
    try:
        return calibrate_noise_multiplier(
            epsilon=min(targets),
            delta=privacy.delta,
            sampling_rate=rate,
            steps=steps,
            other_events=planned_evaluations(settings),
            cache_dir=cache_folder() / "calibration",
        ).noise_multiplier
    except ValueError:
        return None
