"""Merge a trained adapter into its base model: a plain model folder, without fedllm or PEFT to load it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from fedllm.adapter.card import HEAD_WEIGHTS, Contents, has_head, model_card
from fedllm.adapter.export import CARD, adapter_meta
from fedllm.adapter.released import ExportError, Released, require_own
from fedllm.adapter.same_outputs import Comparison, compare_outputs
from fedllm.files.durable import fsync_folder, json_bytes
from fedllm.models.adapters.base import Adapter
from fedllm.models.backbone import Backbone, load_plain
from fedllm.models.embedded import quiet_loading
from fedllm.models.weights import load_weights
from fedllm.run.folder import RunFolder
from fedllm.settings.sections import ModelSettings
from fedllm.training.tunable import shared_tunable

MERGED = "merged.json"
"""The file that marks a merged model of an export; it names all files."""
_LOST = 0.1  # of the change, by rounding to 16 bits
_FORMAT, _VERSION = "fedllm-merged", 1


@dataclass(frozen=True)
class Merged:
    """The exported model.

    Attributes:
        folder: where.
        round: rounds of training behind the model.
        dtype: of the weights.
        rounding: largest difference between its outputs on a short text and the adapter's, as a share of what the
            adapter changes.
    """

    folder: Path
    round: int
    dtype: str
    rounding: float


def export_merged(source: RunFolder | str | Path, out: str | Path) -> Merged:
    """Write a run's model as a plain model: configuration, weights, tokenizer, and a model card.

    The weights keep the precision of the base model's files, or are in float32 where that precision rounds too much of
    the change away. What is written is loaded again and compared with the adapter's outputs before it gets its name, by
    one rename. A classification head goes into ``head.safetensors``.

    Args:
        source: a run, its folder (the last checkpoint is exported), or one of its checkpoints.
        out: the folder to write; an earlier merged model there is replaced.

    Raises:
        ExportError: the adapter is no change of weights, the merged model computes something else, no checkpoint is
            whole, or ``out`` holds other files.
        ModelError: the base model is not found, or its weights are quantised.
        RunFolderError, CheckpointError: ``source`` is neither, or damaged.
    """
    released = Released.find(source)
    params = released.params
    require_mergeable(released)
    folder = Path(out).expanduser().absolute()
    _require_ours(folder)
    tunable = shared_tunable(released.plain)
    backbone, adapter = tunable.backbone, tunable.adapter
    if backbone.kind == "encoder-decoder":
        raise ExportError(
            f"Expected an encoder or a decoder to merge into, got the encoder-decoder model.name={backbone.name!r}; export "
            "without merging, for fedllm.adapter.predict.Predictor"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        dtype, compared = _save_checked(partial, released.settings.model, backbone, adapter, params)
        merged = Merged(folder, released.checkpoint.round, _name(dtype), _share(compared))
        if has_head(params):
            head = {n: v.float().cpu().contiguous() for n, v in params.items() if _of_head(n)}
            save_file(head, partial / HEAD_WEIGHTS, {"format": "pt"})
        card = model_card(released, Contents(merged=True, precision=_precision(merged)))
        (partial / CARD).write_text(card, encoding="utf-8")
        files = sorted(path.name for path in partial.iterdir())
        named = {"format": _FORMAT, "version": _VERSION, "files": [*files, MERGED]}
        (partial / MERGED).write_bytes(json_bytes(named | {"meta": adapter_meta(released)}))
        _durable(partial)
        _rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return merged


def require_mergeable(released: Released) -> None:
    """Refuse a form that is no change of weights.

    Raises:
        ExportError: it says what there is instead.
    """
    form = released.settings.adapter.form
    if released.settings.endpoint.active:
        raise ExportError("Expected a model that is here to merge into, got an HTTP endpoint")
    if form == "prefix":
        raise ExportError(
            "Expected adapter.form=lora (or another of LoRA), bitfit, last-layers or full to merge, got adapter.form=prefix: keys and "
            "values in front of attention are no change of weights; export it without merging, for "
            "fedllm.adapter.predict.Predictor and, with a prefix in all layers of a decoder, for PEFT"
        )
    if form == "head":
        raise ExportError(
            "Expected adapter.form=lora (or another of LoRA), bitfit, last-layers or full to merge, got adapter.form=head: the base "
            "model was not changed; export without merging writes the head"
        )


def merge(model: PreTrainedModel, adapter: Adapter, params: Mapping[str, Tensor]) -> None:
    """Add the adapter's change to a plain model's parameters, in place; computed in float64, rounded once.

    Args:
        model: the same model as the adapter's, with modules of the same names.

    Raises:
        ExportError: a matrix that changes is used in another place too, where it must not change.
    """
    uses: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        uses.setdefault(id(value), []).append(name)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, change in adapter.weight_changes(params).items():
            weight = own.get(name)
            places = [] if weight is None else uses[id(weight)]
            alone = set(places) <= adapter.whole_parameters or not _is_tied(model, places)
            if weight is None or not alone:
                raise ExportError(
                    f"Expected a matrix of its own to merge into, got {name}, which is tied"
                )
            weight.copy_((weight.double() + change.to(weight.device)).to(weight.dtype))


def _is_tied(model: PreTrainedModel, names: list[str]) -> bool:
    """Whether several modules hold one parameter; a module with several names (ALBERT's layers) is one."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return len({id(modules[name.rpartition(".")[0]]) for name in names}) > 1


def _save_checked(
    folder: Path,
    named: ModelSettings,
    backbone: Backbone,
    adapter: Adapter,
    params: Mapping[str, Tensor],
) -> tuple[torch.dtype, Comparison]:
    """Write the model in its own precision, or where that loses the change in float32; return which, and how it
    compares.

    Raises:
        ExportError: it computes something else than the adapter.
    """
    for wanted in (None, torch.float32):
        model, tokenizer = load_plain(
            named.name,
            kind=backbone.kind,
            revision=named.revision,
            gguf_file=named.gguf_file,
            dtype=wanted,
        )
        merge(model, adapter, params)
        with quiet_loading():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        dtype = model.dtype
        del model
        compared = _compare(folder, backbone, adapter, params, dtype)
        if torch.finfo(dtype).bits >= 32 or (not compared.why and _share(compared) <= _LOST):
            break
    if compared.why:
        raise ExportError(f"Expected a merged model with the run's outputs: {compared.why}")
    return dtype, compared


def _compare(
    folder: Path,
    backbone: Backbone,
    adapter: Adapter,
    params: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> Comparison:
    """Load the folder as a user does, and compare."""
    loader = AutoModelForCausalLM if backbone.kind == "decoder" else AutoModel
    with quiet_loading():
        plain: Any = load_weights(str(folder), loader, str(folder), dtype=backbone.dtype)
    other = plain.to(backbone.device).eval()
    least = min((dtype, backbone.dtype), key=lambda kind: torch.finfo(kind).bits)
    return compare_outputs(backbone, adapter, params, other, "the merged model", least)


def _share(compared: Comparison) -> float:
    return compared.off / compared.effect if compared.effect else 0.0


def _precision(merged: Merged) -> str:
    return (
        f"{merged.dtype}; merged in float64 and rounded once. On a short text the outputs differ "
        f"from the unmerged adapter's by {merged.rounding:.2g} of what the adapter changes"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _of_head(name: str) -> bool:
    return name.startswith("head.")


def _require_ours(folder: Path) -> None:
    """Refuse a folder that is not empty and no earlier merged model."""
    try:
        found = json.loads((folder / MERGED).read_bytes())
        files = set(found["files"]) if found["format"] == _FORMAT else set()
    except (OSError, ValueError, KeyError, TypeError):
        files = set()
    require_own(folder, files)


def _durable(folder: Path) -> None:
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    fsync_folder(folder)


def _rename(partial: Path, folder: Path) -> None:
    """Give the folder its name; an earlier one goes after it."""
    if folder.is_dir() and any(folder.iterdir()):
        earlier = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        folder.rename(earlier)
        partial.rename(folder)
        shutil.rmtree(earlier)
    else:
        partial.rename(folder)
    fsync_folder(folder.parent)
