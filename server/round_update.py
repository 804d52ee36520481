"""From the replies of one round of training to its mean update: each one read and checked, then all together.

What a reply holds besides an update, or instead of one, is a matter of the run's extensions.

Guarantee: post-processing of what the silos released, unless an extension adds the noise
(:meth:`server.extensions.base.RoundExtension.combine`): then it states its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from flwr.app import RecordDict
from torch import Tensor

from fedllm.settings.experiment import Settings
from server.aggregation import Contribution, MeanUpdate, check_update
from server.extensions.base import RoundExtension
from server.replies import Replies, ReplyRefused
from server.replies.arrays import spec_of
from server.replies.training import SMALLEST_NOISE, TrainingForm, TrainingReply, read_training
from server.robust.means import combine, combine_shares
from server.robust.update_law import MadeLaw, UpdateLaw
from server.spending import SpendingView


@dataclass(frozen=True)
class RoundUpdate:
    """Reads the replies of one round.

    Attributes:
        settings, run_id: of the run.
        server_round: the round.
        params: the global parameters.
        clip: the round's clipping norm.
        silos: how many are in the run.
        sizes: their public numbers of examples, as far as they are sent.
        spending: is told what each accepted silo says of its mechanism.
        extensions: of the run.
        laws: of the silos' updates, kept between rounds (:attr:`UpdateLaw.made`).
    """

    settings: Settings
    run_id: str
    server_round: int
    params: Mapping[str, Tensor]
    clip: float
    silos: int
    sizes: Mapping[str, int | None]
    spending: SpendingView
    extensions: Sequence[RoundExtension] = ()
    laws: dict[str, MadeLaw] = field(default_factory=dict)

    @cached_property
    def form(self) -> TrainingForm:
        """Return the required form of each reply of the round."""
        form = TrainingForm(
            run_id=self.run_id,
            server_round=self.server_round,
            update=spec_of(self.params),
            noisy=sorted(self.params),
            largest_std=self.settings.server.max_update_norm,
            steps=self.settings.client.local_steps,
            smallest_noise=self._smallest_noise(),
        )
        for extension in self.extensions:
            form = extension.reply_form(form)
        return form

    @cached_property
    def like(self) -> Mapping[str, Tensor]:
        """Tensors of the shapes of an update as it is read."""
        like = self.params
        for extension in self.extensions:
            like = extension.update_like(like)
        return like

    def read(self, name: str, content: RecordDict) -> Contribution:
        """Read and check the reply of the silo ``name``.

        Raises:
            ReplyRefused: it is not usable; nothing is changed then.
        """
        reply = read_training(content, self.form)
        for extension in self.extensions:
            reply = extension.read(name, reply)
        update = check_update(reply.update, self.like, self.settings.server.max_update_norm)
        if self.form.counts:
            self._spend(name, reply)
        return Contribution(
            name,
            update,
            reply.noise_std,
            bytes=reply.bytes,
            noise_multiplier=reply.noise_multiplier,
            records=reply.records,
            shares=reply.shares,
        )

    def _spend(self, name: str, reply: TrainingReply) -> None:
        """Report the spending to the view.

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
        """Return the smallest noise multiplier that a silo may report."""
        privacy = self.settings.privacy
        if privacy.mode != "dp":
            return 0.0
        given = privacy.noise_multiplier
        return SMALLEST_NOISE if given is None else min(SMALLEST_NOISE, given)

    def check(self, found: Replies[Contribution]) -> None:
        """Refuse those of the accepted updates that no honest silo sends (:mod:`server.robust.update_law`)."""
        law: UpdateLaw | None = UpdateLaw(
            settings=self.settings,
            clip=self.clip,
            replies=self.settings.server.rounds * self.silos,
            params=self.params,
            sizes=self.sizes,
            made=self.laws,
        )
        for extension in self.extensions:
            law = None if law is None else extension.limit(law)
        if law is None:
            return
        found.accepted, refused = law.check(found.accepted)
        found.refused += [{"silo": name, "reason": why} for name, why in refused.items()]

    def mean(self, accepted: Sequence[Contribution]) -> MeanUpdate:
        """Combine the accepted silos' updates, with equal weights or by ``server.aggregation``."""
        mean = self._combined(accepted)
        for extension in self.extensions:
            mean = extension.expand(mean)
        return mean

    def _combined(self, accepted: Sequence[Contribution]) -> MeanUpdate:
        for extension in self.extensions:
            mean = extension.combine(self.server_round, accepted, self.like)
            if mean is not None:
                return mean
        how = self.settings.server
        shares = {
            name: combine_shares(how, [c.shares[name] for c in accepted])
            for name in self.form.shares
        }
        if not accepted:
            return MeanUpdate(None, None, shares)
        return MeanUpdate(*combine(how, accepted, self.like), shares)
