"""Families of scalar noise, and the search for the best of them."""

from __future__ import annotations

from ..mutation import Mutation

_FAMILIES = "tests/privacy/mechanisms/test_noise_families.py"
_NOISE = "tests/privacy/mechanisms/test_scalar_noise.py"
_SAMPLES = f"{_NOISE}::test_samples_have_the_distribution_that_is_accounted"
_SEARCH = "tests/privacy/noise_search/test_noise_search.py"
_FOLDER = "privacy/mechanisms/scalar_noise/"

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
    Mutation(
        "search-accounts-one-step",
        "privacy/noise_search/search.py",
        "scalar_noise(noise, question.steps, question.sampling_rate): 1",
        "scalar_noise(noise, 1, question.sampling_rate): 1",
        "The noise that is found keeps one number to the target, not all of them.",
        (_SEARCH,),
    ),
    Mutation(
        "search-offers-noise-without-a-guarantee",
        "privacy/noise_search/search.py",
        "if c and not c.floor]",
        "if c]",
        "For vectors, noise that is only known to be needed is offered as if it were enough.",
        (f"{_SEARCH}::test_what_may_need_less_but_has_no_guarantee_is_named_and_not_offered",),
    ),
    Mutation(
        "laplace-on-vectors-proven-as-on-numbers",
        "privacy/noise_search/families.py",
        "StaircaseNoise(dimension**0.5 / amount, 0.5)",
        "StaircaseNoise(1 / amount, 0.5)",
        "The L1 norm of a change of L2 norm 1 is taken as 1: the guarantee for vectors is false.",
        (
            f"{_SEARCH}::test_for_few_entries_laplace_wins_with_a_proof_and_no_floor_is_ever_offered",
        ),
    ),
    Mutation(
        "spread-change-too-small",
        "privacy/noise_search/vectors.py",
        "shift = 1 / math.sqrt(entries)",
        "shift = 1 / entries",
        "A change of L1 norm 1 passes for one of L2 norm 1: vectors look as cheap as numbers.",
        (f"{_SEARCH}::test_a_spread_change_costs_gaussian_noise_the_same",),
    ),
    Mutation(
        "sampled-vector-under-the-wrong-member",
        "privacy/noise_search/vectors.py",
        "second = first[::-1]",
        "second = first",
        "The sampled loss of a vector is weighted by the wrong member of the pair.",
        (f"{_SEARCH}::test_a_spread_change_costs_gaussian_noise_the_same",),
    ),
    Mutation(
        "another-question-answered-from-the-cache",
        "privacy/noise_search/question.py",
        'return {"format": SEARCH_FORMAT, **self.to_dict(), **more}',
        'return {"format": SEARCH_FORMAT, "epsilon": self.epsilon, **more}',
        "An answer for fewer steps or a larger delta is given: the noise is too small.",
        (
            f"{_SEARCH}::test_an_answer_is_kept_by_family_and_whatever_else_lies_there_is_not_believed",
        ),
    ),
)
