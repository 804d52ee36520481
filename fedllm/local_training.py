"""Training at one silo for one round: local DP-SGD, or a clipped update at client level.

Guarantee (unit ``example``): each local step releases a Poisson-subsampled Gaussian mechanism with the
silo's sampling rate and noise multiplier; the returned update is a function of these releases and of
public values, so it may be sent to anybody. The caller must have recorded the event before.

Guarantee (unit ``client``): the returned update has norm at most ``clip`` (sensitivity ``clip`` to
adding or removing the silo); with noise by the client it is one Gaussian mechanism.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedllm.gradients import clipped_gradient_sum, gradient_sum
from fedllm.inputs import Feature
from fedllm.settings import Settings
from fedllm.tunable import PREFIX, Tunable
from privacy.clipping import clip_vector
from privacy.noise import add_gaussian
from privacy.randomness import RandomSource
from privacy.sampling import poisson_sample

Streams = Callable[..., RandomSource]
"""``streams(purpose, step)`` gives the random generator for one use; never the same one twice."""


@dataclass(frozen=True)
class LocalResult:
    """What one round of local training gives.

    Attributes:
        update: new minus old parameters, float32 on the CPU; safe to release (see module docstring).
        noise_std: standard deviation of the privacy noise in each entry of each tensor of ``update``
            (data-independent), or None where it is not known (local Adam).
        examples, clipped, nonfinite: numbers over all local steps. Private: for the silo's own log,
            not to be sent.
        median_norm: median gradient norm before clipping; private as well, NaN for no example.
    """

    update: dict[str, Tensor]
    noise_std: dict[str, float] | None
    examples: int
    clipped: int
    nonfinite: int
    median_norm: float


def train_locally(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    settings: Settings,
    *,
    sampling_rate: float,
    noise_multiplier: float,
    streams: Streams,
) -> LocalResult:
    """Run ``client.local_steps`` steps from ``params``.

    The divisor of each gradient sum is ``client.batch_size``, whatever the Poisson batch drawn; an
    empty batch still releases its noise.

    Args:
        params: global parameters, float32.
        features: the silo's training examples.
        sampling_rate: probability of each example to be in a step's batch.
        noise_multiplier: noise standard deviation over the clipping norm; 0 only for
            ``privacy.mode = "none"`` or where the server adds the noise.
        streams: source of randomness for sampling ("sample") and noise ("noise").

    Raises:
        ValueError: a noise multiplier that does not fit the mode.
    """
    check_noise(settings, noise_multiplier)
    device = tunable.backbone.device
    start = {name: params[name].to(device=device, dtype=torch.float32) for name in sorted(params)}
    weights = {name: value.clone() for name, value in start.items()}
    optimizer = _optimizer(settings, list(weights.values()))
    per_example = settings.privacy.mode == "dp" and settings.privacy.unit == "example"
    divisor = float(settings.client.batch_size or 1)
    counts = [0, 0, 0]
    norms: list[Tensor] = []
    for step in range(settings.client.local_steps):
        drawn = poisson_sample(len(features), sampling_rate, streams("sample", step))
        batch = [features[i] for i in drawn]
        if per_example:
            scales = gradient_scales(settings, weights)
            total = clipped_gradient_sum(
                tunable,
                weights,
                batch,
                clip_norm=settings.privacy.clip,
                scales=scales,
                max_tokens=settings.client.max_tokens,
            )
            sums = _noisy(total.sums, weights, settings, noise_multiplier, streams("noise", step))
            sums = [s / scales[name] for s, name in zip(sums, weights, strict=True)]
            counts = [a + b for a, b in zip(counts, _counts(total), strict=True)]
            norms.append(total.norms)
        else:
            sums = gradient_sum(tunable, weights, batch, max_tokens=settings.client.max_tokens)
            counts[0] += len(batch)
        for value, total_gradient in zip(weights.values(), sums, strict=True):
            value.grad = (total_gradient / divisor).to(value.dtype)
        optimizer.step()
    update = {name: (weights[name].detach() - start[name]).cpu() for name in weights}
    noise_std = update_noise_std(settings, noise_multiplier, update)
    if settings.privacy.mode == "dp" and settings.privacy.unit == "client":
        update, was_clipped, was_bad = _client_release(update, settings, noise_multiplier, streams)
        counts[1:] = [int(was_clipped), int(was_bad)]
    seen = torch.cat(norms) if norms else torch.zeros(0)
    return LocalResult(
        update=update,
        noise_std=noise_std,
        examples=counts[0],
        clipped=counts[1],
        nonfinite=counts[2],
        median_norm=float(seen.median()) if len(seen) else float("nan"),
    )


def check_noise(settings: Settings, noise_multiplier: float) -> None:
    """Refuse a noise multiplier that would break the promised mechanism.

    Raises:
        ValueError: zero or non-finite noise where the silo adds it, or noise where it must not.
    """
    privacy = settings.privacy
    needs_noise = privacy.mode == "dp" and privacy.noise_by == "client"
    if needs_noise and not (np.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(
            "Expected a finite noise_multiplier > 0 for privacy.mode=dp with noise by the client, "
            f"got noise_multiplier={noise_multiplier}"
        )
    if not needs_noise and noise_multiplier != 0:
        raise ValueError(
            f"Expected noise_multiplier=0 for privacy.mode={privacy.mode}, "
            f"privacy.noise_by={privacy.noise_by}, got noise_multiplier={noise_multiplier}"
        )


def gradient_scales(settings: Settings, params: Mapping[str, Tensor]) -> dict[str, float]:
    """Public factor of each tensor before clipping (``privacy.prefix_scale`` for the prefix)."""
    return {name: settings.privacy.prefix_scale if name == PREFIX else 1.0 for name in params}


def update_noise_std(
    settings: Settings, noise_multiplier: float, params: Mapping[str, Tensor]
) -> dict[str, float] | None:
    """Standard deviation of the noise in each entry of the update, by tensor; None if not known."""
    privacy, client = settings.privacy, settings.client
    if privacy.mode == "none":
        return dict.fromkeys(params, 0.0)
    if privacy.unit == "client":
        return dict.fromkeys(params, noise_multiplier * privacy.clip)
    if client.optimizer != "sgd":
        return None
    scales = gradient_scales(settings, params)
    one_step = noise_multiplier * privacy.clip / float(client.batch_size or 1)
    factor = client.learning_rate * client.local_steps**0.5
    return {name: one_step * factor / scales[name] for name in params}


def _optimizer(settings: Settings, weights: list[Tensor]) -> torch.optim.Optimizer:
    rate = settings.client.learning_rate
    if settings.client.optimizer == "adam":
        return torch.optim.Adam(weights, lr=rate)
    return torch.optim.SGD(weights, lr=rate)


def _counts(total: object) -> tuple[int, int, int]:
    return (total.count, total.clipped, total.nonfinite)  # type: ignore[attr-defined]


def _noisy(
    sums: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    settings: Settings,
    noise_multiplier: float,
    rng: RandomSource,
) -> list[Tensor]:
    flat = torch.cat([value.reshape(-1) for value in sums])
    flat = add_gaussian(flat, settings.privacy.clip, noise_multiplier, rng)
    return split_like(flat, weights)


def _client_release(
    update: Mapping[str, Tensor], settings: Settings, noise_multiplier: float, streams: Streams
) -> tuple[dict[str, Tensor], bool, bool]:
    flat = torch.cat([update[name].reshape(-1) for name in sorted(update)])
    flat, clipped, nonfinite = clip_vector(flat, settings.privacy.clip)
    if settings.privacy.noise_by == "client":
        rng = streams("noise", settings.client.local_steps)
        flat = add_gaussian(flat, settings.privacy.clip, noise_multiplier, rng)
    return dict(zip(sorted(update), split_like(flat, update), strict=True)), clipped, nonfinite


def split_like(flat: Tensor, like: Mapping[str, Tensor]) -> list[Tensor]:
    """Cut a flat vector into the shapes of ``like``, in the order of sorted names."""
    names = sorted(like)
    pieces = flat.split([like[name].numel() for name in names])
    return [piece.reshape(like[name].shape) for piece, name in zip(pieces, names, strict=True)]
