"""A prefix slot that padding attends to and tokens do not: what stands at padding becomes what the server likes.

Where an example's padding depends on its batch mates, and padding that is not finite reaches its gradient, the
example counts only if no batch mate is longer. The adversary knows the examples, as differential privacy allows it to.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.models import attention
from fedllm.models.prefix import PREFIX
from fedllm.tasks.base import expand_params
from fedllm.training.tunable import Tunable

LOGIT = 300.0
"""Attention logit of the slot at padding, and with the other sign at tokens: exp(-300) is 0 in float32."""


def poison(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    draw: random.Random,
    size: float,
) -> dict[str, Tensor] | None:
    """``params`` with a slot whose value has entries of ``size``, seen from padding of short examples alone.

    Layers and heads are searched in random order for a key that separates the queries of tokens from those at
    the padding; None where there is none, or no padding.
    """
    batch = tunable.task.collate(features)
    padded = batch.attention_mask == 0
    if not bool(padded.any()):
        return None
    queries = recorded_queries(tunable, params, batch)
    layers, _, heads, slots, width = params[PREFIX].shape
    places = [(layer, head) for layer in range(layers) for head in range(heads)]
    draw.shuffle(places)
    column = int(padded.sum(0).argmax())
    for layer, head in places:
        rows = queries[layer][: len(features)]
        share = rows.shape[1] // heads
        asked = rows[:, head * share : (head + 1) * share]
        tokens = asked.transpose(1, 2)[~padded[: len(features)]].reshape(-1, width)
        at_padding = asked[:, 0, column][padded[: len(features), column]]
        key = separating(tokens, at_padding)
        if key is None:
            continue
        moved = params[PREFIX].clone()
        slot = draw.randrange(slots)
        moved[layer, 0, head, slot] = key
        signs = torch.tensor([draw.choice([-1.0, 1.0]) for _ in range(width)])
        moved[layer, 1, head, slot] = signs * size
        return dict(params) | {PREFIX: moved}
    return None


def separating(tokens: Tensor, padding: Tensor, steps: int = 500) -> Tensor | None:
    """A key whose attention logit is at least :data:`LOGIT` at every row of ``padding`` and at most minus that
    at every row of ``tokens`` (perceptron); None where none is found."""
    rows = torch.cat([-tokens, padding]).double()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-9)
    key = torch.linalg.lstsq(rows, torch.ones(len(rows), 1).double()).solution[:, 0]
    for _ in range(steps):
        margins = rows @ key
        worst = int(margins.argmin())
        if margins[worst] > 0.02 * key.norm():
            break
        key = key + rows[worst]
    logits = torch.cat([-tokens, padding]).double() @ key / tokens.shape[1] ** 0.5
    least = float(logits.min())
    if least <= 0:
        return None
    return (key * (LOGIT / least)).float()


def recorded_queries(tunable: Tunable, params: Mapping[str, Tensor], batch: Batch) -> list[Tensor]:
    """The queries of every layer, each (B, heads, T, width), with what stands at padding."""
    seen: list[Tensor] = []
    inner = attention.sdpa_attention_forward

    def recording(module: Any, query: Tensor, *args: Any, **options: Any) -> Any:
        seen.append(query.detach().float())
        return inner(module, query, *args, **options)

    attention.sdpa_attention_forward = recording
    try:
        with torch.no_grad(), tunable.adapted(expand_params(params, 1)):
            tunable.backbone.model(**batch.model_inputs())
    finally:
        attention.sdpa_attention_forward = inner
    return seen
