"""Adversarial weight perturbation: whose gradient moves the weights, and what of it is released."""

from __future__ import annotations

from ..mutation import Mutation

_EXACT = "tests/fedllm/training/test_perturbation.py"
_SLOW_LOOP = f"{_EXACT}::test_clipped_sum_is_that_of_a_slow_loop_over_the_examples"
_OTHERS = f"{_EXACT}::test_an_example_s_gradient_is_the_same_whoever_else_is_in_the_batch"
_JOINT = "tests/privacy/accountants/test_joint_sampling.py"
_RUNS = "tests/integration/test_perturbed_runs.py"
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
        "batch-perturbation-without-its-label",
        "fedllm/training/dp_sgd.py",
        "            found[no_guarantee(UNBOUNDED_ASCENT)] = self.plan.count\n",
        "            pass\n",
        "The paper's own form, which guarantees nothing, is reported with the epsilon of DP-SGD.",
        (_ROWS,),
    ),
    Mutation(
        "batch-perturbation-labelled-in-the-first-round-alone",
        "fedllm/training/dp_sgd.py",
        'if self.plan.awp.form == "batch" and is_perturbed(self.plan.awp, server_round):',
        'if self.plan.awp.form == "batch" and server_round == 1:',
        "A silo that joins in a later round gets no label for what it releases without a guarantee.",
        (_ROWS,),
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
