"""Export a trained model: an adapter that others can load, with a model card that states the guarantee."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from fedllm.adapter.peft import (
    NATIVE_CONFIG,
    NATIVE_WEIGHTS,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    save_adapter,
    save_peft_adapter,
)
from fedllm.adapter.peft_check import why_peft_differs
from fedllm.files.durable import plain, write_text
from fedllm.models.prefix import PREFIX, PrefixSpec
from fedllm.report.build import build
from fedllm.report.sections.training import metric_rows
from fedllm.run.checkpoints import Checkpoint, CheckpointError, latest_checkpoint, load_checkpoint
from fedllm.run.folder import RunFolder, RunFolderError
from fedllm.settings.experiment import Settings
from fedllm.training.tunable import shared_tunable

CARD = "README.md"
_FILES = {CARD, NATIVE_CONFIG, NATIVE_WEIGHTS, PEFT_CONFIG, PEFT_WEIGHTS}
_AVERAGE = "average."


class ExportError(ValueError):
    """There is nothing to export, or the place for it is taken."""


@dataclass(frozen=True)
class Exported:
    """The exported files.

    Attributes:
        folder: where.
        round: rounds of training behind the model.
        peft: whether the PEFT files are there too.
        why_not_peft: why not, in words; empty where they are.
    """

    folder: Path
    round: int
    peft: bool
    why_not_peft: str


def export_adapter(source: RunFolder | str | Path, out: str | Path) -> Exported:
    """Write a run's model as an adapter.

    Files: ``adapter.json`` and ``adapter.safetensors`` (fedllm's format: prefix, head, and the
    settings that :class:`fedllm.adapter.predict.Predictor` needs); for a causal language model with a prefix
    in all layers also ``adapter_config.json`` and ``adapter_model.safetensors`` (PEFT
    ``PREFIX_TUNING``), once PEFT has loaded them and given the run's logits; and ``README.md``, a model card with the report's statement.

    Args:
        source: a run, its folder (the last checkpoint is exported), or one of its checkpoints.
        out: the folder to write to; files of an earlier export there are replaced.

    Raises:
        ExportError: no checkpoint is whole, or ``out`` holds other files.
        RunFolderError, CheckpointError: ``source`` is neither, or damaged.
    """
    run, checkpoint = _locate(source)
    folder = Path(out).expanduser()
    _claim(folder)
    params = released_params(checkpoint)
    settings = run.settings_of(params)
    report = build(run)
    save_adapter(folder, params, _meta(run, settings, checkpoint, report))
    why_not = _why_not_peft(settings, params) or _save_peft(folder, settings, params[PREFIX])
    write_text(folder / CARD, model_card(run, checkpoint, report, why_not_peft=why_not))
    return Exported(folder, checkpoint.round, not why_not, why_not)


def _save_peft(folder: Path, settings: Settings, prefix: Tensor) -> str:
    """Write the PEFT files if PEFT computes the same with them as the run did; else return why not."""
    layers, _, heads, length, size = prefix.shape
    spec = PrefixSpec(length, tuple(range(layers)), heads, size)
    model = settings.model
    try:
        backbone = shared_tunable(settings).backbone
    except ValueError as error:
        return f"the model is not here to compare PEFT's logits with: {error}"
    with TemporaryDirectory() as trial:
        save_peft_adapter(trial, prefix, spec, model.name, layers, revision=model.revision)
        why_not = why_peft_differs(backbone, spec, prefix, trial)
    if not why_not:
        save_peft_adapter(folder, prefix, spec, model.name, layers, revision=model.revision)
    return why_not


def released_params(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the parameters to use: the moving average where the run keeps one, else the last ones."""
    if checkpoint.meta.get("released") != "average":
        return checkpoint.params
    missing = [name for name in checkpoint.params if _AVERAGE + name not in checkpoint.state]
    if missing:
        raise CheckpointError(
            f"Expected {_AVERAGE}{missing[0]} in the state of the checkpoint {checkpoint.path}, "
            "whose model is a moving average"
        )
    return {name: checkpoint.state[_AVERAGE + name] for name in checkpoint.params}


def model_card(
    run: RunFolder, checkpoint: Checkpoint, report: Mapping[str, Any], *, why_not_peft: str
) -> str:
    """Return the card's text (Markdown with the hub's metadata): guarantee first, then use and limits."""
    peft = not why_not_peft
    settings = run.settings_of(released_params(checkpoint))
    model, task = settings.model, settings.task
    name = model.name
    if settings.endpoint.active:
        name = settings.endpoint.model or "a model behind an HTTP endpoint"
    lines = [
        "---",
        f"base_model: {json.dumps(name)}",
        f"library_name: {'peft' if peft else 'fedllm'}",
        "tags:",
        *(f"- {tag}" for tag in _tags(settings, peft)),
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
        + ", frozen.",
        f"- Trained: {_trained(checkpoint, settings)}, in {checkpoint.round} federated rounds with "
        f"{len(report['silos'])} silos.",
        f"- Task: {task.kind}"
        + _classes(settings)
        + f"; input column{'s' if len(task.text) > 1 else ''} "
        + ", ".join(f"`{column}`" for column in task.text)
        + ".",
    ]
    if not peft:
        lines.append(f"- No PEFT adapter: {_escape(why_not_peft)}.")
    if task.prompt:
        lines += ["- Prompt:", "", *(f"      {line}" for line in task.prompt.split("\n"))]
    lines += ["", "## Use", "", *_usage(settings, peft), "", "## Quality", ""]
    lines += _quality(report)
    lines += ["", "## Privacy", "", *_privacy(settings, report), "", "## Limits", ""]
    lines += [f"- {item['title']}: {item['text']}" for item in report["not_covered"]]
    lines += [
        "- Use: the model was judged on held-out data of the same kind only; on other texts, and for "
        "decisions about people, it was not examined.",
        "",
        f"Run `{run.run_id}`; {report['made_by']}.",
        "",
    ]
    return "\n".join(lines)


def _locate(source: RunFolder | str | Path) -> tuple[RunFolder, Checkpoint]:
    if not isinstance(source, RunFolder):
        path = Path(source).expanduser().resolve()
        if path.parent.name == "checkpoints":
            checkpoint = load_checkpoint(path)
            return RunFolder.open(path.parent.parent), checkpoint
        source = RunFolder.open(path)
    found = latest_checkpoint(source.checkpoints_path)
    if found is None:
        raise ExportError(
            f"Expected a checkpoint to export, found none that is whole in {source.path}"
        )
    return source, found


def _claim(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"Expected a folder to export to, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(path.name for path in folder.iterdir() if path.name not in _FILES)
    if others:
        raise ExportError(
            f"Expected a new or empty folder to export to, or an earlier export, got {folder} with "
            f"{others[0]}"
        )
    for name in _FILES:  # a half-written export must not look like a whole one
        (folder / name).unlink(missing_ok=True)


def _meta(
    run: RunFolder, settings: Settings, checkpoint: Checkpoint, report: Mapping[str, Any]
) -> dict[str, Any]:
    sections = settings.model_dump(mode="json", include={"model", "prefix", "task", "endpoint"})
    meta: dict[str, Any] = plain(
        {
            "name": settings.name,
            "run_id": run.run_id,
            "round": checkpoint.round,
            "settings": sections,
            "max_tokens": settings.client.max_tokens,
            "guarantee": report["guarantee"],
        }
    )
    return meta


def _why_not_peft(settings: Settings, params: Mapping[str, Tensor]) -> str:
    if PREFIX not in params:
        return "PEFT's PREFIX_TUNING holds a prefix, and this model has none"
    if set(params) != {PREFIX}:
        return "PEFT's PREFIX_TUNING is for causal language models without a head"
    if settings.prefix.layers != "all":
        return "PEFT's PREFIX_TUNING has a prefix in every layer (prefix.layers = all)"
    return ""


def _classes(settings: Settings) -> str:
    classes = settings.task.classes
    return " into " + ", ".join(f"`{label}`" for label in classes) if classes else ""


def _tags(settings: Settings, peft: bool) -> list[str]:
    tags = ["fedllm", "federated-learning", "prefix-tuning"]
    if settings.privacy.mode == "dp":
        tags.append("differential-privacy")
    if peft:
        tags.append("base_model:adapter:" + settings.model.name)
    return tags


def _trained(checkpoint: Checkpoint, settings: Settings) -> str:
    parts = []
    if PREFIX in checkpoint.params:
        layers, _, _, length, _ = checkpoint.params[PREFIX].shape
        named = settings.prefix.layers
        which = "" if named == "all" else f" ({', '.join(map(str, named))})"
        parts.append(f"a prefix of {length} positions in {layers} layers{which}")
    if settings.endpoint.active:
        parts.append("the weights of prompts and the calibration of label words")
    elif any(name != PREFIX for name in checkpoint.params):
        parts.append("a classification head")
    count = sum(value.numel() for value in checkpoint.params.values())
    return f"{' and '.join(parts)} ({count:,} numbers)"


def _usage(settings: Settings, peft: bool) -> list[str]:
    column = settings.task.text[0]
    example = json.dumps(dict.fromkeys(settings.task.text, "..."))
    lines = [
        "```python",
        "from fedllm.adapter.predict import Predictor",
        "",
        'predictor = Predictor("FOLDER")  # this folder',
        f"predictor.predict([{example}])" if len(settings.task.text) > 1 else None,
        'predictor.predict(["a text"])' if len(settings.task.text) == 1 else None,
        "```",
    ]
    found = [line for line in lines if line is not None]
    if not peft:
        return found
    found += [
        "",
        "or with PEFT alone:",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({settings.model.name!r})",
        'model = PeftModel.from_pretrained(model, "FOLDER")  # this folder',
        "```",
        "",
        "(one text at a time, or padded with `position_ids` that do not count the padding).",
    ]
    if settings.model.name in ("smollm2", "minilm") or settings.model.name.endswith(".gguf"):
        found += [
            "",
            f"(`{settings.model.name}` is a name or file of fedllm's: "
            f'`fedllm.models.backbone.load_backbone("{settings.model.name}").model` is the base model.)',
        ]
    if settings.task.label_words:
        pairs = zip(settings.task.labels or (), settings.task.label_words, strict=False)
        words = ", ".join(f"`{word}` for {label}" for label, word in pairs)
        found += ["", f"The class is the likeliest next token after the prompt among {words}."]
    if settings.task.prompt:
        found += ["", f"The text stands in the prompt's place `{{{column}}}`."]
    return found


def _quality(report: Mapping[str, Any]) -> list[str]:
    final = report["training"]["final"]
    if not final:
        return ["The model was not evaluated."]
    lines = []
    for where, record in final.items():
        values = ", ".join(f"{title} {value}" for title, value in metric_rows(record))
        lines.append(f"- After round {record['round']}, by the {where}: {values}.")
    return lines


def _privacy(settings: Settings, report: Mapping[str, Any]) -> list[str]:
    return [f"- {item['title']}: {item['text']}" for item in report["assumptions"]]


def _escape(text: str) -> str:
    return text.replace("*", r"\*").replace("<", "&lt;").replace("\n", " ")


__all__ = [
    "ExportError",
    "Exported",
    "RunFolderError",
    "export_adapter",
    "model_card",
    "released_params",
]
