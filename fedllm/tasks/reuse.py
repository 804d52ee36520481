"""Make the trunk whose states a task reuses, where the settings ask for it and the model allows it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.models.trunk.reuse import Trunk, differs
from fedllm.models.trunk.skip import install
from fedllm.models.trunk.store import DiskStore, MemoryStore, Store
from fedllm.settings.sections import ModelSettings
from fedllm.tasks.base import Task

log = logging.getLogger("fedllm")
_FORMATS = {"model": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHARE = {torch.float16: 0.02, torch.bfloat16: 0.1}
"""Largest difference, over the largest number of a pass, that rounding states to a format explains."""


def make_trunk(settings: ModelSettings, task: Task, first_layer: int) -> Trunk | None:
    """Return the trunk below the lowest trained layer; None where nothing is to be reused.

    A pass that starts there is compared with a whole pass on public tokens first. A model whose layers are no plain
    chain, so that they differ, is computed as a whole, and the log says so.

    Args:
        first_layer: number of the lowest layer that is trained; the number of layers: none is.
    """
    if settings.reuse == "off" or first_layer == 0:
        return None
    backbone = task.backbone
    limit = int(settings.reuse_gib * 2**30)
    store: Store = MemoryStore(limit) if settings.reuse == "memory" else DiskStore(limit)
    dtype = _FORMATS[settings.reuse_dtype]
    model = backbone.model
    try:
        if backbone.kind == "encoder-decoder":
            raise ValueError("an encoder-decoder has two lists of layers")
        if first_layer < backbone.n_layers != install(model):
            raise ValueError(f"its {backbone.n_layers} attention layers are not layers of a list")
        trunk = Trunk(model, min(first_layer, install(model)), MemoryStore(limit), dtype)
        trunk.free_rows = backbone.device.type == "cpu" and backbone.grouping == "padded"
        off = differs(trunk, _public_batch(task), lambda batch: _output(task, batch))
    except Exception as error:
        off, why = float("inf"), f"{type(error).__name__}: {error}"
    else:
        why = (
            f"a pass that starts at layer {trunk.layer} differs by {off:.2g} of its largest number"
        )
    allowed = max(torch.finfo(backbone.dtype).eps * 64, _SHARE.get(dtype or torch.float32, 0))
    if off <= allowed:
        trunk.store = store
        return trunk
    log.warning("model.reuse=%s is off for model=%s: %s", settings.reuse, backbone.name, why)
    return None


def _output(task: Task, batch: Batch) -> Tensor:
    found: Any = task.run(batch)
    return torch.as_tensor(found[0]) * batch.attention_mask.unsqueeze(-1)


def _public_batch(task: Task) -> Batch:
    """Two texts of random tokens, one of them padded, where the model allows it."""
    rng = torch.Generator().manual_seed(0)
    lengths = {"padded": (5, 8), "one-length": (6, 6), "alone": (6,)}[task.backbone.grouping]
    size = task.vocabulary or 2
    rows = [torch.randint(0, size, (length,), generator=rng).tolist() for length in lengths]
    return task.collate([Feature(ids) for ids in rows])
