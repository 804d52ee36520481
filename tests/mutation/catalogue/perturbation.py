"""Adversarial weight perturbation: whose gradient moves the weights, and what of it is released."""

from __future__ import annotations

from ..mutation import Mutation

_EXACT = "tests/core/test_perturbation.py"
_SLOW_LOOP = f"{_EXACT}::test_clipped_sum_is_that_of_a_slow_loop_over_the_examples"
_OTHERS = f"{_EXACT}::test_an_example_s_gradient_is_the_same_whoever_else_is_in_the_batch"
_ASCENT = "tests/core/test_local_ascent.py"
_STEPS = f"{_ASCENT}::test_a_round_is_the_method_step_by_step"
_CLIPPED = f"{_ASCENT}::test_the_ascent_of_private_ascent_is_clipped_and_noised"
_BOTH = f"{_ASCENT}::test_both_releases_of_private_ascent_have_the_promised_noise"
_JOINT = "tests/privacy/test_privacy_joint_sampling.py"
_RUNS = "tests/federation/test_perturbed_runs.py"
_ROWS = f"{_RUNS}::test_rows_and_report_say_what_each_form_guarantees"

MUTATIONS = (
    Mutation(
        "batch-perturbation-passed-off-as-each-example-s-own",
        "fedllm/training/gradients.py",
        "perturbation.at(params, grads)",
        "perturbation.at(params, {n: g.mean(0, True).expand_as(g) for n, g in grads.items()})",
        "One example turns the perturbation, and with it every other example's gradient: the sum moves by "
        "many clipping norms under noise for one.",
        (_OTHERS, _SLOW_LOOP),
    ),
    Mutation(
        "perturbed-gradient-of-the-neighbour",
        "fedllm/training/gradients.py",
        "perturbation.at(params, grads)",
        "perturbation.at(params, {n: g.roll(1, 0) for n, g in grads.items()})",
        "Each example's gradient is taken where another example's points: two of the sum's terms know of "
        "one example.",
        (_OTHERS, _SLOW_LOOP),
    ),
    Mutation(
        "private-ascent-not-clipped",
        "fedllm/training/dp_sgd.py",
        'ascent = release(weights, batch, rng=streams("ascent-noise", step)).sums',
        "raw = gradient_sum(tunable, weights, batch, max_tokens=tokens)\n"
        "            level = noise_multiplier * noise_factor(settings, server_round)\n"
        '            rng = streams("ascent-noise", step)\n'
        "            ascent = dict(zip(weights, _noisy(raw, weights, settings, level, rng), strict=True))",
        "The ascent's sum is noised for one clipping norm and not clipped: an outlier shows in the "
        "perturbation.",
        (_CLIPPED,),
    ),
    Mutation(
        "private-ascent-without-noise",
        "fedllm/training/dp_sgd.py",
        'release(weights, batch, rng=streams("ascent-noise", step))',
        'release(weights, batch, rng=streams("ascent-noise", step), noise_multiplier=1e-9)',
        "The ascent is the batch's bare clipped sum: one example turns the perturbation of all others.",
        (_CLIPPED,),
    ),
    Mutation(
        "ascent-and-gradient-share-one-noise",
        "fedllm/training/dp_sgd.py",
        'streams("ascent-noise", step)',
        'streams("noise", step)',
        "Two releases of one batch carry the same noise: their difference is bare.",
        (_BOTH,),
    ),
    Mutation(
        "two-releases-with-the-noise-of-one",
        "fedllm/training/perturbation.py",
        "return math.sqrt(2.0) if two else 1.0",
        "return 1.0",
        "Both releases of a step have the noise that one of them alone is calibrated for: twice the "
        "divergence.",
        (_BOTH, _STEPS),
    ),
    Mutation(
        "two-releases-recorded-as-one",
        "fedllm/budget/limits.py",
        "poisson_sampled(sampling_rate, (one, one))",
        "poisson_sampled(sampling_rate, (one,))",
        "The ledger holds one of a step's two releases: half the divergence is reported.",
        (_ROWS,),
    ),
    Mutation(
        "batch-perturbation-without-its-label",
        "fedllm/budget/limits.py",
        "multiset({event: steps, no_guarantee(UNBOUNDED_ASCENT): steps})",
        "multiset({event: steps})",
        "The paper's own form, which guarantees nothing, is reported with the epsilon of DP-SGD.",
        (_ROWS,),
    ),
    Mutation(
        "batch-perturbation-labelled-in-the-first-round-alone",
        "fedllm/budget/limits.py",
        'if settings.privacy.mode == "dp" and form == "batch":',
        'if settings.privacy.mode == "dp" and form == "batch" and server_round == 1:',
        "A silo that joins in a later round gets no label for what it releases without a guarantee.",
        (_ROWS,),
    ),
    Mutation(
        "previous-ascends-along-this-batch",
        "fedllm/training/dp_sgd.py",
        'perturbation is not None and form == "batch":',
        'perturbation is not None and form in ("batch", "previous"):',
        "What is recorded as post-processing of released values is this batch's raw gradient.",
        (_STEPS,),
    ),
    Mutation(
        "same-noise-after-another-ascent",
        "fedllm/silo/silo.py",
        "            ascent=digest_or_empty(ascent),\n",
        "",
        "With seeded noise, a round repeated along another ascent meets the noise of the first: the "
        "difference is bare, and counted once.",
        (f"{_RUNS}::test_an_update_that_does_not_fit_is_refused",),
    ),
    Mutation(
        "best-of-several-releases-counted",
        "privacy/events/multiset.py",
        "math.fsum(count / part.noise_multiplier**2 for part, count in parts.items())",
        "max(part.noise_multiplier**-2 for part in parts)",
        "Of several releases of one sample the least noisy alone is accounted for.",
        (_JOINT,),
    ),
    Mutation(
        "bare-release-hidden-in-a-sample",
        "privacy/events/multiset.py",
        "        return all(map(is_private, event.events))\n",
        "        return True\n",
        "A release without noise passes for a private one where it shares a sample with another.",
        (f"{_JOINT}::test_a_sample_with_a_bare_release_is_not_private",),
    ),
)
