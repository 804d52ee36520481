"""Find the modules of a model that an adapter changes, and the layers that they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedllm.models.adapters.used import is_used, require_used

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Target:
    """One linear map of a model.

    Attributes:
        module: its path, as in ``model.named_modules()``.
        layer: number of the layer that it is in; None for one outside of the layers.
        inputs, outputs: its sizes.
    """

    module: str
    layer: int | None
    inputs: int
    outputs: int


def stack_of(model: nn.Module) -> tuple[str, int]:
    """Return the path of the list of layers (the module list with the most parameters), and their number.

    Raises:
        ValueError: the model has none.
    """
    best, path, count = -1, "", 0
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            size = sum(value.numel() for value in module.parameters())
            if size > best:
                best, path, count = size, name, len(module)
    if best < 0:
        raise ValueError(
            f"Expected a model with a list of layers, got {type(model).__name__} without one"
        )
    return path, count


def layer_number(module: str, stack: str) -> int | None:
    """Number of the layer that a module path is in; None for one outside of the stack."""
    if not module.startswith(f"{stack}."):
        return None
    return int(module[len(stack) + 1 :].partition(".")[0])


def chosen_layers(
    layers: Literal["all"] | Sequence[int], count: int, setting: str = "adapter.layers"
) -> tuple[int, ...]:
    """Layer numbers, ascending; negative ones count from the top.

    Raises:
        ValueError: a number outside the model, or twice.
    """
    if layers == "all":
        return tuple(range(count))
    found = [layer + count if layer < 0 else layer for layer in layers]
    if any(not 0 <= layer < count for layer in found) or len(set(found)) != len(found):
        raise ValueError(
            f"Expected distinct {setting} between {-count} and {count - 1}, got {setting}={list(layers)}"
        )
    return tuple(sorted(found))


def find_targets(
    model: PreTrainedModel,
    targets: Literal["all-linear"] | Sequence[str],
    layers: Literal["all"] | Sequence[int],
) -> list[Target]:
    """The linear maps that an adapter changes, in the model's order.

    Args:
        targets: names as PEFT's ``target_modules``: a module is meant whose path is the name or ends in it after a
            dot. ``"all-linear"``: every linear map within the layers that the model uses, without experts and
            gates of one number; of an encoder-decoder with all layers its encoder's too, whose maps have no number.
        layers: numbers of the layers; negative ones count from the top.

    Raises:
        ValueError: a name or a layer that the model does not have, a module that it does not use, or one that sees
            tokens of several examples in an order of its own (an expert).
    """
    stack, count = stack_of(model)
    wanted = set(chosen_layers(layers, count))
    linear = [t for t in _linear_maps(model, stack) if t.layer is None or t.layer in wanted]
    if targets == ALL_LINEAR:
        lists = _other_lists(model, stack) if layers == "all" else ()
        inner = [
            t
            for t in linear
            if (t.layer is not None or t.module.startswith(lists)) and not _is_expert(t.module)
        ]
        return [t for t in inner if t.outputs > 1 and is_used(model, t.module)]
    found: list[Target] = []
    for name in targets:
        matching = [t for t in linear if t.module == name or t.module.endswith(f".{name}")]
        if not matching:
            known = sorted({t.module.rpartition(".")[2] for t in linear})
            raise ValueError(
                f"Expected adapter.targets among the model's linear maps ({', '.join(known)}), got {name!r}"
            )
        experts = [t.module for t in matching if _is_expert(t.module)]
        if experts:
            raise ValueError(
                f"Expected adapter.targets outside of experts (a router sends them tokens of several examples, so that "
                f"no example's gradient is known), got {name!r}, which is {experts[0]}"
            )
        for target in matching:
            require_used(model, target.module, "adapter.targets")
        found += [t for t in matching if t not in found]
    order = {t: place for place, t in enumerate(linear)}
    return sorted(found, key=lambda t: order[t])


def sizes_of(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear map."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def _linear_maps(model: PreTrainedModel, stack: str) -> Iterator[Target]:
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not output:
            yield Target(name, layer_number(name, stack), *sizes_of(module))


def _other_lists(model: PreTrainedModel, stack: str) -> tuple[str, ...]:
    """Paths of the other lists of layers, with a dot behind: an encoder-decoder's encoder."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return ()
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return tuple(f"{name}." for name in lists if name != stack)


def _is_expert(module: str) -> bool:
    return "experts" in module.split(".")
