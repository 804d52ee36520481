"""Scalar noise and its accounting; LMO noise, its sampler, and vectors with it."""

from __future__ import annotations

from ..mutation import Mutation

_LMO = "tests/privacy/mechanisms/test_lmo.py"
_FIT = f"{_LMO}::test_a_million_samples_have_the_accounted_distribution"
_SHARED = f"{_LMO}::test_each_coordinate_has_a_scale_of_its_own"
_LOSS = "tests/privacy/accountants/test_scalar_loss.py"
_INTEGRATION = f"{_LOSS}::test_delta_of_one_release_against_integration"
_REPLACE = f"{_LOSS}::test_replace_one_doubles_the_change_and_refuses_sampling"
_VECTORS = "tests/privacy/accountants/test_lmo_vectors.py"
_NEVER_ONE = f"{_VECTORS}::test_a_vectors_event_costs_what_its_bound_costs_and_never_the_figure_of_one_number"
_LABELLED = "tests/integration/test_lmo_runs.py::test_an_earlier_run_with_noise_for_a_figure_that_is_no_bound_is_labelled"
_EVERY_CHANGE = f"{_VECTORS}::test_every_change_of_one_number_is_below_the_bound"

MUTATIONS = (
    Mutation(
        "claimed-epsilon-without-a-label",
        "fedllm/report/guarantee.py",
        "        if unproven is not None:\n",
        "        if unproven is not None and not silos:\n",
        "An earlier run whose noise was calibrated to LMO-DP's claim does not say in its first line that its epsilon is "
        "not guaranteed.",
        (_LABELLED,),
    ),
    Mutation(
        "lmo-rate-for-a-scale",
        "privacy/mechanisms/scalar_noise/lmo.py",
        "total -= self.a3 / self.exponential_rate * np.log(",
        "total -= self.a3 * self.exponential_rate * np.log(",
        "The exponential term is drawn with its rate for a scale, 25 times too large at rate 5: the "
        "noise is smaller than what is accounted.",
        (_FIT,),
    ),
    Mutation(
        "lmo-one-scale-for-all-coordinates",
        "privacy/mechanisms/scalar_noise/lmo.py",
        "standard_laplace(shape, source) / self.sample_inverse_scale(shape, source)",
        "standard_laplace(shape, source) / float(self.sample_inverse_scale(1, source)[0])",
        "One random scale for the whole vector: an unlucky draw leaves all coordinates nearly bare.",
        (_SHARED, _FIT),
    ),
    Mutation(
        "scalar-loss-rounded-down",
        "privacy/accountants/losses/scalar.py",
        "upper = np.clip(np.where(unbounded, mass, upper), 0.0, mass)",
        "upper = np.zeros_like(mass)",
        "Each cell's loss is rounded down: epsilon is below the truth.",
        (_INTEGRATION,),
    ),
    Mutation(
        "scalar-loss-without-removal",
        "privacy/accountants/losses/scalar.py",
        "    return remove, _add(cells, rate, interval, optimistic)",
        "    added = _add(cells, rate, interval, optimistic)\n    return added, added",
        "Only the direction in which a record is added is accounted, the cheaper one under sampling.",
        (_INTEGRATION,),
    ),
    Mutation(
        "scalar-loss-without-addition",
        "privacy/accountants/losses/scalar.py",
        "    return remove, _add(cells, rate, interval, optimistic)",
        "    return (remove,)",
        "Only the direction in which a record is removed is accounted; elsewhere the other can cost "
        "more.",
        (_INTEGRATION,),
    ),
    Mutation(
        "scalar-replacement-as-removal",
        "privacy/accountants/pld.py",
        "return noise_of(inner), rate, 2.0 if replace else 1.0",
        "return noise_of(inner), rate, 1.0",
        "A replaced record moves a number by twice its contribution's size, and is accounted as once.",
        (_REPLACE,),
    ),
    Mutation(
        "vector-as-one-number",
        "privacy/accountants/normal_form.py",
        "        if event.dimension == 1:\n",
        "        if event.dimension >= 1:\n",
        "A vector clipped in L2 norm is accounted as one number, the paper's mistake: epsilon 0.235 "
        "where a change spread over 10000 coordinates costs 1.31.",
        (_NEVER_ONE,),
    ),
    Mutation(
        "vector-by-the-limit-of-the-spread-shift",
        "privacy/accountants/vector_bound.py",
        "    return _unit_bound(type(noise), parameters) * (1 + 1e-9) / noise.width",
        "    return limit_mu(noise)",
        "The limit of one change stands for all: a change of few coordinates costs more at large delta.",
        (_EVERY_CHANGE,),
    ),
    Mutation(
        "cusp-passes-for-a-finite-score",
        "privacy/mechanisms/scalar_noise/exponential_power.py",
        "        if self.beta < 1:\n            return math.inf\n",
        "        if self.beta < 1:\n            return float(self.beta * 1e3 / self.scale)\n",
        "Noise whose density has a cusp at 0 gets a Gaussian bound on vectors, where no bound exists.",
        (f"{_VECTORS}::test_noise_with_a_cusp_has_no_bound_on_vectors",),
    ),
)
