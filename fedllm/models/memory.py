"""Check that a model's weights fit the free memory of a device, before they are loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from fedllm.models.footprint.quantise import bits_per_weight

_NUMBERED = re.compile(r"\.\d+\.")
"""In the name of a tensor that belongs to a layer."""
RESERVE = 256 * 2**20
"""Bytes of a device that are left to the driver, the libraries' workspaces and the process itself."""


class DeviceMemoryError(ValueError):
    """A model, or its training, does not fit into free memory; the message has both sizes and a remedy."""


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process can still take on a device, what PyTorch holds unused included.

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


def weights_bytes(
    files: Sequence[Path], dtype: torch.dtype, quantization: str = "none"
) -> int | None:
    """Return the bytes of a model's weights in a number format, from the heads of its safetensors files; None if
    there are others.

    Args:
        quantization: of the matrices in numbered layers.
    """
    total, bits = 0, bits_per_weight(quantization)
    for file in files:
        if file.suffix != ".safetensors":
            return None
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                shape = opened.get_slice(name).get_shape()
                packed = bits is not None and len(shape) == 2 and _NUMBERED.search(name)
                each = bits / 8 if packed and bits else dtype.itemsize
                total += math.ceil(math.prod(shape) * each)
    return total if files else None


def require_room_for_weights(
    name: str,
    files: Sequence[Path],
    dtype: torch.dtype,
    device: torch.device,
    quantization: str = "none",
) -> None:
    """Refuse to load a model that does not fit.

    On a CPU the plain weights must fit, which are in memory before they are quantised.

    Raises:
        DeviceMemoryError: it does not.
    """
    needed = weights_bytes(files, dtype, "none" if device.type == "cpu" else quantization)
    if needed is None:
        return
    free = free_bytes(device)
    if needed + RESERVE > free:
        raise DeviceMemoryError(
            f"Expected {gibibytes(needed + RESERVE)} free on {device} for the weights of model={name!r} in "
            f"{dtype_word(dtype)}, got {gibibytes(free)}: use a shorter model.dtype (bfloat16), another device, or "
            "end what else runs there"
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
    """Return the free bytes of the process's control group, version 2."""
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


def gibibytes(count: int) -> str:
    """Return a number of bytes as a message states it."""
    return f"{count / 2**30:.2f} GiB"


def dtype_word(dtype: torch.dtype) -> str:
    """Return a number format as the settings name it."""
    return str(dtype).removeprefix("torch.")
