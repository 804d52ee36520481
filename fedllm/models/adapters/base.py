"""Interface of all adapters: named float32 tensors, and how a model computes with them.

A tensor that belongs to one layer says so in its name: ``lora.04.encoder.layer.4.output.dense.B`` is the factor B of
that module in layer 4 (:func:`layer_of`). The prefix alone has all layers in one tensor.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

from torch import Tensor

from fedllm.models.adapters.tape import Tape

_LAYER = re.compile(r"(?:^|\.)(?:lora|bitfit|weights)\.(\d+)\.")
_MODULE = re.compile(r"(?:^|\.)(?:lora|bitfit|weights)\.all\.(.+)\.[^.]+$")


class Adapter(ABC):
    """Named tensors that change what a frozen model computes.

    Attributes:
        form: as in ``adapter.form``.
        layers: numbers of the layers that it changes, ascending.
        positions: tokens that it takes of a decoder's positions (a prefix); 0 for most.
    """

    form: ClassVar[str]
    layers: tuple[int, ...] = ()
    positions: int = 0

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor that travels from server to silo."""

    @property
    def shared(self) -> frozenset[str]:
        """Names of the tensors that all examples share, as copies of them, one an example, would not fit."""
        return frozenset()

    @property
    def recordable(self) -> frozenset[str]:
        """Names of the tensors whose factors a tape can record, see :mod:`fedllm.models.adapters.tape`."""
        return self.shared

    @property
    def whole_parameters(self) -> frozenset[str]:
        """Paths of the model's parameters that change in all places where they are used (tied ones)."""
        return frozenset()

    @abstractmethod
    def scope(
        self,
        params: Mapping[str, Tensor],
        batch: tuple[int, int] | None = None,
        tape: Tape | None = None,
    ) -> AbstractContextManager[None]:
        """Within the scope, and in this thread, the model computes with these tensors.

        Args:
            params: each (B, ...), one copy an example, or (1, ...), shared by all; what is fixed in this round, or
                recorded, may come without the leading dimension. Others than the adapter's own are ignored.
            batch: rows and padded tokens of the batch. None: all tensors are shared.
            tape: records factors of the gradients of its tensors, which are then shared by all.
        """

    def fixed(self, server_round: int | None) -> frozenset[str]:
        """Names of the tensors that are not trained in a round (1-based); None: in no round."""
        return frozenset()

    def keep(self, layers: Sequence[int]) -> Adapter:
        """Return the adapter of these of its layers alone.

        Raises:
            ValueError: a layer that it does not have.
        """
        raise ValueError(f"Expected layers among {list(self.layers)}, got {list(layers)}")

    def weight_changes(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the summands of the model's own parameters, by name, that make a plain model with the same outputs.

        In float64.

        Raises:
            ValueError: no change of weights does what this adapter does.
        """
        raise ValueError(f"Expected an adapter that is a change of weights, got a {self.form}")

    def first_layer(self, count: int) -> int:
        """Number of the lowest layer that it changes: what enters this layer depends on no tensor.

        ``count``, the number of layers, where it changes none; 0 where it changes what is outside of the layers.
        """
        return min(self.layers, default=count)


def layer_of(name: str) -> int | None:
    """Number of the layer that a tensor belongs to, by its name; None for a prefix, a head and what has none.

    Example:
        >>> layer_of("first.lora.04.encoder.layer.4.output.dense.B")
        4
    """
    found = _LAYER.search(name)
    return None if found is None else int(found.group(1))


def group_of(name: str) -> str | None:
    """Group of tensors that are one layer together: a layer's, or those of a module outside of the layers.

    None for a prefix, which has its layers within, and for a head.
    """
    layer = layer_of(name)
    if layer is not None:
        return f"layer {layer}"
    found = _MODULE.search(name)
    return None if found is None else found.group(1)


def check_kept(adapter: Adapter, layers: Sequence[int]) -> tuple[int, ...]:
    """Return the layers, ascending.

    Raises:
        ValueError: none, or one that the adapter does not have.
    """
    kept = tuple(sorted(set(layers)))
    if not kept or not set(kept) <= set(adapter.layers):
        raise ValueError(f"Expected layers among {list(adapter.layers)}, got {list(layers)}")
    return kept
