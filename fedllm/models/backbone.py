"""Loading a frozen backbone: hub id, local folder, GGUF file, or an embedded name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from fedllm.data.shapes import ROW_MULTIPLE
from fedllm.kept import Kept
from fedllm.models import attention
from fedllm.models.embedded import (
    EMBEDDED_NAMES,
    ModelError,
    convert_gguf,
    embedded_file,
    quiet_loading,
)
from fedllm.models.memory import require_room_for_weights
from fedllm.models.parts.text_model import Kind, check_kind, kind_of
from fedllm.models.parts.weight_files import (
    require_no_pointers,
    require_whole_files,
    weight_files,
)
from fedllm.models.precision import allows_onednn
from fedllm.models.rotary import separate_tables
from fedllm.models.weights import is_exact, load_weights, loaded_digest, stored_dtype

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
}
# Encoders whose pooling layer is unused here and may be dropped (their forward checks for None).
_POOLER_OPTIONAL = {"bert", "roberta", "xlm-roberta", "camembert"}


@dataclass(eq=False)
class Backbone:
    """A frozen model (eval mode, no gradients, prefix attention installed) and its tokenizer.

    Attributes:
        kind: "encoder" (hidden states, no pooling layer) or "decoder" (causal language model).
        n_layers, kv_heads, head_dim: attention geometry, as observed in a forward pass.
        hidden_size: size of the hidden states.
        name: as asked for.
        reload: loads the weights as they are stored, where ``dtype`` rounded them; else None.
        max_positions: longest sequence that the position embeddings allow, the prefix included
            for decoders; None where not stated.
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

    @cached_property
    def onednn(self) -> bool:
        """False where products are computed without oneDNN; see :func:`fedllm.models.precision.allows_onednn`."""
        return allows_onednn(self.model, self.dtype, self.device)

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the weights in memory, before any rounding to this dtype; see :func:`loaded_digest`."""
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
) -> Backbone:
    """Load a model, freeze it and prepare it for prefixes.

    Args:
        name: a hub id, a local folder, a ``.gguf`` file, or an embedded name ("minilm", "smollm2").
        kind: "encoder" or "decoder"; None finds it from the model's configuration.
        dtype: "auto" (float32 on the CPU and on mps; on cuda bfloat16 where the GPU has it, else
            float16), "float32", "bfloat16", "float16" or "float64".
        device: "auto" (cuda, else mps, else cpu) or a torch device.
        revision: the hub's branch, tag or commit.
        gguf_file: name of a GGUF file within the folder or hub repository ``name``.
        cache_dir: where converted GGUF files are kept (see ``fedllm.models.embedded.cache_folder``); the
            hub's own cache follows the hub's environment variables, HF_HUB_OFFLINE included.

    Raises:
        ModelError: the model is not found, or not usable here.
        DeviceMemoryError: its weights do not fit the device.
        ValueError: an argument outside its range.
    """
    where = resolve_device(device)
    precision = resolve_dtype(dtype, where)
    if kind not in (None, "encoder", "decoder"):
        raise ValueError(f"Expected kind to be 'encoder', 'decoder' or None, got kind={kind!r}")
    opened = _open(name, kind, revision, gguf_file, cache_dir)
    require_room_for_weights(name, opened.files, precision, where)
    model = opened.load(dtype=precision)
    reload = None
    if not opened.quantised and not is_exact(opened.files, precision):
        reload = partial(opened.load, dtype=stored_dtype(opened.files))
    return make_backbone(model.to(where), opened.tokenizer, opened.kind, name, reload=reload)


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
    opened = _open(name, kind, revision, gguf_file, None)
    if opened.quantised:
        raise ModelError(f"Expected a model whose weights are plain numbers, got model={name!r}")
    return opened.load(dtype=dtype or stored_dtype(opened.files)), opened.tokenizer


@dataclass(frozen=True)
class _Opened:
    """A model whose configuration and tokenizer were read, and whose weights were not."""

    kind: Kind
    tokenizer: Any
    files: Sequence[Path]
    quantised: bool
    load: Callable[..., PreTrainedModel]


def _open(
    name: str,
    kind: Kind | None,
    revision: str | None,
    gguf_file: str | None,
    cache_dir: str | Path | None,
) -> _Opened:
    source = _source(name, gguf_file, revision, cache_dir)
    options: dict[str, Any] = {"trust_remote_code": False}
    options |= {} if revision is None else {"revision": revision}
    if Path(source).is_dir():
        require_no_pointers(name, Path(source))
    with quiet_loading():
        config = _from_hub(name, AutoConfig, source, options)
        kind = kind or kind_of(config)
        check_kind(name, config, kind)
        tokenizer = _from_hub(name, AutoTokenizer, source, options)
        files = weight_files(source, revision)
        require_whole_files(name, files)
    loader = AutoModelForCausalLM if kind == "decoder" else AutoModel
    quantised = getattr(config, "quantization_config", None) is not None
    load = partial(_weights, name, loader, source, options, config=config)
    return _Opened(kind, tokenizer, files, quantised, load)


def make_backbone(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    name: str,
    reload: Callable[[], PreTrainedModel] | None = None,
) -> Backbone:
    """Return a Backbone around a model that is already in memory, on its device and in its dtype.

    Freezes the model, installs prefix attention and gives the tokenizer a padding token.

    Args:
        reload: loads the weights as they are stored, where the model was rounded.

    Raises:
        ModelError: prefixes are not supported for the model (the message says why).
    """
    config = model.config
    if kind == "encoder" and config.model_type in _POOLER_OPTIONAL:
        model.pooler = None
    model.eval().requires_grad_(False)
    separate_tables(model)
    try:
        attention.install(model, causal=kind == "decoder")
    except ValueError as error:
        raise ModelError(f"model={name!r} cannot take prefixes: {error}") from error
    shape = attention.geometry(model)
    if kind == "decoder" and not shape.causal:
        raise ModelError(f"Expected causal attention in a decoder, got none in model={name!r}")
    if kind == "encoder" and shape.causal:
        raise ModelError(
            f"Expected attention in both directions in an encoder, got causal attention in model={name!r} "
            f"({type(model).__name__})"
        )
    _set_pad_token(name, tokenizer, model)
    if kind == "decoder":
        _fix_vocabulary_rows(model.get_output_embeddings())
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        kind=kind,
        n_layers=shape.n_layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        hidden_size=int(config.get_text_config().hidden_size),
        name=name,
        dtype=model.dtype,
        device=model.device,
        reload=reload,
        max_positions=_max_positions(model),
    )


def _fix_vocabulary_rows(layer: torch.nn.Module) -> None:
    """Let the vocabulary layer see a contiguous matrix with a multiple of ``ROW_MULTIPLE`` rows.

    Contiguous: ``logits_to_keep`` passes a strided slice, for which torch takes a batched product that, in
    bfloat16 on the CPU, copies the whole vocabulary matrix per example. A multiple: so that an example's
    logits do not depend on the number of examples (see :mod:`fedllm.data.shapes`).
    """
    layer.register_forward_pre_hook(_even_rows)
    layer.register_forward_hook(_own_rows)


def _even_rows(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> Any:
    hidden = args[0]
    flat = hidden.reshape(-1, hidden.shape[-1])
    missing = -flat.shape[0] % ROW_MULTIPLE
    if missing:
        flat = torch.nn.functional.pad(flat, (0, 0, 0, missing))
    flat = flat.contiguous()
    flat.own_shape = hidden.shape[:-1]  # type: ignore[attr-defined]  # for _own_rows, which gets this tensor
    return (flat, *args[1:])


def _own_rows(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> Any:
    own: torch.Size = args[0].own_shape  # type: ignore[attr-defined]
    return output[: own.numel()].reshape(*own, output.shape[-1])


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


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device meant by ``device`` ("auto": cuda, else mps, else cpu)."""
    if device != "auto":
        try:
            found = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"Expected 'auto' or a torch device, got device={device!r}") from error
        if found.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"Expected an available device, got device={device!r} without CUDA")
        if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"Expected an available device, got device={device!r} with {torch.cuda.device_count()} GPUs"
            )
        return found
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the torch dtype meant by ``dtype`` on ``device``."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    if dtype not in _DTYPES:
        raise ValueError(
            f"Expected dtype to be one of auto, {', '.join(_DTYPES)}, got dtype={dtype!r}"
        )
    return _DTYPES[dtype]


def _source(
    name: str, gguf_file: str | None, revision: str | None, cache_dir: str | Path | None
) -> str:
    """Return the argument for from_pretrained."""
    if name == "minilm":
        return str(embedded_file(name).parent)
    if name == "smollm2":
        return str(convert_gguf(embedded_file(name), cache_dir)[0])
    path = Path(name).expanduser()
    if gguf_file is not None:
        if path.is_dir():
            path = path / gguf_file
        else:
            with _hub_errors(name):
                path = Path(cast(str, cached_file(name, gguf_file, revision=revision)))
    if path.suffix == ".gguf":
        return str(convert_gguf(path, cache_dir)[0])
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"Expected a config.json in the model folder, got model={name!r}")
        return str(path)
    if path.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"Expected a model folder or a .gguf file, got model={name!r}")
    return name


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn errors of transformers and the hub into one error that names the setting."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"Expected a model that transformers knows, got model={name!r}, which needs Python code of its own "
                "(auto_map in config.json); code of a model is never run here"
            ) from error
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"Expected model to be a hub id, a model folder, a .gguf file or one of "
            f"{', '.join(EMBEDDED_NAMES)}, got model={name!r}, which could not be loaded"
            f"{' (HF_HUB_OFFLINE is set)' if offline else ''}: {reason}"
        ) from error


def _from_hub(name: str, auto: Any, source: str, options: dict[str, Any]) -> Any:
    with _hub_errors(name):
        return auto.from_pretrained(source, **options)


def _weights(
    name: str, loader: Any, source: str, options: dict[str, Any], **more: Any
) -> PreTrainedModel:
    with _hub_errors(name), quiet_loading():
        return load_weights(name, loader, source, **options, **more)


def _set_pad_token(name: str, tokenizer: Any, model: PreTrainedModel) -> None:
    """Set a pad token: padding is masked, so any existing token serves; no embedding is resized.

    A padding token that the model has no embedding for is replaced.
    """
    size = int(model.get_input_embeddings().weight.shape[0])
    ids = {"pad": tokenizer.pad_token_id, "eos": tokenizer.eos_token_id}
    ids |= {"unk": tokenizer.unk_token_id, "bos": tokenizer.bos_token_id}
    found = next((token for token, id_ in ids.items() if id_ is not None and id_ < size), None)
    if found is None:
        raise ModelError(
            f"Expected a pad, eos, unk or bos token among the {size} embeddings, got none in model={name!r} "
            f"(token ids: {ids})"
        )
    if found != "pad":
        tokenizer.pad_token = getattr(tokenizer, f"{found}_token")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def _max_positions(model: PreTrainedModel) -> int | None:
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if found is None:
        return None
    for name, module in model.named_modules():
        start = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and start is not None:
            return int(found) - start - 1  # positions start after the padding's
    return int(found)
