"""Find a model (hub id, local folder, GGUF file, embedded name) and read what it says of itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import cached_file

from fedllm.models.embedded import EMBEDDED_NAMES, convert_gguf, embedded_file, quiet_loading
from fedllm.models.footprint.quantise import require_own_rows
from fedllm.models.model_error import ModelError
from fedllm.models.parts.text_model import Kind, check_kind, kind_of
from fedllm.models.parts.weight_files import (
    require_no_pointers,
    require_whole_files,
    weight_files,
)
from fedllm.models.weights import load_weights

LOADERS: dict[Kind, Any] = {
    "encoder": AutoModel,
    "decoder": AutoModelForCausalLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}
"""Auto classes that load a model, by its kind."""


@dataclass(frozen=True)
class Opened:
    """A model whose configuration and tokenizer were read, and whose weights were not."""

    kind: Kind
    tokenizer: Any
    files: Sequence[Path]
    quantised: bool
    load: Callable[..., PreTrainedModel]


def open_model(
    name: str,
    kind: Kind | None,
    revision: str | None,
    gguf_file: str | None,
    cache_dir: str | Path | None,
) -> Opened:
    """Read the configuration and the tokenizer of a model, and find its files.

    Args:
        name, kind, revision, gguf_file, cache_dir: as of :func:`fedllm.models.backbone.load_backbone`.

    Raises:
        ModelError: the model is not found, or not usable here.
    """
    source = _source(name, gguf_file, revision, cache_dir)
    options: dict[str, Any] = {"trust_remote_code": False}
    options |= {} if revision is None else {"revision": revision}
    if Path(source).is_dir():
        require_no_pointers(name, Path(source))
    with quiet_loading():
        config = _from_hub(name, AutoConfig, source, options)
        found = kind_of(config)
        kind = found if kind is None or (kind, found) == ("decoder", "encoder-decoder") else kind
        check_kind(name, config, kind)
        tokenizer = _from_hub(name, AutoTokenizer, source, options)
        files = weight_files(source, revision)
        require_whole_files(name, files)
    loader = LOADERS[kind]
    quantised = getattr(config, "quantization_config", None) is not None
    require_own_rows(name, getattr(config, "quantization_config", None))
    load = partial(_weights, name, loader, source, options, config=config)
    return Opened(kind, tokenizer, files, quantised, load)


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
