"""Truncated samples and steps of a fixed shape."""

from __future__ import annotations

from ..mutation import Mutation

_LOSS = "tests/privacy/accountants/test_truncated.py"
_SHAPE = "tests/fedllm/training/test_fixed_shape.py"

MUTATIONS = (
    Mutation(
        "truncation-keeps-the-first",
        "privacy/mechanisms/sampling.py",
        '    kept = drawn[np.argsort(keys[drawn], kind="stable")[:most]]\n',
        "    kept = drawn[:most]\n",
        "Records at the beginning of the data are kept more often than the event says.",
        (f"{_LOSS}::test_which_records_are_kept_is_uniform",),
    ),
    Mutation(
        "truncated-sample-called-poisson",
        "fedllm/training/dp_sgd.py",
        "if most is not None and sampling_rate < 1:",
        "if most is None and sampling_rate < 1:",
        "The ledger states a Poisson sample where the sample is cut.",
        (f"{_SHAPE}::test_the_row_holds_the_truncated_event",),
    ),
    Mutation(
        "full-batch-as-if-not-cut",
        "privacy/accountants/losses/truncated.py",
        "min(1.0, full / (full + without) * (1 + 1e-12))",
        "rate",
        "Beside B - 1 others a record is taken to be there with its sampling rate, which is too little.",
        (f"{_LOSS}::test_probabilities_are_those_of_all_samples",),
    ),
    Mutation(
        "zero-out-of-a-cut-sample-by-removal",
        "privacy/accountants/pld.py",
        "    if truncated and relation is Relation.ZERO_OUT:\n",
        "    if False:\n",
        "Zero-out of a truncated sample is accounted by the bound of another relation.",
        (f"{_LOSS}::test_each_relation_has_its_own_pair",),
    ),
    Mutation(
        "copies-in-a-cut-sample",
        "privacy/copies.py",
        "    if isinstance(event, PureDpEvent):\n        return ev.pure_dp",
        "    if isinstance(event, dp.TruncatedSubsampledGaussianDpEvent):\n"
        "        return _mixture(event.noise_multiplier, event.sampling_probability, copies)\n"
        "    if isinstance(event, PureDpEvent):\n        return ev.pure_dp",
        "Copies of a record in a truncated sample are accounted as if each were kept by its own draw.",
        (f"{_LOSS}::test_copies_are_refused_by_name",),
    ),
    Mutation(
        "fillers-count",
        "fedllm/training/gradients.py",
        "    kept = finite & (place < examples)\n",
        "    kept = finite\n",
        "Gradients of the rows that only fill the shape are added to the sum.",
        (f"{_SHAPE}::test_the_sum_is_that_of_the_kept_examples",),
    ),
    Mutation(
        "fixed-shape-of-buckets",
        "fedllm/training/batch/fixed_shape.py",
        "Shapes(least=length, tokens",
        "Shapes(least=8, tokens",
        "The lengths of the examples that were drawn decide the shapes.",
        (f"{_SHAPE}::test_all_tensors_of_a_step_have_the_same_shapes",),
    ),
    Mutation(
        "batch-not-filled-up",
        "fedllm/training/batch/fixed_shape.py",
        "[self.filler] * (self.slots - len(batch))",
        "[self.filler] * (1 - min(1, len(batch)))",
        "The number of examples that were drawn decides the number of micro-batches.",
        (f"{_SHAPE}::test_all_tensors_of_a_step_have_the_same_shapes",),
    ),
    Mutation(
        "noise-calibrated-to-poisson",
        "fedllm/budget/calibration.py",
        "                truncated=self.cost.truncated,\n",
        "",
        "The noise is that of a Poisson sample, which costs less than the truncated one.",
        (f"{_SHAPE}::test_the_row_holds_the_truncated_event",),
    ),
)
