"""Find the parameters that `last-layers` and `full` train, and how each one's module uses it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedllm.models.adapters.bitfit import is_norm
from fedllm.models.adapters.tape import Kind
from fedllm.models.adapters.targets import chosen_layers, layer_number, stack_of


class Vector(Enum):
    """A module's use of a vector: as its bias, or as the scale of a normalisation."""

    BIAS = "bias"
    SCALE = "scale"


@dataclass(frozen=True)
class Place:
    """A module that uses a parameter.

    Attributes:
        module: its path.
        use: how.
    """

    module: str
    use: Kind | Vector

    @property
    def parameter(self) -> str:
        """Path of the parameter by this module's name."""
        return f"{self.module}.{'bias' if self.use is Vector.BIAS else 'weight'}"


@dataclass(frozen=True)
class Parameter:
    """One trained parameter of a model.

    Attributes:
        name: its path in the model, as in ``model.named_parameters()``.
        layer: number of its layer; None for one outside of the layers.
        shape: its shape.
        places: modules that use it: several where it is tied.
    """

    name: str
    layer: int | None
    shape: tuple[int, ...]
    places: tuple[Place, ...]

    @property
    def tensor(self) -> str:
        """Name of the trained tensor, the difference to the frozen value."""
        place = "all" if self.layer is None else f"{self.layer:02d}"
        return f"weights.{place}.{self.name}"

    @property
    def is_matrix(self) -> bool:
        """True if it is too large for a copy an example."""
        return isinstance(self.places[0].use, Kind)


def find_parameters(
    model: PreTrainedModel,
    form: Literal["last-layers", "full"],
    layers: Literal["all"] | Sequence[int],
    above: Collection[str] = (),
) -> list[Parameter]:
    """The parameters that a form trains, in the model's order; a tied one comes once.

    Args:
        form: `last-layers`: all within these layers, and of the modules ``above``. `full`: all within these layers, and all
            outside of layers.
        layers: numbers of the layers; negative ones count from the top.
        above: paths of modules that follow the layers.

    Raises:
        ValueError: a layer that the model does not have, or a parameter of a kind that is not known here, by name.
    """
    stack, count = stack_of(model)
    wanted: set[int | None] = {*chosen_layers(layers, count)}
    places: dict[int, list[tuple[str, nn.Module, str, Tensor]]] = {}
    for path, module in model.named_modules():
        for own, value in module.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(id(value), []).append((path, module, own, value))
    found = []
    for uses in places.values():
        numbers = {layer_number(path, stack) for path, *_ in uses}
        outside = form == "full" and None in numbers
        if not (outside or numbers & wanted or {path for path, *_ in uses} & set(above)):
            continue
        if len(numbers) > 1:
            raise ValueError(
                f"Expected parameters of one layer each for adapter.form={form}, got "
                f"{' and '.join(_path(path, own) for path, _, own, _ in uses)}, which are one parameter"
            )
        found.append(_parameter(uses, numbers.pop(), form))
    return found


def _parameter(
    uses: Sequence[tuple[str, nn.Module, str, Tensor]], layer: int | None, form: str
) -> Parameter:
    path, _, own, value = uses[0]
    places = []
    for at, module, part, _ in uses:
        use = _use(at, module, part)
        if use is None or not value.is_floating_point():
            raise ValueError(
                f"Expected parameters of linear maps, embeddings and normalisations for adapter.form={form}, got "
                f"{_path(at, part)} of {type(module).__name__} (one example's gradient is not known there): use "
                "adapter.form=lora, or other adapter.layers"
            )
        places.append(Place(at, use))
    ways = [place.use for place in places]
    if len({type(use) for use in ways}) > 1 or (len(ways) > 1 and Kind.BY_INPUT in ways):
        raise ValueError(
            f"Expected a tied parameter to be used as a matrix throughout for adapter.form={form}, got "
            f"{' and '.join(_path(at, part) for at, _, part, _ in uses)}"
        )
    return Parameter(_path(path, own), layer, tuple(value.shape), tuple(places))


def _use(path: str, module: nn.Module, own: str) -> Kind | Vector | None:
    """How a module uses its parameter; None where that is not known."""
    if "experts" in path.split("."):
        return None  # a router sends an expert tokens of several examples
    forward = type(module).forward
    matrix: Kind | None = None
    if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
        matrix = Kind.LINEAR
    elif isinstance(module, Conv1D) and forward is Conv1D.forward:
        matrix = Kind.BY_INPUT
    elif isinstance(module, nn.Embedding) and forward is nn.Embedding.forward:
        plain = module.max_norm is None and not module.scale_grad_by_freq
        return Kind.LOOKUP if plain and own == "weight" else None
    elif is_norm(module):
        flat = getattr(module, own).dim() == 1
        return {"weight": Vector.SCALE, "bias": Vector.BIAS}.get(own) if flat else None
    if matrix is None or own not in ("weight", "bias"):
        return None
    return matrix if own == "weight" else Vector.BIAS


def _path(module: str, own: str) -> str:
    return f"{module}.{own}" if module else own
