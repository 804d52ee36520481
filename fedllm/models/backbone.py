"""Loading a frozen backbone: hub id, local folder, GGUF file, or an embedded name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast, get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedllm.kept import Kept
from fedllm.models import attention
from fedllm.models.adapters.targets import stack_of
from fedllm.models.footprint.quantise import Quantization, quantise, quantised_digest
from fedllm.models.footprint.spread import DeviceMap, spread
from fedllm.models.grouping import Grouping, grouping_of, require_direction
from fedllm.models.loading.placement import resolve_device, resolve_dtype
from fedllm.models.loading.source import open_model
from fedllm.models.loading.vocabulary import fix_vocabulary_rows, max_positions, set_pad_token
from fedllm.models.memory import require_room_for_weights
from fedllm.models.model_error import ModelError
from fedllm.models.parts.input_device import input_device
from fedllm.models.parts.text_model import Kind
from fedllm.models.precision import allows_onednn
from fedllm.models.rotary import separate_tables
from fedllm.models.weights import is_exact, loaded_digest, stored_dtype

# Encoders whose pooling layer is unused here and may be dropped (their forward checks for None).
_POOLER_OPTIONAL = {"bert", "roberta", "xlm-roberta", "camembert"}


@dataclass(eq=False)
class Backbone:
    """A frozen model (eval mode, no gradients, prefix attention installed where it can be) and its tokenizer.

    Attributes:
        kind: "encoder" (hidden states, no pooling layer), "decoder" (causal language model) or "encoder-decoder".
        n_layers: attention layers that can take a prefix, as observed in a forward pass; without prefixes, layers.
        kv_heads, head_dim: attention geometry, as observed in a forward pass; 0 without prefixes.
        no_prefix: why the model cannot take a prefix; None: it can.
        grouping: how examples share a micro-batch, see :mod:`fedllm.models.grouping`.
        hidden_size: size of the hidden states.
        name: as asked for.
        reload: loads the weights as they are stored, where ``dtype`` rounded them; else None.
        max_positions: longest sequence that the position embeddings allow, the prefix included
            for decoders; None where not stated.
        quantization: of the linear maps in the layers.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kind: Kind
    n_layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    name: str
    dtype: torch.dtype
    device: torch.device
    reload: Callable[[], PreTrainedModel] | None = None
    max_positions: int | None = None
    quantization: Quantization = "none"
    no_prefix: str | None = None
    grouping: Grouping = "padded"

    @cached_property
    def onednn(self) -> bool:
        """False where products are computed without oneDNN; see :func:`fedllm.models.precision.allows_onednn`."""
        return allows_onednn(self.model, self.dtype, self.device)

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the weights, before any rounding to this dtype or to fewer bits; see :func:`loaded_digest`."""
        if self.quantization != "none":
            assert self.reload is not None
            return quantised_digest(self.model, self.reload)
        return loaded_digest(self.model, self.reload)

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 of what turns text into token ids."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        rules = json.dumps(self.tokenizer.get_vocab()) if fast is None else fast.to_str()
        special = json.dumps(self.tokenizer.special_tokens_map, sort_keys=True, default=str)
        return hashlib.sha256(f"{special}\n{rules}".encode()).hexdigest()

    @property
    def pad_id(self) -> int:
        """Token id for padding."""
        return int(cast(int, self.tokenizer.pad_token_id))


def load_backbone(
    name: str,
    *,
    kind: Kind | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    revision: str | None = None,
    gguf_file: str | None = None,
    cache_dir: str | Path | None = None,
    quantization: Quantization = "none",
    device_map: DeviceMap = "none",
) -> Backbone:
    """Load a model, freeze it and prepare it for prefixes, where it can take any.

    Args:
        name: a hub id, a local folder, a ``.gguf`` file, or an embedded name ("minilm", "smollm2").
        kind: "encoder", "decoder" (or an encoder-decoder, whose decoder writes) or "encoder-decoder"; None finds it from
            the model's configuration.
        dtype: "auto" (float32 on the CPU and on mps; on cuda bfloat16 where the GPU has it, else
            float16), "float32", "bfloat16", "float16" or "float64".
        device: "auto" (cuda, else mps, else cpu) or a torch device.
        revision: the hub's branch, tag or commit.
        gguf_file: name of a GGUF file within the folder or hub repository ``name``.
        cache_dir: where converted GGUF files are kept (see ``fedllm.models.embedded.cache_folder``); the
            hub's own cache follows the hub's environment variables, HF_HUB_OFFLINE included.
        quantization: "8bit" or "4bit" for the linear maps in the layers (:mod:`fedllm.models.footprint.quantise`).
        device_map: "auto" for more than one device, or a device by module (:mod:`fedllm.models.footprint.spread`).

    Raises:
        ModelError: the model is not found, or not usable here.
        DeviceMemoryError: its weights do not fit the device.
        ValueError: an argument outside its range.
    """
    where = resolve_device(device)
    precision = resolve_dtype(dtype, where)
    if kind not in (None, *get_args(Kind)):
        raise ValueError(
            f"Expected kind to be 'encoder', 'decoder', 'encoder-decoder' or None, got kind={kind!r}"
        )
    opened = open_model(name, kind, revision, gguf_file, cache_dir)
    if opened.quantised and quantization != "none":
        raise ModelError(
            f"Expected model.quantization=none for model={name!r} (its weights are quantised already), got "
            f"model.quantization={quantization}"
        )
    alone = device_map == "none"
    first = where if alone else torch.device("cpu")
    require_room_for_weights(name, opened.files, precision, first, quantization)
    model = opened.load(dtype=precision)
    quantise(model, quantization, first)
    reload = None
    exact = alone and quantization == "none" and is_exact(opened.files, precision)
    if not opened.quantised and not exact:
        reload = partial(opened.load, dtype=stored_dtype(opened.files))
    spread(model, device_map, where)
    found = make_backbone(model, opened.tokenizer, opened.kind, name, reload=reload)
    found.quantization = quantization
    return found


def load_plain(
    name: str,
    *,
    kind: Kind | None = None,
    revision: str | None = None,
    gguf_file: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer as their files hold them, on the CPU, not prepared for training.

    Args:
        name, kind, revision, gguf_file: as of :func:`load_backbone`.
        dtype: by default the files' own.

    Raises:
        ModelError: the model is not found, not usable here, or quantised.
    """
    opened = open_model(name, kind, revision, gguf_file, None)
    if opened.quantised:
        raise ModelError(f"Expected a model whose weights are plain numbers, got model={name!r}")
    return opened.load(dtype=dtype or stored_dtype(opened.files)), opened.tokenizer


def make_backbone(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    name: str,
    reload: Callable[[], PreTrainedModel] | None = None,
) -> Backbone:
    """Return a Backbone around a model that is already in memory, on its device and in its dtype.

    Freezes the model, installs prefix attention where it can be, and gives the tokenizer a padding token. A model that
    cannot take prefixes computes with its own attention; the reason is kept.

    Args:
        reload: loads the weights as they are stored, where the model was rounded.

    Raises:
        ModelError: the model is of another kind, or does not compute a short text.
    """
    config = model.config
    if kind == "encoder" and config.model_type in _POOLER_OPTIONAL:
        model.pooler = None
    model.eval().requires_grad_(False)
    separate_tables(model)
    no_prefix = _install_prefixes(model, kind)
    require_direction(name, model, kind)
    shape = attention.geometry_or_none(model)
    set_pad_token(name, tokenizer, model)
    if kind == "decoder":
        fix_vocabulary_rows(model.get_output_embeddings())
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        kind=kind,
        n_layers=stack_of(model)[1] if shape is None else shape.n_layers,
        kv_heads=0 if shape is None else shape.kv_heads,
        head_dim=0 if shape is None else shape.head_dim,
        hidden_size=int(config.get_text_config().hidden_size),
        name=name,
        dtype=model.dtype,
        device=input_device(model),
        reload=reload,
        max_positions=max_positions(model),
        no_prefix=no_prefix,
        grouping=grouping_of(model, kind),
    )


def _install_prefixes(model: PreTrainedModel, kind: Kind) -> str | None:
    """Install prefix attention; return why it cannot be, or None."""
    try:
        attention.install(model, causal=kind != "encoder")
    except ValueError as error:
        if isinstance(
            error, attention.NotPlainAttention
        ):  # which torch's own attention would leave out
            model.set_attn_implementation("eager")
        return str(error)
    return None


MOST_MODELS = 2
"""Models that a process keeps loaded; the one that was not used for longest goes first."""
_shared = Kept[tuple[Any, ...], Backbone](MOST_MODELS)


def shared_backbone(name: str, **options: Any) -> Backbone:
    """Return :func:`load_backbone`'s result, loaded once per arguments (thread safe) while it is kept."""
    key = (name, *sorted((k, str(v)) for k, v in options.items()))
    return _shared.get(key, lambda: load_backbone(name, **options))


def still_kept(backbone: object) -> bool:
    """Count a backbone of :func:`shared_backbone` as used now; False where it was given up."""
    return not isinstance(backbone, Backbone) or _shared.touch(backbone)


def was_given_up(backbone: object) -> bool:
    """Return True if a backbone of :func:`shared_backbone` is no longer kept for others."""
    return isinstance(backbone, Backbone) and not _shared.holds(backbone)
