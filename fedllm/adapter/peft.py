"""Trained parameters on disk: as a PEFT ``PREFIX_TUNING`` adapter, and in the native format.

PEFT's format holds a causal language model's prefix in every layer. Everything else (encoders with
their head, a subset of layers) goes into the native format: ``adapter.safetensors`` with the
tensors by name and ``adapter.json`` with their shapes, a digest and the caller's metadata.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedllm.adapter.quiet_peft import quiet_peft
from fedllm.models.embedded import file_sha256
from fedllm.models.prefix import PrefixSpec

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
NATIVE_CONFIG = "adapter.json"
NATIVE_WEIGHTS = "adapter.safetensors"
_PEFT_KEY = "prompt_embeddings"
_NATIVE_FORMAT = "fedllm-adapter"
_NATIVE_VERSION = 1


class AdapterError(ValueError):
    """An adapter cannot be written in the format asked for, or cannot be read."""


def save_peft_adapter(
    folder: str | Path,
    prefix: Tensor,
    spec: PrefixSpec,
    backbone_name: str,
    n_layers: int,
    *,
    revision: str | None = None,
) -> None:
    """Write a causal LM's prefix as a PEFT adapter for ``peft.PeftModel.from_pretrained``.

    Args:
        prefix: ``spec.shape``; written in float32.
        backbone_name: what PEFT will take as the base model's name or path.
        n_layers: layers of the backbone.

    Raises:
        AdapterError: the prefix does not cover every layer. PEFT puts a prefix in all layers, and
            no value of it equals having none: even zero keys draw attention.
        ValueError: the prefix does not have the spec's shape.
    """
    if spec.layers != tuple(range(n_layers)):
        raise AdapterError(
            f"Expected a prefix in all {n_layers} layers for the PEFT format, got "
            f"layers={list(spec.layers)}: PEFT cannot leave layers out; use the native format"
        )
    if tuple(prefix.shape) != spec.shape:
        raise ValueError(f"Expected a prefix of shape {spec.shape}, got {tuple(prefix.shape)}")
    with quiet_peft():
        from peft import PrefixTuningConfig

    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=backbone_name,
        revision=revision,
        inference_mode=True,
        num_virtual_tokens=spec.length,
        token_dim=spec.kv_heads * spec.head_dim,
        num_attention_heads=spec.kv_heads,
        num_layers=n_layers,
        num_transformer_submodules=1,
        prefix_projection=False,
    ).to_dict()
    # (L, 2, heads, P, d) -> (P, L * 2 * heads * d)
    flat = prefix.detach().float().cpu().permute(3, 0, 1, 2, 4).reshape(spec.length, -1)
    folder = made_folder(folder)
    write_durably(folder / PEFT_WEIGHTS, save({_PEFT_KEY: flat.contiguous()}, {"format": "pt"}))
    write_durably(folder / PEFT_CONFIG, pretty_json(config))


def load_peft_adapter(folder: str | Path) -> tuple[Tensor, PrefixSpec]:
    """Read a PEFT prefix adapter: the prefix in float32 and its spec (all layers).

    Raises:
        AdapterError: files missing or damaged, another PEFT type or task, or shapes that disagree.
    """
    folder = Path(folder)
    config = _read_json(folder / PEFT_CONFIG)
    if config.get("peft_type") != "PREFIX_TUNING" or config.get("task_type") != "CAUSAL_LM":
        raise AdapterError(
            f"Expected a PREFIX_TUNING adapter for CAUSAL_LM in {folder}, got "
            f"peft_type={config.get('peft_type')}, task_type={config.get('task_type')}"
        )
    wanted = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")
    missing = [name for name in wanted if not isinstance(config.get(name), int)]
    if missing:
        raise AdapterError(f"Expected {missing[0]} to be a number in {folder / PEFT_CONFIG}")
    length, layers, heads, token_dim = (config[name] for name in wanted)
    tensors = _read_tensors(folder / PEFT_WEIGHTS)
    if _PEFT_KEY not in tensors:
        raise AdapterError(f"Expected {_PEFT_KEY} in {folder / PEFT_WEIGHTS}, got {list(tensors)}")
    flat = tensors[_PEFT_KEY].float()
    if heads < 1 or token_dim % heads or tuple(flat.shape) != (length, 2 * layers * token_dim):
        raise AdapterError(
            f"Expected {_PEFT_KEY} of shape ({length}, 2 * {layers} * {token_dim}) with {heads} "
            f"heads, got {tuple(flat.shape)}"
        )
    spec = PrefixSpec(length, tuple(range(layers)), heads, token_dim // heads)
    prefix = flat.view(length, layers, 2, heads, spec.head_dim).permute(1, 2, 3, 0, 4)
    return prefix.contiguous(), spec


def save_adapter(folder: str | Path, params: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write trained parameters in the native format.

    Args:
        params: tensors by name; written in float32.
        meta: anything that JSON holds (spec, labels, backbone, guarantee, ...).
    """
    folder = made_folder(folder)
    tensors = {k: v.detach().float().cpu().contiguous() for k, v in sorted(params.items())}
    data = save(tensors, {"format": "pt"})
    digest = write_durably(folder / NATIVE_WEIGHTS, data)
    config = {
        "format": _NATIVE_FORMAT,
        "version": _NATIVE_VERSION,
        "params": {k: list(v.shape) for k, v in tensors.items()},
        "sha256": digest,
        "meta": dict(meta),
    }
    write_durably(folder / NATIVE_CONFIG, pretty_json(config))


def load_adapter(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the native format: parameters sorted by name, and the metadata.

    Raises:
        AdapterError: files missing, damaged, of another format or newer version, or a pair that
            does not belong together.
    """
    folder = Path(folder)
    config = _read_json(folder / NATIVE_CONFIG)
    if config.get("format") != _NATIVE_FORMAT or config.get("version") != _NATIVE_VERSION:
        raise AdapterError(
            f"Expected format {_NATIVE_FORMAT} version {_NATIVE_VERSION} in "
            f"{folder / NATIVE_CONFIG}, got {config.get('format')} version {config.get('version')}"
        )
    tensors = _read_tensors(folder / NATIVE_WEIGHTS)
    shapes = {k: list(v.shape) for k, v in tensors.items()}
    digest = file_sha256(folder / NATIVE_WEIGHTS)
    if config.get("sha256") != digest or config.get("params") != shapes:
        raise AdapterError(
            f"Expected the tensors that {folder / NATIVE_CONFIG} describes, got others: the two "
            "files do not belong together, or one was changed"
        )
    return dict(sorted(tensors.items())), config["meta"]


def made_folder(folder: str | Path) -> Path:
    """Return the folder, made where it is missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def pretty_json(value: Mapping[str, Any]) -> bytes:
    """Readable JSON with sorted keys; sets, as PEFT's configurations have them, become sorted lists."""
    listed = {k: sorted(v) if isinstance(v, set) else v for k, v in value.items()}
    return (json.dumps(listed, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def write_durably(path: Path, data: bytes) -> str:
    """Write by a temporary file, flush, fsync and rename; return the file's SHA-256."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        digest = file_sha256(partial)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return digest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise AdapterError(f"Expected an adapter with {path.name}, got {path.parent}") from error
    except ValueError as error:
        raise AdapterError(f"Expected JSON in {path}: {error}") from error
    if not isinstance(value, dict):
        raise AdapterError(f"Expected a JSON object in {path}, got {type(value).__name__}")
    return value


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load(path.read_bytes())
    except FileNotFoundError as error:
        raise AdapterError(f"Expected an adapter with {path.name}, got {path.parent}") from error
    except (SafetensorError, ValueError) as error:
        raise AdapterError(f"Expected safetensors in {path}: {error}") from error
