"""An example's gradient is its own, whatever stands beside it."""

from __future__ import annotations

from ..mutation import Mutation

_MATES = "tests/fedllm/training/test_batch_mates.py"
_BITS = f"{_MATES}::test_a_gradient_is_the_same_bits_alone_and_among_others"
_PADDING = f"{_MATES}::test_what_stands_at_padding_does_not_matter"
_TENSORS = "tests/fedllm/silo/test_server_tensors.py"

MUTATIONS = (
    Mutation(
        "parameters-unchecked",
        "fedllm/silo/silo_in_run.py",
        "        self.check(task.params)\n",
        "",
        "A server sends parameters that are not finite, or huge, and the silo spends and computes.",
        (f"{_TENSORS}::test_every_task_refuses_before_a_row",),
    ),
    Mutation(
        "padded-to-the-longest-of-the-batch",
        "fedllm/tasks/base.py",
        "length = bucket_length(shapes, longest) if features else 0",
        "length = longest",
        "Batch mates decide an example's padding: what the server puts there moves many gradients at once.",
        (_BITS, "tests/fedllm/training/test_batch_mates.py"),
    ),
    Mutation(
        "padding-multiplied-not-selected",
        "fedllm/tasks/heads/pooled.py",
        "hidden.masked_fill(mask == 0, 0.0).sum(1)",
        "(hidden * mask).sum(1)",
        "NaN at padding reaches the features of the example.",
        (_PADDING,),
    ),
    Mutation(
        "padding-enters-attention",
        "fedllm/tasks/base.py",
        "        with padding_scope(model, batch.attention_mask), kept, again:\n",
        "        with padding_scope(model, torch.ones_like(batch.attention_mask)), kept, again:\n",
        "NaN at padding reaches the tokens by attention.",
        (_PADDING,),
    ),
    Mutation(
        "head-by-matrix-product",
        "fedllm/tasks/heads/pooled.py",
        '(params["head.weight"] * pooled.unsqueeze(1)).sum(-1)',
        'torch.einsum("bch,bh->bc", params["head.weight"], pooled)',
        "A product of matrices rounds otherwise where the batch has one example.",
        (_BITS, f"{_MATES}::test_the_rounding_that_is_left_is_measured"),
    ),
    Mutation(
        "selection-multiplies",
        "fedllm/models/parts/selection.py",
        "        return tuple((x.view(kept.dtype) & kept).view(x.dtype) for x in states)",
        "        return tuple(x * (kept != 0) for x in states)",
        "A product with zero keeps NaN at padding.",
        ("tests/fedllm/models/test_selection.py",),
    ),
    Mutation(
        "gradient-at-padding-kept",
        "fedllm/models/parts/selection.py",
        "        return None, *(None if grad is None else next(cleared) for grad in grads)\n",
        "        return None, *grads\n",
        "NaN at padding returns into the prefix in the backward pass.",
        ("tests/fedllm/models/test_selection.py",),
    ),
    Mutation(
        "vocabulary-rows-uneven",
        "fedllm/models/loading/vocabulary.py",
        "missing = -flat.shape[0] % ROW_MULTIPLE",
        "missing = 0",
        "The number of batch mates decides the rounding of a decoder's answers.",
        (_BITS,),
    ),
    Mutation(
        "mixed-padding-allowed",
        "fedllm/models/grouping.py",
        "    if geometry_or_none(model) is not None and padding_is_inert(model, kind):",
        "    if geometry_or_none(model) is not None:",
        "A convolution reads the padding of a hybrid model into its tokens.",
        ("tests/fedllm/models/test_families.py::test_how_examples_are_grouped",),
    ),
    Mutation(
        "experts-see-batch-mates",
        "fedllm/models/grouping.py",
        '    if kind == "encoder-decoder" or has_experts(model) or not sees_examples_apart(model):',
        '    if kind == "encoder-decoder" or not sees_examples_apart(model):',
        "How many tokens an expert gets, and so its rounding, depends on batch mates.",
        ("tests/fedllm/models/test_families.py::test_how_examples_are_grouped",),
    ),
    Mutation(
        "rounding-unmeasured",
        "fedllm/models/grouping.py",
        "            if not torch.equal(found, torch.cat(halves)):",
        "            if False:",
        "Kernels that round by the number of examples are shared by several.",
        ("tests/fedllm/models/test_families.py::test_the_measurements_tell_models_apart",),
    ),
    Mutation(
        "lengths-mixed",
        "fedllm/data/shapes.py",
        "        if self.exact:\n            return max(length, 1)\n",
        "",
        "A state-space model gets padding in its state.",
        ("tests/fedllm/models/test_families.py::test_a_model_that_mixes_padding_in_gets_none",),
    ),
    Mutation(
        "coupled-models-unchecked",
        "fedllm/training/batch/independence.py",
        "if not found.difference <= tolerance:",
        "if not found.difference <= float('inf'):",
        "A model that couples the examples of a batch is trained as if clipping bounded one example's share.",
        (f"{_MATES}::test_a_model_that_couples_examples_is_refused",),
    ),
    Mutation(
        "long-table-kept",
        "fedllm/models/rotary.py",
        "original.to(buffer.device, copy=True)",
        "original.to(buffer.device)",
        "After one long text all later ones get the long position table.",
        (f"{_MATES}::test_a_text_beyond_the_rotary_table_does_not_change_later_ones",),
    ),
    Mutation(
        "tf32-left-on",
        "fedllm/training/tunable.py",
        "        require_full_precision(self.backbone.onednn)\n",
        "",
        "A library has turned TF32 on: gradients are rounded a thousand times more coarsely.",
        (f"{_MATES}::test_full_precision_inside_whatever_was_set_before",),
    ),
    Mutation(
        "onednn-by-number-of-examples",
        "fedllm/models/precision.py",
        "return all(size > _ONEDNN_ABOVE for size in matrices)",
        "return True",
        "A small bfloat16 product of one example is computed by another kernel than that of several.",
        (_BITS, f"{_MATES}::test_onednn_where_no_product_is_below_its_limit"),
    ),
    Mutation(
        "onednn-as-left-by-the-model-before",
        "fedllm/budget/release_inputs.py",
        "require_full_precision(backbone.onednn)",
        "require_full_precision()",
        "A release is named for kernels that do not compute it: the same noise meets two roundings.",
        (
            "tests/fedllm/budget/test_release_inputs.py::"
            "test_the_machine_tells_the_kernels_of_the_model_and_not_of_the_one_before",
        ),
    ),
)
