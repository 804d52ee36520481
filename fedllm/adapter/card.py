"""The model card of an export: guarantee first, then use and limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedllm.adapter.head_code import head_code
from fedllm.adapter.lora_gguf import GGUF_WEIGHTS
from fedllm.adapter.peft import NATIVE_WEIGHTS
from fedllm.adapter.released import Released
from fedllm.models.adapters.base import layer_of
from fedllm.models.embedded import EMBEDDED_NAMES
from fedllm.models.prefix import PREFIX
from fedllm.report.sections.training import metric_rows
from fedllm.settings.sections import TaskSettings

HEAD_WEIGHTS = "head.safetensors"
_FORMS = {
    "lora": "",
    "ffa-lora": ", the first factor of each fixed",
    "rolora": ", one factor of each in a round, in turn",
    "fedsvd": ", the second factor of each trained and both rewritten by the server after each round",
}


@dataclass(frozen=True)
class Contents:
    """The content of an exported folder.

    Attributes:
        why_not_peft: why there is no PEFT adapter; empty where there is one.
        gguf: whether there is an adapter for llama.cpp.
        merged: whether it is a plain model with the adapter merged into it.
        precision: of a merged model, in words.
    """

    why_not_peft: str = ""
    gguf: bool = False
    merged: bool = False
    precision: str = ""

    @property
    def peft(self) -> bool:
        """True if PEFT loads the folder."""
        return not self.merged and not self.why_not_peft

    @property
    def library(self) -> str:
        """The library's name on the hub."""
        return "transformers" if self.merged else "peft" if self.peft else "fedllm"


def model_card(released: Released, contents: Contents) -> str:
    """Return the card's text (Markdown with the hub's metadata)."""
    settings, report = released.settings, released.report
    model, task = settings.model, settings.task
    name = model.name
    if settings.endpoint.active:
        name = settings.endpoint.model or "a model behind an HTTP endpoint"
    lines = [
        "---",
        f"base_model: {json.dumps(name)}",
        f"library_name: {contents.library}",
        "tags:",
        *(f"- {tag}" for tag in _tags(released, contents)),
        "---",
        "",
        f"# {settings.name}",
        "",
        f"> **{_escape(str(report['guarantee']['sentence']))}**",
        "",
        "This sentence is about all uses of the training data in the privacy ledger when the model "
        "was exported. The run's report has the numbers by silo, the assumptions and the ledger's "
        "last hash.",
        "",
        "## Model",
        "",
        f"- Base model: `{name}`"
        + (f", revision `{model.revision}`" if model.revision else "")
        + (", with the trained change merged into it." if contents.merged else ", frozen."),
        *_quantised(released, contents),
        f"- Trained: {_trained(released)}, in {released.checkpoint.round} federated rounds with "
        f"{len(report['silos'])} silos.",
        f"- Task: {task.kind}"
        + _classes(task)
        + f"; input column{'s' if len(task.text) > 1 else ''} "
        + ", ".join(f"`{column}`" for column in task.text)
        + ".",
    ]
    if contents.merged:
        lines.append(f"- Weights: {contents.precision}.")
    elif contents.why_not_peft:
        lines.append(f"- No PEFT adapter: {_escape(contents.why_not_peft)}.")
    if task.prompt:
        lines += ["- Prompt:", "", *(f"      {line}" for line in task.prompt.split("\n"))]
    lines += ["", "## Use", "", *_usage(released, contents), "", "## Quality", ""]
    lines += _quality(report)
    lines += ["", "## Privacy", ""]
    lines += [f"- {item['title']}: {item['text']}" for item in report["assumptions"]]
    lines += ["", "## Limits", ""]
    lines += [f"- {item['title']}: {item['text']}" for item in report["not_covered"]]
    lines += [
        "- Use: the model was judged on held-out data of the same kind only; on other texts, and for "
        "decisions about people, it was not examined.",
        "",
        f"Run `{released.run.run_id}`; {report['made_by']}.",
        "",
    ]
    return "\n".join(lines)


def _quantised(released: Released, contents: Contents) -> list[str]:
    """How a quantised run's model differs from what is exported; nothing for plain weights."""
    how = released.settings.model.quantization
    if how == "none":
        return []
    here = (
        "The change was added to its plain weights"
        if contents.merged
        else "PEFT puts it on the plain weights"
    )
    if not contents.merged and not contents.peft:
        here = "fedllm computes with the same"
    elif contents.peft:
        here += ", fedllm on the same as in training"
    return [
        f"- In training the matrices in the base model's layers were in {how.removesuffix('bit')} bits. {here}. On plain "
        "weights the outputs differ from those of the training by the rounding of these matrices; the quality below was "
        "measured with them."
    ]


def _classes(task: TaskSettings) -> str:
    """Describe the answers in words."""
    if task.target_range is not None:
        return " within {:g} to {:g}".format(*task.target_range)
    labels = task.labels if task.facts.names_labels else None
    return " into " + ", ".join(f"`{label}`" for label in labels) if labels else ""


def _tags(released: Released, contents: Contents) -> list[str]:
    settings = released.settings
    tags = ["fedllm", "federated-learning"]
    form = settings.adapter.form
    if settings.adapter.low_rank:
        tags.append("lora")
    elif form == "bitfit":
        tags.append("bitfit")
    elif settings.adapter.whole_weights:
        tags.append("fine-tuning")
    elif form == "prefix":
        tags.append("prefix-tuning")
    if settings.privacy.mode == "dp":
        tags.append("differential-privacy")
    if contents.peft:
        tags.append("base_model:adapter:" + settings.model.name)
    elif contents.merged:
        tags.append("base_model:finetune:" + settings.model.name)
    return tags


def _trained(released: Released) -> str:
    params, settings = released.params, released.settings
    parts = []
    adapter = settings.adapter
    if PREFIX in params:
        layers, _, _, length, _ = params[PREFIX].shape
        named = settings.prefix.layers
        which = "" if named == "all" else f" ({', '.join(map(str, named))})"
        parts.append(f"a prefix of {length} positions in {layers} layers{which}")
    if adapter.low_rank:
        parts.append(
            f"LoRA (form {adapter.form}{_FORMS[adapter.form]}) of rank {adapter.rank} and alpha {adapter.alpha:g} on "
            f"the linear maps {_modules(params, 'lora')}"
        )
    if adapter.form == "bitfit":
        parts.append(f"biases and scales (BitFit) of {_modules(params, 'bitfit')}")
    if adapter.whole_weights:
        parts.append(f"changes of the weights of {_modules(params, 'weights')}")
    if settings.endpoint.active:
        parts.append("the weights of prompts and the calibration of label words")
    elif has_head(params):
        parts.append("a classification head")
    count = sum(value.numel() for value in params.values())
    return f"{' and '.join(parts)} ({count:,} numbers)"


def has_head(params: Mapping[str, Tensor]) -> bool:
    """Return True if an encoder's classification head is among the tensors."""
    return "head.weight" in params


def _modules(params: Mapping[str, Tensor], kind: str) -> str:
    """Last parts of the modules' names, and the numbers of their layers."""
    own = [name for name in params if name.startswith(f"{kind}.")]
    names = sorted({name.split(".")[-2] for name in own})
    layers = sorted({n for n in map(layer_of, own) if n is not None})
    where = f" in layers {', '.join(map(str, layers))}" if layers else ""
    return ", ".join(f"`{name}`" for name in names) + where


def _usage(released: Released, contents: Contents) -> list[str]:
    settings = released.settings
    found = _with_transformers(released) if contents.merged else _with_fedllm(settings.task)
    if contents.peft:
        found += ["", "or with PEFT alone:", "", *_with_peft(released)]
    if contents.gguf:
        found += [
            "",
            f"or with llama.cpp and the base model in GGUF: `llama-server -m BASE.gguf --lora {GGUF_WEIGHTS}`.",
        ]
    if not contents.peft and not contents.merged:
        return found
    named = settings.model.name
    if contents.peft and _is_own_name(named):
        found += [
            "",
            f"(`{named}` is a name or file of fedllm's: "
            f'`fedllm.models.backbone.load_backbone("{named}").model` is the base model.)',
        ]
    if settings.task.label_words:
        pairs = zip(settings.task.classes, settings.task.label_words, strict=False)
        words = ", ".join(f"`{word}` for {label}" for label, word in pairs)
        found += ["", f"The class is the likeliest next token after the prompt among {words}."]
    if settings.task.facts.holds == "messages":
        found += ["", _template_words(settings.task)]
    if settings.task.prompt:
        found += ["", f"The text stands in the prompt's place `{{{settings.task.text[0]}}}`."]
    return found


def _template_words(task: TaskSettings) -> str:
    """Say which template a conversation needs."""
    if task.template is None:
        return "A conversation is written by the tokenizer's own chat template."
    return "A conversation is written by this chat template: " + json.dumps(task.template)


def _with_fedllm(task: TaskSettings) -> list[str]:
    example = json.dumps(dict.fromkeys(task.text, "..."))
    if task.facts.holds == "messages":
        asked = {task.target: [{"role": "user", "content": "..."}]}
        example = json.dumps(asked)
    one = 'predictor.predict(["a text"])'
    several = f"predictor.predict([{example}])"
    return [
        "```python",
        "from fedllm.adapter.predict import Predictor",
        "",
        'predictor = Predictor("FOLDER")  # this folder',
        several if len(task.text) > 1 or task.facts.holds == "messages" else one,
        "```",
    ]


def _with_peft(released: Released) -> list[str]:
    settings = released.settings
    encoder = has_head(released.params)
    auto = "AutoModel" if encoder else "AutoModelForCausalLM"
    base = settings.model.name
    loaded = repr(base)
    if settings.model.revision:
        loaded += f", revision={settings.model.revision!r}"
    lines = [
        "```python",
        "from peft import PeftModel",
        f"from transformers import {auto}" + (", AutoTokenizer" if encoder else ""),
        "",
        f"model = {auto}.from_pretrained({loaded})",
        'model = PeftModel.from_pretrained(model, "FOLDER").eval()  # this folder',
    ]
    if encoder:
        lines += [f"tokenizer = AutoTokenizer.from_pretrained({loaded})"]
        lines += head_code(settings.task, NATIVE_WEIGHTS)
    lines.append("```")
    if encoder:
        lines += ["", f"(the head is in `{NATIVE_WEIGHTS}`: PEFT's file has none)."]
    elif settings.adapter.low_rank:
        lines += [
            "",
            f"or behind an OpenAI-style server: `vllm serve {'BASE' if _is_own_name(base) else base} --enable-lora --max-lora-rank "
            f"{_served_rank(settings.adapter.rank)} --lora-modules {settings.name}=FOLDER`.",
        ]
    else:
        lines += [
            "",
            "(one text at a time, or padded with `position_ids` that do not count the padding).",
        ]
    return lines


def _is_own_name(model: str) -> bool:
    """Return True if only fedllm loads a model by this name."""
    return model in EMBEDDED_NAMES or model.endswith(".gguf")


def _served_rank(rank: int) -> int:
    """The least of vLLM's ranks that holds this one."""
    return next((r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= rank), rank)


def _with_transformers(released: Released) -> list[str]:
    encoder = has_head(released.params)
    auto = "AutoModel" if encoder else "AutoModelForCausalLM"
    lines = [
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'model = {auto}.from_pretrained("FOLDER").eval()  # this folder',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
    ]
    if encoder:
        lines += head_code(released.settings.task, HEAD_WEIGHTS)
    return [*lines, "```"]


def _quality(report: Mapping[str, Any]) -> list[str]:
    final = report["training"]["final"]
    if not final:
        return ["The model was not evaluated."]
    lines = []
    for where, record in final.items():
        values = ", ".join(f"{title} {value}" for title, value in metric_rows(record))
        lines.append(f"- After round {record['round']}, by the {where}: {values}.")
    return lines


def _escape(text: str) -> str:
    return text.replace("*", r"\*").replace("<", "&lt;").replace("\n", " ")
