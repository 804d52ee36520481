"""The reply to a task of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import RecordDict
from torch import Tensor

from fedllm import messages as names
from fedllm.codec.base import Spec
from server.replies.arrays import bytes_of, tensors_of
from server.replies.envelope import ENVELOPE
from server.replies.fields import numbers_of, only_records, texts_of
from server.replies.refusal import ReplyRefused

SMALLEST_RATE = 1e-12
"""Minimum sampling rate: fewer than one record in 10^12 is no training."""
SMALLEST_NOISE, LARGEST_NOISE = 1e-2, 1e9
"""Range of a noise multiplier that a silo reports and that no one chose; calibration searches above 0.01."""
LARGEST_SHARE = 1e6
"""Maximum distance of a noisy share from zero."""


@dataclass(frozen=True)
class TrainingForm:
    """Required form of a reply to one round's task.

    Attributes:
        run_id, server_round: of the task.
        update: shapes and dtypes of the update, or of what stands for it.
        noisy: names of the tensors whose noise may be told.
        largest_std: bound of that noise.
        steps: local steps.
        smallest_noise: bound of the noise multiplier; 0 where the silos add no noise.
        counts: whether what the silo says of its mechanism is what was spent.
        texts: further fields of ``info``, and the value of each.
        told: further fields of ``info`` whose text the silo chooses, and the most characters of each.
        shares: further fields of ``metrics``: noisy shares.
        records: further records of tensors, and the shapes and dtypes of each.
    """

    run_id: str
    server_round: int
    update: Spec
    noisy: Sequence[str]
    largest_std: float
    steps: int
    smallest_noise: float
    counts: bool = True
    texts: Mapping[str, str] = field(default_factory=dict)
    told: Mapping[str, int] = field(default_factory=dict)
    shares: Sequence[str] = ()
    records: Mapping[str, Spec] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingReply:
    """One silo's round, checked against its :class:`TrainingForm`.

    Attributes:
        update: the update or what stands for it, finite.
        bytes: of all its tensors.
        noise_std: standard deviation of the noise in each tensor of the update; None if it is not told.
        noise_multiplier, sampling_rate, steps: the mechanism, by the silo's word.
        shares: the noisy shares, by name.
        records: the further tensors, by record.
        told: the further texts, by field.
    """

    update: dict[str, Tensor]
    bytes: int
    noise_std: dict[str, float] | None
    noise_multiplier: float
    sampling_rate: float
    steps: int
    shares: Mapping[str, float]
    records: Mapping[str, dict[str, Tensor]]
    told: Mapping[str, str] = field(default_factory=dict)


def read_training(content: RecordDict, form: TrainingForm) -> TrainingReply:
    """Return the typed value of a reply whose envelope says ``ok``.

    Raises:
        ReplyRefused: anything in it is not as the form says: missing, unknown, of another type, shape, dtype,
            round, run or text, not finite or out of range.
    """
    only_records(content, [names.INFO, names.METRICS, names.UPDATE, *form.records])
    info = texts_of(content, names.INFO)
    info.only([*ENVELOPE, names.RUN_ID, names.ROUND, *form.texts, *form.told])
    info.same({names.RUN_ID: form.run_id, names.ROUND: form.server_round, **form.texts})
    told_texts = dict(zip(form.told, info.texts(form.told), strict=True))
    metrics = numbers_of(content, names.METRICS)
    stds = [names.NOISE_STD + name for name in form.noisy]
    metrics.only([names.NOISE_MULTIPLIER, names.SAMPLING_RATE, names.STEPS, *form.shares, *stds])
    ranges = {
        names.NOISE_MULTIPLIER: (form.smallest_noise, LARGEST_NOISE),
        names.SAMPLING_RATE: (SMALLEST_RATE, 1.0),
        **dict.fromkeys(form.shares, (-LARGEST_SHARE, LARGEST_SHARE)),
    }
    told = [name for name in stds if name in metrics.values]
    if told:  # the noise by tensor: of all of them, or of none
        if missing := [name for name in stds if name not in told]:
            raise ReplyRefused(f"Expected metrics.{missing[0]} as well, got none")
        ranges |= dict.fromkeys(stds, (0.0, form.largest_std))
    numbers = metrics.numbers(ranges)
    steps = metrics.whole(names.STEPS, form.steps, form.steps)
    update = tensors_of(content, names.UPDATE, form.update)
    records = {name: tensors_of(content, name, spec) for name, spec in form.records.items()}
    return TrainingReply(
        update=update,
        bytes=bytes_of(update) + sum(map(bytes_of, records.values())),
        noise_std={n: numbers[names.NOISE_STD + n] for n in form.noisy} if told else None,
        noise_multiplier=numbers[names.NOISE_MULTIPLIER],
        sampling_rate=numbers[names.SAMPLING_RATE],
        steps=steps,
        shares={name: numbers[name] for name in form.shares},
        records=records,
        told=told_texts,
    )
