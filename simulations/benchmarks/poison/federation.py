"""Head-only federated training on features that are computed once: the server's real steps, in milliseconds.

With ``prefix.length = 0`` the backbone gives every text the same features in all rounds, so a gradient of the head is
a product of two vectors. What a silo does is what :func:`fedllm.training.dp_sgd.DpSgd.train` does there (Poisson batch,
clipping, noise, divisor), what the server does is the server's own code: the law, the means, the optimiser. Not here:
messages, the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedllm.budget.schedule import sampling_rate
from fedllm.settings.experiment import Settings
from fedllm.training.mechanism import make_mechanism
from privacy.mechanisms.clipping import clip_and_sum
from privacy.mechanisms.gaussian import add_gaussian
from privacy.mechanisms.sampling import poisson_sample
from privacy.randomness import generator
from server.aggregation import Contribution
from server.global_model import ServerOptimizer
from server.robust.means import combine
from server.robust.update_law import UpdateLaw
from simulations.benchmarks.poison.attacks import LABELS, Hostile, flipped
from simulations.benchmarks.poison.head_features import BIAS, WEIGHT


@dataclass(frozen=True)
class Outcome:
    """Accuracy at the end, and how many updates of honest and of hostile silos were refused over all rounds."""

    accuracy: float
    honest_refused: int
    hostile_refused: int


def gradients(params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return the gradient of each example's cross-entropy, by name, (B, ...)."""
    scores = torch.softmax(x @ params[WEIGHT].T + params[BIAS], dim=1)
    error = scores - torch.nn.functional.one_hot(y, scores.shape[1])
    return {BIAS: error, WEIGHT: error[:, :, None] * x[:, None, :]}


def train(
    data: Mapping[str, Tensor],
    settings: Settings,
    noise: Mapping[str, float],
    hostile: Mapping[str, Hostile],
    *,
    law: bool,
    seed: int,
) -> Outcome:
    """Return all rounds.

    Args:
        noise: noise multiplier of each silo.
        hostile: the silos that are, by name.
        law: whether updates are held to their law.
    """
    silos, classes = sorted(noise), len(settings.task.labels or ())
    params = {BIAS: torch.zeros(classes), WEIGHT: torch.zeros(classes, data["x"].shape[1])}
    optimizer = ServerOptimizer(settings.server, params)
    sizes = {name: len(data[f"x.{name}"]) for name in silos}
    refused = dict.fromkeys(silos, 0)
    for turn in range(1, settings.server.rounds + 1):
        update_law = UpdateLaw(
            settings=settings,
            clip=settings.privacy.clip,
            replies=settings.server.rounds * len(silos),
            params=params,
            sizes=dict(sizes),
        )
        replies = []
        for name in silos:
            x, y = data[f"x.{name}"], data[f"y.{name}"]
            bad = hostile.get(name)
            if bad is not None and bad.attack == LABELS:
                y = flipped(y, classes)
            honest = _local(params, x, y, settings, noise[name], f"{seed}", name, turn)
            if bad is not None:
                told = bad.claimed(noise[name])
                std = _noise_std(settings, told, params)
                limit = update_law.limit(name, told) if law else settings.server.max_update_norm
                sent = bad.sends(honest, float(limit or 0))
                honest = Contribution(name, sent.update, std, noise_multiplier=told)
            replies.append(honest)
        if law:
            replies, why = update_law.check(replies)
            for name in why:
                refused[name] += 1
        if replies:
            update, std = combine(settings.server, replies, params)
            params = optimizer.step(params, update, std, turn)
    right = (data["x"] @ params[WEIGHT].T + params[BIAS]).argmax(1) == data["y"]
    return Outcome(
        float(right.float().mean()),
        sum(count for name, count in refused.items() if name not in hostile),
        sum(count for name, count in refused.items() if name in hostile),
    )


def _noise_std(
    settings: Settings, noise: float, params: Mapping[str, Tensor]
) -> dict[str, float] | None:
    """Return the server's estimate of a silo's noise."""
    mechanism = make_mechanism(settings, sampling_rate=1.0, noise_multiplier=noise)
    return mechanism.noise_std(params)


def _local(
    params: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    settings: Settings,
    noise: float,
    *labels: str | int,
) -> Contribution:
    """Return an honest silo's round, with one local step of SGD."""
    rate, clip = sampling_rate(settings, len(x)), settings.privacy.clip
    drawn = torch.from_numpy(poisson_sample(len(x), rate, generator(0, *labels, "sample")))
    rows = gradients(params, x[drawn], y[drawn])
    names = sorted(rows)
    sums = clip_and_sum([rows[name] for name in names], clip).sums
    flat = torch.cat([value.reshape(-1) for value in sums])
    flat = add_gaussian(flat, clip, noise, generator(0, *labels, "noise"))
    scale = -settings.client.learning_rate / float(settings.client.batch_size or 1)
    parts = flat.split([value.numel() for value in sums])
    update = {
        name: scale * part.reshape(value.shape)
        for name, part, value in zip(names, parts, sums, strict=True)
    }
    std = _noise_std(settings, noise, params)
    return Contribution(str(labels[1]), update, std, noise_multiplier=noise)
