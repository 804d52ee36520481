"""An adapter's tensors are each example's own, and what is kept of an example is its own too."""

from __future__ import annotations

from ..mutation import Mutation

_ADAPTERS = "tests/fedllm/models/test_adapters.py"
_QUANTISE = "tests/fedllm/models/test_quantise.py"
_RECOMPUTE = "tests/fedllm/models/test_recompute.py"
_TRUNK = "tests/fedllm/models/test_trunk.py"
_ROWS = f"{_ADAPTERS}::test_each_row_is_the_gradient_of_one_example_by_ordinary_autograd"

MUTATIONS = (
    Mutation(
        "tokens-of-unknown-examples",
        "fedllm/models/adapters/slot.py",
        "    if values.dim() == 2 and values.shape[0] in (rows, rows * tokens):\n",
        "    if values.numel() % (rows * values.shape[-1]) == 0:\n",
        "A module that gathers tokens of several examples gives one example's gradient to another.",
        (f"{_ADAPTERS}::test_tokens_of_an_unknown_example_are_refused",),
    ),
    Mutation(
        "experts-are-trained",
        "fedllm/models/adapters/targets.py",
        '    return "experts" in module.split(".")\n',
        "    return False\n",
        "A router sends an expert tokens of several examples.",
        (f"{_ADAPTERS}::test_experts_are_no_targets",),
    ),
    Mutation(
        "fixed-factor-is-trained",
        "fedllm/models/adapters/lora.py",
        '        if self.lora_form == "lora" or (alternates and server_round is None):\n',
        "        if True:\n",
        "FFA-LoRA trains both factors: twice the noise, and means that are not exact.",
        (f"{_ADAPTERS}::test_which_factors_a_round_trains",),
    ),
    Mutation(
        "scale-left-out",
        "fedllm/models/adapters/lora.py",
        "        return output + (change * self.scale)",
        "        return output + (change * 1.0)",
        "The model that is trained is another one than the adapter that is exported.",
        (f"{_ADAPTERS}::test_lora_is_the_product_of_its_factors",),
    ),
    Mutation(
        "states-by-tokens-alone",
        "fedllm/models/trunk/reuse.py",
        "sorted(batch.model_inputs().items())]",
        "sorted(batch.model_inputs().items()) if _ == 'input_ids']",
        "An example gets the states of another one, whose segments or padding differ.",
        (f"{_TRUNK}::test_examples_that_differ_in_a_segment_or_a_token_are_two",),
    ),
    Mutation(
        "room-for-states-as-the-server-says",
        "client/limits.py",
        '        model["reuse_gib"] = min(settings.model.reuse_gib, silo.model.reuse_gib)\n',
        "        pass\n",
        "A server fills the silo's memory or disk with states.",
        (
            "tests/client/test_silo_limits.py::test_the_server_does_not_decide_how_much_room_is_taken",
        ),
    ),
    Mutation(
        "states-read-where-another-thread-looked",
        "fedllm/models/trunk/store.py",
        "        data = bytearray(os.pread(self._file.fileno(), size, start))\n",
        "        self._file.seek(start)\n        data = bytearray(self._file.read(size))\n",
        "An example gets the states of another one, which a second thread reads at that moment.",
        (f"{_TRUNK}::test_threads_get_the_states_of_their_own_example",),
    ),
    Mutation(
        "trunk-not-compared",
        "fedllm/tasks/reuse.py",
        "    if off <= allowed:\n",
        "    if True:\n",
        "A model whose layers read more than the states below them trains on wrong gradients.",
        (f"{_TRUNK}::test_a_model_that_is_no_plain_chain_is_computed_as_a_whole",),
    ),
    Mutation(
        "computed-again-with-what-is-active-then",
        "fedllm/models/footprint/recompute.py",
        "        again = [captured_changes(self.model), captured_attention(self.model)]\n",
        "        again: list[Any] = []\n",
        "A layer is computed again without the adapter, or with the copies of other examples.",
        (f"{_RECOMPUTE}::test_a_layer_is_computed_again_with_what_was_active_the_first_time",),
    ),
    Mutation(
        "recomputation-outside-of-the-trunk",
        "fedllm/models/trunk/skip.py",
        "    recompute.install(model)  #",
        "    pass  #",
        "A layer whose states are kept is computed again from states that it was not given.",
        (f"{_RECOMPUTE}::test_it_lies_within_what_leaves_layers_out_whatever_was_installed_first",),
    ),
    Mutation(
        "activations-in-eight-bits",
        "fedllm/models/footprint/quantise.py",
        "        return nn.functional.linear(x, layer.matrix(x.dtype), layer.bias)\n",
        "        step = x.abs().max() / 127\n"
        "        return nn.functional.linear((x / step).round() * step, layer.matrix(x.dtype), layer.bias)\n",
        "The largest activation of the batch decides how every example's are rounded.",
        (f"{_QUANTISE}::test_an_example_does_not_depend_on_its_batch_mates",),
    ),
    Mutation(
        "outliers-of-the-batch",
        "fedllm/models/footprint/quantise.py",
        '    if told.get("load_in_8bit") and threshold:\n',
        "    if False:\n",
        "A checkpoint is taken whose products look for outliers in the whole batch.",
        (f"{_QUANTISE}::test_checkpoints_that_are_quantised_already",),
    ),
    Mutation(
        "one-noise-for-two-quantizations",
        "fedllm/budget/release_inputs.py",
        '    return str(backbone.dtype) if how == "none" else f"{backbone.dtype} {how}"\n',
        "    return str(backbone.dtype)\n",
        "Seeded noise meets the gradients of the plain and of the quantised model: their difference has none.",
        (f"{_QUANTISE}::test_the_digest_is_that_of_the_plain_weights_and_the_fingerprint_is_not",),
    ),
)
