"""All coordinates in 8 bits, with stochastic rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from fedllm.codec.base import State
from fedllm.codec.identity import Identity
from fedllm.codec.quantise import Quantised


class Int8(Quantised):
    """The vector itself in 8 bits: about 1.016 bytes a coordinate. Unbiased; see ``quantise``."""

    name: ClassVar[str] = "int8"

    def __init__(self, dimension: int) -> None:
        super().__init__(Identity(dimension), 8)

    def state(self) -> State:
        return {}, {"name": self.name, "dimension": self.dimension}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Int8:
        return cls(int(meta["dimension"]))
