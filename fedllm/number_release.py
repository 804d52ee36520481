"""How a black-box run releases a step's numbers: as one vector, or each with noise of its own; chosen once.

``zeroth_order.noise = "searched"`` lets the server compare both before the first round
(:mod:`privacy.number_choice`), from public numbers alone: target, delta, rate, steps, directions, and what the plan
releases beside. The choice is in ``numbers.json`` of the run folder before anything is trained, and in the settings that
travel with every task, so that silos, ledger, report and a resumed run have the same. It decides what is
useful; each silo's noise is calibrated, and its events recorded, for what was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedllm.embedded import cache_folder
from fedllm.scalar_release import planned_rate, planned_rounds
from fedllm.settings import Settings
from fedllm.settings_zeroth_order import chooses_noise, with_numbers
from fedllm.silo_bounds import planned_evaluations, planned_scores
from privacy.event_counts import is_private
from privacy.noise_question import SMALLEST_DELTA
from privacy.number_choice import LEAST_GAIN, choose_release


def with_number_noise(
    settings: Settings, sizes: Mapping[str, int | None]
) -> tuple[Settings, dict[str, Any] | None]:
    """The settings with the chosen noise, and what was compared; None where nothing is to be chosen.

    The plan is that of a silo of median size: which noise is chosen depends on it, what is guaranteed does not.

    Args:
        sizes: number of training examples of each silo, where public.
    """
    order, privacy = settings.zeroth_order, settings.privacy
    if not chooses_noise(settings) or order.number_noise is not None:
        return settings, None
    by_example = privacy.unit == "example"
    numbers = order.directions * (1 if by_example else settings.client.local_steps)
    rate = planned_rate(settings, sizes)
    why = _why_not(settings, numbers, rate)
    if why or rate is None:
        return settings, _vector(settings, why)
    targets = [value for value in (privacy.epsilon, privacy.run_epsilon) if value is not None]
    steps = planned_rounds(settings) * (settings.client.local_steps if by_example else 1)
    beside = planned_evaluations(settings) + planned_scores(settings, rate)
    question: dict[str, Any] = {
        "epsilon": min(targets),
        "delta": privacy.delta,
        "sampling_rate": rate if by_example else _share_of_silos(settings),
        "steps": steps,
        "numbers": numbers,
    }
    try:
        choice = choose_release(
            **question,
            beside={event: count for event, count in beside.items() if is_private(event)},
            cache_dir=cache_folder(),
        )
    except ValueError as error:  # a target out of reach is told by the silos' own calibration
        return settings, _vector(settings, str(error))
    family = None if choice.noise is None else choice.noise.family
    least = min(choice.ratios, key=lambda name: choice.ratios[name])
    told = {
        "released": "vector" if family is None else "numbers",
        "family": family or "gaussian",
        "noise": None if choice.noise is None else choice.noise.to_dict(),
        "clip": privacy.clip if family is None else privacy.clip / choice.clip_ratio,
        "reason": f"{least} noise on each number has {choice.ratios[least]:.3g} times the noise over signal of one "
        f"Gaussian vector, at worst; numbers are taken at {1 - LEAST_GAIN:g} or less",
        "vector_std": choice.vector_std,
        "stds": choice.stds,
        "ratios": choice.ratios,
        "question": question,
    }
    return with_numbers(settings, told), told


def _vector(settings: Settings, why: str) -> dict[str, Any]:
    return {
        "released": "vector",
        "family": "gaussian",
        "noise": None,
        "clip": settings.privacy.clip,
        "reason": why,
    }


def _why_not(settings: Settings, numbers: int, rate: float | None) -> str:
    """Why nothing is compared, and the vector stays; empty where it is."""
    privacy = settings.privacy
    if privacy.accountant != "pld":
        return f"privacy.accountant={privacy.accountant} knows no other noise on numbers"
    if privacy.noise_multiplier is not None:
        return "privacy.noise_multiplier is given, so there is no common target"
    if privacy.delta < SMALLEST_DELTA:
        return f"privacy.delta={privacy.delta:g} is too small for the search"
    if rate is None:
        return "the silos' sizes are not public, so the sampling rate of the plan is not known"
    if _share_of_silos(settings) < 1 and numbers > 1:
        return "several numbers of one Poisson sample of silos are no event that an accountant here represents"
    return ""


def _share_of_silos(settings: Settings) -> float:
    """Probability of a silo to be in a round, where the guarantee uses it."""
    sampled = settings.privacy.noise_by == "server" and settings.server.sampling == "poisson"
    return settings.server.fraction if sampled else 1.0
