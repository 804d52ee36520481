"""Layout of the trainable tensors in one flat vector: the order, the blocks, the axes of a block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedllm.models.prefix import PREFIX

_PREFIX_DIMENSIONS = 5  # layers, 2, heads, positions, head_dim


@dataclass(frozen=True)
class Block:
    """A section of the flat vector with separate statistics.

    Attributes:
        name: "prefix.3.value", or the tensor's own name.
        start, stop: the coordinates ``start <= i < stop``.
        shape: of the block as a tensor; (heads, positions, head_dim) for the prefix.
    """

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        """The block's place in the last axis of a flat vector."""
        return slice(self.start, self.stop)


class Layout:
    """Named tensors in one flat float32 vector, by sorted names, each in row-major order.

    The order is that of :func:`fedllm.training.dp_sgd.split_like`. A tensor ``prefix`` of shape
    [layers, 2, heads, positions, head_dim] has one block for each layer and key or value; every other
    tensor is a block.

    Raises:
        ValueError: no tensors, or one without elements.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        if not shapes or any(math.prod(shape) == 0 for shape in shapes.values()):
            raise ValueError(f"Expected tensors that are not empty, got shapes={dict(shapes)}")
        self.shapes = {name: tuple(int(n) for n in shapes[name]) for name in sorted(shapes)}
        self.sizes = {name: math.prod(shape) for name, shape in self.shapes.items()}
        self.dimension = sum(self.sizes.values())
        blocks: list[Block] = []
        start = 0
        for name, shape in self.shapes.items():
            names = [name]
            if name == PREFIX and len(shape) == _PREFIX_DIMENSIONS and shape[1] == 2:
                names = [f"{name}.{n}.{kind}" for n in range(shape[0]) for kind in ("key", "value")]
                shape = shape[2:]
            for label in names:
                size = math.prod(shape)
                blocks.append(Block(label, start, start + size, shape))
                start += size
        self.blocks = tuple(blocks)

    @classmethod
    def of(cls, params: Mapping[str, Tensor]) -> Layout:
        """Return the layout of these tensors."""
        return cls({name: tuple(value.shape) for name, value in params.items()})

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """Return the tensors as one float32 vector [d].

        Raises:
            ValueError: other names or shapes than the layout's.
        """
        given = {name: tuple(params[name].shape) for name in sorted(params)}
        if given != self.shapes:
            raise ValueError(f"Expected tensors of shapes {self.shapes}, got {given}")
        return torch.cat([params[name].detach().reshape(-1).float() for name in self.shapes])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the vector [d] as named tensors (views).

        Raises:
            ValueError: another shape.
        """
        if tuple(vector.shape) != (self.dimension,):
            raise ValueError(
                f"Expected a vector of shape ({self.dimension},), got {tuple(vector.shape)}"
            )
        pieces = vector.split(list(self.sizes.values()))
        named = zip(self.shapes.items(), pieces, strict=True)
        return {name: piece.reshape(shape) for (name, shape), piece in named}

    @cached_property
    def block_of(self) -> Tensor:
        """Number of the block of each coordinate, int64 [d]."""
        sizes = torch.tensor([block.size for block in self.blocks])
        return torch.repeat_interleave(torch.arange(len(self.blocks)), sizes)

    def partition(self, axes: Sequence[int]) -> tuple[Tensor, int]:
        """Group the coordinates that share block and position along ``axes`` of the block.

        Args:
            axes: numbers of the axes that tell groups apart; none groups by block alone. An axis
                that a block does not have is passed over.

        Returns:
            The group of each coordinate, int64 [d], and the number of groups.
        """
        labels, offset = [], 0
        for block in self.blocks:
            label = torch.zeros(block.shape, dtype=torch.int64)
            count = 1
            for axis in axes:
                if axis < len(block.shape):
                    size = block.shape[axis]
                    view = [size if n == axis else 1 for n in range(len(block.shape))]
                    label = label * size + torch.arange(size).reshape(view)
                    count *= size
            labels.append(label.reshape(-1) + offset)
            offset += count
        return torch.cat(labels), offset

    def to_json(self) -> dict[str, Any]:
        """Return shapes by name."""
        return {name: list(shape) for name, shape in self.shapes.items()}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Layout:
        """Return the layout that :meth:`to_json` wrote."""
        return cls(tree)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.shapes == other.shapes

    def __hash__(self) -> int:
        return hash(tuple(self.shapes.items()))

    def __repr__(self) -> str:
        return f"Layout({self.shapes})"
