"""Clipping, noise, sampling and the local step."""

from __future__ import annotations

from ..mutation import Mutation

_LOCAL = "tests/fedllm/training/test_local_training.py"
_SIZE = f"{_LOCAL}::test_noise_that_leaves_has_the_promised_size"
_WALK = f"{_LOCAL}::test_several_steps_are_a_walk_with_fresh_batches_and_noise"
_MEAN = f"{_LOCAL}::test_update_is_minus_the_rate_times_the_clipped_mean_gradient"
_CLIENT = f"{_LOCAL}::test_client_level_update_is_clipped_and_noised"
_CLIPPING = "tests/privacy/mechanisms/test_clipping.py"
_GRADIENTS = "tests/fedllm/training/test_gradients.py"
_NOISE = "tests/privacy/mechanisms/test_noise.py"
_SAMPLING = "tests/privacy/test_randomness.py::test_poisson_sample_"

_ADAPTIVE = "tests/fedllm/training/test_adaptive_clip.py"
_COUNTS = "tests/privacy/mechanisms/test_adaptive_clipping.py"

MUTATIONS = (
    Mutation(
        "adaptive-count-not-in-the-ledger",
        "fedllm/training/adaptive_clip.py",
        "return (sums,) if self.count is None else (sums, gaussian(self.count))",
        "return (sums,)",
        "The counts of adaptive clipping are released and not counted.",
        (f"{_ADAPTIVE}::test_a_round_costs_what_its_noise_multiplier_says",),
    ),
    Mutation(
        "adaptive-sum-with-the-noise-of-both",
        "fedllm/training/adaptive_clip.py",
        "return cls(Noise.of(settings, parts.vector), parts.count)",
        "return cls(Noise.of(settings, noise_multiplier), parts.count)",
        "The sum carries the noise of sum and count together, less than its event says.",
        (f"{_ADAPTIVE}::test_sum_and_count_carry_the_noise_of_their_events",),
    ),
    Mutation(
        "adaptive-count-not-centred",
        "privacy/mechanisms/adaptive_clipping.py",
        "    return below - SENSITIVITY * norms.numel()\n",
        "    return float(below)\n",
        "A record changes the count by 1, the noise is for 1/2.",
        (f"{_COUNTS}::test_a_record_changes_the_count_by_half",),
    ),
    Mutation(
        "adaptive-count-with-half-the-noise",
        "privacy/mechanisms/adaptive_clipping.py",
        "add_gaussian(value, SENSITIVITY, multiplier, rng)",
        "add_gaussian(value, SENSITIVITY / 2, multiplier, rng)",
        "The count's noise is half of what its event says.",
        (f"{_COUNTS}::test_the_counts_noise_has_half_its_multiplier",),
    ),
    Mutation(
        "no-noise",
        "fedllm/training/dp_sgd.py",
        "noisy = split_like(self.noise.add(flat, clip, rng), point)",
        "noisy = split_like(flat, point)",
        "Gradient sums leave without noise: the server reads off each example's part.",
        (_SIZE,),
    ),
    Mutation(
        "half-noise-in-the-step",
        "fedllm/training/dp_sgd.py",
        "noisy = split_like(self.noise.add(flat, clip, rng), point)",
        "half = self.noise.of_multiplier(self.noise.multiplier / 2)\n"
        "            noisy = split_like(half.add(flat, clip, rng), point)",
        "Noise at half scale: each example loses about four times the reported divergence.",
        (_SIZE,),
    ),
    Mutation(
        "noise-for-sensitivity-one",
        "fedllm/training/noise.py",
        "return add_gaussian(vector, clip, self.multiplier, rng)",
        "return add_gaussian(vector, 1.0, self.multiplier, rng)",
        "Noise scaled for sensitivity 1 whatever the clip: with a clip above 1 examples are exposed.",
        (_SIZE,),
    ),
    Mutation(
        "noise-for-the-mean-on-the-sum",
        "fedllm/training/dp_sgd.py",
        "noisy = split_like(self.noise.add(flat, clip, rng), point)",
        "level = self.noise.multiplier / self.mechanism.plan.divisor\n"
        "            less = self.noise.of_multiplier(level)\n"
        "            noisy = split_like(less.add(flat, clip, rng), point)",
        "Noise for the mean's sensitivity on the sum, which is divided again: batch_size times too "
        "little for every example.",
        (_SIZE,),
    ),
    Mutation(
        "noise-drawn-once",
        "fedllm/training/dp_sgd.py",
        'work.streams("noise", step)',
        'work.streams("noise", 0)',
        "All local steps of a round share one noise: differences of steps show gradients bare.",
        (_WALK,),
    ),
    Mutation(
        "batch-drawn-once",
        "fedllm/training/dp_sgd.py",
        'release.sample(work.streams("sample", step))',
        'release.sample(work.streams("sample", 0))',
        "All local steps of a round use one batch, while each step is accounted as freshly sampled.",
        (_WALK,),
    ),
    Mutation(
        "sampler-at-twice-the-rate",
        "fedllm/training/steps.py",
        "poisson_sample(len(features), sampling_rate, ",
        "poisson_sample(len(features), min(1.0, 2 * sampling_rate), ",
        "Examples are drawn twice as often as the ledger says.",
        ("tests/fedllm/training/test_recorded_mechanism.py",),
    ),
    Mutation(
        "batch-cut-short",
        "fedllm/training/steps.py",
        "return [features[i] for i in drawn]",
        "return [features[i] for i in drawn][: round(len(features) * sampling_rate)]",
        "Batches are cut at their expected size: no longer Poisson sampling, which the accountants assume.",
        (f"{_LOCAL}::test_a_batch_is_all_that_was_drawn",),
    ),
    Mutation(
        "realised-batch-size-as-divisor",
        "fedllm/training/dp_sgd.py",
        "            descent.move(found.sums)\n",
        "            size = self.plan.divisor / max(1, len(batch))\n"
        "            descent.move({name: value * size for name, value in found.sums.items()})\n",
        "The divisor is the number drawn: one example more changes everybody's weight and the noise.",
        (_MEAN,),
    ),
    Mutation(
        "empty-batch-skips-the-step",
        "fedllm/training/dp_sgd.py",
        '            batch, examples = release.sample(work.streams("sample", step))\n',
        '            batch, examples = release.sample(work.streams("sample", step))\n'
        "            if not batch:\n                continue\n",
        "An empty Poisson batch releases nothing: the missing noise tells that nobody was drawn.",
        (f"{_LOCAL}::test_empty_batch_still_releases_noise",),
    ),
    Mutation(
        "empty-batch-without-noise",
        "privacy/mechanisms/gaussian.py",
        "    if not bool(torch.isfinite(exact).all()):\n",
        "    if not bool(exact.any()):\n        return vector.clone()\n"
        "    if not bool(torch.isfinite(exact).all()):\n",
        "A sum of zero goes out without noise: the server sees which batches were empty.",
        (f"{_NOISE}::test_an_empty_poisson_batch_still_releases_noise",),
    ),
    Mutation(
        "half-noise",
        "privacy/mechanisms/gaussian.py",
        "    std = noise_multiplier * sensitivity\n",
        "    std = noise_multiplier * sensitivity / 2\n",
        "All Gaussian noise at half scale, at silos and server: every reported epsilon is too small.",
        (_NOISE,),
    ),
    Mutation(
        "nonfinite-vector-is-released",
        "privacy/mechanisms/gaussian.py",
        "if not bool(torch.isfinite(exact).all()):",
        "if False:",
        "NaN passes through the noise: the server learns that some example's gradient overflowed.",
        (f"{_NOISE}::test_a_non_finite_vector_is_refused_since_noise_does_not_hide_it",),
    ),
    Mutation(
        "fixed-size-batches",
        "privacy/mechanisms/sampling.py",
        "np.flatnonzero(rng.random(n) < threshold)",
        "np.sort(rng.permutation(n)[: round(n * rate)])",
        "Batches of a fixed size for Poisson sampling: the amplification in the accounts is not that "
        "of this sampler.",
        (f"{_SAMPLING}includes_each_record_independently",),
    ),
    Mutation(
        "last-record-always-drawn",
        "privacy/mechanisms/sampling.py",
        "np.flatnonzero(rng.random(n) < threshold)",
        "np.flatnonzero((rng.random(n) < threshold) | (np.arange(n) == n - 1))",
        "One record is in every batch: it has no amplification by sampling at all.",
        (f"{_SAMPLING}includes_each_record_independently", f"{_SAMPLING}edges"),
    ),
    Mutation(
        "no-clipping",
        "privacy/mechanisms/clipping.py",
        "clipped = finite & (norms > clip_norm)",
        "clipped = finite & (norms > math.inf)",
        "No clipping: an outlier's gradient stands out of noise that was scaled for the clip.",
        (f"{_GRADIENTS}::test_one_example_moves_the_sum_by_at_most_the_clipping_norm",),
    ),
    Mutation(
        "no-clipping-of-extremes",
        "privacy/mechanisms/clipping.py",
        "too_long = relative > clip_norm / size",
        "too_long = relative > math.inf",
        "Gradients in float64, or too large for float32 factors, leave unclipped.",
        (f"{_CLIPPING}::test_each_example_contributes_at_most_the_norm_whatever_it_holds",),
    ),
    Mutation(
        "clipping-at-the-mean-norm",
        "privacy/mechanisms/clipping.py",
        "clipped = finite & (norms > clip_norm)",
        "clipped = finite & (norms > torch.maximum(norms.nanmean(), torch.tensor(clip_norm)))",
        "Only examples above the batch's mean norm are clipped: the others exceed the bound.",
        ("tests/privacy/mechanisms/test_clipping_batches.py",),
    ),
    Mutation(
        "clipping-without-margin",
        "privacy/mechanisms/clipping.py",
        "_MARGIN = 1.0 - 2.0**-22",
        "_MARGIN = 1.0 + 2.0**-10",
        "Clipped examples end just above the bound: the sensitivity is larger than accounted.",
        (_CLIPPING,),
    ),
    Mutation(
        "nan-passes-the-clip",
        "privacy/mechanisms/clipping.py",
        "    finite = torch.isfinite(norms)\n",
        "    finite = ~torch.isinf(norms)\n",
        "A NaN gradient compares as not too long and passes: the sum is NaN for everybody to see.",
        (f"{_CLIPPING}::test_a_non_finite_example_becomes_zero_and_is_counted",),
    ),
    Mutation(
        "scales-outside-of-the-norm",
        "privacy/mechanisms/clipping.py",
        "total += (norms * factor).square()",
        "total += norms.square()",
        "The norm is taken before the scales and the sum after them: a scale above 1 lifts an "
        "example's part over the clip.",
        (f"{_CLIPPING}::test_scales_clip_in_scaled_coordinates",),
    ),
    Mutation(
        "clipping-per-tensor",
        "fedllm/training/gradients.py",
        "part = clip_and_sum(rows, clip_norm, row_factors)",
        "each = [clip_and_sum([r], clip_norm, [f]) for r, f in zip(rows, row_factors, strict=True)]\n"
        "        part = ClippedSum([p.sums[0] for p in each], *list(vars(each[0]).values())[1:])",
        "Each tensor is clipped by itself: over k tensors an example moves the sum by sqrt(k) clips.",
        (f"{_GRADIENTS}::test_clipping_is_over_all_tensors_jointly",),
    ),
    Mutation(
        "clipping-after-averaging",
        "fedllm/training/gradients.py",
        "part = clip_and_sum(rows, clip_norm, row_factors)",
        "means = [row.mean(0, keepdim=True) for row in rows]\n"
        "        part = clip_and_sum(means, clip_norm, row_factors)\n"
        "        part = ClippedSum([s * len(chosen) for s in part.sums], *list(vars(part).values())[1:])",
        "The batch's mean is clipped and not each example: one outlier can turn the whole mean.",
        (f"{_GRADIENTS}::test_one_example_moves_the_sum_by_at_most_the_clipping_norm",),
    ),
    Mutation(
        "loss-averaged-over-the-batch",
        "fedllm/training/gradients.py",
        "torch.autograd.grad(losses.sum(), list(leaves.values()))",
        "torch.autograd.grad(losses.mean(), list(leaves.values()))",
        "An example's gradient shrinks with the number of others drawn: it depends on their data.",
        (f"{_GRADIENTS}::test_each_gradient_is_that_of_the_example_alone",),
    ),
    Mutation(
        "client-update-not-clipped",
        "fedllm/training/client_update.py",
        "flat, clipped, nonfinite = clip_vector(flat, self.clip)",
        "clipped, nonfinite = False, False",
        "A silo's update leaves with whatever norm: noise for one clip does not cover it.",
        (_CLIENT,),
    ),
    Mutation(
        "code-not-clipped",
        "fedllm/training/encoding.py",
        "    code, clipped, _ = clip_vector(vector, clip)\n",
        "    code, clipped = (vector, False) if encoding.in_code else clip_vector(vector, clip)[:2]\n",
        "With noise in the code, a silo's code leaves with whatever norm.",
        ("tests/fedllm/training/test_encoded_release.py",),
    ),
    Mutation(
        "examples-clipped-before-their-codes",
        "fedllm/training/gradients.py",
        """        return [codec.project(torch.cat(scaled, dim=1))]

    before = 0 if failures is None else failures.count
    for group in tunable.task.batches(features, max_tokens):
        chosen = [features[i] for i in group]
        rows = example_rows(compute, chosen, shapes, failures, sums[0].device)
        real = len(group)
        if examples is not None:
            real = sum(i < examples for i in group)
            rows, bad = fixed_rows(rows, real)
            nonfinite += bad
        part = clip_and_sum(rows, clip_norm, row_factors)
""",
        """        whole = torch.cat(scaled, dim=1)
        share = (clip_norm / whole.norm(dim=1, keepdim=True)).clamp(max=1)
        return [codec.project(whole * share)]

    before = 0 if failures is None else failures.count
    for group in tunable.task.batches(features, max_tokens):
        chosen = [features[i] for i in group]
        rows = example_rows(compute, chosen, shapes, failures, sums[0].device)
        real = len(group)
        if examples is not None:
            real = sum(i < examples for i in group)
            rows, bad = fixed_rows(rows, real)
            nonfinite += bad
        part = clip_and_sum(rows, clip_norm if codec is None else 1e30, row_factors)
""",
        "An example's code is as long as the codec makes it: noise for one clip does not cover it.",
        ("tests/fedllm/training/test_encoded_release.py",),
    ),
    Mutation(
        "client-update-without-noise",
        "fedllm/training/client_update.py",
        '        if self.noise_by == "client":\n            flat = ',
        '        if self.noise_by == "both":\n            flat = ',
        "At client level the silo sends its clipped update bare to a server that is not trusted.",
        (_CLIENT,),
    ),
    Mutation(
        "noise-of-zero-is-accepted",
        "fedllm/training/steps.py",
        "np.isfinite(noise_multiplier) and noise_multiplier > 0)",
        "np.isfinite(noise_multiplier) and noise_multiplier >= 0)",
        "A silo whose noise was lost (a restart, a bad setting) trains without noise instead of "
        "stopping.",
        (f"{_LOCAL}::test_a_noise_multiplier_that_breaks_the_promise_is_refused",),
    ),
)
