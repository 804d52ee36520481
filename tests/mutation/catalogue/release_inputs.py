"""What a seeded release is named by, and the frozen model that it is of."""

from __future__ import annotations

from ..mutation import Mutation

_INPUTS = "tests/fedllm/budget/test_release_inputs.py"
_MACHINE = f"{_INPUTS}::test_the_same_settings_on_another_model_machine_or_number_format_are_another_release"
_WEIGHTS = "tests/fedllm/models/test_weights.py"
_TWO = "The same noise is added to two values, and their difference is bare."

MUTATIONS = (
    Mutation(
        "release-blind-to-the-weights",
        "fedllm/budget/release_inputs.py",
        '"weights": backbone.weights_digest,',
        '"weights": "",',
        f"Another checkpoint under the same name: {_TWO}",
        (_MACHINE,),
    ),
    Mutation(
        "release-blind-to-the-dtype",
        "fedllm/budget/release_inputs.py",
        '"dtype": _format(backbone),',
        '"dtype": "auto",',
        f"auto became bfloat16 after a resume elsewhere: {_TWO}",
        (_MACHINE,),
    ),
    Mutation(
        "release-blind-to-the-device",
        "fedllm/budget/release_inputs.py",
        '"device": _place(backbone),',
        '"device": "auto",',
        f"auto became a GPU after a resume elsewhere: {_TWO}",
        (_MACHINE,),
    ),
    Mutation(
        "release-blind-to-the-threads",
        "fedllm/budget/release_inputs.py",
        '        "threads": torch.get_num_threads(),\n',
        "",
        f"Sums are added in another order: {_TWO}",
        (_MACHINE,),
    ),
    Mutation(
        "release-blind-to-the-clip",
        "fedllm/budget/release_id.py",
        "names = sorted(value)\n",
        'names = sorted(set(value) - {"clip"})\n',
        f"A round is repeated at another clipping norm: {_TWO}",
        (f"{_INPUTS}::test_a_round_at_another_clipping_norm_is_another_release",),
    ),
    Mutation(
        "fingerprint-of-the-required-fields",
        "fedllm/budget/release_id.py",
        "for field in fields}",
        "for field in fields if field.default is dataclasses.MISSING}",
        f"What came with the task is forgotten: {_TWO}",
        (f"{_INPUTS}::test_every_field_is_in_the_fingerprint",),
    ),
    Mutation(
        "release-blind-to-the-task",
        "fedllm/silo/silo_in_run.py",
        "task=task.fingerprint(),",
        "task=task.kind,",
        f"The same silo is asked for a round at other parameters: {_TWO}",
        (f"{_INPUTS}::test_each_extra_of_a_task_is_another_release",),
    ),
    Mutation(
        "task-blind-to-its-extras",
        "fedllm/budget/release_id.py",
        "for field in fields}",
        'for field in fields if field.name != "extras"}',
        f"What an optional part of the run sends with a task is forgotten: {_TWO}",
        (
            f"{_INPUTS}::test_every_field_is_in_the_fingerprint",
            f"{_INPUTS}::test_a_task_that_differs_in_one_place_is_another_task",
        ),
    ),
    Mutation(
        "fingerprint-of-a-mappings-names",
        "fedllm/budget/release_id.py",
        "[list(pair) for pair in zip(names, plain, strict=True)]",
        "names",
        f"Parameters of the same names: {_TWO}",
        (
            f"{_INPUTS}::test_each_extra_of_a_task_is_another_release",
            f"{_INPUTS}::test_a_task_that_differs_in_one_place_is_another_task",
        ),
    ),
    Mutation(
        "fingerprint-without-types",
        "fedllm/budget/release_id.py",
        '["float", value.hex()]',
        '["float", f"{value:.6g}"]',
        f"Two noise multipliers that differ in the seventh digit: {_TWO}",
        (_INPUTS,),
    ),
    Mutation(
        "params-named-in-float32",
        "fedllm/budget/release_id.py",
        "value = params[name].detach().cpu().contiguous()",
        "value = params[name].detach().float().cpu().contiguous()",
        f"Sums in float64 that differ in a late bit: {_TWO}",
        (f"{_INPUTS}::test_digests_of_data_and_tensors_know_every_field_and_bit",),
    ),
    Mutation(
        "examples-without-their-prompts",
        "fedllm/budget/release_id.py",
        "row = dataclasses.asdict(feature)",
        "row = [feature.input_ids, feature.target, feature.target_mask]",
        f"A field of an example that a task reads is forgotten: {_TWO}",
        (f"{_INPUTS}::test_digests_of_data_and_tensors_know_every_field_and_bit",),
    ),
    Mutation(
        "missing-weights-are-random",
        "fedllm/models/weights.py",
        "    require_whole(name, model, info)\n",
        "",
        "A lost shard is filled with random numbers, others in each process, and trained on.",
        (f"{_WEIGHTS}::test_a_checkpoint_that_does_not_fit_is_refused_by_name",),
    ),
    Mutation(
        "deeper-checkpoint-is-cut",
        "fedllm/models/weights.py",
        "    of_the_body = [key for key in unexpected if _in_body(model, key)]\n",
        "    of_the_body: list[str] = []\n",
        "A checkpoint of twelve layers is loaded as a model of six without a word.",
        (f"{_WEIGHTS}::test_a_deeper_checkpoint_than_its_configuration_says_is_refused",),
    ),
    Mutation(
        "digest-of-rounded-weights",
        "fedllm/models/backbone.py",
        "return loaded_digest(self.model, self.reload)",
        "return loaded_digest(self.model)",
        "Honest nodes of different precision refuse each other, and small changes have no digest.",
        (f"{_WEIGHTS}::test_nodes_of_any_precision_agree_on_the_same_checkpoint",),
    ),
    Mutation(
        "digest-of-the-files-alone",
        "fedllm/models/weights.py",
        "            if there is None or not torch.equal(there.to(value.dtype), value.cpu()):\n",
        "            if there is None:\n",
        "The digest vouches for files that are not what was loaded.",
        (f"{_WEIGHTS}::test_files_that_changed_since_a_rounded_model_was_loaded_are_refused",),
    ),
)
