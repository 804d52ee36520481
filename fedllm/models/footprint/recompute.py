"""Gradient checkpointing: keep what enters each layer, and compute the layer again in the backward pass.

The second computation runs when the scopes of the first (the adapter's tensors, the prefix, the padding) may be closed,
on a GPU in another thread, and where another batch's scopes may be open. So what is active in a layer's first
computation is captured there, and is active in the second. Both compute the same bits, and so are the gradients.

Method: Chen et al. 2016, arXiv 1604.06174; each layer of the list is a segment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedllm.models.adapters.slot import captured_changes
from fedllm.models.adapters.targets import stack_of
from fedllm.models.attention import captured_attention

_SLOT = "_fedllm_recompute_slot"
_LOCK = threading.Lock()


class _Slot:
    """State of each thread: True where its passes keep the layers' inputs alone."""

    def __init__(self) -> None:
        self._local = threading.local()

    @property
    def active(self) -> bool:
        return bool(getattr(self._local, "active", False))

    @active.setter
    def active(self, value: bool) -> None:
        self._local.active = value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Slot:
        new = memo[id(self)] = _Slot()
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]


class _Again(threading.local):
    """How many computations in the backward pass this thread is within."""

    depth = 0


_again = _Again()


def computing_again() -> bool:
    """Return True in a layer's second computation, whose values were all seen in the first."""
    return _again.depth > 0


class _AsBefore:
    """Opens the captured scopes; once for each computation: second derivatives take several."""

    def __init__(self, captured: Sequence[Callable[[], AbstractContextManager[None]]]) -> None:
        self.captured = captured
        self.open: list[ExitStack] = []

    def __enter__(self) -> None:
        with ExitStack() as stack:
            for scope in self.captured:
                stack.enter_context(scope())
            self.open.append(stack.pop_all())
        _again.depth += 1

    def __exit__(self, *error: Any) -> None:
        _again.depth -= 1
        self.open.pop().__exit__(*error)


class _Call:
    """In the place of one layer's forward."""

    def __init__(self, slot: _Slot, model: nn.Module, forward: Callable[..., Any]) -> None:
        self.slot, self.model, self.forward = slot, model, forward

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not (self.slot.active and torch.is_grad_enabled()):
            return self.forward(*args, **options)
        again = [captured_changes(self.model), captured_attention(self.model)]
        return checkpoint(
            self.forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing is drawn: the model is frozen and in eval mode
            context_fn=lambda: (nullcontext(), _AsBefore(again)),
            **options,
        )


def install(model: nn.Module) -> None:
    """Make ``model`` able to compute its layers again. Doing it again does nothing.

    To be installed before :func:`fedllm.models.trunk.skip.install`, which decides whether a layer is computed at all.

    Raises:
        ValueError: it has no list of layers.
    """
    with _LOCK:
        if getattr(model, _SLOT, None) is None:
            slot = _Slot()
            layers: Any = model.get_submodule(stack_of(model)[0])
            for layer in layers:
                layer.forward = _Call(slot, model, layer.forward)
            setattr(model, _SLOT, slot)


@contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Within the scope, and in this thread, passes of ``model`` with gradients keep the layers' inputs alone.

    Args:
        model: one that :func:`install` has prepared.
    """
    slot: _Slot = getattr(model, _SLOT)
    before, slot.active = slot.active, True
    try:
        yield
    finally:
        slot.active = before
