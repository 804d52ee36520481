"""Interface of codecs: encode updates to short codes and back, and the wire format of a code."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from privacy.randomness import RandomSource

Spec = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of each tensor of a code."""
State = tuple[dict[str, Tensor], dict[str, Any]]
"""A codec as tensors and JSON values."""


@dataclass(frozen=True)
class Code:
    """A message: named tensors in the dtypes in which they travel."""

    tensors: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        """Bytes of the tensors' values (names and framing of the transport not counted)."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


class Codec(ABC):
    """An encoder and its decoder, fixed once made: neither learns from what it encodes.

    Two stages. ``project`` and ``reconstruct`` map between vectors [..., d] and continuous codes
    [..., k]; ``encode_code`` and ``decode_code`` put a continuous code into tensors for the wire.
    ``encode`` and ``decode`` do both. Noise for privacy goes in front of both (``noise =
    "before-encoding"``) or between them (``"in-code"``); what comes after it is post-processing.

    Attributes:
        name: as in the settings.
        dimension: d.
        code_dimension: k, the numbers in a continuous code.
        linear: whether ``project`` and ``reconstruct`` are linear, so that codes can be averaged
            (or summed under secure aggregation) before they are decoded.
        lipschitz: a proven bound of ||project(a) - project(b)|| / ||a - b|| in the L2 norms, in
            real arithmetic; None if none is known. The sensitivity of a code is at most this
            times that of the vector.
    """

    name: ClassVar[str]
    dimension: int
    code_dimension: int
    linear: bool = False
    lipschitz: float | None = None

    @abstractmethod
    def project(self, vectors: Tensor) -> Tensor:
        """Return continuous codes [..., k] of float32 vectors [..., d], on the same device."""

    @abstractmethod
    def reconstruct(self, codes: Tensor) -> Tensor:
        """Return vectors [..., d] from continuous codes [..., k], on the same device."""

    @abstractmethod
    def state(self) -> State:
        """Return all that :meth:`from_state` needs; the JSON part holds ``name``."""

    @classmethod
    @abstractmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Codec:
        """Return the codec that :meth:`state` described.

        Raises:
            ValueError: the state is not one of this codec.
        """

    def encode(self, vector: Tensor, rng: RandomSource) -> Code:
        """Return the message for a vector [d].

        Args:
            rng: for stochastic rounding; most codecs draw nothing.

        Raises:
            ValueError: another shape, or entries that are not finite.
        """
        return self.encode_code(self.project(self._checked(vector, self.dimension)), rng)

    def encode_code(self, code: Tensor, rng: RandomSource) -> Code:
        """Return the message for a continuous code [k], which may carry noise.

        Raises:
            ValueError: another shape, or entries that are not finite.
        """
        return Code({"code": self._checked(code, self.code_dimension)})

    def decode(self, code: Code) -> Tensor:
        """Return the vector [d], float32 on the CPU, of a message from anybody.

        Raises:
            ValueError: the message is not one that this codec makes.
        """
        return self.reconstruct(self.decode_code(code))

    def decode_code(self, code: Code) -> Tensor:
        """Return the continuous code [k], float32 on the CPU, of a message from anybody.

        Raises:
            ValueError: the message is not one that this codec makes.
        """
        return self.check(code)["code"]

    def code_spec(self) -> Spec:
        """Return the tensors of every message of this codec."""
        return {"code": ((self.code_dimension,), torch.float32)}

    @property
    def bytes(self) -> int:
        """Bytes of every message."""
        return sum(
            int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.code_spec().values()
        )

    @property
    def version(self) -> str:
        """SHA-256 (hex) of the state: equal for the same encoder and decoder, bit by bit."""
        return state_digest(*self.state())

    def check(self, code: Code) -> dict[str, Tensor]:
        """Return the tensors of a message, on the CPU, after checking names, shapes, dtypes and finiteness.

        Raises:
            ValueError: the message does not fit :meth:`code_spec`.
        """
        spec = self.code_spec()
        given = {n: (tuple(t.shape), t.dtype) for n, t in code.tensors.items()}
        if given != spec:
            raise ValueError(
                f"Expected a {self.name} code with {_words(spec)}, got {_words(given)}"
            )
        for name, tensor in code.tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ValueError(
                    f"Expected finite values in {self.name} code, got {name} with others"
                )
        return {name: tensor.detach().cpu() for name, tensor in code.tensors.items()}

    def _checked(self, vector: Tensor, size: int) -> Tensor:
        if tuple(vector.shape) != (size,):
            raise ValueError(
                f"Expected a vector of shape ({size},) for codec {self.name}, "
                f"got {tuple(vector.shape)}"
            )
        vector = vector.detach().to(device="cpu", dtype=torch.float32)
        if not bool(torch.isfinite(vector).all()):
            raise ValueError(f"Expected finite values for codec {self.name}, got others")
        return vector

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dimension} -> {self.code_dimension})"


def _words(spec: Spec) -> str:
    return ", ".join(f"{name}: {dtype} {list(shape)}" for name, (shape, dtype) in spec.items())


def state_digest(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Return SHA-256 (hex) of named tensors and JSON values, in an unambiguous order."""
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True, allow_nan=False).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        head = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        digest.update(head.encode())
        if tensor.numel():  # one without elements has no strides to view it by
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def compressed_dimension(dimension: int, ratio: float) -> int:
    """Return the dimension of a code that is ``ratio`` times shorter, rounded down.

    Raises:
        ValueError: a ratio below 1, or one that leaves no dimension.
    """
    if not 1 <= ratio <= dimension:
        raise ValueError(f"Expected 1 <= codec.ratio <= {dimension}, got codec.ratio={ratio}")
    return int(dimension / ratio)
