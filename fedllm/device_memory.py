"""Whether a model and its training fit a device, asked before either begins.

The estimate is of what automatic differentiation keeps for one micro-batch, from shapes alone. Counted
in what PyTorch saves (BERT-like encoders of 6 and Llama-like decoders of 30 layers, scaled-dot-product
attention), a token keeps about 6.3 hidden vectors and one feed-forward vector a layer, three where the
feed-forward part is gated; the estimate takes 7, and 2 or 3, and a fifth on top for what lives only
during the backward pass. It is meant to be above the truth, and below twice of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from fedllm.settings import Settings

if TYPE_CHECKING:
    from fedllm.tunable import Tunable

_HIDDEN, _PLAIN, _GATED, _TRANSIENT = 7, 2, 3, 1.2
_SHORTEST = 4
"""Tokens of a short example: with them, the number of examples in a micro-batch is largest."""
RESERVE = 256 * 2**20
"""Bytes of a device that are left to the driver, the libraries' workspaces and the process itself."""


class DeviceMemoryError(ValueError):
    """A model, or training it, does not fit what is free; the message has both, and what would help."""


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still take on a device, what PyTorch holds unused included.

    For the CPU the smaller of the machine's available memory and what the process's control group
    leaves; where neither can be read (not Linux), 2**62.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        own = _limits.get(torch.device(device).index or 0, total)
        return int(min(free + held, own - torch.cuda.memory_allocated(device)))
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return min(_available(), _left_in_group())


_limits: dict[int, int] = {}


def limit_device(device: torch.device, gibibytes: float) -> None:
    """Let this process take no more of a GPU than that (several silos on one GPU); nothing on a CPU.

    Raises:
        ValueError: the GPU has less.
    """
    if device.type != "cuda":
        return
    total = torch.cuda.mem_get_info(device)[1]
    wanted = int(gibibytes * 2**30)
    if wanted > total:
        raise ValueError(
            f"Expected model.memory <= {total / 2**30:.1f} GiB, what {device} has, got {gibibytes:g}"
        )
    torch.cuda.set_per_process_memory_fraction(wanted / total, device)
    _limits[device.index or 0] = wanted


def weights_bytes(files: Sequence[Path], dtype: torch.dtype) -> int | None:
    """Bytes of a model's weights in a number format, from the heads of its safetensors files; None where
    there are others."""
    total = 0
    for file in files:
        if file.suffix != ".safetensors":
            return None
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                count = 1
                for size in opened.get_slice(name).get_shape():
                    count *= size
                total += count * dtype.itemsize
    return total if files else None


def require_room_for_weights(
    name: str, files: Sequence[Path], dtype: torch.dtype, device: torch.device
) -> None:
    """Refuse to load a model that does not fit.

    Raises:
        DeviceMemoryError: it does not.
    """
    needed = weights_bytes(files, dtype)
    if needed is None:
        return
    free = free_bytes(device)
    if needed + RESERVE > free:
        raise DeviceMemoryError(
            f"Expected {_gib(needed + RESERVE)} free on {device} for the weights of model={name!r} in "
            f"{_word(dtype)}, got {_gib(free)}: use a shorter model.dtype (bfloat16), another device, or "
            "end what else runs there"
        )


def training_bytes(settings: Settings, tunable: Tunable) -> int:
    """Estimate of what one micro-batch of training takes beside the weights.

    See the module for where the factors come from. With a perturbation that differentiates twice the
    gradients of the first pass stay.
    """
    backbone, client = tunable.backbone, settings.client
    config = backbone.model.config.get_text_config()
    item = torch.empty((), dtype=backbone.dtype).element_size()
    hidden = backbone.hidden_size
    wide = int(
        getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    )
    gated = any("gate" in module for module, _ in backbone.model.named_modules())
    per_token = _HIDDEN * hidden + (_GATED if gated else _PLAIN) * wide
    longest = max(1, settings.task.max_length * (2 if settings.task.kind == "generation" else 1))
    tokens = max(client.max_tokens, longest)
    kept = tokens * backbone.n_layers * per_token * item
    vocabulary = int(getattr(config, "vocab_size", 0))
    # Scores of the vocabulary in the model's format and, for the loss, in float32 with two copies.
    of_scores = vocabulary * (2 * item + 12)
    examples = min(max(1, tokens // _SHORTEST), 2 * int(client.batch_size or 1))
    if settings.task.kind == "generation":
        kept += tokens * of_scores
    elif backbone.kind == "decoder":
        kept += examples * of_scores
    trained = 0
    if tunable.spec is not None:
        shape = tunable.spec
        trained = 2 * len(shape.layers) * settings.prefix.length * shape.kv_heads * shape.head_dim
    trained += hidden * len(settings.task.labels or ())
    copies = 4 if settings.awp.form == "none" else 6  # copy, gradient, clipped, cast
    return int(_TRANSIENT * kept) + examples * trained * 4 * copies


def require_room_for_training(settings: Settings, tunable: Tunable) -> None:
    """Refuse to train where one micro-batch does not fit.

    Raises:
        DeviceMemoryError: it does not.
    """
    device = tunable.backbone.device
    needed, free = training_bytes(settings, tunable), free_bytes(device)
    if needed + RESERVE > free:
        raise DeviceMemoryError(
            f"Expected {_gib(needed + RESERVE)} free on {device} to train with client.max_tokens="
            f"{settings.client.max_tokens} in {_word(tunable.backbone.dtype)} (an estimate), got "
            f"{_gib(free)}: lower client.max_tokens (or limits.max_tokens of the silo's own file), use a "
            "shorter model.dtype, another device, or end what else runs there"
        )


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 2**62


def _left_in_group() -> int:
    """Of the control group that the process is in, version 2."""
    try:
        place = Path("/proc/self/cgroup").read_text(encoding="utf-8").strip().rpartition(":")[2]
        folder = Path("/sys/fs/cgroup") / place.lstrip("/")
        most = (folder / "memory.max").read_text(encoding="ascii").strip()
        if most == "max":
            return 2**62
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        rows = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        files = int(dict(row.split() for row in rows)["file"])  # given back where it is needed
        return max(0, int(most) - used + files)
    except (OSError, ValueError, KeyError):
        return 2**62


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
