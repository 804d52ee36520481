"""BitFit: biases of linear maps, and biases and scales of normalisations (Zaken et al. 2022, arXiv 2106.10199).

What is trained is the difference to the frozen values. It starts at zero, and a module without a bias gets none:
``y + x' dw + db`` with x' the normalised input of a normalisation (no dw for a linear map).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedllm.models.adapters.base import Adapter, check_kept
from fedllm.models.adapters.slot import by_example, changed, shared_or_own
from fedllm.models.adapters.tape import Tape
from fedllm.models.adapters.targets import chosen_layers, layer_number, stack_of
from fedllm.models.adapters.used import is_used

BIAS, SCALE = "bias", "scale"


@dataclass(frozen=True)
class Shift:
    """A module whose bias is trained, and for a normalisation its scale.

    Attributes:
        module: its path.
        layer: number of its layer.
        parts: "bias", "scale" or both.
        size: entries of each.
    """

    module: str
    layer: int
    parts: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Shifted:
    """The change x' dw + db of one module; tensors (B, size), or (size,) where all examples share it, or None."""

    bias: Tensor | None
    scale: Tensor | None
    batch: tuple[int, int] | None
    name: str

    def __call__(self, module: nn.Module, given: Tensor, output: Tensor) -> Tensor:
        """Return output + x' dw + db, computed in float32."""
        shape = output.shape
        found = output
        if self.batch is not None:
            found = by_example(output, self.batch, self.name)
        if self.scale is not None:
            x = normalised(module, given.to(output.device)).float().reshape(found.shape)
            found = found + (x * self._wide(self.scale).to(output.device)).to(output.dtype)
        if self.bias is not None:
            found = found + self._wide(self.bias).to(output)
        return found.view(shape)

    def _wide(self, value: Tensor) -> Tensor:
        return value if value.dim() == 1 else value.unsqueeze(1)


def normalised(module: nn.Module, given: Tensor) -> Tensor:
    """The input of a normalisation, normalised, before scale and bias; float32."""
    x = given.float()
    if isinstance(module, nn.LayerNorm):
        return nn.functional.layer_norm(x, module.normalized_shape, eps=module.eps)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _epsilon(module))


def _epsilon(module: nn.Module) -> float:
    for name in ("variance_epsilon", "eps", "epsilon"):
        found = getattr(module, name, None)
        if found is not None:
            return float(found)
    raise ValueError(f"Expected a normalisation with an epsilon, got {type(module).__name__}")


def is_norm(module: nn.Module) -> bool:
    """Return True for a normalisation with a scale that is a factor of its output."""
    if isinstance(module, nn.LayerNorm):
        return module.weight is not None
    kind = type(module).__name__
    named = kind.endswith(("RMSNorm", "T5LayerNorm")) and "Gated" not in kind
    return named and isinstance(getattr(module, "weight", None), nn.Parameter)


@dataclass(frozen=True, eq=False)
class BitfitAdapter(Adapter):
    """Differences of biases and scales.

    Attributes:
        model: the frozen model.
        shifts: its modules.
    """

    model: PreTrainedModel
    shifts: tuple[Shift, ...]

    form: ClassVar[str] = "bitfit"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(sorted({s.layer for s in self.shifts})))

    @classmethod
    def of(cls, model: PreTrainedModel, layers: Literal["all"] | Sequence[int]) -> BitfitAdapter:
        """The biases and scales within the layers. Those outside of the layers stay: they belong to no layer, so that
        a choice of layers could neither keep nor drop them.

        Raises:
            ValueError: a layer that the model does not have, or nothing to train in them.
        """
        stack, count = stack_of(model)
        wanted = set(chosen_layers(layers, count))
        found = []
        output = model.get_output_embeddings()
        for name, module in model.named_modules():
            layer = layer_number(name, stack)
            if (
                layer is None
                or layer not in wanted
                or module is output
                or "experts" in name.split(".")
            ):
                continue
            parts = _parts(module)
            if parts and is_used(model, name):
                bias = getattr(module, "bias", None)
                size = (module.weight if bias is None else bias).numel()
                found.append(Shift(name, layer, parts, int(size)))
        if not found:
            raise ValueError(
                "Expected biases or normalisations for adapter.form=bitfit, got a model without any in "
                f"adapter.layers={layers if layers == 'all' else list(layers)}"
            )
        return cls(model, tuple(found))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {shift_name(s, part): (s.size,) for s in self.shifts for part in s.parts}

    def keep(self, layers: Sequence[int]) -> BitfitAdapter:
        kept = check_kept(self, layers)
        return replace(self, shifts=tuple(s for s in self.shifts if s.layer in kept))

    def weight_changes(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``bias`` gets db, and a normalisation's ``weight`` gets dw: its output is linear in both."""
        modules = dict(self.model.named_modules())
        found = {}
        for shift in self.shifts:
            for part in shift.parts:
                name = "bias" if part == BIAS else "weight"
                own = getattr(modules[shift.module], name)
                change = params[shift_name(shift, part)].detach().double()
                found[f"{shift.module}.{name}"] = change.view(own.shape)
        return found

    def scope(
        self,
        params: Mapping[str, Tensor],
        batch: tuple[int, int] | None = None,
        tape: Tape | None = None,
    ) -> AbstractContextManager[None]:
        changes = {}
        for shift in self.shifts:
            own = {
                part: shared_or_own(params[shift_name(shift, part)], 1, batch)
                for part in shift.parts
            }
            each = batch if any(value.dim() == 2 for value in own.values()) else None
            changes[shift.module] = Shifted(own.get(BIAS), own.get(SCALE), each, shift.module)
        return changed(self.model, changes)


def _parts(module: nn.Module) -> tuple[str, ...]:
    bias = getattr(module, "bias", None) is not None
    if is_norm(module):
        return (BIAS, SCALE) if bias else (SCALE,)
    return (BIAS,) if bias and isinstance(module, nn.Linear | Conv1D) else ()


def shift_name(shift: Shift, part: str) -> str:
    """Name of the trained tensor that holds a difference."""
    return f"bitfit.{shift.layer:02d}.{shift.module}.{part}"
