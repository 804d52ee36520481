"""A run's codec between server and silos: sent once to each, and their codes decoded.

Each silo gets the codec before the first round that it takes part in. What it sends is checked and
decoded here; decoding is post-processing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedllm import messages as names
from fedllm.codec import Code, Codec
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from fedllm.settings.io import to_json
from fedllm.training.encoding import Encoding
from server.aggregation import MeanUpdate, UpdateRefused, tensor_bytes
from server.extensions.base import Asking, Extras, RoundExtension, Tensors
from server.extensions.central_noise import CentralRelease
from server.extensions.encoder_statistics import prepare_codec
from server.nodes.exchange import exchange
from server.replies import Item
from server.replies.delivery import read_delivery
from server.replies.envelope import why_none
from server.replies.refusal import one_line
from server.replies.training import TrainingForm, TrainingReply
from server.replies.unusable import record_unusable
from server.robust.update_law import UpdateLaw

CODE = "code"
"""Name of the one tensor in the place of an update where the server adds its noise to codes."""


@dataclass
class Delivery:
    """Result of sending a codec: bytes sent, and the silos that did not confirm, with reasons."""

    bytes: int
    failed: list[Item] = field(default_factory=list)
    refused: list[Item] = field(default_factory=list)


class CodecDelivery:
    """Sends the codec once to each silo.

    Args:
        encoding: with the codec and its version.
        nodes: node id of each silo.
    """

    def __init__(self, encoding: Encoding, nodes: Mapping[str, int]) -> None:
        self.encoding = encoding
        self.nodes = nodes
        self._delivered: set[str] = set()

    def forget(self, silos: Sequence[str]) -> None:
        """Note that these silos do not have it (any more)."""
        self._delivered.difference_update(silos)

    def deliver(
        self,
        grid: Grid,
        silos: Sequence[str],
        settings: Settings,
        timeout: float,
        stop: threading.Event,
    ) -> Delivery:
        """Send the codec to those of the silos that do not have it.

        A silo that does not confirm is sent it again the next time. What it lacks it says itself, in
        its reply to a task.

        Raises:
            Stopped: ``stop`` was set.
        """
        without = [name for name in silos if name not in self._delivered]
        asked = [(self.nodes[name], settings.for_silo(name)) for name in without]
        messages, size = codec_messages(self.encoding.codec, self.encoding.version, asked)
        replies = exchange(grid, messages, timeout=timeout, stop=stop)
        done = Delivery(bytes=size * len(without))
        for name, reply in zip(without, replies, strict=True):
            why = why_none(reply, timeout)
            if why is None and reply is not None:
                try:
                    why = read_delivery(reply.content)
                except Exception as error:  # a stranger's message
                    done.refused.append({"silo": name, "reason": one_line(str(error))})
                    continue
            if why is None:
                self._delivered.add(name)
            else:
                done.failed.append({"silo": name, "reason": why})
        return done


class EncodedUpdates(RoundExtension):
    """The silos encode their updates; their codes are decoded as they arrive, or after the server's noise.

    With noise by the server in the code, the codes themselves are summed: the mean of the codes of a linear codec
    decodes to the mean of the updates.

    Args:
        folder: of the run; it keeps the codec.
        trusted: adds the noise where the silos do not; else None.
        summed: whether only the sum of the codes is seen, which another extension decodes.
    """

    def __init__(
        self, folder: RunFolder, trusted: CentralRelease | None, *, summed: bool = False
    ) -> None:
        self.folder = folder
        self.summed = summed
        self.trusted = trusted
        self._encoding: Encoding | None = None

    @property
    def encoding(self) -> Encoding:
        """The codec in the coordinates of the run, from :meth:`after_restore` on."""
        if self._encoding is None:
            raise ValueError("Expected the codec of the run, got a call before it was prepared")
        return self._encoding

    def after_restore(self, grid: Grid) -> None:
        """Read the run's codec, or make it; see :func:`prepare_codec`."""
        self._encoding = prepare_codec(grid, self.folder, self.run, self.trusted)
        self.sums_codes = self.trusted is not None and self.encoding.in_code
        self.delivery = CodecDelivery(self.encoding, self.run.nodes)

    def task_extras(self, asking: Asking, silo: str) -> Extras:
        train = asking.kind == MessageType.TRAIN
        return Extras(fields={names.CODEC_VERSION: self.encoding.version} if train else {})

    def deliver(self, grid: Grid, silos: Sequence[str], server_round: int) -> int:
        run = self.run
        timeout = run.settings.server.timeout
        sent = self.delivery.deliver(grid, silos, run.settings, timeout, run.stop)
        record_unusable(run.emit, server_round, "the delivery of the codec", sent)
        return sent.bytes

    def forget(self, silos: Sequence[str]) -> None:
        self.delivery.forget(silos)

    def reply_form(self, form: TrainingForm) -> TrainingForm:
        texts = {**form.texts, names.CODEC_VERSION: self.encoding.version}
        if self.summed:
            return replace(form, texts=texts)
        return replace(form, update=self.encoding.codec.code_spec(), texts=texts)

    def update_like(self, like: Tensors) -> Tensors:
        if not self.sums_codes:
            return like
        return {CODE: torch.zeros(self.encoding.codec.code_dimension)}

    def read(self, silo: str, reply: TrainingReply) -> TrainingReply:
        """The reply with its update, or with the code under the name ``CODE`` where codes are summed.

        Raises:
            UpdateRefused: no code of this codec.
        """
        if self.summed:
            return reply
        try:
            code = self.encoding.codec.decode_code(Code(reply.update))
        except ValueError as error:
            raise UpdateRefused(str(error)) from None
        return replace(reply, update={CODE: code} if self.sums_codes else self._reconstruct(code))

    def limit(self, law: UpdateLaw) -> UpdateLaw:
        return replace(law, encoding=self.encoding)

    def expand(self, mean: MeanUpdate) -> MeanUpdate:
        if not self.sums_codes or mean.update is None:
            return mean
        update, std = self._reconstruct(mean.update[CODE]), None
        if mean.noise_std is not None and self.run.settings.codec.keeps_all:
            std = dict.fromkeys(update, mean.noise_std[CODE])
        return replace(mean, update=update, noise_std=std)

    def _reconstruct(self, code: Tensor) -> dict[str, Tensor]:
        """The update that a continuous code [k] stands for."""
        return self.encoding.unflatten(self.encoding.codec.reconstruct(code))


def codec_messages(
    codec: Codec, version: str, asked: Sequence[tuple[int, Settings]]
) -> tuple[list[Message], int]:
    """The codec as a message to each node, and the bytes of its tensors.

    Args:
        asked: the nodes, and the settings for each one's silo, which it holds the codec against.
    """
    tensors, meta = codec.state()
    arrays, described = ArrayRecord(dict(tensors)), json.dumps(meta)
    messages = []
    for node, settings in asked:
        fields: dict[str, Any] = {
            names.CODEC_META: described,
            names.CODEC_VERSION: version,
            names.SETTINGS: to_json(settings),
        }
        content = RecordDict({names.CODEC: arrays, names.CONFIG: ConfigRecord(fields)})
        messages.append(Message(content, dst_node_id=node, message_type=names.SEND_CODEC))
    return messages, tensor_bytes(tensors)
