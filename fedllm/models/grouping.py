"""Find how the examples of a model may share a micro-batch, so that none of them sees another one's padding.

Padding reaches no token where prefix attention is installed and attention is all that mixes tokens
(:func:`fedllm.models.attention.padding_scope`). Other models mix padding in: state-space layers and linear attention carry
it in their state, convolutions read their neighbours, and a mask that is added keeps NaN. Their micro-batches hold examples of
one length, without padding.

A micro-batch holds one example where experts are behind a router (how many tokens an expert gets, and so how its products are
rounded, depends on all examples), where an encoder and a decoder each have a length, and where a module computes once for all examples (DeBERTa's projections of relative
positions), so that what an adapter changes there is no single example's. So it does where kernels round an example
differently in a micro-batch of another number of rows.

Which it is gets measured: with NaN in the place of padding (what NaN does not reach, nothing reaches), and by the shapes
that modules see.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedllm.data.batches import position_ids
from fedllm.data.shapes import ROW_MULTIPLE
from fedllm.models.adapters.bitfit import is_norm
from fedllm.models.attention import geometry_or_none, padding_scope
from fedllm.models.model_error import ModelError
from fedllm.models.parts.input_device import input_device
from fedllm.models.parts.model_inputs import takes_positions
from fedllm.models.parts.text_model import Kind

Grouping = Literal["padded", "one-length", "alone"]
"""``padded``: by buckets of lengths; ``one-length``: examples of one length, no padding; ``alone``: one example."""
_TOKENS = 12
_PADDING = 4
_ROWS = 3


def grouping_of(model: PreTrainedModel, kind: Kind) -> Grouping:
    """Return how examples may share a micro-batch of ``model``, which is frozen and in eval mode."""
    if kind == "encoder-decoder" or has_experts(model) or not sees_examples_apart(model):
        return "alone"
    if geometry_or_none(model) is not None and padding_is_inert(model, kind):
        return "padded"
    return "one-length" if rows_are_the_same_bits(model) else "alone"


def has_experts(model: nn.Module) -> bool:
    """Return True if a router sends tokens to experts: modules that see tokens of several examples together."""
    return any(
        name.rpartition(".")[2] == "experts" or type(module).__name__.endswith("Experts")
        for name, module in model.named_modules()
    )


def rows_are_the_same_bits(model: PreTrainedModel) -> bool:
    """Return True if an example has the same bits in micro-batches of different sizes, forward and backward.

    On a CPU, where the number of rows is free, and on a few lengths; elsewhere it is fixed by the length
    (:mod:`fedllm.data.shapes`).
    """
    if input_device(model).type != "cpu":
        return True
    rng = torch.Generator().manual_seed(0)
    size = int(model.get_input_embeddings().weight.shape[0])
    for length in (5, 7, 11):
        ids = torch.randint(0, size, (2 * ROW_MULTIPLE, length), generator=rng)
        whole = _with_gradient(model, ids)
        parts = [_with_gradient(model, half) for half in ids.split(ROW_MULTIPLE)]
        for found, *halves in zip(whole, *parts, strict=True):
            if not torch.equal(found, torch.cat(halves)):
                return False
    return True


def _with_gradient(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's result, and the gradient of its sum by the row's embeddings."""
    states, embedded = _from_embeddings(model, ids)
    (grad,) = torch.autograd.grad(states.float().tanh().sum(), embedded)
    return states.detach(), grad


def _is_causal(model: PreTrainedModel) -> bool:
    """Return True if the first token's result has no derivative by the last one's embedding; of an encoder-decoder
    it is not asked."""
    if model.config.is_encoder_decoder:
        with torch.no_grad():
            _states(model, _public_tokens(model), torch.ones_like(_public_tokens(model)))
        return True
    states, embedded = _from_embeddings(model, _public_tokens(model))
    first = states[0, 0].float()
    weights = torch.linspace(-1, 1, len(first), device=first.device).sin()
    (grad,) = torch.autograd.grad((first * weights).sum(), embedded)
    return not bool(grad[0, -1].any())


def _from_embeddings(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the result of a pass, and the embeddings (B, T, ...) by which it has a derivative."""
    leaves: list[Tensor] = []

    def cut(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = model.get_input_embeddings().register_forward_hook(cut)
    try:
        with torch.enable_grad():
            return _states(model, ids, torch.ones_like(ids)), leaves[0]
    finally:
        handle.remove()


@torch.no_grad()
def sees_examples_apart(model: PreTrainedModel) -> bool:
    """Return True if all linear maps and normalisations see each example's tokens, one example after another."""
    ids = _public_tokens(model).expand(_ROWS, -1)
    apart = {_ROWS, _ROWS * _TOKENS}
    shared: list[torch.Size] = []

    def look(module: nn.Module, args: Any) -> None:
        if args and isinstance(args[0], Tensor) and args[0].shape[0] not in apart:
            shared.append(args[0].shape)

    handles = [
        module.register_forward_pre_hook(look)
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D) or is_norm(module)
    ]
    try:
        _states(model, ids, torch.ones_like(ids))
    finally:
        for handle in handles:
            handle.remove()
    return not shared


@torch.no_grad()
def padding_is_inert(model: PreTrainedModel, kind: Kind) -> bool:
    """Return True if NaN in the place of the padding's embeddings changes no token's result beyond rounding.

    Args:
        model: with prefix attention.
        kind: an encoder is padded on the right, a decoder on the left.
    """
    ids = _public_tokens(model)
    rows = ids.new_zeros(1, _TOKENS + _PADDING)
    place = slice(_PADDING, None) if kind == "decoder" else slice(0, _TOKENS)
    rows[:, place] = ids
    mask = torch.zeros_like(rows)
    mask[:, place] = 1
    whole = _states(model, ids, torch.ones_like(ids))
    with _nan_at(model, mask == 0):
        padded = _states(model, rows, mask)[:, place]
    off = float((padded.float() - whole.float()).abs().max())  # NaN where it is reached
    allowed = float(torch.finfo(model.dtype).eps) ** 0.5 * float(whole.float().abs().max())
    return off <= allowed


def require_direction(name: str, model: PreTrainedModel, kind: Kind) -> None:
    """Refuse a decoder whose tokens read later ones, and an encoder whose first token does not read the last one.

    Raises:
        ModelError: it is so, or the model does not compute a text of a few tokens; it is named.
    """
    shape = geometry_or_none(model)
    try:
        causal = _is_causal(model) if shape is None else shape.causal
    except Exception as error:
        raise ModelError(
            f"Expected model={name!r} ({type(model).__name__}) to compute a text of {_TOKENS} tokens, got "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    if kind == "decoder" and not causal:
        raise ModelError(f"Expected causal attention in a decoder, got none in model={name!r}")
    if kind == "encoder" and causal:
        raise ModelError(
            f"Expected attention in both directions in an encoder, got causal attention in model={name!r} "
            f"({type(model).__name__})"
        )


def _public_tokens(model: PreTrainedModel) -> Tensor:
    """(1, N) tokens that differ, as far as the vocabulary goes, and of which none is a padding token of usual models."""
    size = int(model.get_input_embeddings().weight.shape[0])
    ids = (torch.arange(_TOKENS) * 7 + 5) % max(size, 1)
    return ids[None].to(input_device(model))


def _states(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The model's first output (1, T, ...): hidden states or logits."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    if takes_positions(model):
        inputs["position_ids"] = position_ids(mask, 0)
    with padding_scope(model, mask):
        found: Tensor = model(**inputs)[0]
    return found


@contextmanager
def _nan_at(model: PreTrainedModel, where: Tensor) -> Iterator[None]:
    """Within the scope the embeddings of these tokens are NaN."""

    def replace(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.masked_fill(where[..., None], float("nan"))

    handle = model.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
