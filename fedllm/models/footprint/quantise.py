"""Weights of a frozen model's linear maps in 8 or 4 bits; what is multiplied is unpacked first, in the model's format.

* ``8bit``: the nearest of 255 levels, equidistant up to the largest absolute value of the matrix's row (one output).
* ``4bit``: NF4, the nearest of 16 levels times the largest absolute value of a block of 64 numbers, packed and unpacked
  by bitsandbytes (Dettmers et al. 2023, arXiv 2305.14314).

Only weights are rounded. The libraries' own layers round more, or by other rules: bitsandbytes' 8-bit product rounds
activations (and with a threshold looks for outliers in the whole batch), its 4-bit product takes another kernel for one
row, or where no gradient is asked for; torchao's 8-bit product keeps an unpacked copy of each matrix for the backward
pass. Here a product is the plain one of unpacked weights, in both directions, so that an example's gradient depends on
its batch mates no more than with plain weights, and a matrix is unpacked for as long as it is multiplied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedllm.models.adapters.targets import stack_of
from fedllm.models.model_error import ModelError
from fedllm.models.weights import loaded_digest

Quantization = Literal["none", "8bit", "4bit"]
BLOCK = 64
"""Numbers that share a scale in 4 bits."""
_CODES, _SCALES = "codes", "scales"


def bits_per_weight(quantization: str) -> float | None:
    """Return the bits that a weight takes with its share of the scales; None for plain weights."""
    return {"8bit": 8.1, "4bit": 4 + 32 / BLOCK}.get(quantization)


class _Quantised(nn.Module):
    """A frozen linear map whose matrix is stored in fewer bits.

    Attributes:
        quantization: "8bit" or "4bit".
        codes, scales: what is stored of the matrix (out, in).
        bias: (out,), or None.
    """

    codes: Tensor
    scales: Tensor
    bias: Any
    by_input = False
    """Whether the layer's own ``weight`` is (in, out)."""

    def store(self, weight: Tensor, bias: Tensor | None, quantization: Quantization) -> None:
        """Store a matrix (out, in) and its bias."""
        nn.Module.__init__(self)
        self.quantization = quantization
        self.size = (int(weight.shape[0]), int(weight.shape[1]))
        codes, scales = _PACK[quantization](weight)
        self.register_buffer(_CODES, codes)
        self.register_buffer(_SCALES, scales)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.format = weight.dtype

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix (out, in) that the stored numbers stand for."""
        return _UNPACK[self.quantization](self.codes, self.scales, self.size, dtype)

    @property
    def weight(self) -> Tensor:
        """The matrix as the plain layer has it, unpacked at each access; what is written to it is lost."""
        found = self.matrix(self.format)
        return found.T if self.by_input else found

    def forward(self, x: Tensor) -> Tensor:
        """Return the matrix times x (..., in), plus the bias."""
        found: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return found

    def extra_repr(self) -> str:
        """Return what the model's text says of the layer."""
        return f"out, in={self.size}, bias={self.bias is not None}, {self.quantization}"


class QuantisedLinear(_Quantised, nn.Linear):  # type: ignore[override, misc]
    """In the place of ``nn.Linear``."""

    def __init__(self, layer: nn.Linear, quantization: Quantization) -> None:
        self.store(layer.weight.detach(), layer.bias, quantization)
        self.in_features, self.out_features = layer.in_features, layer.out_features


class QuantisedConv1D(_Quantised, Conv1D):
    """In the place of GPT-2's ``Conv1D``."""

    by_input = True

    def __init__(self, layer: Conv1D, quantization: Quantization) -> None:
        self.store(layer.weight.detach().T.contiguous(), layer.bias, quantization)
        self.nx, self.nf = self.size[1], self.size[0]


class _Product(torch.autograd.Function):
    """x times the transposed matrix, plus the frozen bias; no unpacked matrix is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Quantised) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.matrix(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.matmul(ctx.layer.matrix(grad.dtype)), None


def _pack_8bit(weight: Tensor) -> tuple[Tensor, Tensor]:
    exact = weight.float()
    scales = exact.abs().amax(1, keepdim=True) / 127
    codes = (exact / scales.clamp(min=torch.finfo(torch.float32).tiny)).round()
    return codes.clamp(-127, 127).to(torch.int8), scales


def _unpack_8bit(
    codes: Tensor, scales: Tensor, size: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    return (codes * scales).to(dtype)


def _pack_4bit(weight: Tensor) -> tuple[Tensor, Tensor]:
    codes, state = _bitsandbytes().quantize_4bit(
        weight.contiguous(), blocksize=BLOCK, quant_type="nf4"
    )
    return codes, state.absmax


def _unpack_4bit(
    codes: Tensor, scales: Tensor, size: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    library = _bitsandbytes()
    wanted = torch.float32 if dtype == torch.float64 else dtype
    state = library.QuantState(
        absmax=scales, shape=torch.Size(size), dtype=wanted, blocksize=BLOCK, quant_type="nf4"
    )
    found: Tensor = library.dequantize_4bit(codes, state)
    return found.to(dtype)


_PACK: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "8bit": _pack_8bit,
    "4bit": _pack_4bit,
}
_UNPACK: dict[str, Callable[[Tensor, Tensor, tuple[int, int], torch.dtype], Tensor]] = {
    "8bit": _unpack_8bit,
    "4bit": _unpack_4bit,
}


@lru_cache
def _bitsandbytes() -> Any:
    logger = logging.getLogger("bitsandbytes")
    before = logger.level
    logger.setLevel(logging.ERROR)  # it warns of kernels that are not used here
    try:
        import bitsandbytes.functional as library
    except ImportError as error:
        raise ModelError(
            "Expected the package bitsandbytes for model.quantization=4bit (pip install bitsandbytes), got "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        logger.setLevel(before)
    return library


def quantise(
    model: PreTrainedModel, quantization: Quantization, device: torch.device | None = None
) -> int:
    """Put the linear maps within the layers into fewer bits, in place; return how many there were.

    Embeddings, normalisations, biases and what computes the scores of the vocabulary stay as they are. Each matrix is
    moved to the device by itself, so that the device never holds the plain model.

    Args:
        device: where the matrices go; None: they stay where they are.

    Raises:
        ModelError: bitsandbytes is needed and not there, or the model has no plain linear maps in its layers.
        ValueError: an unknown quantization.
    """
    if quantization not in get_args(Quantization):
        raise ValueError(
            f"Expected model.quantization to be one of {', '.join(get_args(Quantization))}, got {quantization!r}"
        )
    if quantization == "none":
        return 0
    path, _ = stack_of(model)
    shared = {id(v) for v in _used_twice(model)}
    count = 0
    for name, module in list(model.get_submodule(path).named_modules()):
        if type(module) not in (nn.Linear, Conv1D) or id(module.weight) in shared:
            continue
        parent = model.get_submodule(f"{path}.{name}".rpartition(".")[0])
        if device is not None:
            module.to(device)
        made = QuantisedLinear if isinstance(module, nn.Linear) else QuantisedConv1D
        setattr(parent, name.rpartition(".")[2], made(module, quantization))  # type: ignore[arg-type]
        count += 1
    if not count:
        raise ModelError(
            f"Expected linear maps in the layers of {type(model).__name__} for model.quantization={quantization}, "
            "got none that are plain"
        )
    return count


def require_own_rows(name: str, config: Any) -> None:
    """Refuse a quantised checkpoint whose products are known to depend on the whole batch.

    Args:
        config: the model's ``quantization_config``, a dictionary or an object of transformers; None: there is none.

    Raises:
        ModelError: bitsandbytes' 8 bits with a threshold.
    """
    told = config if isinstance(config, dict) else getattr(config, "to_dict", dict)()
    threshold = told.get("llm_int8_threshold", 6.0)
    if told.get("load_in_8bit") and threshold:
        raise ModelError(
            f"Expected products that are computed row by row, got model={name!r}, quantised to 8 bits by bitsandbytes "
            f"with llm_int8_threshold={threshold}: it looks for outliers in the whole batch, so that an example's gradient "
            "depends on its batch mates. Use the plain model with model.quantization=8bit"
        )


def _used_twice(model: nn.Module) -> list[nn.Parameter]:
    seen: dict[int, int] = {}
    named = list(model.named_parameters(remove_duplicate=False))
    for _, value in named:
        seen[id(value)] = seen.get(id(value), 0) + 1
    return [value for _, value in named if seen[id(value)] > 1]


def quantised_layers(model: nn.Module) -> dict[str, _Quantised]:
    """Return the layers of fewer bits, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, _Quantised)}


def quantised_sizes(model: nn.Module) -> list[tuple[int, int]]:
    """Return the sizes (out, in) of the matrices of fewer bits."""
    return [layer.size for layer in quantised_layers(model).values()]


def quantised_digest(model: PreTrainedModel, reload: Callable[[], PreTrainedModel]) -> str:
    """Return the SHA-256 of the plain weights (:func:`fedllm.models.weights.loaded_digest`), after the check that they
    are what is in memory once they are quantised.

    Args:
        model: has quantised layers.
        reload: loads the model as it is stored.

    Raises:
        ModelError: the files no longer hold what was loaded.
    """
    plain = reload()
    digest = loaded_digest(plain)
    kept = quantised_layers(model)
    for name, layer in kept.items():
        there: Any = plain.get_submodule(name)
        weight = there.weight.detach().to(device=layer.codes.device, dtype=layer.format)
        again = _PACK[layer.quantization]((weight.T if layer.by_input else weight).contiguous())
        if not all(map(torch.equal, again, (layer.codes, layer.scales))):
            raise ModelError(
                f"Expected the weights that were loaded, got others for {name}: the files changed since"
            )
    state = plain.state_dict()
    for name, value in model.state_dict().items():
        if name in state and not torch.equal(state[name].to(value.dtype), value.cpu()):
            raise ModelError(
                f"Expected the weights that were loaded, got others for {name}: the files changed since"
            )
    return digest
