"""Check that another model computes what the run's model does, before an export calls it the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedllm.data.batches import position_ids
from fedllm.models.adapters.base import Adapter
from fedllm.models.backbone import Backbone

_TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps."
_PROMPT, _NEW = 12, 4
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}  # share of the largest output
_ROUNDED = 0.05  # in bfloat16 and float16
_EFFECT, _KERNELS = (
    0.05,
    3e-5,
)  # share of the adapter's own effect; what other kernels may round, of the largest


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison.

    Attributes:
        why: in words, how the outputs differ; empty where they do not.
        off: largest difference from the run's outputs.
        effect: largest difference that the adapter makes.
    """

    why: str = ""
    off: float = 0.0
    effect: float = 0.0


@torch.no_grad()
def compare_outputs(
    backbone: Backbone,
    adapter: Adapter,
    params: Mapping[str, Tensor],
    other: Any,
    who: str,
    dtype: torch.dtype | None = None,
) -> Comparison:
    """Compare another model's outputs with those of the adapter: in a forward pass, and for a decoder at each step of
    a greedy continuation.

    In float32 a difference must be small next to what the adapter itself changes, so that an adapter which the other
    model ignores or scales otherwise is noticed however small it is.

    Args:
        params: the adapter's tensors, without a batch dimension.
        other: called with ``input_ids`` and ``attention_mask``; a decoder generates too.
        who: names the other model in the answer.
        dtype: least precise one of the other model; by default the backbone's.
    """
    ids = _prompt(backbone, adapter.positions)
    if ids.shape[1] < 2:
        return Comparison(
            f"the model's positions leave no room for a text to compare the outputs of {who} on"
        )
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    decoder = backbone.kind == "decoder"
    try:
        found = [("its logits" if decoder else "its hidden states", _output(other(**inputs)))]
        written = ids
        if decoder:
            made = other.generate(
                **inputs,
                max_new_tokens=_NEW,
                do_sample=False,
                pad_token_id=backbone.pad_id,
                output_logits=True,
                return_dict_in_generate=True,
            )
            written = made.sequences.to(ids.device)
            if written.shape[1] <= ids.shape[1]:
                return Comparison(f"{who} generates nothing with it")
            steps = torch.stack(list(made.logits), dim=1).double()
            found.append(("the logits of its generated text", steps))
            written = written[:, :-1]
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        return Comparison(f"{who} cannot use it: {type(error).__name__}: {text}")
    ours = _run(backbone, adapter, params, written)
    effect = float((ours - _run(backbone, adapter, None, written)).abs().max())
    worst = 0.0
    for (what, theirs), start in zip(found, (0, ids.shape[1] - 1), strict=False):
        expected = ours[:, start : start + theirs.shape[1]]
        scale = float(expected.abs().max())
        off = float((theirs.to(expected.device) - expected).abs().max())
        if not off <= _allowed(scale, effect, dtype or backbone.dtype):
            share = off / scale if scale else float("inf")
            why = f"with {who} {what} differ from the run's by {share:.2g} of the largest"
            return Comparison(why, off, effect)
        worst = max(worst, off)
    return Comparison("", worst, effect)


def _allowed(scale: float, effect: float, dtype: torch.dtype) -> float:
    if dtype not in _TOLERANCE:
        return _ROUNDED * scale
    return min(_TOLERANCE[dtype] * scale, max(_EFFECT * effect, _KERNELS * scale))


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """Return a second model object with the same tensors in memory: changes of its modules leave the first alone."""
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _prompt(backbone: Backbone, positions: int) -> Tensor:
    """Return the ids of a short text, (1, T), that leaves room for prefix and continuation."""
    room = _PROMPT
    config = backbone.model.config.get_text_config()
    for limit in (backbone.max_positions, getattr(config, "sliding_window", None)):
        if limit is not None:
            room = min(room, int(limit) - positions - _NEW)
    ids = list(backbone.tokenizer(_TEXT)["input_ids"])
    if len(set(ids)) < 5:  # a tokenizer of other texts
        ids = [1 + i % (config.vocab_size - 1) for i in range(_PROMPT)]
    ids = ids[: max(0, room)]
    return torch.tensor([ids], device=backbone.device, dtype=torch.long)


def _run(
    backbone: Backbone, adapter: Adapter, params: Mapping[str, Tensor] | None, ids: Tensor
) -> Tensor:
    """The run's outputs; those of the base model where ``params`` is None."""
    mask = torch.ones_like(ids)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    scope: Any = nullcontext()
    if params is not None:
        scope = adapter.scope({n: v.to(backbone.device)[None] for n, v in params.items()})
        if backbone.kind == "decoder":
            inputs["position_ids"] = position_ids(mask, adapter.positions)
    with scope:
        return _output(backbone.model(**inputs))


def _output(found: Any) -> Tensor:
    values = getattr(found, "logits", None)
    return torch.as_tensor(found.last_hidden_state if values is None else values).double()
