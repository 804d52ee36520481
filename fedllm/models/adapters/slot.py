"""Change a module's output within a scope: hooks and calls that are installed once and read a stack of this thread.

The active changes lie on the model (not in a global), and there on a stack for each thread: models do not mix, threads
do not mix, scopes nest. Without an open scope the model computes as before.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from torch import Tensor, nn

_SLOT = "_fedllm_adapter_slot"
_LOCK = threading.Lock()


class Change(Protocol):
    """Change of one module's output by an adapter."""

    def __call__(self, module: nn.Module, given: Tensor, output: Tensor) -> Tensor:
        """Return the module's output with the change, in the output's shape and dtype."""
        ...


class Replacement(ABC):
    """Change of one module that computes its output anew, in the place of the module's own forward pass."""

    @abstractmethod
    def instead(self, module: nn.Module, own: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        """Return the module's output for ``given``; ``own`` is the module's forward pass without a change."""


class AdapterSlot:
    """The active changes by module name, a stack for each thread."""

    def __init__(self) -> None:
        self._local = threading.local()
        self.hooked: set[str] = set()
        self.replaced: set[str] = set()

    def holds(self, changes: Mapping[str, Change | Replacement]) -> bool:
        """True if all these changes have their place in the model."""
        return all(
            name in (self.replaced if isinstance(change, Replacement) else self.hooked)
            for name, change in changes.items()
        )

    @property
    def stack(self) -> list[Mapping[str, Change | Replacement]]:
        """Of this thread, innermost scope last."""
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[Mapping[str, Change | Replacement]] = self._local.stack
        return stack

    def _copy(self) -> AdapterSlot:
        new = AdapterSlot()
        new.hooked, new.replaced = set(self.hooked), set(self.replaced)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> AdapterSlot:
        new = memo[id(self)] = self._copy()
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {"hooked": self.hooked, "replaced": self.replaced}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._local = threading.local()
        self.hooked, self.replaced = state["hooked"], state["replaced"]


class _Hook:
    """Applies the active change to one module's output."""

    def __init__(self, slot: AdapterSlot, name: str) -> None:
        self.slot, self.name = slot, name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        stack = self.slot.stack
        if not stack:
            return None
        change = stack[-1].get(self.name)
        if change is None or isinstance(change, Replacement):
            return None
        return change(module, args[0], output)


class _Call:
    """In the place of one module's forward pass."""

    def __init__(
        self, slot: AdapterSlot, name: str, module: nn.Module, own: Callable[..., Any]
    ) -> None:
        self.slot, self.name, self.module, self.own = slot, name, module, own

    def __call__(self, *args: Any, **options: Any) -> Any:
        stack = self.slot.stack
        change = stack[-1].get(self.name) if stack else None
        if not isinstance(change, Replacement):
            return self.own(*args, **options)
        (given,) = [*args, *options.values()]
        return change.instead(self.module, self.own, given)


@contextmanager
def changed(model: nn.Module, changes: Mapping[str, Change | Replacement]) -> Iterator[None]:
    """Within the scope, and in this thread, the named modules' outputs are changed.

    Scopes nest: the inner one replaces the outer one until it closes.
    """
    slot: AdapterSlot | None = getattr(model, _SLOT, None)
    if slot is None or not slot.holds(changes):
        slot = _install(model, changes)
    slot.stack.append(changes)
    try:
        yield
    finally:
        slot.stack.pop()


def captured_changes(model: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Return a function that opens a scope with the changes active now, in whatever thread and scope it is called."""
    slot: AdapterSlot | None = getattr(model, _SLOT, None)
    if slot is None:
        return nullcontext
    changes = slot.stack[-1] if slot.stack else {}
    return lambda: changed(model, changes)


def _install(model: nn.Module, changes: Mapping[str, Change | Replacement]) -> AdapterSlot:
    with _LOCK:
        slot: AdapterSlot = getattr(model, _SLOT, None) or AdapterSlot()
        setattr(model, _SLOT, slot)
        modules = dict(model.named_modules())
        for name in sorted(changes):
            module, replaces = modules[name], isinstance(changes[name], Replacement)
            if replaces and name not in slot.replaced:
                module.forward = _Call(slot, name, module, module.forward)
                slot.replaced.add(name)
            elif not replaces and name not in slot.hooked:
                module.register_forward_hook(_Hook(slot, name))
                slot.hooked.add(name)
    return slot


def by_example(values: Tensor, batch: tuple[int, int], what: str) -> Tensor:
    """Return values (..., D) as (B, N, D): row i holds what belongs to example i.

    Guarantee: values that a module does not keep apart by example are refused. To give a token to another example
    would break the bound on what one example contributes.

    Args:
        values: (B, ..., D), or (B T, D) with the examples' tokens one after another; of one example anything (..., D).
        batch: (B, T).

    Raises:
        ValueError: another first dimension.
    """
    rows, tokens = batch
    if rows == 1:  # whatever the module sees, there is no other example
        return values.reshape(1, -1, values.shape[-1])
    if values.dim() > 2 and values.shape[0] == rows:
        return values.reshape(rows, -1, values.shape[-1])
    if values.dim() == 2 and values.shape[0] in (rows, rows * tokens):
        return values.reshape(rows, -1, values.shape[-1])
    raise ValueError(
        f"Expected {what} to see {rows} examples of {tokens} tokens each, one after another, got values of shape "
        f"{tuple(values.shape)}: which example a row belongs to is not known"
    )


def shared_or_own(value: Tensor, dimensions: int, batch: tuple[int, int] | None) -> Tensor:
    """Return a tensor that all examples share without the leading dimension; one with a copy an example as it is.

    Args:
        dimensions: of the tensor itself.
        batch: rows and tokens; None: the tensor is shared.
    """
    if value.dim() == dimensions:
        return value
    return value[0] if value.shape[0] == 1 and (batch is None or batch[0] != 1) else value
