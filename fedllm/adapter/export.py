"""Export a trained model: an adapter that others can load, with a model card that states the guarantee."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from fedllm.adapter.card import Contents, model_card
from fedllm.adapter.lora_gguf import GGUF_WEIGHTS, gguf_tensors, save_gguf_lora
from fedllm.adapter.peft import (
    NATIVE_CONFIG,
    NATIVE_WEIGHTS,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    AdapterError,
    save_adapter,
    save_peft_adapter,
)
from fedllm.adapter.peft_check import why_peft_differs
from fedllm.adapter.peft_lora import save_peft_lora
from fedllm.adapter.released import ExportError, Released, released_params, require_own
from fedllm.files.durable import plain, write_text
from fedllm.models.adapters.lora import LoraAdapter
from fedllm.models.prefix import PREFIX
from fedllm.run.folder import RunFolder, RunFolderError
from fedllm.settings.sections import ModelSettings
from fedllm.training.tunable import Tunable, shared_tunable

CARD = "README.md"
_FILES = {CARD, NATIVE_CONFIG, NATIVE_WEIGHTS, PEFT_CONFIG, PEFT_WEIGHTS, GGUF_WEIGHTS}


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


def export_adapter(
    source: RunFolder | str | Path, out: str | Path, *, gguf: bool = False
) -> Exported:
    """Write a run's model as an adapter.

    Files: ``adapter.json`` and ``adapter.safetensors`` (fedllm's format: all trained tensors, and the
    settings that :class:`fedllm.adapter.predict.Predictor` needs); ``adapter_config.json`` and
    ``adapter_model.safetensors`` (PEFT: ``LORA``, or ``PREFIX_TUNING`` of a causal language model with a prefix in
    all layers), once PEFT has loaded them and given the run's outputs; and ``README.md``, a model card with the
    report's statement.

    Args:
        source: a run, its folder (the last checkpoint is exported), or one of its checkpoints.
        out: the folder to write to; files of an earlier export there are replaced.
        gguf: write ``adapter.gguf`` for llama.cpp too.

    Raises:
        ExportError: no checkpoint is whole, or ``out`` holds other files.
        AdapterError: there is no GGUF adapter for this model.
        RunFolderError, CheckpointError: ``source`` is neither, or damaged.
    """
    released = Released.find(source)
    params = released.params
    folder = Path(out).expanduser()
    if gguf:
        tunable = _loaded(released)
        gguf_tensors(tunable.adapter, params, tunable.backbone)  # before anything is written
    _claim(folder)
    save_adapter(folder, params, adapter_meta(released))
    why_not = _why_not_peft(released) or _save_peft(folder, released)
    if gguf:
        save_gguf_lora(folder, tunable.adapter, params, tunable.backbone)
    write_text(folder / CARD, model_card(released, Contents(why_not_peft=why_not, gguf=gguf)))
    return Exported(folder, released.checkpoint.round, not why_not, why_not)


def _loaded(released: Released) -> Tunable:
    if released.settings.endpoint.active:
        raise AdapterError("Expected a model that is here, got one behind an HTTP endpoint")
    return shared_tunable(released.plain)


def _why_not_peft(released: Released) -> str:
    settings, params = released.settings, released.params
    form = settings.adapter.form
    if settings.adapter.low_rank:
        return ""
    if form == "bitfit":
        return "PEFT has no form for biases and scales alone; a merged model has them"
    if settings.adapter.whole_weights:
        return "PEFT has no form for changes of whole weights; a merged model has them"
    if PREFIX not in params:
        return "PEFT's PREFIX_TUNING holds a prefix, and this model has none"
    if set(params) != {PREFIX}:
        return "PEFT's PREFIX_TUNING is for causal language models without a head"
    if settings.prefix.layers != "all":
        return "PEFT's PREFIX_TUNING has a prefix in every layer (prefix.layers = all)"
    return ""


def _save_peft(folder: Path, released: Released) -> str:
    """Write the PEFT files if PEFT computes the same with them as the run did; else return why not."""
    model, params = released.settings.model, released.params
    try:
        tunable = shared_tunable(released.plain)
    except ValueError as error:
        return f"the model is not here to compare PEFT's outputs with: {error}"
    if tunable.backbone.kind == "encoder-decoder":
        return "the files of an encoder-decoder's adapter are fedllm's own"
    with TemporaryDirectory() as trial:
        _write_peft(trial, tunable, model, params)
        why_not = why_peft_differs(tunable.backbone, tunable.adapter, params, trial)
    if not why_not:
        _write_peft(folder, tunable, model, params)
    return why_not


def _write_peft(
    folder: str | Path, tunable: Tunable, model: ModelSettings, params: Mapping[str, Tensor]
) -> None:
    name, revision = model.name, model.revision
    adapter, backbone = tunable.adapter, tunable.backbone
    if isinstance(adapter, LoraAdapter):
        save_peft_lora(folder, adapter, params, name, backbone.kind, revision=revision)
        return
    assert tunable.spec is not None
    save_peft_adapter(
        folder, params[PREFIX], tunable.spec, name, backbone.n_layers, revision=revision
    )


def adapter_meta(released: Released) -> dict[str, Any]:
    """Return the metadata of fedllm's format: the settings that a :class:`Predictor` needs, and the guarantee."""
    settings = released.settings
    sections = {"model", "adapter", "prefix", "task", "endpoint"}
    meta: dict[str, Any] = plain(
        {
            "name": settings.name,
            "run_id": released.run.run_id,
            "round": released.checkpoint.round,
            "settings": settings.model_dump(mode="json", include=sections),
            "max_tokens": settings.client.max_tokens,
            "guarantee": released.report["guarantee"],
        }
    )
    return meta


def _claim(folder: Path) -> None:
    require_own(folder, _FILES)
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:  # a half-written export must not look like a whole one
        (folder / name).unlink(missing_ok=True)


__all__ = [
    "ExportError",
    "Exported",
    "RunFolderError",
    "adapter_meta",
    "export_adapter",
    "released_params",
]
