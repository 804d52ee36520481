"""Recovering a text from the gradient of a prefix, at batch size 1.

Two steps. The first needs no search. In layer 0 the gradient of the prefix's keys is, for each head,
a sum over the text's tokens of outer products with the tokens' queries q_t; so its rows lie in the
span of the q_t. A query of layer 0 is a function of the token and its position alone, so the adversary
computes it for the whole vocabulary and asks which ones lie in the span. With at least as many prefix
positions as tokens the span holds every q_t, and the true tokens are the ones at distance zero, in
their order (the observation of Petrov et al. 2024, "DAGER: Exact gradient inversion for large
language models", for weights of attention layers, carried over to prefixes). With fewer, or through
noise and codes, the distance still ranks the vocabulary.

The second step is a coordinate search over the best ranked tokens that compares whole messages
(gradient matching, Zhu et al. 2019, "Deep leakage from gradients").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedllm.data.batches import Feature
from simulations.attacks.scene import Scene

NOISE_FLOOR = 1e-6
"""Singular values below this share of the largest are rounding."""

Visible = Callable[[Tensor], Tensor]
"""Map from gradients (n, d) to their visible part without noise, (n, d): clipping and coding."""


def layer0_queries(scene: Scene, position: int) -> Tensor:
    """Query of every token of the vocabulary at a position in layer 0, (V, heads, head size).

    Raises:
        ValueError: the model is no BERT (whose layer 0 is written out here).
    """
    backbone = scene.tunable.backbone
    model = backbone.model
    if model.config.model_type != "bert":
        raise ValueError(f"Expected a model of type bert, got {model.config.model_type}")
    embeddings, attention = model.embeddings, model.encoder.layer[0].attention.self
    with torch.no_grad():
        summed = (
            embeddings.word_embeddings.weight
            + embeddings.position_embeddings.weight[position]
            + embeddings.token_type_embeddings.weight[0]
        )
        query: Tensor = attention.query(embeddings.LayerNorm(summed)).float().cpu()
    return query.view(len(query), -1, backbone.head_dim)


def key_span(scene: Scene, message: Tensor, length: int) -> Tensor:
    """Return orthonormal rows (heads, rank, head size) of the gradient of layer 0's keys.

    Directions that the rounding may have made are zero rows. ``length`` bounds the rank: a text of so
    many tokens has no more queries.
    """
    keys = scene.prefix_of(message)[0, 0].double()  # layer 0, keys: (heads, positions, head size)
    _, sizes, rows = torch.linalg.svd(keys, full_matrices=False)
    rank = min(length, rows.shape[1])
    kept = sizes[:, :rank] > NOISE_FLOOR * sizes[:, :1].clamp(min=1e-30)
    return (rows[:, :rank] * kept[..., None]).float()


def rank_tokens(
    scene: Scene, messages: Sequence[Tensor], lengths: Sequence[int], width: int, seed: int = 0
) -> list[Tensor]:
    """Return, for each message and position, the ``width`` tokens closest to the span.

    Returns:
        One tensor (length - 2, width) of token ids for each message, best first; the first and last
        token of a text are the tokenizer's own and known.
    """
    spans = [key_span(scene, m, n) for m, n in zip(messages, lengths, strict=True)]
    special = torch.tensor(scene.tunable.backbone.tokenizer.all_special_ids)
    rng = torch.Generator().manual_seed(seed)
    ranked: list[list[Tensor]] = [[] for _ in messages]
    for position in range(1, max(lengths) - 1):
        queries = torch.nn.functional.normalize(layer0_queries(scene, position), dim=-1)
        for number, (span, length) in enumerate(zip(spans, lengths, strict=True)):
            if position >= length - 1:
                continue
            inside = torch.einsum("vhd,hrd->vhr", queries, span).square().sum(dim=(1, 2))
            inside += 1e-6 * torch.rand(
                len(inside), generator=rng
            )  # ties: a code may drop the keys
            inside[special] = -torch.inf
            ranked[number].append(inside.topk(min(width, len(inside))).indices)
    return [torch.stack(rows) for rows in ranked]


def refine(
    scene: Scene,
    message: Tensor,
    known: Feature,
    shortlist: Tensor,
    visible: Visible,
    *,
    sweeps: int,
    tolerance: float = 1e-3,
) -> tuple[list[int], float]:
    """Search by coordinates: each position in turn takes the shortlist's token that explains most.

    Args:
        message: what the server holds, (d,).
        known: the first and last token, the length and the label are read from here, no other token.
        shortlist: (positions, width) token ids, best first; the first column is the start.
        visible: what a candidate's gradient would look like without noise.
        sweeps: times that all positions are visited; fewer where a sweep brings less than 1 %, or
            where the message is explained up to ``tolerance``.

    Returns:
        The token ids without the first and last, and the distance to the message over its norm.
    """
    ids = [known.input_ids[0], *shortlist[:, 0].tolist(), known.input_ids[-1]]
    size = float(message.norm().clamp(min=1e-30))

    def distances(candidates: list[list[int]]) -> Tensor:
        features = [replace(known, input_ids=candidate) for candidate in candidates]
        return (visible(scene.gradients(features)) - message).norm(dim=1) / size

    best = float(distances([ids])[0])
    for _ in range(sweeps):
        before = best
        for place, options in enumerate(shortlist.tolist(), start=1):
            if best < tolerance:
                break
            tried = [[*ids[:place], token, *ids[place + 1 :]] for token in dict.fromkeys(options)]
            found = distances(tried)
            if float(found.min()) < best:
                best, ids = float(found.min()), tried[int(found.argmin())]
        if best > 0.99 * before:
            break
    return ids[1:-1], best


def recovery(guess: Sequence[int], truth: Sequence[int]) -> tuple[float, float, float]:
    """Return the share of the true tokens found anywhere (each counted once), found in place, and all in place."""
    left = list(guess)
    anywhere = 0
    for token in truth:
        if token in left:
            left.remove(token)
            anywhere += 1
    in_place = sum(a == b for a, b in zip(guess, truth, strict=True))
    return anywhere / len(truth), in_place / len(truth), float(in_place == len(truth))


def identify(messages: Tensor, visible: Tensor) -> np.ndarray:
    """Return the index of the candidate closest to each message: maximum likelihood under Gaussian noise.

    Args:
        messages: (n, d).
        visible: (N, d), the candidates' gradients as they would arrive without noise.
    """
    scores = messages @ visible.T - 0.5 * visible.square().sum(dim=1)
    return scores.argmax(dim=1).numpy()
