"""Adapters without changes of modules: a prefix in front of the attention layers, and a head alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from fedllm.models.adapters.base import Adapter, check_kept
from fedllm.models.adapters.tape import Tape
from fedllm.models.attention import prefix_scope
from fedllm.models.prefix import PREFIX, PrefixSpec


@dataclass(frozen=True, eq=False)
class PrefixAdapter(Adapter):
    """Keys and values in front of every chosen attention layer (:mod:`fedllm.models.prefix`)."""

    model: PreTrainedModel
    spec: PrefixSpec

    form: ClassVar[str] = "prefix"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", self.spec.layers)
        object.__setattr__(self, "positions", self.spec.length)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {PREFIX: self.spec.shape}

    def keep(self, layers: Sequence[int]) -> PrefixAdapter:
        return replace(self, spec=replace(self.spec, layers=check_kept(self, layers)))

    def scope(
        self,
        params: Mapping[str, Tensor],
        batch: tuple[int, int] | None = None,
        tape: Tape | None = None,
    ) -> AbstractContextManager[None]:
        return prefix_scope(self.model, params[PREFIX], self.spec.layers)


class HeadAlone(Adapter):
    """No adapter: the task's own head is all that is trained."""

    form: ClassVar[str] = "head"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {}

    def scope(
        self,
        params: Mapping[str, Tensor],
        batch: tuple[int, int] | None = None,
        tape: Tape | None = None,
    ) -> AbstractContextManager[None]:
        return nullcontext()
