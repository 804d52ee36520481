"""LMO noise that meets ``privacy.epsilon`` by another figure than the proven one: for comparisons, labelled.

``privacy.calibrate_to`` names the figure. Whatever it is, the ledger counts the bound that is proven for
vectors, and the report's first line says that epsilon is not guaranteed (:func:`unproven`).
"""

from __future__ import annotations

from fedllm.embedded import cache_folder
from fedllm.mechanism import multiplier_of, noise_of
from fedllm.settings import Settings
from privacy.accountants.vector_loss import limit_mu
from privacy.lmo_published import published_scale
from privacy.scalar_noise.lmo import LmoNoise

_MARGIN = 1e-8  # as of the proven bound, see fedllm.mechanism


def claimed_multiplier(settings: Settings, epsilon: float, rate: float, steps: int) -> float:
    """The noise multiplier of the least noise whose published figure for the training is epsilon.

    Args:
        rate: probability of each record to be in a step.
        steps: all steps of the run.

    Raises:
        ValueError: ``privacy.noise`` is no LMO noise, or no amount of it is claimed to cost so little.
    """
    noise = noise_of(settings)
    if not isinstance(noise, LmoNoise):
        raise ValueError(
            "Expected parameters of LMO-DP in privacy.noise for privacy.calibrate_to=claimed (there is no "
            f"claim for other noise), got {'none' if noise is None else noise.family}"
        )
    scale = published_scale(
        noise,
        epsilon=epsilon,
        delta=settings.privacy.delta,
        rate=rate,
        steps=steps,
        cache_dir=cache_folder() / "calibration",
    )
    return multiplier_of(noise, scale)


def true_multiplier(settings: Settings, gaussian: float) -> float:
    """The noise multiplier with which a change that is spread over many coordinates costs what it costs
    with Gaussian noise of multiplier ``gaussian``: mu = sqrt(I) of the noise is 1 / ``gaussian``."""
    noise = noise_of(settings)
    if noise is None:
        raise ValueError("Expected privacy.mechanism=lmo for privacy.calibrate_to=true")
    return multiplier_of(noise, gaussian * limit_mu(noise) * (1 + _MARGIN))


def unproven(settings: Settings) -> str | None:
    """What the report says before its statement, where epsilon is no bound; else None."""
    privacy = settings.privacy
    if privacy.mode == "none" or privacy.calibrate_to == "proven":
        return None
    targets = {privacy.epsilon, *(s.epsilon for s in privacy.silos.values() if s.epsilon)}
    named = " and ".join(f"{value:g}" for value in sorted(v for v in targets if v is not None))
    why = {
        "claimed": "that is what LMO-DP's published accounting claims of this noise, at orders where its "
        "formula does not hold, and for one number where vectors are released",
        "true": "that is what a change costs that is spread over many coordinates, and nothing proves that no "
        "other change costs more",
    }[privacy.calibrate_to]
    return (
        f"NO GUARANTEE at epsilon = {named}, to which the noise was calibrated "
        f"(privacy.calibrate_to = {privacy.calibrate_to}): {why}."
    )
