"""Training at one silo for one round: local DP-SGD, or a clipped update at client level.

Guarantee (unit ``example``): each local step releases a Poisson-subsampled Gaussian mechanism with the
silo's sampling rate and noise multiplier; the returned update is a function of these releases and of
public values, so it may be sent to anybody. The caller must have recorded the event before.
With a codec the message is its code instead; see :mod:`fedllm.training.encoding`.

With adversarial weight perturbation the gradients are taken at other points; which forms keep this
guarantee is in :mod:`fedllm.training.perturbation`.

Guarantee (unit ``client``): the returned update has norm at most ``clip`` (sensitivity ``clip`` to
adding or removing the silo); with noise by the client it is one Gaussian mechanism.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.settings.experiment import Settings
from fedllm.training.adaptive_clip import is_adaptive, noise_split
from fedllm.training.batch.contained import Failures
from fedllm.training.batch.fixed_shape import FixedShape
from fedllm.training.encoding import (
    Encoding,
    encode_client_update,
    encode_released_update,
    gradient_scales,
)
from fedllm.training.gradients import clipped_gradient_sum, gradient_sum
from fedllm.training.mechanism import add_noise, noise_std
from fedllm.training.perturbation import Perturbation, perturbation_of
from fedllm.training.steps import LocalResult, Streams, Tally, check_noise, poisson_batch
from fedllm.training.tunable import Tunable
from privacy.mechanisms.adaptive_clipping import (
    SENSITIVITY,
    centred_count,
    noisy_count,
    share_below,
)
from privacy.mechanisms.clipping import clip_vector
from privacy.randomness import RandomSource


def train_locally(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    settings: Settings,
    *,
    sampling_rate: float,
    noise_multiplier: float,
    streams: Streams,
    encoding: Encoding | None = None,
    server_round: int = 1,
) -> LocalResult:
    """Run ``client.local_steps`` steps from ``params``.

    The divisor of each gradient sum is ``client.batch_size``, whatever the Poisson batch drawn; an
    empty batch still releases its noise.

    Args:
        params: global parameters, float32.
        features: the silo's training examples.
        sampling_rate: probability of each example to be in a step's batch.
        noise_multiplier: noise standard deviation over the clipping norm (with adaptive clipping: of
            sums and counts together); 0 only for ``privacy.mode = "none"`` or where the server adds the noise.
        streams: source of randomness for sampling ("sample"), noise ("noise") and the rounding of
            codes ("round").
        encoding: how the update is encoded; None sends it as it is.
        server_round: the round, >= 1; the weights are perturbed in the first ``awp.rounds`` alone.

    Raises:
        ValueError: a noise multiplier that does not fit the mode, or a perturbation that does not fit
            the trained tensors.
    """
    check_noise(settings, noise_multiplier)
    steps = _local_steps(
        tunable,
        params,
        features,
        settings,
        sampling_rate=sampling_rate,
        noise_multiplier=noise_multiplier,
        streams=streams,
        encoding=encoding if encoding is not None and encoding.in_code else None,
        server_round=server_round,
    )
    noise_std = update_noise_std(settings, noise_multiplier, steps.update)
    update, tally, below = steps.update, steps.tally, steps.below
    by_client = settings.privacy.mode == "dp" and settings.privacy.unit == "client"
    if encoding is not None:
        rounding = streams("round", settings.client.local_steps)
        if by_client:
            code, clipped, bad = encode_client_update(
                update,
                encoding,
                settings=settings,
                noise_multiplier=noise_multiplier,
                noise=streams("noise", settings.client.local_steps),
                rounding=rounding,
            )
            tally.clipped, tally.nonfinite = int(clipped), int(bad)
        elif steps.code is not None:
            code = encoding.codec.encode_code(steps.code, rounding)
        else:
            code = encode_released_update(update, encoding, rounding=rounding)
        update = dict(code.tensors)
    elif by_client:
        found = _client_release(update, settings, noise_multiplier, streams)
        update, below = found.update, found.below
        tally.clipped, tally.nonfinite = found.clipped, found.nonfinite
    return tally.result(update, noise_std, below)


def local_update(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    settings: Settings,
    *,
    sampling_rate: float,
    streams: Streams,
) -> dict[str, Tensor]:
    """The update of the first round at unit client, before clipping and noise: private."""
    return _local_steps(
        tunable,
        params,
        features,
        settings,
        sampling_rate=sampling_rate,
        noise_multiplier=0.0,
        streams=streams,
        encoding=None,
        server_round=1,
    ).update


@dataclass(frozen=True)
class _Steps:
    """All local steps: the update, the sum of the noisy codes that made it (unit example, noise in
    the code; else None), what was counted, and the noisy share of norms that is at most the clipping
    norm (adaptive clipping, unit example; else None)."""

    update: dict[str, Tensor]
    code: Tensor | None
    tally: Tally
    below: float | None = None


def _local_steps(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    settings: Settings,
    *,
    sampling_rate: float,
    noise_multiplier: float,
    streams: Streams,
    encoding: Encoding | None,
    server_round: int,
) -> _Steps:
    device = tunable.backbone.device
    fixed = FixedShape.of(tunable, settings)
    start = _on(device, params)
    weights = {name: value.clone() for name, value in start.items()}
    optimizer = _optimizer(settings, list(weights.values()))
    per_example = settings.privacy.mode == "dp" and settings.privacy.unit == "example"
    divisor = float(settings.client.batch_size or 1)
    tokens = settings.client.max_tokens
    tally = Tally()
    failures = tally.contained(settings)
    codes: list[Tensor] = []
    perturbation = perturbation_of(settings, server_round)
    own = perturbation if settings.awp.form == "per-example" else None
    parts = noise_split(settings, noise_multiplier)
    below = 0.0
    release = partial(
        _release,
        tunable if fixed is None else fixed.tunable,
        settings=settings,
        perturbation=own,
        noise_multiplier=parts.vector,
        encoding=encoding if per_example else None,
        failures=failures,
        max_tokens=tokens if fixed is None else fixed.max_tokens,
    )
    for step in range(settings.client.local_steps):
        examples: int | None = None
        if fixed is None:
            batch = poisson_batch(features, sampling_rate, streams("sample", step))
        else:
            batch, examples = fixed.draw(features, sampling_rate, streams("sample", step))
        point: Mapping[str, Tensor] = weights
        if perturbation is not None and own is None:
            raw = gradient_sum(tunable, weights, batch, max_tokens=tokens, failures=failures)
            point = perturbation.perturbed(weights, dict(zip(weights, raw, strict=True)))
        if per_example:
            noise = streams("noise", step)
            found = release(point, batch, rng=noise, examples=examples)
            sums = found.sums
            tally.add(found.counts, found.norms)
            if is_adaptive(settings):
                count = centred_count(found.norms, settings.privacy.clip)
                below += noisy_count(count, parts.count, streams("count-noise", step))
            codes += [] if found.code is None else [found.code.cpu()]
        else:
            plain = gradient_sum(
                tunable, point, batch, max_tokens=tokens, perturbation=own, failures=failures
            )
            sums = dict(zip(weights, plain, strict=True))
            tally.examples += len(batch)
        for name, total_gradient in sums.items():
            weights[name].grad = (total_gradient / divisor).to(weights[name].dtype)
        optimizer.step()
    update = {name: (weights[name].detach() - start[name]).cpu() for name in weights}
    code = None
    if codes:  # SGD: the weights moved by its reconstruction
        code = torch.stack(codes).double().sum(0) * (-settings.client.learning_rate / divisor)
        code = code.float()
    share = None
    if per_example and is_adaptive(settings):
        share = share_below(below, divisor * settings.client.local_steps)
    return _Steps(update, code, tally, share)


@dataclass(frozen=True)
class _Released:
    """A batch's clipped and noisy gradient sum by name, its code (noise in the code; else None),
    numbers of examples, clipped and not finite, and norms before clipping."""

    sums: dict[str, Tensor]
    code: Tensor | None
    counts: tuple[int, int, int]
    norms: Tensor


def _release(
    tunable: Tunable,
    point: Mapping[str, Tensor],
    batch: Sequence[Feature],
    *,
    settings: Settings,
    perturbation: Perturbation | None,
    noise_multiplier: float,
    encoding: Encoding | None,
    failures: Failures | None,
    max_tokens: int,
    rng: RandomSource,
    examples: int | None = None,
) -> _Released:
    """One Gaussian mechanism on a batch: gradients at ``point``, clipped, summed, noised.

    ``rng`` must not have been used for another release; ``examples`` is as for :func:`clipped_gradient_sum`.
    """
    clip, scales = settings.privacy.clip, gradient_scales(settings, point)
    total = clipped_gradient_sum(
        tunable,
        point,
        batch,
        clip_norm=clip,
        scales=scales,
        max_tokens=max_tokens,
        examples=examples,
        codec=None if encoding is None else encoding.codec,
        perturbation=perturbation,
        failures=failures,
    )
    code = None
    if encoding is None:
        noisy = _noisy(total.sums, point, settings, noise_multiplier, rng)
        sums = {name: s / scales[name] for s, name in zip(noisy, sorted(point), strict=True)}
    else:
        code = add_noise(settings, total.sums[0], noise_multiplier, rng)
        sums = encoding.unflatten(encoding.codec.reconstruct(code))
    counts = (total.count, total.clipped, total.nonfinite)
    return _Released(sums, code, counts, total.norms)


def update_noise_std(
    settings: Settings,
    noise_multiplier: float,
    params: Mapping[str, Tensor],
) -> dict[str, float] | None:
    """Standard deviation of the noise in each entry of the update as the server reads it, by tensor.

    A function of the settings, the multiplier and the parameters' shapes alone: server and silo compute the same.
    None where it is not known (local Adam, a codec that leaves out coordinates, noise on numbers along random
    directions) or not finite.
    """
    privacy, client = settings.privacy, settings.client
    if settings.model.access == "black-box" or not settings.codec.keeps_all:
        return None
    if privacy.mode == "none":
        return dict.fromkeys(params, 0.0)
    noise_multiplier = noise_split(settings, noise_multiplier).vector
    if privacy.unit == "client":
        std = noise_std(settings, noise_multiplier) * privacy.clip
        return dict.fromkeys(params, std) if math.isfinite(std) else None
    if client.optimizer != "sgd":
        return None
    scales = gradient_scales(settings, params)
    one_step = noise_std(settings, noise_multiplier) * privacy.clip / float(client.batch_size or 1)
    if not math.isfinite(one_step):
        return None
    factor = client.learning_rate * client.local_steps**0.5
    return {name: one_step * factor / scales[name] for name in params}


def _on(device: torch.device, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: tensors[n].to(device=device, dtype=torch.float32) for n in sorted(tensors)}


def _optimizer(settings: Settings, weights: list[Tensor]) -> torch.optim.Optimizer:
    rate = settings.client.learning_rate
    if settings.client.optimizer == "adam":
        return torch.optim.Adam(weights, lr=rate)
    return torch.optim.SGD(weights, lr=rate)


def _noisy(
    sums: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    settings: Settings,
    noise_multiplier: float,
    rng: RandomSource,
) -> list[Tensor]:
    flat = torch.cat([value.reshape(-1) for value in sums])
    flat = add_noise(settings, flat, noise_multiplier, rng)
    return split_like(flat, weights)


@dataclass(frozen=True)
class _ClientRelease:
    """A silo's clipped (and noisy) update, what was done to it (0 or 1), and its share as in
    :class:`LocalResult`."""

    update: dict[str, Tensor]
    clipped: int
    nonfinite: int
    below: float | None


def _client_release(
    update: Mapping[str, Tensor], settings: Settings, noise_multiplier: float, streams: Streams
) -> _ClientRelease:
    flat = torch.cat([update[name].reshape(-1) for name in sorted(update)])
    flat, clipped, nonfinite = clip_vector(flat, settings.privacy.clip)
    count = -SENSITIVITY if clipped or nonfinite else SENSITIVITY
    last = settings.client.local_steps
    if settings.privacy.noise_by == "client":
        parts = noise_split(settings, noise_multiplier)
        flat = add_noise(settings, flat, parts.vector, streams("noise", last))
        if is_adaptive(settings):
            count = noisy_count(count, parts.count, streams("count-noise", last))
    below = SENSITIVITY + count if is_adaptive(settings) else None
    named = dict(zip(sorted(update), split_like(flat, update), strict=True))
    return _ClientRelease(named, int(clipped), int(nonfinite), below)


def split_like(flat: Tensor, like: Mapping[str, Tensor]) -> list[Tensor]:
    """Cut a flat vector into the shapes of ``like``, in the order of sorted names."""
    names = sorted(like)
    pieces = flat.split([like[name].numel() for name in names])
    return [piece.reshape(like[name].shape) for piece, name in zip(pieces, names, strict=True)]
