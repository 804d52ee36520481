"""A silo's whole update as one record: clipped after all local steps, with one noise.

Guarantee (unit ``client``): the update has norm at most ``clip`` (sensitivity ``clip`` to adding or removing the
silo), whatever the local steps do. With noise by the client it is one Gaussian mechanism. With noise by the server
the silo sends the clipped update as it is, and the server adds the noise to the sum over the silos
(:mod:`server.extensions.central_noise`); where it draws the silos by a Poisson sample, so is the event.

With a codec the message is its code instead; see :mod:`fedllm.training.encoding`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedllm.settings.experiment import Settings
from fedllm.training.adaptive_clip import SumNoise
from fedllm.training.encoding import encode_client_update
from fedllm.training.noise import Noise, RoundCost, sampled_fraction, together
from fedllm.training.steps import (
    LocalResult,
    LocalWork,
    StepPlan,
    Streams,
    Tally,
    check_noise,
    plain_update,
    split_like,
)
from privacy.events.constructors import poisson_sampled
from privacy.events.multiset import multiset
from privacy.mechanisms.adaptive_clipping import SENSITIVITY, share_below
from privacy.mechanisms.clipping import clip_vector
from privacy.randomness import RandomSource


@dataclass(frozen=True)
class ClientUpdate:
    """The mechanism of one silo's clipped update, or of the sum over silos that a server adds the noise to.

    Attributes:
        plan: of the local steps.
        sampling_rate: probability of each example to be in a local step's batch: buys nothing here.
        fraction: probability of the silo to be in a round's sum; 1 where it is not drawn by a Poisson sample.
        clip: clipping norm of the update.
        noise_multiplier: of the update and the count together; 0 where others add the noise.
        noise: of the update, and of the count where clipping is adaptive.
        noise_by: "client" or "server".
        keeps_all: whether the server reads an update with all its coordinates.
    """

    plan: StepPlan
    sampling_rate: float
    fraction: float
    clip: float
    noise_multiplier: float
    noise: SumNoise
    noise_by: str
    keeps_all: bool

    private = True

    @classmethod
    def of(cls, settings: Settings, sampling_rate: float, noise_multiplier: float) -> ClientUpdate:
        """Return the mechanism of these settings."""
        return cls(
            plan=StepPlan.of(settings),
            sampling_rate=sampling_rate,
            fraction=sampled_fraction(settings),
            clip=settings.privacy.clip,
            noise_multiplier=noise_multiplier,
            noise=SumNoise.of(settings, noise_multiplier),
            noise_by=settings.privacy.noise_by,
            keeps_all=settings.codec.keeps_all,
        )

    @property
    def adaptive(self) -> bool:
        """True if the clipping norm comes with each round's task."""
        return self.noise.count is not None

    def at_clip(self, clip: float | None) -> ClientUpdate:
        """Return the mechanism of a round whose task brings ``clip``; see :meth:`SumNoise.at_clip`."""
        return replace(self, clip=self.noise.at_clip(self.clip, clip))

    def at_silo(self) -> ClientUpdate:
        """Return the silo's part: without noise where the server adds it."""
        if self.noise_by == "client":
            return self
        bare = SumNoise(self.noise.vector.of_multiplier(0.0), self.noise.count)
        return replace(self, noise_multiplier=0.0, noise=bare)

    def unsampled(self) -> ClientUpdate:
        """Return the mechanism without amplification by the draw of the silos."""
        return replace(self, fraction=1.0)

    # -- what a round costs ----------------------------------------------------------------------

    def events(self, server_round: int) -> Counter[DpEvent]:
        """Return one event a round, independent of the local steps.

        Its noise is over the clipping norm: that replacing a client moves its update by twice this norm is the
        accountants' part, which know the relation.
        """
        events = self.noise.events()
        if self.fraction < 1:
            return multiset(poisson_sampled(self.fraction, events))
        return multiset(together(events))

    def cost(self) -> RoundCost:
        """Return the cost of one mechanism a round."""
        return RoundCost(self.fraction, 1)

    def release_noise(self) -> Noise:
        """Return the noise of the update, or of the sum over the silos."""
        return self.noise.vector

    def noise_std(self, params: Mapping[str, Tensor]) -> dict[str, float] | None:
        """Return the standard deviation of the noise in each entry of the update, by tensor; None if it is not known
        (a codec that leaves out coordinates) or not finite."""
        if not self.keeps_all:
            return None
        std = self.noise.vector.std * self.clip
        return dict.fromkeys(params, std) if math.isfinite(std) else None

    # -- the release -----------------------------------------------------------------------------

    def train(self, work: LocalWork) -> LocalResult:
        """Take the local steps and release their update; with noise by the server it is private.

        Raises:
            ValueError: a noise multiplier that does not fit who adds the noise, or a perturbation that does not
                fit the trained tensors.
        """
        check_noise("dp", self.noise_by, self.noise_multiplier)
        tally = Tally()
        update = plain_update(work, self.plan, self.sampling_rate, tally, tally.failures)
        noise_std = self.noise_std(update)
        last = self.plan.count
        if work.encoding is not None:
            code, clipped, bad = encode_client_update(
                update,
                work.encoding,
                clip=self.clip,
                noise=self.noise.vector if self.noise_by == "client" else None,
                rng=work.streams("noise", last),
                rounding=work.streams("round", last),
            )
            tally.clipped, tally.nonfinite = int(clipped), int(bad)
            return tally.result(dict(code.tensors), noise_std)
        released, tally.clipped, tally.nonfinite, below = self._release(update, work.streams)
        return tally.result(released, noise_std, below)

    def _release(
        self, update: Mapping[str, Tensor], streams: Streams
    ) -> tuple[dict[str, Tensor], int, int, float | None]:
        """Return the clipped (and noisy) update, what was done to it (0 or 1), and its share as in
        :class:`LocalResult`."""
        flat = torch.cat([update[name].reshape(-1) for name in sorted(update)])
        flat, clipped, nonfinite = clip_vector(flat, self.clip)
        count = -SENSITIVITY if clipped or nonfinite else SENSITIVITY
        last = self.plan.count
        if self.noise_by == "client":
            flat = self.noise.vector.add(flat, self.clip, streams("noise", last))
            if self.noise.count is not None:
                count = self.noise.add_to_count(count, streams("count-noise", last))
        below = SENSITIVITY + count if self.noise.count is not None else None
        named = dict(zip(sorted(update), split_like(flat, update), strict=True))
        return named, int(clipped), int(nonfinite), below

    def add_noise(self, total: Tensor, rng: RandomSource) -> Tensor:
        """Add the server's noise to a sum of messages of norm at most ``clip`` each."""
        return self.noise.vector.add(total, self.clip, rng)

    def noisy_share(self, count: float, expected: float, rng: RandomSource) -> float:
        """Return the noisy share of a centred count over the silos; its event is in those of the round."""
        return share_below(self.noise.add_to_count(count, rng), expected)
