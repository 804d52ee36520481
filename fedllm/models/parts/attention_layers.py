"""Find a model's attention calls, their order and shapes, by a forward pass.

Many models tell each attention module its layer's number, others (DistilBERT, ESM, MobileBERT) do not, and ALBERT
runs one module for all layers. So layers are numbered by the order of their calls; where one module is called
several times in a pass, calls are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

LAYER = "_fedllm_layer"
COUNTED = -1
"""In place of a number: this module serves several layers."""


@dataclass(frozen=True)
class AttentionGeometry:
    """Shape of a model's attention, as observed in a forward pass.

    ``kv_heads`` counts key/value heads (smaller than the query heads in grouped-query attention);
    ``head_dim`` is the size of one head.
    """

    n_layers: int
    kv_heads: int
    head_dim: int
    causal: bool


@dataclass
class AttentionCall:
    """One attention call, captured by a recorder."""

    module: nn.Module
    key: Tensor
    value: Tensor
    causal: bool


def number_layers(name: str, calls: Sequence[AttentionCall]) -> bool:
    """Write each attention module's number on it; return True where one module serves several layers.

    Args:
        name: the model's class, for the error.
        calls: of one forward pass, in order.

    Raises:
        ValueError: there are none.
    """
    if not calls:
        raise ValueError(
            f"Expected attention that goes through transformers' attention interface, where a prefix can be put in "
            f"front of it; {name} computes its own"
        )
    modules = [call.module for call in calls]
    shared = len({id(module) for module in modules}) < len(modules)
    for number, module in enumerate(modules):
        setattr(module, LAYER, COUNTED if shared else number)
    return shared


def common_geometry(name: str, calls: Sequence[AttentionCall]) -> AttentionGeometry:
    """Return the shape that all layers have.

    Raises:
        ValueError: they differ.
    """
    shapes = {
        (call.key.shape[1], call.key.shape[3], call.value.shape[3], call.causal) for call in calls
    }
    kv_heads, key_dim, value_dim, causal = next(iter(shapes))
    if len(shapes) > 1 or key_dim != value_dim:
        raise ValueError(
            "Expected the same key/value heads and head size in every layer and for keys and "
            f"values, got (heads, key size, value size, causal) = {sorted(shapes)} in {name}"
        )
    return AttentionGeometry(len(calls), kv_heads, key_dim, causal)
