"""Top-k codec: send the largest coordinates and their indices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedllm.codec.base import Code, Codec, Spec, State
from privacy.randomness import RandomSource

_SHORT = 1 << 16  # dimensions up to this have indices of two bytes


class TopK(Codec):
    """The coordinates of largest magnitude, with their indices (Aji and Heafield 2017).

    Which coordinates are sent depends on the vector, so that there is no continuous code of its own
    and no Lipschitz constant (a coordinate that enters the set moves the result by its whole size):
    ``project`` gives the vector with all else set to zero, k = d. An index takes 2 bytes up to
    d = 65,536 and 4 beyond. The kept values are biased towards zero as a whole.

    Raises:
        ValueError: ``kept`` is not between 1 and ``dimension``.
    """

    name: ClassVar[str] = "top-k"

    def __init__(self, dimension: int, kept: int) -> None:
        if not 1 <= kept <= dimension:
            raise ValueError(f"Expected 1 <= kept <= {dimension} for codec top-k, got kept={kept}")
        self.dimension = self.code_dimension = dimension
        self.kept = kept
        self._index_dtype = torch.uint16 if dimension <= _SHORT else torch.int32

    @classmethod
    def of_ratio(cls, dimension: int, ratio: float) -> TopK:
        """Keep as many coordinates as fit into 1/ratio of the bytes of the float32 vector."""
        entry = 6 if dimension <= _SHORT else 8
        return cls(dimension, max(1, int(4 * dimension / ratio / entry)))

    def project(self, vectors: Tensor) -> Tensor:
        places = vectors.abs().topk(self.kept, dim=-1).indices
        return torch.zeros_like(vectors).scatter(-1, places, vectors.gather(-1, places))

    def reconstruct(self, codes: Tensor) -> Tensor:
        return codes

    def encode_code(self, code: Tensor, rng: RandomSource) -> Code:
        code = self._checked(code, self.dimension)
        places = code.abs().topk(self.kept).indices.sort().values
        return Code({"values": code[places], "indices": places.to(self._index_dtype)})

    def decode_code(self, code: Code) -> Tensor:
        tensors = self.check(code)
        places = torch.from_numpy(tensors["indices"].numpy().astype(np.int64))
        if not (int(places[0]) >= 0 and int(places[-1]) < self.dimension) or bool(
            (places[1:] <= places[:-1]).any()
        ):
            raise ValueError(
                f"Expected ascending indices from 0 to {self.dimension - 1} in top-k code, got others"
            )
        return torch.zeros(self.dimension).index_put_((places,), tensors["values"])

    def code_spec(self) -> Spec:
        return {
            "values": ((self.kept,), torch.float32),
            "indices": ((self.kept,), self._index_dtype),
        }

    def state(self) -> State:
        return {}, {"name": self.name, "dimension": self.dimension, "kept": self.kept}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> TopK:
        return cls(int(meta["dimension"]), int(meta["kept"]))
