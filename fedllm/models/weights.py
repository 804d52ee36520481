"""Load a frozen model's weights, refuse a checkpoint that does not fit, and compute their digest.

transformers fills a tensor that the checkpoint lacks with random numbers, others in each process, and continues.
Here a checkpoint must hold every tensor that the outputs depend on, in the model's shape, and no tensor of the
model's body that the model does not know.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedllm.models.model_error import ModelError

_SHOWN = 4
_POOLER = "pooler."  # of an encoder: acts on the hidden states and is never used here
_EXACT = {  # dtypes that hold each value of a stored one
    torch.float16: {torch.float16, torch.float32, torch.float64},
    torch.bfloat16: {torch.bfloat16, torch.float32, torch.float64},
    torch.float32: {torch.float32, torch.float64},
    torch.float64: {torch.float64},
}
_SAFETENSORS = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_WIDEST = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_weights(name: str, loader: Any, source: str, **options: Any) -> PreTrainedModel:
    """Return ``loader.from_pretrained(source, **options)`` with every tensor from the checkpoint.

    Args:
        name: the model as the settings name it, for the error.
        loader: AutoModel or AutoModelForCausalLM.

    Raises:
        ModelError: tensors are missing, have another shape, or are of the body and unknown to the model.
    """
    model, info = loader.from_pretrained(
        source, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    require_whole(name, model, info)
    with torch.no_grad():
        for key in info["missing_keys"]:  # an unused pooler: the same in each process
            model.get_parameter(key).zero_()
    return model


def require_whole(name: str, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that does not fit the model.

    Fine are: a missing pooler of an encoder, which nothing here uses; and unexpected tensors of heads that the
    model does not have (masked words, next sentence, a classifier). What transformers itself calls
    harmless (tied weights, position ids, old rotary tables) is in neither list.

    Args:
        info: of ``from_pretrained(..., output_loading_info=True)``.

    Raises:
        ModelError: the names, and what they may mean.
    """
    encoder = model.get_output_embeddings() is None
    missing = sorted(
        key for key in info["missing_keys"] if not (encoder and key.startswith(_POOLER))
    )
    mismatched = sorted(
        f"{key} {_shape(found)} for {_shape(wanted)}"
        for key, found, wanted in info["mismatched_keys"]
    )
    unexpected = sorted(info["unexpected_keys"])
    of_the_body = [key for key in unexpected if _in_body(model, key)]
    said = []
    if missing:
        said.append(f"{len(missing)} missing ({_few(missing)})")
        if "lm_head.weight" in missing:
            said[-1] += ", the output head among them"
    if mismatched:
        said.append(f"{len(mismatched)} of another shape ({_few(mismatched)})")
    if of_the_body or (missing and unexpected):
        named = unexpected if missing else of_the_body
        said.append(f"{len(named)} unexpected ({_few(named)})")
    if said:
        raise ModelError(
            f"Expected the tensors of a {type(model).__name__} in the checkpoint of model={name!r}, got "
            f"{'; '.join(said)}{_hint(missing, unexpected)}"
        )


def _in_body(model: PreTrainedModel, key: str) -> bool:
    """Return True if a tensor would be part of what this model computes, by its first name."""
    body = getattr(model, model.base_model_prefix, model)
    first = key.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]
    parts = {n for m in (body, model) for n, _ in m.named_children()}
    parts |= {n for n, _ in body.named_parameters(recurse=False)}
    return first in parts - {_POOLER[:-1]}


def _hint(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    for key in unexpected:
        prefix = key.partition(".")[0] + "."
        if any(key.removeprefix(prefix).endswith(wanted) for wanted in missing):
            return f"; remove {prefix!r}, which its names begin with"
    return "" if unexpected else "; a file of the checkpoint may be missing"


def _few(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _shape(size: Iterable[int]) -> str:
    return "x".join(str(n) for n in size) or "scalar"


# -- digests ---------------------------------------------------------------------------------------


def is_exact(files: Sequence[Path], dtype: torch.dtype) -> bool:
    """Return True if ``dtype`` holds each value that these weight files store.

    PyTorch's own files are taken to hold float32.
    """
    return dtype in _EXACT[stored_dtype(files)]


def stored_dtype(files: Sequence[Path]) -> torch.dtype:
    """Return a floating dtype that holds each floating value of these files."""
    found = set()
    for path in files:
        if path.suffix != ".safetensors":
            found.add(torch.float32)
            continue
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        kinds = {entry["dtype"] for key, entry in header.items() if key != "__metadata__"}
        found |= {_SAFETENSORS[kind] for kind in kinds if kind in _SAFETENSORS}
    if found == {torch.float16, torch.bfloat16}:
        return torch.float32  # neither holds the other
    return max(found, key=_WIDEST.index, default=torch.float32)


def loaded_digest(
    model: PreTrainedModel, reload: Callable[[], PreTrainedModel] | None = None
) -> str:
    """Return the SHA-256 of the weights in memory: names, shapes and values, whatever the dtype and the files.

    Values are hashed in float32 (float64 where they have it), which holds bfloat16 and float16 exactly: a node
    with the checkpoint's own precision and one with a higher one agree. Where the model was rounded to a lower
    precision, the values before the rounding are hashed, so that this node agrees as well, after the check that
    they round to what is in memory.

    Args:
        reload: loads the model without rounding; None if nothing was rounded.

    Raises:
        ModelError: the files no longer hold what was loaded.
    """
    state = _state(model)
    exact = state if reload is None else _state(reload())
    if exact is not state:
        for name, value in state.items():
            there = exact.get(name)
            if there is not None and value.is_meta:  # offloaded (device_map): not in memory
                continue
            if there is None or not torch.equal(there.to(value.dtype), value.cpu()):
                raise ModelError(
                    f"Expected the weights that were loaded, got others for {name}: the files changed since"
                )
    names = sorted(exact)
    with ThreadPoolExecutor(4) as pool:  # hashing gives the lock free
        digests = pool.map(lambda name: _tensor_digest(exact[name]), names)
        lines = "".join(f"{name} {digest}\n" for name, digest in zip(names, digests, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name, without an encoder's unused pooler."""
    return {
        name: value.detach()
        for name, value in model.state_dict().items()
        if not name.startswith(_POOLER)
    }


def _tensor_digest(value: Tensor) -> str:
    value = value.cpu()
    if value.dtype in (torch.float16, torch.bfloat16):
        value = value.float()
    head = f"{value.dtype}{tuple(value.shape)}"
    found = hashlib.sha256(head.encode())
    found.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
