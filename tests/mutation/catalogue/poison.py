"""What the server does about hostile silos: limits of honest updates, means that bear some others."""

from __future__ import annotations

from ..mutation import Mutation

_TAILS = "tests/privacy/mechanisms/test_norm_tails.py"
_LAW = "tests/server/test_update_law.py"
_MEANS = "tests/server/test_robust_means.py"
_LONGEST = f"{_LAW}::test_the_longest_honest_updates_pass_and_hardly_longer_ones_do_not"
_BEYOND = (
    f"{_MEANS}::test_as_many_hostile_silos_as_are_left_out_move_nothing_beyond_the_honest_ones"
)

MUTATIONS = (
    Mutation(
        "largest-sample-is-the-mean",
        "privacy/mechanisms/norm_tails.py",
        "    return mean * math.exp(1 + root) * (1 + 1e-7)\n",
        "    return mean\n",
        "Every second batch is larger than the largest, and honest silos are refused.",
        (f"{_TAILS}::test_a_sample_is_hardly_ever_larger",),
    ),
    Mutation(
        "noise-without-its-spread",
        "privacy/mechanisms/norm_tails.py",
        "        return math.sqrt(energy + length**2 + 2 * spread + 2 * exponent * self.std**2)\n",
        "        return math.sqrt(energy + length**2)\n",
        "Half of the honest updates are longer than the bound.",
        (f"{_TAILS}::test_gaussian_noise_is_hardly_ever_longer",),
    ),
    Mutation(
        "noise-does-not-follow-noise",
        "privacy/mechanisms/norm_tails.py",
        "        reached = noise.bound(reached + length, exponent + math.log(steps))\n",
        "        reached = max(reached, noise.bound(length, exponent + math.log(steps)))\n",
        "Several local steps count as one, and honest silos are refused.",
        (f"{_TAILS}::test_sums_that_follow_the_noise_are_covered",),
    ),
    Mutation(
        "update-law-not-asked",
        "server/robust/update_law.py",
        "        if limit is not None and length > limit:\n",
        "        if False:\n",
        "A silo that multiplies its update by -20 moves the model of all.",
        (_LONGEST,),
    ),
    Mutation(
        "update-law-at-the-first-rounds-clip",
        "server/robust/update_law.py",
        "        mechanism = mechanism.at_clip(self.clip if mechanism.adaptive else None)\n",
        "",
        "Once the clipping norm has grown, honest updates are refused; once it has fallen, long ones pass.",
        (f"{_LAW}::test_the_clipping_norm_of_the_round_decides",),
    ),
    Mutation(
        "any-noise-is-believed",
        "server/robust/update_law.py",
        "        if share > most * median:\n",
        "        if False:\n",
        "A silo that calls its noise large may send whatever it likes.",
        (f"{_LAW}::test_noise_is_compared_with_the_median_silos",),
    ),
    Mutation(
        "told-noise-corrects-the-optimiser",
        "server/robust/update_law.py",
        "            if std is not None and not math.isclose(told, std[name], rel_tol=_SAME):\n",
        "            if False:\n",
        "One silo's word on its noise stops Adam for all.",
        (f"{_LAW}::test_noise_that_is_given_has_to_be_that",),
    ),
    Mutation(
        "untold-noise-is-not-corrected-for",
        "server/robust/update_law.py",
        "noise_std=None if std is None else dict(std))\n",
        "noise_std=contribution.noise_std and dict(std))\n",
        "One silo that tells no noise turns the correction off for all.",
        (f"{_LAW}::test_a_silo_that_tells_no_noise_leaves_the_correction_as_it_is",),
    ),
    Mutation(
        "median-cuts-nobody",
        "server/robust/means.py",
        "        parts.append(ranked[cut : len(flat) - cut].mean(0))\n",
        "        parts.append(ranked.mean(0))\n",
        "The median is the mean, and one silo moves it wherever it wants.",
        (_BEYOND,),
    ),
    Mutation(
        "noise-of-the-median-as-of-the-mean",
        "server/robust/means.py",
        "    return _asymptotic(sigma, cut) * equal_variance(n, cut) / _asymptotic(np.ones(n), cut)\n",
        "    return float(np.square(sigma).sum()) / n**2\n",
        "Adam's correction takes noise for signal.",
        (f"{_MEANS}::test_the_noise_that_is_told_is_the_noise_that_is_there",),
    ),
    Mutation(
        "share-of-norms-unbounded",
        "fedllm/training/adaptive_clip.py",
        "    return min(1.0, max(0.0, share))\n",
        "    return share\n",
        "One silo's share sets the clipping norm of all.",
        (f"{_MEANS}::test_shares_are_bounded_and_combined_the_same_way",),
    ),
)
