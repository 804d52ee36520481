"""From the replies of one round of training to its mean update: each one read and checked, then all together.

A reply holds an update, its code, or numbers along the round's directions; the noise is in it, or is added to the sum
by a trusted server. Whichever it is, what comes out is an update of the model.

Guarantee: with noise by the silos, post-processing of what they released. With noise by the server,
:mod:`server.extensions.central_noise` records and adds it, on contributions that are clipped here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from flwr.app import RecordDict
from torch import Tensor

from fedllm.settings.checks.black_box import noises_numbers
from fedllm.settings.experiment import Settings
from fedllm.training.adaptive_clip import is_adaptive
from server.aggregation import (
    Contribution,
    check_update,
    clip_update,
)
from server.extensions.central_noise import TrustedNoise
from server.extensions.codec import CODE, CodecLink
from server.extensions.teacher import TeacherLink
from server.extensions.zeroth_order import DirectionsLink
from server.replies import Replies, ReplyRefused
from server.replies.arrays import spec_of
from server.replies.training import SMALLEST_NOISE, TrainingForm, TrainingReply, read_training
from server.robust.means import combine, combine_shares
from server.robust.update_law import UpdateLaw
from server.spending import SpendingView


@dataclass(frozen=True)
class MeanUpdate:
    """What a round comes to.

    Attributes:
        update: of the model; None where nothing was released.
        noise_std: standard deviation of the noise in each of its tensors; None where it is not known.
        shares: adaptive clipping: the silos' noisy share of norms at most the clipping norm; else none.
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
        silos: how many are in the run.
        sizes: their public numbers of examples, as far as they are told.
        spending: is told what each accepted silo says of its mechanism.
        trusted_noise, codec, directions, teacher: those that the run has.
    """

    settings: Settings
    run_id: str
    server_round: int
    params: Mapping[str, Tensor]
    clip: float
    silos: int
    sizes: Mapping[str, int | None]
    spending: SpendingView
    trusted_noise: TrustedNoise | None
    codec: CodecLink | None
    directions: DirectionsLink | None
    teacher: TeacherLink | None

    @cached_property
    def form(self) -> TrainingForm:
        """What each reply of the round must be."""
        update, version = spec_of(self.params), ""
        if self.codec is not None:
            encoding = self.codec.encoding
            update, version = encoding.codec.code_spec(), encoding.version
        elif self.directions is not None:
            update = spec_of(self.directions.like)
        duplicate = None if self.teacher is None else self.teacher.duplicate_like
        return TrainingForm(
            run_id=self.run_id,
            server_round=self.server_round,
            update=update,
            codec_version=version,
            duplicate=None if duplicate is None else spec_of(duplicate),
            noisy=sorted(self.params),
            largest_std=self.settings.server.max_update_norm,
            steps=self.settings.client.local_steps,
            smallest_noise=self._smallest_noise(),
            adaptive=is_adaptive(self.settings),
        )

    def read(self, name: str, content: RecordDict) -> Contribution:
        """What the reply of the silo ``name`` holds, checked.

        Raises:
            ReplyRefused: it is not usable; nothing is changed then.
        """
        reply = read_training(content, self.form)
        most = self.settings.server.max_update_norm
        like, update = self.params, reply.update
        if self.codec is not None:
            update = self.codec.decode(update)
            like = self.codec.like if self.codec.sums_codes else self.params
        elif self.directions is not None:
            like = self.directions.like
        update = check_update(update, like, most)
        duplicate = reply.duplicate
        if duplicate is not None and self.teacher is not None:
            duplicate = check_update(duplicate, self.teacher.teacher.weights, most)
        if self.trusted_noise is None:
            self._spend(name, reply)
        return Contribution(
            name,
            update,
            reply.noise_std,
            reply.bytes,
            duplicate,
            reply.below,
            reply.noise_multiplier,
        )

    def _spend(self, name: str, reply: TrainingReply) -> None:
        """Tell the view of what was spent.

        Raises:
            ReplyRefused: no mechanism has these numbers.
        """
        rate, noise, steps = reply.sampling_rate, reply.noise_multiplier, reply.steps
        try:
            self.spending.add_training(
                name, self.server_round, sampling_rate=rate, noise_multiplier=noise, steps=steps
            )
        except (ValueError, ArithmeticError) as error:
            raise ReplyRefused(
                f"Expected a mechanism in metrics, got sampling-rate {rate:g}, noise-multiplier "
                f"{noise:g}: {error}"
            ) from None

    def _smallest_noise(self) -> float:
        """That a silo may say it used: 0 where it adds none of its own, or adds it to single numbers."""
        privacy = self.settings.privacy
        if privacy.mode != "dp" or self.trusted_noise is not None or noises_numbers(self.settings):
            return 0.0
        given = privacy.noise_multiplier
        return SMALLEST_NOISE if given is None else min(SMALLEST_NOISE, given)

    def judge(self, found: Replies[Contribution]) -> None:
        """Refuse those of the accepted updates that no honest silo sends (:mod:`server.robust.update_law`)."""
        law = UpdateLaw(
            settings=self.settings,
            clip=self.clip,
            replies=self.settings.server.rounds * self.silos,
            params=self.params,
            sizes=self.sizes,
            encoding=None if self.codec is None else self.codec.encoding,
        )
        found.accepted, refused = law.judge(found.accepted)
        found.refused += [{"silo": name, "reason": why} for name, why in refused.items()]

    def mean(self, accepted: Sequence[Contribution], left: Mapping[str, str]) -> MeanUpdate:
        """What the accepted silos sent as one update, with equal weights or as ``server.aggregation`` says.

        Args:
            left: why a silo takes no part any more, by name: a trusted server does not count it.
        """
        if self.trusted_noise is None:
            return self._of_noisy(accepted)
        return self._with_noise(self.trusted_noise, accepted, left)

    def _of_noisy(self, accepted: Sequence[Contribution]) -> MeanUpdate:
        """Noise by the silos."""
        how = self.settings.server
        shares = combine_shares(how, [c.below for c in accepted if c.below is not None])
        if not accepted:
            return MeanUpdate(None, None, shares)
        if self.directions is not None:
            numbers, _ = combine(how, accepted, self.directions.like)
            return MeanUpdate(self.directions.expand(numbers), None, shares)
        return MeanUpdate(*combine(how, accepted, self.params), shares)

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
