"""The reply to a task of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import RecordDict
from torch import Tensor

from fedllm import messages as names
from fedllm.codec.base import Spec
from server.replies.arrays import bytes_of, tensors_of
from server.replies.envelope import ENVELOPE
from server.replies.fields import Fields, numbers_of, only_records, texts_of
from server.replies.refusal import ReplyRefused

SMALLEST_RATE = 1e-12
"""Of a sampling rate: fewer than one record in 10^12 is no training."""
SMALLEST_NOISE, LARGEST_NOISE = 1e-2, 1e9
"""Of a noise multiplier that a silo says it used, and that nobody chose; calibration searches above 0.01."""
LARGEST_SHARE = 1e6
"""Of the noisy share of norms below the clipping norm, on either side of zero."""


@dataclass(frozen=True)
class TrainingForm:
    """What a reply to one round's task must be.

    Attributes:
        run_id, server_round: of the task.
        update: shapes and dtypes of the update, or of its code.
        codec_version: SHA-256 of the codec that it was encoded by; empty for none.
        duplicate: shapes and dtypes of the non-private teacher's update; None for none.
        noisy: names of the tensors whose noise may be told.
        largest_std: bound of that noise.
        steps: local steps.
        smallest_noise: bound of the noise multiplier; 0 where the silos add no noise.
        adaptive: whether the clipping norm is.
    """

    run_id: str
    server_round: int
    update: Spec
    codec_version: str
    duplicate: Spec | None
    noisy: Sequence[str]
    largest_std: float
    steps: int
    smallest_noise: float
    adaptive: bool


@dataclass(frozen=True)
class TrainingReply:
    """One silo's round, checked against its :class:`TrainingForm`.

    Attributes:
        update: the update or its code, finite.
        bytes: of all its tensors.
        noise_std: standard deviation of the noise in each tensor of the update; None where it is not told.
        noise_multiplier, sampling_rate, steps: the mechanism, by the silo's word.
        below: adaptive clipping: noisy share of norms at most the clipping norm; else None.
        duplicate: raw update of the non-private teacher; else None.
    """

    update: dict[str, Tensor]
    bytes: int
    noise_std: dict[str, float] | None
    noise_multiplier: float
    sampling_rate: float
    steps: int
    below: float | None
    duplicate: dict[str, Tensor] | None


def read_training(content: RecordDict, form: TrainingForm) -> TrainingReply:
    """The typed value of a reply whose envelope says ``ok``.

    Raises:
        ReplyRefused: anything in it is not as the form says: missing, unknown, of another type, shape, dtype,
            round, run or codec, not finite or out of range.
    """
    records = [names.INFO, names.METRICS, names.UPDATE]
    only_records(content, [*records, names.DUPLICATE] if form.duplicate else records)
    info = texts_of(content, names.INFO)
    told = [*ENVELOPE, names.RUN_ID, names.ROUND]
    info.only([*told, names.CODEC_VERSION] if form.codec_version else told)
    info.same(names.RUN_ID, form.run_id)
    info.same(names.ROUND, form.server_round)
    if form.codec_version:
        info.same(names.CODEC_VERSION, form.codec_version)
    metrics = numbers_of(content, names.METRICS)
    below = [names.BELOW] if form.adaptive else []
    stds = [names.NOISE_STD + name for name in form.noisy]
    metrics.only([names.NOISE_MULTIPLIER, names.SAMPLING_RATE, names.STEPS, *below, *stds])
    noise = metrics.number(names.NOISE_MULTIPLIER, form.smallest_noise, LARGEST_NOISE)
    rate = metrics.number(names.SAMPLING_RATE, SMALLEST_RATE, 1.0)
    steps = metrics.whole(names.STEPS, form.steps, form.steps)
    share = metrics.number(names.BELOW, -LARGEST_SHARE, LARGEST_SHARE) if below else None
    std = _noise_std(metrics, form)
    update = tensors_of(content, names.UPDATE, form.update)
    duplicate = None
    if form.duplicate is not None:
        duplicate = tensors_of(content, names.DUPLICATE, form.duplicate)
    return TrainingReply(
        update=update,
        bytes=bytes_of(update) + bytes_of(duplicate or {}),
        noise_std=std,
        noise_multiplier=noise,
        sampling_rate=rate,
        steps=steps,
        below=share,
        duplicate=duplicate,
    )


def _noise_std(metrics: Fields, form: TrainingForm) -> dict[str, float] | None:
    """The noise by tensor: of all of them, or of none."""
    told = [name for name in form.noisy if names.NOISE_STD + name in metrics.values]
    if not told:
        return None
    if missing := [name for name in form.noisy if name not in told]:
        raise ReplyRefused(f"Expected metrics.{names.NOISE_STD}{missing[0]} as well, got none")
    return {
        name: metrics.number(names.NOISE_STD + name, 0.0, form.largest_std) for name in form.noisy
    }
