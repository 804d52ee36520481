"""Noise in shares, seen as a sum: rounding, shares, bound and views."""

from __future__ import annotations

from ..mutation import Mutation

_FOLDER = "privacy/secure_sum/"
_BOUND = "tests/privacy/secure_sum/test_bound.py"
_GRID = "tests/privacy/secure_sum/test_grid_and_ring.py"
_SHARES = "tests/privacy/secure_sum/test_shares.py"
_QUANTILES = f"{_BOUND}::test_quantiles_of_the_sum_are_as_close_as_the_theorem_says"

MUTATIONS = (
    Mutation(
        "sampled-domination-under-replace-one",
        "privacy/accountants/normal_form.py",
        "        if replace and _is_dominated(event.event):\n",
        "        if False:\n",
        "A sampled sum gets a number under replace-one, where domination by a Gaussian is not proven.",
        (f"{_BOUND}::test_a_sampled_sum_has_no_number_under_replace_one",),
    ),
    Mutation(
        "share-divided-among-all-silos",
        f"{_FOLDER}shares.py",
        "    return silos - colluding - most_missing(silos, dropouts, colluding)\n",
        "    return silos\n",
        "Silos that drop out or collude are counted on: what honest survivors add is too little noise.",
        (f"{_SHARES}::test_views_count_the_shares_that_each_adversary_does_not_know",),
    ),
    Mutation(
        "share-ignores-colluding-silos",
        f"{_FOLDER}shares.py",
        "    return silos - colluding - most_missing(silos, dropouts, colluding)\n",
        "    return silos - most_missing(silos, dropouts, colluding)\n",
        "The shares of colluding silos, which the server knows, count as noise.",
        (f"{_SHARES}::test_honest_shares_suffice_and_no_smaller_share_does",),
    ),
    Mutation(
        "share-one-too-small",
        f"{_FOLDER}shares.py",
        "    return sigma\n\n\ndef draw_share(",
        "    return max(4, sigma - 1)\n\n\ndef draw_share(",
        "Shares are rounded down: the sum has less noise than the target was calibrated to.",
        (f"{_SHARES}::test_honest_shares_suffice_and_no_smaller_share_does",),
    ),
    Mutation(
        "rounding-left-out-of-the-sensitivity",
        f"{_FOLDER}grid.py",
        "    return (_steps(norm, exponent) + math.sqrt(dimension)) * _UP\n",
        "    return _steps(norm, exponent) * _UP\n",
        "One example moves the rounded sum further than the noise was made for.",
        (f"{_GRID}::test_the_sensitivity_of_nearest_is_attained",),
    ),
    Mutation(
        "rounding-of-one-vector-for-that-of-two",
        f"{_FOLDER}grid.py",
        "    return (_steps(norm, exponent) + math.sqrt(dimension)) * _UP\n",
        "    return (_steps(norm, exponent) + math.sqrt(dimension) / 2) * _UP\n",
        "The rounding error of one vector is counted, where a difference has two of them.",
        (f"{_GRID}::test_the_sensitivity_of_nearest_is_attained",),
    ),
    Mutation(
        "toward-zero-rounds-to-nearest",
        f"{_FOLDER}grid.py",
        "    return np.trunc(_scaled(values, exponent)).astype(np.int64)\n",
        "    return np.rint(_scaled(values, exponent)).astype(np.int64)\n",
        "A contribution grows beyond its clipping norm, while its sensitivity counts no rounding.",
        (f"{_GRID}::test_toward_zero_never_grows",),
    ),
    Mutation(
        "share-sampler-with-half-the-variance",
        "privacy/mechanisms/discrete_gaussian.py",
        "_bernoulli_exp_any(distance**2, 2 * scale**2, rng)",
        "_bernoulli_exp_any(2 * distance**2, 2 * scale**2, rng)",
        "Each share has less noise than its event says.",
        (f"{_SHARES}::test_a_share_is_a_discrete_gaussian",),
    ),
    Mutation(
        "sum-of-shares-bound-without-its-correction",
        f"{_FOLDER}bound.py",
        "    return total / (sensitivity * (1 + total**-2)) * (1 - _ROUND_OFF)\n",
        "    return total / sensitivity * (1 - _ROUND_OFF)\n",
        "Discrete Gaussian noise passes for a continuous one, which it is a little worse than.",
        (_QUANTILES,),
    ),
    Mutation(
        "standard-deviations-of-shares-added-up",
        f"{_FOLDER}bound.py",
        "    total = sigma * math.sqrt(shares)\n",
        "    total = sigma * shares\n",
        "Independent shares count as if they were all the same one: far more noise than there is.",
        (_QUANTILES,),
    ),
    Mutation(
        "bound-of-tiny-shares",
        f"{_FOLDER}bound.py",
        "SMALLEST_SIGMA = 4.0\n",
        "SMALLEST_SIGMA = 0.1\n",
        "A bound is given where it is not proven, and a sum of tiny shares is no discrete Gaussian.",
        (f"{_BOUND}::test_what_is_not_proven_is_refused",),
    ),
    Mutation(
        "ring-without-room-for-all-silos",
        f"{_FOLDER}ring.py",
        "    room = (int(2 ** (bits - 1)) - 1 - tail) // silos\n",
        "    room = int(2 ** (bits - 1)) - 1 - tail\n",
        "The sum of several silos wraps around, and the model takes a wrong step that nobody notices.",
        (f"{_GRID}::test_noise_beyond_the_room_left_for_it_is_improbable_enough",),
    ),
    Mutation(
        "ring-without-room-for-the-noise",
        f"{_FOLDER}ring.py",
        "    room = (int(2 ** (bits - 1)) - 1 - tail) // silos\n",
        "    room = (int(2 ** (bits - 1)) - 1) // silos\n",
        "The noise makes large sums wrap around.",
        (f"{_GRID}::test_noise_beyond_the_room_left_for_it_is_improbable_enough",),
    ),
    Mutation(
        "entries-are-not-cut",
        f"{_FOLDER}ring.py",
        "    return (np.clip(integers, -largest, largest) + noise).astype(_DTYPES[bits])\n",
        "    return (integers + noise).astype(_DTYPES[bits])\n",
        "One silo's large entry makes the sum wrap around.",
        (f"{_GRID}::test_cutting_entries_moves_neighbours_no_further_apart",),
    ),
    Mutation(
        "copies-move-the-sum-by-one",
        "privacy/copies.py",
        "        return DiscreteGaussianSumDpEvent(event.sigma, event.shares, event.sensitivity * copies)\n",
        "        return DiscreteGaussianSumDpEvent(event.sigma, event.shares, event.sensitivity)\n",
        "Several copies of a record cost what one costs.",
        (f"{_BOUND}::test_copies_of_a_record_cost_at_least_the_exact_mixture",),
    ),
)
