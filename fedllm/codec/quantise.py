"""Codes in 16, 8 or 4 bits a number: unbiased stochastic rounding, after any noise.

Rounding is a (random) function of the code alone, so that after noise it is post-processing and
costs no privacy. 8 and 4 bits: chunks of 256 numbers share a float32 scale s = max|x| / m, where m is
127 or 7. x is sent as floor(x/s + u) with u uniform in [0, 1), whose expectation is x/s: the mean over
many clients keeps what single messages round away. The variance is at most s^2/4 a number (QSGD,
Alistarh et al. 2017, arXiv 1610.02132). 16 bits: float16, to the nearest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedllm.codec.base import Code, Codec, Spec, State
from fedllm.codec.identity import Half, Identity
from fedllm.codec.registry import codec_from_state
from privacy.randomness import RandomSource

CHUNK = 256
_LEVELS = {8: 127, 4: 7}


class Quantised(Codec):
    """Another codec's continuous code in fewer bits on the wire.

    Everything about the continuous code (Lipschitz constant, linearity) is the inner codec's.

    Raises:
        ValueError: bits other than 16, 8 or 4, or an inner codec whose message is no float code.
    """

    name: ClassVar[str] = "quantised"

    def __init__(self, inner: Codec, bits: int) -> None:
        if bits not in (16, 8, 4):
            raise ValueError(f"Expected codec.bits of 32, 16, 8 or 4, got codec.bits={bits}")
        if inner.code_spec() != {"code": ((inner.code_dimension,), torch.float32)}:
            raise ValueError(
                f"Expected a codec with a float32 code for codec.bits={bits}, got {inner.name}"
            )
        self.inner, self.bits = inner, bits
        self.dimension, self.code_dimension = inner.dimension, inner.code_dimension
        self.linear, self.lipschitz = inner.linear, inner.lipschitz
        self._half = Half(self.code_dimension)

    def project(self, vectors: Tensor) -> Tensor:
        return self.inner.project(vectors)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.inner.reconstruct(codes)

    def encode_code(self, code: Tensor, rng: RandomSource) -> Code:
        if self.bits == 16:
            return self._half.encode_code(code, rng)
        return Code(quantise(self._checked(code, self.code_dimension), self.bits, rng))

    def decode_code(self, code: Code) -> Tensor:
        if self.bits == 16:
            return self._half.decode_code(code)
        tensors = self.check(code)
        if bool((tensors["scales"] < 0).any()):
            raise ValueError(f"Expected scales >= 0 in {self.name} code, got a negative one")
        return dequantise(tensors["values"], tensors["scales"], self.code_dimension, self.bits)

    def code_spec(self) -> Spec:
        if self.bits == 16:
            return self._half.code_spec()
        chunks = -(-self.code_dimension // CHUNK)
        if self.bits == 8:
            values: tuple[tuple[int, ...], torch.dtype] = ((self.code_dimension,), torch.int8)
        else:
            values = ((-(-self.code_dimension // 2),), torch.uint8)
        return {"values": values, "scales": ((chunks,), torch.float32)}

    def state(self) -> State:
        tensors, meta = self.inner.state()
        return tensors, {"name": self.name, "bits": self.bits, "inner": meta}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Quantised:
        return cls(codec_from_state(tensors, meta["inner"]), int(meta["bits"]))

    def __repr__(self) -> str:
        return f"Quantised({self.inner!r}, {self.bits} bits)"


class Int8(Quantised):
    """The vector itself in 8 bits: about 1.016 bytes a coordinate. Unbiased."""

    name: ClassVar[str] = "int8"

    def __init__(self, dimension: int) -> None:
        super().__init__(Identity(dimension), 8)

    def state(self) -> State:
        return {}, {"name": self.name, "dimension": self.dimension}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Int8:
        return cls(int(meta["dimension"]))


def quantise(code: Tensor, bits: int, rng: RandomSource) -> dict[str, Tensor]:
    """Return a float32 vector [k] as ``values`` and ``scales``; its expectation decodes to the vector.

    ``values`` are int8 [k], or for 4 bits uint8 [k/2], two numbers each, the first one low.
    """
    size, levels = code.numel(), _LEVELS[bits]
    padded = torch.nn.functional.pad(code.double(), (0, -size % CHUNK)).reshape(-1, CHUNK)
    scales = (padded.abs().amax(dim=1) / levels).float()
    # A scale that was rounded down, or fell to zero, would push the largest entry out of range.
    scales = torch.where(
        scales.double() * levels < padded.abs().amax(dim=1),
        torch.nextafter(scales, torch.full_like(scales, torch.inf)),
        scales,
    )
    safe = torch.where(scales > 0, scales, torch.ones_like(scales)).double()
    uniform = torch.from_numpy(rng.random(tuple(padded.shape)))
    whole = torch.floor(padded / safe[:, None] + uniform).clamp(-levels, levels)
    values = whole.reshape(-1)[:size].to(torch.int8)
    if bits == 4:
        nibbles = torch.nn.functional.pad(values, (0, size % 2)).to(torch.int16) & 15
        values = (nibbles[0::2] | nibbles[1::2] << 4).to(torch.uint8)
    return {"values": values, "scales": scales}


def dequantise(values: Tensor, scales: Tensor, size: int, bits: int) -> Tensor:
    """Return the float32 vector [size] that ``values`` and ``scales`` stand for.

    Raises:
        ValueError: a level that :func:`quantise` does not use (-128, or -8 in 4 bits).
    """
    if bits == 4:
        pairs = torch.stack([values & 15, values >> 4], dim=1).reshape(-1)[:size].to(torch.int16)
        values = torch.where(pairs > 7, pairs - 16, pairs)
    if bool((values < -_LEVELS[bits]).any()):
        raise ValueError(f"Expected levels of at least {-_LEVELS[bits]} in a {bits}-bit code")
    each = torch.repeat_interleave(scales, CHUNK)[:size]
    result = values.float() * each
    if not bool(torch.isfinite(result).all()):
        raise ValueError(f"Expected a {bits}-bit code with finite values, got scales too large")
    return result
