"""What an export calls a PEFT adapter."""

from __future__ import annotations

from ..mutation import Mutation

_CHECK = "tests/fedllm/adapter/test_peft_check.py"

MUTATIONS = (
    Mutation(
        "export-compares-no-generation",
        "fedllm/adapter/peft_check.py",
        '        ("the logits of its generated text", steps, ours[:, ids.shape[1] - 1 :]),\n',
        "",
        "A release of transformers makes PEFT generate without the prefix, and nobody is told.",
        (f"{_CHECK}::test_a_release_that_generates_without_the_prefix_is_noticed",),
    ),
    Mutation(
        "export-calls-it-peft-unseen",
        "fedllm/adapter/export.py",
        "        why_not = why_peft_differs(backbone, spec, prefix, trial)\n",
        '        why_not = ""\n',
        "An adapter that PEFT reads otherwise is published as a PEFT adapter.",
        (
            "tests/fedllm/adapter/test_export.py::test_what_peft_computes_otherwise_is_exported_in_the_native_format",
        ),
    ),
)
