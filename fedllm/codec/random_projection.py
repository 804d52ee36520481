"""Random projection codec: seeded orthonormal rows, independent of the data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedllm.codec.base import Codec, State
from privacy.randomness import generator


class RandomProjection(Codec):
    """k random rows of Q, where Q = (Hadamard blocks) (random signs) (random permutation).

    A subsampled randomised Hadamard transform (Ailon and Chazelle 2006), without padding: d is cut
    into powers of two (its binary digits), each with an orthonormal Hadamard matrix. Q is a product of
    orthogonal matrices, so its rows are orthonormal, and

        ||P a - P b|| <= ||Q (a - b)|| = ||a - b||:

    the Lipschitz constant is 1. ``reconstruct`` is P^T, so that ``reconstruct(project(g))`` is the
    orthogonal projection of g onto the rows; over the random choice of rows its relative squared
    error is 1 - k/d for every g. (The unbiased estimate, d/k times as long, has error d/k - 1.)
    Nothing is stored but the seed; the fingerprint in the state tells whether another machine draws
    the same rows. Time O(d log d).

    Raises:
        ValueError: k is not between 1 and d.
    """

    name: ClassVar[str] = "random-projection"
    linear = True
    lipschitz = 1.0

    def __init__(self, dimension: int, code_dimension: int, seed: int) -> None:
        if not 1 <= code_dimension <= dimension:
            raise ValueError(f"Expected 1 <= k <= {dimension}, got k={code_dimension}")
        self.dimension, self.code_dimension, self.seed = dimension, code_dimension, seed
        rng = generator(seed, "codec", "random-projection", dimension)
        order = rng.permutation(dimension)
        signs = 2.0 * rng.integers(0, 2, dimension) - 1.0
        rows = rng.permutation(dimension)[:code_dimension]
        rows.sort()
        self._order = torch.from_numpy(order)
        self._signs = torch.from_numpy(signs).float()
        self._rows = torch.from_numpy(rows)
        drawn = order.astype("<i8").tobytes() + signs.astype("<f8").tobytes()
        self._fingerprint = hashlib.sha256(drawn + rows.astype("<i8").tobytes()).hexdigest()

    def project(self, vectors: Tensor) -> Tensor:
        device = vectors.device
        mixed = vectors[..., self._order.to(device)] * self._signs.to(device)
        return self._hadamard(mixed)[..., self._rows.to(device)]

    def reconstruct(self, codes: Tensor) -> Tensor:
        device = codes.device
        mixed = codes.new_zeros(*codes.shape[:-1], self.dimension)
        mixed[..., self._rows.to(device)] = codes
        mixed = self._hadamard(mixed) * self._signs.to(device)  # Q^T: Hadamard is symmetric
        result = torch.empty_like(mixed)
        result[..., self._order.to(device)] = mixed
        return result

    def _hadamard(self, vectors: Tensor) -> Tensor:
        pieces = vectors.split(powers_of_two(self.dimension), dim=-1)
        return torch.cat([hadamard(piece) for piece in pieces], dim=-1)

    def state(self) -> State:
        return {}, {
            "name": self.name,
            "dimension": self.dimension,
            "code_dimension": self.code_dimension,
            "seed": self.seed,
            "fingerprint": self._fingerprint,
        }

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> RandomProjection:
        made = cls(int(meta["dimension"]), int(meta["code_dimension"]), int(meta["seed"]))
        if meta["fingerprint"] != made._fingerprint:
            raise ValueError(
                "Expected the same random rows from the same seed, got others: numpy's generators "
                "differ between the machines"
            )
        return made


def powers_of_two(number: int) -> list[int]:
    """Return the binary digits of a number, largest first: 36864 = 32768 + 4096."""
    return [1 << n for n in reversed(range(number.bit_length())) if number >> n & 1]


def hadamard(vectors: Tensor) -> Tensor:
    """Return the orthonormal Walsh-Hadamard transform over the last axis, whose size is a power of two."""
    size = vectors.shape[-1]
    result = vectors.reshape(-1, size)
    width = 1
    while width < size:
        pairs = result.reshape(-1, size // (2 * width), 2, width)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        result = torch.stack([first + second, first - second], dim=2).reshape(-1, size)
        width *= 2
    return (result * size**-0.5).reshape(vectors.shape)
