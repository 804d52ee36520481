"""Start a model's forward pass at a layer, or stop it there: layers whose call is replaced once, and read a slot.

Without an open scope the model computes as before. The slot lies on the model and is of one thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedllm.models.adapters.targets import stack_of
from fedllm.models.footprint import recompute

_SLOT = "_fedllm_trunk_slot"
_LOCK = threading.Lock()
_STATES = "hidden_states"


class Reached(Exception):
    """The layer to stop at was reached; carries the states that enter it."""

    def __init__(self, states: Tensor) -> None:
        super().__init__("reached")
        self.states = states


@dataclass(frozen=True)
class Start:
    """A pass that begins at a layer.

    Attributes:
        layer: its number; the number of layers stands for the end of the last one.
        states: (B, T, hidden) that enter it.
    """

    layer: int
    states: Tensor


@dataclass(frozen=True)
class Stop:
    """A pass that ends where a layer begins."""

    layer: int


class _Slot:
    """What this thread's passes do; and what each layer returns besides states."""

    def __init__(self, layers: int) -> None:
        self._local = threading.local()
        self.layers = layers
        self.extra: dict[int, int | None] = {}
        """By layer, the length of the tuple that it returns; None for states alone."""

    @property
    def active(self) -> Start | Stop | None:
        return getattr(self._local, "active", None)

    @active.setter
    def active(self, value: Start | Stop | None) -> None:
        self._local.active = value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Slot:
        new = memo[id(self)] = _Slot(self.layers)
        new.extra = dict(self.extra)
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers, "extra": self.extra}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["layers"])  # type: ignore[misc]
        self.extra = state["extra"]


class _Call:
    """In the place of one layer's forward."""

    def __init__(self, slot: _Slot, number: int, forward: Callable[..., Any]) -> None:
        self.slot, self.number, self.forward = slot, number, forward

    def __call__(self, *args: Any, **options: Any) -> Any:
        active = self.slot.active
        if active is None:
            output = self.forward(*args, **options)
            self._remember(output)
            return output
        last = self.number == self.slot.layers - 1
        if isinstance(active, Stop):
            if self.number == active.layer:
                raise Reached(args[0] if args else options[_STATES])
            output = self.forward(*args, **options)
            if last:
                raise Reached(output if isinstance(output, Tensor) else output[0])
            return output
        if (
            self.number < active.layer
        ):  # of the last layer: its own states are the ones that are kept
            return self._as_output(active.states)
        if self.number == active.layer:
            if args:
                args = (active.states, *args[1:])
            else:
                options[_STATES] = active.states
        return self.forward(*args, **options)

    def _remember(self, output: Any) -> None:
        if self.number not in self.slot.extra:
            tensor = isinstance(output, Tensor)
            self.slot.extra[self.number] = None if tensor else len(output)

    def _as_output(self, states: Tensor) -> Any:
        length = self.slot.extra.get(self.number)
        return states if length is None else (states, *[None] * (length - 1))


def install(model: nn.Module) -> int:
    """Make ``model`` able to start and stop at a layer; return the number of its layers. Doing it again does nothing.

    Raises:
        ValueError: it has no list of layers.
    """
    recompute.install(model)  # within: a layer that is left out is not computed again either
    with _LOCK:
        slot: _Slot | None = getattr(model, _SLOT, None)
        if slot is None:
            path, count = stack_of(model)
            slot = _Slot(count)
            layers: Any = model.get_submodule(path)
            for number, layer in enumerate(layers):
                layer.forward = _Call(slot, number, layer.forward)
            setattr(model, _SLOT, slot)
        return slot.layers


@contextmanager
def pass_of(model: nn.Module, what: Start | Stop) -> Iterator[None]:
    """Within the scope, and in this thread, passes of ``model`` start or stop at a layer.

    Args:
        model: one that :func:`install` has prepared.
    """
    slot: _Slot = getattr(model, _SLOT)
    before, slot.active = slot.active, what
    try:
        yield
    finally:
        slot.active = before


@torch.no_grad()
def states_entering(model: nn.Module, layer: int, compute: Callable[[], Any]) -> Tensor:
    """Return the states (B, T, hidden) that enter a layer in the pass that ``compute`` makes of the model.

    Raises:
        ValueError: the pass does not reach the layer.
    """
    try:
        with pass_of(model, Stop(layer)):
            compute()
    except Reached as reached:
        return reached.states
    raise ValueError(f"Expected a pass through layer {layer} of {type(model).__name__}, got none")
