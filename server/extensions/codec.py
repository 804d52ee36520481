"""A run's codec between server and silos: sent once to each, and their codes decoded.

Each silo gets the codec before the first round that it takes part in. What it sends is checked and
decoded here; decoding is post-processing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedllm import messages as names
from fedllm.codec import Code, Codec
from fedllm.settings.experiment import Settings
from fedllm.settings.io import to_json
from fedllm.training.encoding import Encoding
from server.aggregation import UpdateRefused, tensor_bytes
from server.nodes.exchange import exchange
from server.replies import Item
from server.replies.delivery import read_delivery
from server.replies.envelope import why_none
from server.replies.refusal import one_line

CODE = "code"
"""Name of the one tensor in the place of an update where the server adds its noise to codes."""


@dataclass
class Delivery:
    """What sending a codec came to: bytes sent, and the silos that did not confirm, with why."""

    bytes: int
    failed: list[Item] = field(default_factory=list)
    refused: list[Item] = field(default_factory=list)


class CodecLink:
    """Delivers the codec, and decodes what comes back.

    Args:
        encoding: with the codec and its version.
        nodes: node id of each silo.
        sums_codes: whether the server adds noise to the sum of the codes: they are then decoded after
            it, not one by one.
    """

    def __init__(self, encoding: Encoding, nodes: Mapping[str, int], *, sums_codes: bool) -> None:
        self.encoding = encoding
        self.nodes = nodes
        self.sums_codes = sums_codes
        self._delivered: set[str] = set()

    @property
    def like(self) -> dict[str, Tensor]:
        """Zeros of the shape of what is summed with ``sums_codes``."""
        return {CODE: torch.zeros(self.encoding.codec.code_dimension)}

    def decode(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The update in a reply, or with ``sums_codes`` its code alone, under the name ``CODE``.

        Raises:
            UpdateRefused: no code of this codec.
        """
        try:
            code = self.encoding.codec.decode_code(Code(tensors))
        except ValueError as error:
            raise UpdateRefused(str(error)) from None
        return {CODE: code} if self.sums_codes else self.reconstruct(code)

    def reconstruct(self, code: Tensor) -> dict[str, Tensor]:
        """The update that a continuous code [k] stands for."""
        return self.encoding.unflatten(self.encoding.codec.reconstruct(code))

    def forget(self, silos: Sequence[str]) -> None:
        """These silos do not have it (any more)."""
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
