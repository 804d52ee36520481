"""Families of scalar noise, and the search for the best of them."""

from __future__ import annotations

from ..mutation import Mutation

_FAMILIES = "tests/privacy/test_privacy_noise_families.py"
_NOISE = "tests/privacy/test_privacy_scalar_noise.py"
_SAMPLES = f"{_NOISE}::test_samples_have_the_distribution_that_is_accounted"
_FOLDER = "privacy/scalar_noise/"

MUTATIONS = (
    Mutation(
        "exponential-power-sampled-with-the-wrong-gamma",
        f"{_FOLDER}exponential_power.py",
        "standard_gamma(1 + 1 / self.beta, shape, source)",
        "standard_gamma(1 / self.beta, shape, source)",
        "The noise that is drawn is smaller than the noise that is accounted.",
        (_SAMPLES,),
    ),
    Mutation(
        "gamma-numbers-without-the-boost",
        f"{_FOLDER}gamma.py",
        "return standard_gamma(k + 1, shape, source) * boost",
        "return standard_gamma(k + 1, shape, source)",
        "Gamma numbers of a shape below 1 have another distribution than the accounted one.",
        (f"{_FAMILIES}::test_gamma_numbers_against_scipy",),
    ),
    Mutation(
        "staircase-steps-rounded-to-nearest",
        f"{_FOLDER}staircase.py",
        "return np.floor(squares / (2 * self.epsilon))",
        "return np.rint(squares / (2 * self.epsilon))",
        "Steps of the sampled staircase are not those of the accounted one.",
        (_SAMPLES,),
    ),
    Mutation(
        "staircase-top-step-of-both-widths",
        f"{_FOLDER}staircase.py",
        "area = 2 * self.period * (self.gamma + b * (1 - self.gamma))",
        "area = 2 * self.period * (self.gamma + (1 - self.gamma))",
        "The staircase's density does not sum to 1: its deltas are too small.",
        (f"{_FAMILIES}::test_staircase_against_sums_over_its_steps", _NOISE),
    ),
)
