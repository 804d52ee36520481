"""A codec at a silo: kept as the server sends it, fitted to private statistics, used for the round's update.

Guarantee: that of :mod:`fedllm.training.encoding` and :mod:`fedllm.training.statistics`. A codec is held against the
settings, the model and the silo's own limits before anything of it is made or kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from fedllm import messages as names
from fedllm.budget.account import STATISTICS, SiloAccount
from fedllm.budget.local_policy import LimitRefused
from fedllm.codec import codec_names
from fedllm.codec.store import CodecMissing, codec_from_store, keep_in_store
from fedllm.data.batches import Feature
from fedllm.settings.codec import CodecSettings
from fedllm.silo.codec_needs import check_codec_needs
from fedllm.silo.extensions.base import Answer, Delivery, Respond, SiloExtension
from fedllm.silo.task import SiloTask
from fedllm.silo.task_form import DIGEST, ArrayForm, TaskForm, json_object, text
from fedllm.task_errors import DeliveryMissing
from fedllm.training.encoding import Encoding
from fedllm.training.steps import LocalResult, LocalWork, Streams

_VERSION = {names.CODEC_VERSION: text(DIGEST, "64 hexadecimal digits")}


class SiloCodec(SiloExtension):
    """Encodes the updates by the codec whose version a task names.

    Args:
        settings: ``[codec]``.
    """

    def __init__(self, settings: CodecSettings) -> None:
        self.settings = settings

    def brings(self, kind: str) -> TaskForm:
        if kind == names.TRAIN:
            return TaskForm(_VERSION)
        if kind == names.SEND_CODEC:
            return TaskForm({names.CODEC_META: json_object("a codec's description"), **_VERSION})
        return TaskForm()

    def prepare(self, work: LocalWork, task: SiloTask) -> LocalWork:
        """Return the work with the codec of the task.

        Raises:
            DeliveryMissing: the silo does not have it.
            ValueError: it is not one of the settings.
        """
        version = task.extras[names.CODEC_VERSION]
        try:
            codec = codec_from_store(version)
        except CodecMissing as error:
            raise DeliveryMissing(str(error)) from error
        encoding = Encoding.of(codec, version, self.run.settings, work.params)
        return replace(work, encoding=encoding)

    def reply(self, task: SiloTask, result: LocalResult) -> Answer:
        return Answer(texts={names.CODEC_VERSION: task.extras[names.CODEC_VERSION]})

    def requests(self) -> Mapping[str, Respond]:
        return {names.ASK_STATISTICS: self.statistics} if self.settings.asks_silos else {}

    def statistics(self, task: SiloTask, account: SiloAccount) -> Answer:
        """Release the silo's noisy statistics, with its sampling rate.

        With noise by the server they carry none, and it is the server that records the event.

        Raises:
            BudgetExceeded: nothing was done, nothing recorded.
        """
        run, rate = self.run, account.sampling_rate
        tunable, start = run.tunable.part(task.params)

        def released(features: list[Feature], streams: Streams) -> Tensor:
            return account.statistics.release(
                tunable,
                start,
                features,
                sampling_rate=rate,
                streams=lambda purpose, step: streams(f"statistics-{purpose}", step),
            )

        def record(key: str) -> None:
            if run.settings.privacy.noise_by == "client" or not account.private:
                account.spend_statistics(key)

        (statistics,) = run.release(task, STATISTICS, [released], record, run.train_features)
        return Answer(
            {names.STATISTICS: {names.STATISTICS: statistics}}, {names.SAMPLING_RATE: rate}
        )

    def deliveries(self) -> Mapping[str, Delivery]:
        return {names.SEND_CODEC: CodecDelivery(self.settings)}


class CodecDelivery:
    """A codec that the server sends; see :class:`fedllm.silo.extensions.base.Delivery`.

    Args:
        settings: ``[codec]``.
    """

    record = names.CODEC
    most = 16
    """An autoencoder has seven tensors."""

    def __init__(self, settings: CodecSettings) -> None:
        self.settings = settings

    def check(
        self,
        fields: Mapping[str, Any],
        forms: Mapping[str, ArrayForm],
        dimension: int,
        limits: Mapping[str, Any] | None,
    ) -> None:
        """Refuse a codec that these settings cannot have, or that the silo does not allow."""
        meta = fields[names.CODEC_META]
        if limits is not None:
            check_allowed(limits["codecs"], meta)
        check_codec_needs(meta, forms, self.settings, dimension)

    def keep(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keep it in the machine's cache, under its version."""
        keep_in_store(tensors, fields[names.CODEC_META], fields[names.CODEC_VERSION])


def check_allowed(allowed: tuple[str, ...], meta: Mapping[str, Any]) -> None:
    """Refuse a codec, or one that it wraps, that is not among ``limits.codecs`` of the silo.

    Args:
        meta: the JSON part of its state.

    Raises:
        LimitRefused: it is not.
        ValueError: it is no codec.
    """
    for name in codec_names(meta):
        if name != "quantised" and name not in allowed:  # fewer bits of an allowed one
            raise LimitRefused(
                f"Expected codec.name among {', '.join(allowed) or 'none'} (limits.codecs of the silo), got the "
                f"codec {name}"
            )
