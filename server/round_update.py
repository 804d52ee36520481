"""From the replies of one round of training to its mean update: each one read and checked, then all together.

A reply holds an update, its code, or numbers along the round's directions; the noise is in it, or is added to the sum
by a trusted server. Whichever it is, what comes out is an update of the model.

Guarantee: with noise by the silos, post-processing of what they released. With noise by the server,
:mod:`server.trusted_noise` records and adds it, on contributions that are clipped here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Message
from torch import Tensor

from fedllm import messages as names
from fedllm.adaptive_clip import is_adaptive
from fedllm.settings import Settings
from server.aggregation import (
    Contribution,
    UpdateRefused,
    check_below,
    check_noise_std,
    check_update,
    clip_update,
    mean_update,
    tensor_bytes,
)
from server.codec_link import CODE, CodecLink
from server.directions_link import DirectionsLink
from server.spending import SpendingView
from server.teacher_link import TeacherLink
from server.trusted_noise import TrustedNoise


@dataclass(frozen=True)
class MeanUpdate:
    """What a round comes to.

    Attributes:
        update: of the model; None where nothing was released.
        noise_std: standard deviation of the noise in each of its tensors; None where it is not known.
        shares: adaptive clipping: noisy shares of norms at most the clipping norm; else none.
    """

    update: dict[str, Tensor] | None
    noise_std: dict[str, float] | None
    shares: list[float]


@dataclass(frozen=True)
class RoundUpdate:
    """Reads the replies of one round.

    Attributes:
        settings, run_id: of the run.
        server_round: the round.
        params: the global parameters.
        clip: the round's clipping norm.
        spending: is told what each accepted silo says of its mechanism.
        trusted_noise, codec, directions, teacher: those that the run has.
    """

    settings: Settings
    run_id: str
    server_round: int
    params: Mapping[str, Tensor]
    clip: float
    spending: SpendingView
    trusted_noise: TrustedNoise | None
    codec: CodecLink | None
    directions: DirectionsLink | None
    teacher: TeacherLink | None

    def read(self, name: str, reply: Message) -> Contribution:
        """What the reply of the silo ``name`` holds, checked.

        Raises:
            UpdateRefused, KeyError, TypeError, ValueError: it is not usable.
        """
        self._check_round(reply)
        arrays: Any = reply.content[names.UPDATE]
        tensors = arrays.to_torch_state_dict()
        like, update = self.params, tensors
        if self.codec is not None:
            info: Any = reply.content[names.INFO]
            update = self.codec.decode(tensors, str(info.get(names.CODEC_VERSION, "")))
            like = self.codec.like if self.codec.sums_codes else self.params
        elif self.directions is not None:
            like = self.directions.like
        update = check_update(update, like, self.settings.server.max_update_norm)
        metrics: Any = reply.content[names.METRICS]
        most = self.settings.server.max_update_norm
        std = check_noise_std(metrics, names.NOISE_STD, self.params, most)
        below = check_below(metrics, names.BELOW, is_adaptive(self.settings))
        rate, noise, steps = (
            metrics[key] for key in (names.SAMPLING_RATE, names.NOISE_MULTIPLIER, names.STEPS)
        )
        if self.trusted_noise is None:
            self.spending.add_training(
                name,
                self.server_round,
                sampling_rate=float(rate),
                noise_multiplier=float(noise),
                steps=int(steps),
            )
        duplicate = None if self.teacher is None else self.teacher.read(reply, most)
        size = tensor_bytes(tensors) + tensor_bytes(duplicate or {})
        return Contribution(name, update, std, size, duplicate, below)

    def mean(self, accepted: Sequence[Contribution], left: Mapping[str, str]) -> MeanUpdate:
        """The mean of what the accepted silos sent, with equal weights.

        Args:
            left: why a silo takes no part any more, by name: a trusted server does not count it.
        """
        if self.trusted_noise is None:
            return self._of_noisy(accepted)
        return self._with_noise(self.trusted_noise, accepted, left)

    def _of_noisy(self, accepted: Sequence[Contribution]) -> MeanUpdate:
        """Noise by the silos."""
        shares = [c.below for c in accepted if c.below is not None]
        if not accepted:
            return MeanUpdate(None, None, shares)
        if self.directions is not None:
            numbers, _ = mean_update(accepted, self.directions.like, len(accepted))
            return MeanUpdate(self.directions.expand(numbers), None, shares)
        return MeanUpdate(*mean_update(accepted, self.params, len(accepted)), shares)

    def _with_noise(
        self, trusted: TrustedNoise, accepted: Sequence[Contribution], left: Mapping[str, str]
    ) -> MeanUpdate:
        """Noise by the server."""
        trusted.left.update(left)
        trusted.clip = self.clip
        along, in_code = self.directions, None
        if self.codec is not None and self.codec.sums_codes:
            in_code = self.codec
        like = self.params if in_code is None else in_code.like
        like = like if along is None else along.like
        if along is None:
            clipped = [
                Contribution(c.silo, clip_update(c.update, self.clip), None, below=c.below)
                for c in accepted
            ]
        else:
            clipped = [Contribution(c.silo, along.clip(c.update), None) for c in accepted]
        counted, mean, std = trusted.release(self.server_round, clipped, self.params, like)
        rate = self.settings.server.fraction if trusted.poisson else 1.0
        for name in counted:
            self.spending.add_training(
                name,
                self.server_round,
                sampling_rate=rate,
                noise_multiplier=trusted.noise_multiplier,
                steps=1 if along is None else self.settings.client.local_steps,
            )
        if along is not None and mean is not None:
            return MeanUpdate(along.expand(mean), None, [])
        if in_code is not None and mean is not None:
            # Linear: the mean of the codes decodes to the mean of the updates. Post-processing.
            mean = in_code.reconstruct(mean[CODE])
            known = std is not None and self.settings.codec.keeps_all
            std = dict.fromkeys(mean, (std or {})[CODE]) if known else None
        return MeanUpdate(mean, std, [] if trusted.below is None else [trusted.below])

    def _check_round(self, reply: Message) -> None:
        """Refuse an update of another round or run: one that is in the model already, for example."""
        info: Any = reply.content[names.INFO]
        told = (info[names.RUN_ID], info[names.ROUND])
        if told != (self.run_id, self.server_round):
            raise UpdateRefused(
                f"Expected an update of round {self.server_round} of {self.run_id}, got one of round "
                f"{told[1]} of {told[0]}"
            )
