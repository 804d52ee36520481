"""From the silos' updates to one mean update: checks first, then weights that no data touches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedllm.training.steps import split_like
from privacy.mechanisms.clipping import clip_vector
from server.replies.refusal import ReplyRefused


class UpdateRefused(ReplyRefused):
    """A silo's update is not usable; the message says why."""


@dataclass(frozen=True)
class Contribution:
    """One silo's accepted update.

    Attributes:
        silo: its name.
        update: as read, float32.
        noise_std: standard deviation of the noise in each entry, by tensor; None where it is not known.
        bytes: of all tensors of its reply.
        noise_multiplier: by the silo's word.
        records: further tensors, by record (:attr:`server.replies.training.TrainingForm.records`).
        shares: further noisy shares, by name (:attr:`server.replies.training.TrainingForm.shares`).
    """

    silo: str
    update: dict[str, Tensor]
    noise_std: dict[str, float] | None
    bytes: int = 0
    noise_multiplier: float = 0.0
    records: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MeanUpdate:
    """The aggregated update of a round.

    Attributes:
        update: of the model; None where nothing was released.
        noise_std: standard deviation of the noise in each of its tensors; None where it is not known.
        shares: by name, what is left of the silos' noisy shares.
    """

    update: dict[str, Tensor] | None
    noise_std: dict[str, float] | None
    shares: Mapping[str, Sequence[float]] = field(default_factory=dict)


def check_update(
    update: Mapping[str, Tensor], params: Mapping[str, Tensor], max_norm: float
) -> dict[str, Tensor]:
    """Return the update, if it fits the parameters.

    Raises:
        UpdateRefused: a tensor is missing or unknown, of another shape or dtype, not finite, or the
            whole has a norm above ``max_norm``.
    """
    if sorted(update) != sorted(params):
        raise UpdateRefused(f"Expected the tensors {sorted(params)}, got {sorted(update)}")
    for name, value in update.items():
        if value.dtype != torch.float32:
            raise UpdateRefused(f"Expected float32 for {name}, got {value.dtype}")
        if value.shape != params[name].shape:
            raise UpdateRefused(
                f"Expected shape {tuple(params[name].shape)} for {name}, got {tuple(value.shape)}"
            )
        if not bool(torch.isfinite(value).all()):
            raise UpdateRefused(f"Expected finite numbers for {name}, got NaN or infinity")
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in update.values()))
    if norm > max_norm:
        raise UpdateRefused(
            f"Expected an update of norm at most server.max_update_norm={max_norm}, got {norm:.6g}"
        )
    return {name: update[name] for name in sorted(params)}


def mean_update(
    contributions: Sequence[Contribution], params: Mapping[str, Tensor], divisor: float
) -> tuple[dict[str, Tensor], dict[str, float] | None]:
    """Return the sum of the updates over ``divisor``, and the noise's standard deviation in the result.

    Each silo has weight 1: weights by number of examples would depend on private data, and noise
    that was scaled for equal weights would no longer cover the largest. Sums run in the order of the
    silos' names in float64, so that the order of arrival changes nothing.

    Args:
        divisor: number of silos that answered (unit example: what a silo sends is private already,
            so any divisor is post-processing), or the expected number (client level with noise by the
            server, whose sensitivity is stated for it).
    """
    if not (math.isfinite(divisor) and divisor > 0):
        raise ValueError(f"Expected divisor > 0, got divisor={divisor}")
    ordered = sorted(contributions, key=lambda c: c.silo)
    mean: dict[str, Tensor] = {}
    for name, like in params.items():
        total = torch.zeros(like.shape, dtype=torch.float64)
        for contribution in ordered:
            total += contribution.update[name].double()
        mean[name] = (total / divisor).float()
    if any(c.noise_std is None for c in ordered):
        return mean, None
    std = {
        name: math.sqrt(sum((c.noise_std or {})[name] ** 2 for c in ordered)) / divisor
        for name in params
    }
    return mean, std


def clip_update(update: Mapping[str, Tensor], clip: float) -> dict[str, Tensor]:
    """Return the server's own clipping of a client-level update, so that the sensitivity of the sum does not hang on
    a client's word. Non-finite updates become zero."""
    flat = torch.cat([update[name].reshape(-1) for name in sorted(update)])
    flat, _, _ = clip_vector(flat, clip)
    return dict(zip(sorted(update), split_like(flat, update), strict=True))


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of all the tensors."""
    return sum(value.numel() * value.element_size() for value in tensors.values())
