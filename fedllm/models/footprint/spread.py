"""One frozen model over several devices: GPUs, the machine's memory, and files, layer by layer.

accelerate places each layer and moves its inputs there; weights that do not fit the GPUs are moved for the time of
their layer's computation. Autograd keeps moved weights until the backward pass, so that offloading saves memory together
with ``model.checkpointing`` alone.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from fedllm.models.memory import RESERVE, free_bytes
from fedllm.models.model_error import ModelError
from fedllm.models.parts.input_device import set_input_device

DeviceMap = Literal["none", "auto"] | Mapping[str, str | int]
log = logging.getLogger("fedllm")
_FILES = "_fedllm_offloaded"
_OFFLOADED = ("cpu", "disk")


def spread(model: PreTrainedModel, device_map: DeviceMap, device: torch.device) -> None:
    """Put a model's layers on devices, in place.

    Args:
        model: on the CPU, whole.
        device_map: "auto" fills the GPUs evenly, and then the machine's memory; or the device ("cpu", "disk", a GPU's
            number) by the names of modules. "none": everything on ``device``.
        device: one GPU's number keeps "auto" to that GPU; the CPU to the CPU.

    Raises:
        ValueError: a map for another kind of device, or that leaves a module out.
        ModelError: quantised layers that would be offloaded.
    """
    if device_map == "none":
        model.to(device)
        return
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"Expected model.device_map=none for model.device={device}, got {device_map!r}"
        )
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    model.eval().requires_grad_(False)
    placed: dict[str, Any]
    if isinstance(device_map, str):
        blocks = sorted(model._no_split_modules or [])
        room = _room(device)
        if device.type == "cuda":
            room = get_balanced_memory(model, room, no_split_module_classes=blocks)
        placed = dict(infer_auto_device_map(model, room, no_split_module_classes=blocks))
    else:
        placed = dict(device_map)
    where = {str(place) for place in placed.values()}
    main = next((p for p in placed.values() if str(p) not in _OFFLOADED), "cpu")
    offloaded = where & set(_OFFLOADED) - {str(main)}
    if offloaded and _has_packed(model):
        raise ModelError(
            "Expected devices with room for all quantised layers (they are not offloaded), got model.device_map with "
            f"{', '.join(sorted(offloaded))}"
        )
    files = tempfile.TemporaryDirectory(prefix="fedllm-weights-") if "disk" in where else None
    dispatch_model(model, placed, main, offload_dir=None if files is None else files.name)
    setattr(model, _FILES, files)  # the files go with the model
    set_input_device(model, torch.device(main))
    if offloaded:
        log.info(
            "weights of %d modules are moved to %s for each computation (%s)",
            *(
                sum(str(p) in offloaded for p in placed.values()),
                main,
                ", ".join(sorted(offloaded)),
            ),
        )


def placement_of(model: torch.nn.Module) -> dict[str, str]:
    """Return the device of each placed module; empty for a model on one device."""
    return {name: str(place) for name, place in getattr(model, "hf_device_map", {}).items()}


def _room(device: torch.device) -> dict[int | str, int]:
    """Bytes that may be used of each device."""
    room: dict[int | str, int] = {}
    if device.type == "cuda":
        chosen = range(torch.cuda.device_count()) if device.index is None else [device.index]
        room = {i: max(0, free_bytes(torch.device("cuda", i)) - RESERVE) for i in chosen}
    return room | {"cpu": max(0, free_bytes(torch.device("cpu")) - RESERVE)}


def _has_packed(model: torch.nn.Module) -> bool:
    return any(hasattr(module, "codes") for module in model.modules())
