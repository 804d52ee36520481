"""Each kind of task has one loss an example, of that example alone, and tells a server nothing beside it."""

from __future__ import annotations

from ..mutation import Mutation

_MATES = "tests/fedllm/training/test_batch_mates.py"
_BITS = f"{_MATES}::test_a_gradient_is_the_same_bits_alone_and_among_others"
_PADDING = f"{_MATES}::test_what_stands_at_padding_does_not_matter"
_HEADS = "tests/fedllm/tasks/test_heads.py"
_CHAT = "tests/fedllm/tasks/test_chat.py"
_FORMS = "tests/client/test_silo_forms.py"

MUTATIONS = (
    Mutation(
        "tags-of-padding-multiplied",
        "fedllm/tasks/heads/tokens.py",
        "hidden = hidden.masked_fill(batch.attention_mask.unsqueeze(-1) == 0, 0.0)",
        "hidden = hidden * batch.attention_mask.unsqueeze(-1)",
        "NaN at padding reaches the gradient of the head.",
        (_PADDING,),
    ),
    Mutation(
        "tags-over-the-words-of-the-batch",
        "fedllm/tasks/heads/tokens.py",
        "nll.masked_fill(counted == 0, 0.0).sum(1) / counted.sum(1).clamp(min=1)",
        "nll.masked_fill(counted == 0, 0.0).sum(1) / counted.sum().clamp(min=1)",
        "The number of words of batch mates divides an example's loss.",
        (_BITS, f"{_HEADS}::test_a_gradient_in_a_batch_is_that_of_the_example_alone"),
    ),
    Mutation(
        "numbers-stretched-by-the-batch",
        "fedllm/tasks/heads/regression.py",
        '        wanted = required(batch.values, "values")[:, 0]\n',
        '        wanted = required(batch.values, "values")[:, 0]\n        wanted = wanted - wanted.mean()\n',
        "The mean of the batch moves each example's error.",
        (_BITS, f"{_HEADS}::test_a_gradient_in_a_batch_is_that_of_the_example_alone"),
    ),
    Mutation(
        "words-counted-as-examples",
        "fedllm/settings/kinds.py",
        '            classes=False, backbone="encoder", form="tags", columns=("tokens", "tags")\n',
        '            classes=False, accuracy=True, backbone="encoder", form="tags", columns=("tokens", "tags")\n',
        "The noise of the silos' counts is made for one answer an example; a record of many words would move them by more.",
        (f"{_HEADS}::test_what_does_not_go_together_is_refused_by_name",),
    ),
    Mutation(
        "questions-are-learnt",
        "fedllm/tasks/chat/template.py",
        "            mask[start:stop] = [1] * (stop - start)\n",
        "            mask[:stop] = [1] * stop\n",
        "The loss is on what the user wrote, too.",
        (f"{_CHAT}::test_the_assistants_tokens_and_the_end_of_its_turns",),
    ),
    Mutation(
        "templates-know-the-day",
        "fedllm/tasks/chat/template.py",
        "            self.text = _NOW + self.text\n",
        "            pass\n",
        "A resumed run has other tokens on another day: seeded noise meets two values.",
        (f"{_CHAT}::test_the_date_of_a_template_is_a_fixed_one",),
    ),
    Mutation(
        "templates-draw",
        "fedllm/tasks/chat/template.py",
        "        if drawn is not None:\n",
        "        if False:\n",
        "Tokens of a record differ from process to process: seeded noise meets two values.",
        (f"{_CHAT}::test_no_template_is_one_error_that_names_the_setting",),
    ),
    Mutation(
        "templates-of-any-server",
        "client/limits.py",
        "    if own.task.template is not None and not silo.data.template:\n",
        "    if False:\n",
        "A template that refuses some conversations tells the server whether the silo has one.",
        (f"{_FORMS}::test_a_servers_template_is_refused_unless_the_silo_says_otherwise",),
    ),
    Mutation(
        "forms-of-any-server",
        "client/limits.py",
        '    if holds != silo.data.holds and not {holds, silo.data.holds} <= {"class", "text"}:\n',
        "    if False:\n",
        "Whether a text can be read as a number decides if the silo takes part, and tells the server.",
        (f"{_FORMS}::test_a_task_of_another_form_is_refused_before_any_data_is_read",),
    ),
)
