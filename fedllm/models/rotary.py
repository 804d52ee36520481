"""Keep rotary position tables that depend on sequence length independent of batch mates.

Two of transformers' rotary types choose their table by the longest sequence of a batch: ``longrope`` takes its
long factors, ``dynamic`` grows the table and keeps it for later calls. Both leave the table alone up to a public
length. Padded lengths are cut at that length (:meth:`fedllm.tasks.base.Task.longest_input`), so that either no
example of a micro-batch is beyond it, or all are of the same length; what a call leaves behind is undone before the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn


def rotary_limit(model: nn.Module) -> int | None:
    """Return the number of positions up to which no table depends on the length; None for no such table."""
    limits = [limit for _, _, limit in _tables(model)]
    return min(limits, default=None)


def separate_tables(model: nn.Module) -> None:
    """Give each table a copy of its own to go back to; to be called once, before the model is first run.

    The library keeps the original table under a second name for the same memory, and writes the long one into it
    in place: after one long text, short ones would get the long table too.
    """
    for module, name, _ in _tables(model):
        setattr(module, f"{name}original_inv_freq", getattr(module, f"{name}inv_freq").clone())


def reset_rotary(model: nn.Module) -> None:
    """Forget the lengths that ``dynamic`` tables have grown to."""
    tables = _of_models.get(model)
    if tables is None:
        tables = _of_models[model] = list(_tables(model))
    for module, name, limit in tables:
        cached = f"{name}max_seq_len_cached"
        if int(getattr(module, cached, limit)) != limit:
            setattr(module, cached, limit)
            original = getattr(module, f"{name}original_inv_freq")
            buffer = getattr(module, f"{name}inv_freq")
            table = original.to(buffer.device, copy=True)
            module.register_buffer(f"{name}inv_freq", table, persistent=False)


_of_models: WeakKeyDictionary[nn.Module, list[tuple[Any, str, int]]] = WeakKeyDictionary()


def _tables(model: nn.Module) -> Iterator[tuple[Any, str, int]]:
    """Yield each table that depends on the length: its module, the prefix of its attributes, and its limit."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer, kind in kinds.items() if isinstance(kinds, dict) else [("", kinds)]:
            if not isinstance(kind, str) or not ("dynamic" in kind or kind == "longrope"):
                continue
            limit = int(getattr(module, "original_max_seq_len", 0))
            config: Any = getattr(module, "config", None)
            parameters = getattr(config, "rope_parameters", None) or {}
            parameters = parameters.get(layer, parameters) if layer else parameters
            if kind == "longrope":
                limit = int(parameters.get("original_max_position_embeddings", limit))
            yield module, f"{layer}_" if layer else "", limit
