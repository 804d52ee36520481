"""Codecs that send every coordinate: as it is, or in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedllm.codec.base import Code, Codec, Spec, State
from privacy.randomness import RandomSource

_LARGEST_HALF = 65504.0


class Identity(Codec):
    """All coordinates in float32: 4 bytes each. Linear, Lipschitz constant 1."""

    name: ClassVar[str] = "none"
    linear = True
    lipschitz = 1.0

    def __init__(self, dimension: int) -> None:
        self.dimension = self.code_dimension = dimension

    def project(self, vectors: Tensor) -> Tensor:
        return vectors

    def reconstruct(self, codes: Tensor) -> Tensor:
        return codes

    def state(self) -> State:
        return {}, {"name": self.name, "dimension": self.dimension}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Identity:
        return cls(int(meta["dimension"]))


class Half(Identity):
    """All coordinates in float16: 2 bytes each, to the nearest; beyond 65504 cut to it.

    The continuous code is the vector itself; the rounding comes after any noise.
    """

    name: ClassVar[str] = "fp16"

    def encode_code(self, code: Tensor, rng: RandomSource) -> Code:
        code = self._checked(code, self.code_dimension)
        return Code({"code": code.clamp(-_LARGEST_HALF, _LARGEST_HALF).to(torch.float16)})

    def decode_code(self, code: Code) -> Tensor:
        return self.check(code)["code"].float()

    def code_spec(self) -> Spec:
        return {"code": ((self.code_dimension,), torch.float16)}
