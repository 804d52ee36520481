"""All weights of the top layers, or of the model: differences to the frozen values, one for all examples.

What travels are the differences, which start at zero: means over silos, codecs and noise work as they do for other
forms, and adding them to the weights gives a plain model.

Copies of these matrices, one an example, would not fit. So all examples share a matrix: a plain gradient takes one
leaf, and one example's gradient is known by its factors (:mod:`fedllm.models.adapters.tape`). Biases and scales are
small, and take copies where copies are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedllm.models.adapters.base import Adapter, check_kept
from fedllm.models.adapters.bitfit import Shifted
from fedllm.models.adapters.parameters import Parameter, Place, Vector, find_parameters
from fedllm.models.adapters.slot import Change, Replacement, by_example, changed, shared_or_own
from fedllm.models.adapters.tape import Kind, Tape
from fedllm.models.adapters.trial import norms_above, require_own_uses
from fedllm.models.parts.input_device import input_device

WeightsForm = Literal["last-layers", "full"]
_TRIAL = (3, 5)


@dataclass(frozen=True, eq=False)
class Matrix:
    """A changed matrix.

    Attributes:
        tensor: name of the trained tensor.
        change: dW.
        whole: W + dW; None in 16 bits, where dW would be rounded away.
        tape: records its factors; None: the change itself is differentiated.
    """

    tensor: str
    change: Tensor
    whole: Tensor | None
    tape: Tape | None


@dataclass(frozen=True, eq=False)
class MovedMap(Replacement):
    """A linear map with another matrix and bias.

    Attributes:
        name: of the module.
        kind: whether the matrix is stored by outputs or by inputs.
        matrix: what changes of it.
        bias: db, (out,) or (B, out); None: there is none.
        batch: rows and padded tokens.
    """

    name: str
    kind: Kind
    matrix: Matrix
    bias: Tensor | None
    batch: tuple[int, int] | None

    def instead(self, module: nn.Module, own: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        matrix = self.matrix
        if matrix.whole is None:
            change = matrix.change.to(given.dtype)
            output = own(given) + product(given, change, self.kind, None)
        else:
            output = product(given, matrix.whole, self.kind, getattr(module, "bias", None))
        if matrix.tape is not None:
            output = matrix.tape.watch(matrix.tensor, self.kind, given, output, self.name)
        if self.bias is None:
            return output
        if self.bias.dim() == 1:
            return output + self.bias.to(output.dtype)
        assert self.batch is not None
        apart = by_example(output, self.batch, self.name)
        return (apart + self.bias.unsqueeze(1).to(output.dtype)).view(output.shape)


@dataclass(frozen=True, eq=False)
class MovedTable:
    """Embeddings with other rows."""

    name: str
    matrix: Matrix
    batch: tuple[int, int] | None

    def __call__(self, module: nn.Module, given: Tensor, output: Tensor) -> Tensor:
        """Return output + dW[given].

        Raises:
            ValueError: ids that are not (B, T), or (1, T) for all examples.
        """
        tape, rows = self.matrix.tape, 1 if self.batch is None else self.batch[0]
        output = output + nn.functional.embedding(given, self.matrix.change).to(output.dtype)
        if tape is None:
            return output
        if given.dim() != 2 or given.shape[0] not in (1, rows):
            raise ValueError(
                f"Expected {self.name} to look up ids of {rows} examples, got ids of shape {tuple(given.shape)}: which "
                "example a row belongs to is not known"
            )
        if (
            given.shape[0] != rows
        ):  # positions that all examples share: apart for the gradient's sake
            given, output = given.expand(rows, -1), output.expand(rows, -1, -1)
        return tape.watch(self.matrix.tensor, Kind.LOOKUP, given, output, self.name)


def product(given: Tensor, matrix: Tensor, kind: Kind, bias: Tensor | None) -> Tensor:
    """W given + bias, as the module of this kind computes it."""
    if kind is Kind.LINEAR:
        return nn.functional.linear(given, matrix, bias)
    flat = given.reshape(-1, given.shape[-1])
    found = flat @ matrix if bias is None else torch.addmm(bias, flat, matrix)
    return found.view(*given.shape[:-1], matrix.shape[1])


@dataclass(frozen=True, eq=False)
class WeightsAdapter(Adapter):
    """Differences of all weights of some layers, or of the model.

    Attributes:
        model: the frozen model.
        parameters: what is trained of it.
        weights_form: as in ``adapter.form``.
    """

    model: PreTrainedModel
    parameters: tuple[Parameter, ...]
    weights_form: WeightsForm

    form: ClassVar[str] = "weights"

    def __post_init__(self) -> None:
        layers = {p.layer for p in self.parameters if p.layer is not None}
        object.__setattr__(self, "layers", tuple(sorted(layers)))

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        form: WeightsForm,
        layers: Literal["all"] | Sequence[int] = "all",
    ) -> WeightsAdapter:
        """The weights of these layers, and the normalisations that follow the last layer; or those of the model.

        A pass on public tokens makes sure that each parameter is used by its own module alone, example by example.

        Raises:
            ValueError: a layer that the model does not have, or a parameter whose use is not known, by name.
        """
        above = norms_above(model) if form == "last-layers" else []
        found = find_parameters(model, form, layers, above)
        users = {p.name: frozenset(place.module for place in p.places) for p in found}
        require_own_uses(model, users, form)
        adapter = cls(model, tuple(found), form)
        adapter.require_rows()
        return adapter

    def require_rows(self) -> None:
        """Compute public tokens of three examples.

        Raises:
            ValueError: a module does not keep the examples apart; it is named.
        """
        params = {name: torch.zeros(shape) for name, shape in self.shapes().items()}
        params = {name: value.to(input_device(self.model)) for name, value in params.items()}
        vectors = {n: v.expand(_TRIAL[0], -1) for n, v in params.items() if n not in self.shared}
        ids = torch.arange(_TRIAL[0] * _TRIAL[1], device=input_device(self.model)).view(_TRIAL)
        ids = ids % int(self.model.get_input_embeddings().weight.shape[0])
        with torch.no_grad(), self.scope(params | vectors, _TRIAL, Tape(self.shared, _TRIAL)):
            self.model(input_ids=ids, attention_mask=torch.ones_like(ids))

    @cached_property
    def shared(self) -> frozenset[str]:
        return frozenset(p.tensor for p in self.parameters if p.is_matrix)

    @property
    def whole_parameters(self) -> frozenset[str]:
        return frozenset(place.parameter for p in self.parameters for place in p.places)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {p.tensor: p.shape for p in self.parameters}

    def keep(self, layers: Sequence[int]) -> WeightsAdapter:
        kept = check_kept(self, layers)
        return replace(
            self, parameters=tuple(p for p in self.parameters if p.layer in (None, *kept))
        )

    def weight_changes(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The differences as they are."""
        return {p.name: params[p.tensor].detach().double() for p in self.parameters}

    def first_layer(self, count: int) -> int:
        return 0 if self.weights_form == "full" else super().first_layer(count)

    def scope(
        self,
        params: Mapping[str, Tensor],
        batch: tuple[int, int] | None = None,
        tape: Tape | None = None,
    ) -> AbstractContextManager[None]:
        """See :meth:`Adapter.scope`.

        Raises:
            ValueError: a matrix with copies that differ from example to example.
        """
        own = dict(self.model.named_parameters())
        matrices: dict[str, tuple[Matrix, Place]] = {}
        vectors: dict[str, dict[Vector, Tensor]] = {}
        for parameter in self.parameters:
            value = params[parameter.tensor]
            if not parameter.is_matrix:
                one = shared_or_own(value, 1, batch)
                for place in parameter.places:
                    assert isinstance(place.use, Vector)
                    vectors.setdefault(place.module, {})[place.use] = one
                continue
            change = _one_for_all(value, parameter)
            matrix = self._matrix(parameter, change, own[parameter.name], tape)
            for place in parameter.places:
                matrices[place.module] = (matrix, place)
        return changed(self.model, self._changes(matrices, vectors, batch))

    def _matrix(
        self, parameter: Parameter, change: Tensor, own: Tensor, tape: Tape | None
    ) -> Matrix:
        recorded = tape if tape is not None and parameter.tensor in tape.names else None
        mapped = any(place.use is not Kind.LOOKUP for place in parameter.places)
        exact = torch.finfo(own.dtype).bits >= 32
        whole = own + change.to(own.dtype) if mapped and exact else None
        return Matrix(parameter.tensor, change, whole, recorded)

    def _changes(
        self,
        matrices: Mapping[str, tuple[Matrix, Place]],
        vectors: Mapping[str, Mapping[Vector, Tensor]],
        batch: tuple[int, int] | None,
    ) -> dict[str, Change | Replacement]:
        changes: dict[str, Change | Replacement] = {}
        for name in {**matrices, **vectors}:
            mine = vectors.get(name, {})
            bias = mine.get(Vector.BIAS)
            if name not in matrices:
                each = batch if any(value.dim() == 2 for value in mine.values()) else None
                changes[name] = Shifted(bias, mine.get(Vector.SCALE), each, name)
                continue
            matrix, place = matrices[name]
            assert isinstance(place.use, Kind)
            if place.use is Kind.LOOKUP:
                changes[name] = MovedTable(name, matrix, batch)
            else:
                changes[name] = MovedMap(name, place.use, matrix, bias, batch)
        return changes


def _one_for_all(value: Tensor, parameter: Parameter) -> Tensor:
    """A matrix that all examples share, without the leading dimension."""
    if value.dim() == len(parameter.shape):
        return value
    if value.shape[0] == 1 or value.stride(0) == 0:
        return value[0]
    raise ValueError(
        f"Expected one {parameter.tensor} for all examples (copies of whole matrices do not fit), got "
        f"{value.shape[0]} copies"
    )
