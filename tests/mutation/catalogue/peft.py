"""What an export calls a PEFT adapter."""

from __future__ import annotations

from ..mutation import Mutation

_LORA = "tests/fedllm/adapter/test_lora_export.py"
_MERGE = "tests/fedllm/adapter/test_merge.py"
_GGUF = "tests/fedllm/adapter/test_lora_gguf.py"
_CHECK = "tests/fedllm/adapter/test_peft_check.py"

MUTATIONS = (
    Mutation(
        "export-compares-no-generation",
        "fedllm/adapter/same_outputs.py",
        '            found.append(("the logits of its generated text", steps))\n',
        "",
        "A release of transformers makes PEFT generate without the prefix, and nobody is told.",
        (f"{_CHECK}::test_a_release_that_generates_without_the_prefix_is_noticed",),
    ),
    Mutation(
        "export-calls-it-peft-unseen",
        "fedllm/adapter/export.py",
        "        why_not = why_peft_differs(tunable.backbone, tunable.adapter, params, trial)\n",
        '        why_not = ""\n',
        "An adapter that PEFT reads otherwise is published as a PEFT adapter.",
        (
            "tests/fedllm/adapter/test_export.py::test_what_peft_computes_otherwise_is_exported_in_the_native_format",
        ),
    ),
    Mutation(
        "export-lora-without-scale",
        "fedllm/adapter/peft_lora.py",
        "        lora_alpha=alpha,\n",
        "        lora_alpha=adapter.rank,\n",
        "PEFT and servers apply LoRA with another strength than the run trained.",
        (f"{_LORA}::test_peft_computes_what_the_run_does",),
    ),
    Mutation(
        "export-checks-large-adapters-only",
        "fedllm/adapter/same_outputs.py",
        "    return min(_TOLERANCE[dtype] * scale, max(_EFFECT * effect, _KERNELS * scale))\n",
        "    return _TOLERANCE[dtype] * scale\n",
        "An adapter with a small effect passes the check even where PEFT ignores it.",
        (f"{_LORA}::test_another_adapter_is_noticed",),
    ),
    Mutation(
        "merge-transposed-for-conv1d",
        "fedllm/models/adapters/lora.py",
        "change.T if stored_by_input else change",
        "change",
        "GPT-2's square matrices get the change transposed.",
        (f"{_MERGE}::test_a_square_map_of_gpt2_is_merged_the_right_way_round",),
    ),
    Mutation(
        "merge-unseen",
        "fedllm/adapter/merge.py",
        "    if compared.why:\n",
        "    if False:\n",
        "A merged model that computes something else replaces a good one.",
        (f"{_MERGE}::test_a_fault_leaves_the_earlier_model",),
    ),
    Mutation(
        "gguf-keeps-transformers-row-order",
        "fedllm/adapter/lora_gguf.py",
        "            b = neighbouring_pairs(b, count)\n",
        "            pass\n",
        "llama.cpp adds the change of one dimension of a head to another.",
        (f"{_GGUF}::test_only_llamas_queries_and_keys_are_reordered",),
    ),
)
