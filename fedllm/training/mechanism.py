"""The mechanism of one silo in one run: what a round of training costs, and the release that it costs it for.

One object gives both, so that no other file has to agree with it: the file that draws the noise defines its event.

    mechanism = make_mechanism(settings, sampling_rate=0.1, noise_multiplier=1.2)
    mechanism.events(1)                      # recorded in the ledger before
    mechanism.train(LocalWork(...))          # what these events are of

A mechanism of another package is added with :func:`register_mechanism`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedllm.settings.experiment import Settings
from fedllm.training.black_box.directions import NUMBERS
from fedllm.training.black_box.forward_only import ForwardOnly, forward_only
from fedllm.training.client_update import ClientUpdate
from fedllm.training.dp_sgd import DpSgd
from fedllm.training.encoding import encode_released_update
from fedllm.training.noise import Noise, RoundCost
from fedllm.training.steps import (
    LocalResult,
    LocalWork,
    StepPlan,
    Tally,
    check_noise,
    plain_update,
)
from fedllm.training.sum_share.mechanism import SumShare
from fedllm.training.zeroth_order import Estimates, ZerothOrder, plain_sum
from privacy.events.constructors import no_guarantee
from privacy.events.multiset import multiset
from privacy.randomness import RandomSource


class Mechanism(Protocol):
    """A silo's release in a round of training, with its events."""

    @property
    def private(self) -> bool:
        """True if the release has noise."""
        ...

    @property
    def noise_multiplier(self) -> float:
        """Noise standard deviation over sensitivity."""
        ...

    @property
    def adaptive(self) -> bool:
        """True if the clipping norm comes with each round's task, see :meth:`at_clip`."""
        ...

    @property
    def clip(self) -> float:
        """Clipping norm of the round."""
        ...

    def at_clip(self, clip: float | None) -> Self:
        """Return the mechanism of a round whose task brings ``clip``; None for the settings' own norm.

        Raises:
            ValueError: a norm is missing or out of range, or comes although the norm is fixed.
        """
        ...

    def at_silo(self) -> Self:
        """Return the part of it that the silo carries out: without noise where the server adds it."""
        ...

    def events(self, server_round: int) -> Counter[DpEvent]:
        """Return the events of one round.

        Raises:
            ValueError: no noise multiplier that noise has.
        """
        ...

    def cost(self) -> RoundCost:
        """Return the cost that the noise multiplier is calibrated for."""
        ...

    def release_noise(self) -> Noise | None:
        """Return the noise of one release of clipped vectors; None without, or for another kind of release.

        Without it the server knows no bound on an honest update but ``server.max_update_norm``.
        """
        ...

    def noise_std(self, params: Mapping[str, Tensor]) -> dict[str, float] | None:
        """Return the standard deviation of the noise in each entry of the update as the server reads it, by tensor.

        A function of public values alone: server and silo compute the same. None where it is not known.
        """
        ...

    def train(self, work: LocalWork) -> LocalResult:
        """Train one round; the result is what the events are of.

        Raises:
            ValueError: a noise multiplier that the mechanism does not promise.
        """
        ...


@runtime_checkable
class CentralMechanism(Protocol):
    """A mechanism whose noise a trusted server adds to the sum over the silos."""

    def unsampled(self) -> Mechanism:
        """Return the mechanism without amplification by the draw of the silos."""
        ...

    def add_noise(self, total: Tensor, rng: RandomSource) -> Tensor:
        """Add the noise to a sum of messages of norm at most ``clip`` each."""
        ...

    def noisy_share(self, count: float, expected: float, rng: RandomSource) -> float:
        """Adaptive clipping: the noisy share of a centred count over ``expected`` silos.

        Raises:
            ValueError: no count is released.
        """
        ...


@dataclass(frozen=True)
class NoPrivacy:
    """Training without clipping and noise; what leaves has no guarantee.

    Attributes:
        plan: of the local steps.
        estimates: how numbers are found, for a model that gives losses alone; else None.
        sampling_rate: probability of each example to be in a step's batch.
        clip: the settings' clipping norm, which clips nothing.
        noise_multiplier: as given; none is used.
        releases: events of a round.
        keeps_all: whether the server reads an update with all its coordinates.
    """

    plan: StepPlan
    estimates: Estimates | None
    sampling_rate: float
    clip: float
    noise_multiplier: float
    releases: int
    keeps_all: bool

    private = False
    adaptive = False

    @classmethod
    def of(cls, settings: Settings, sampling_rate: float, noise_multiplier: float) -> NoPrivacy:
        """Return the mechanism of these settings."""
        through_outputs = settings.model.access == "black-box"
        return cls(
            plan=StepPlan.of(settings),
            estimates=Estimates.of(settings, sampling_rate) if through_outputs else None,
            sampling_rate=sampling_rate,
            clip=settings.privacy.clip,
            noise_multiplier=noise_multiplier,
            releases=1 if settings.privacy.unit == "client" else settings.client.local_steps,
            keeps_all=settings.codec.keeps_all and not through_outputs,
        )

    def at_clip(self, clip: float | None) -> NoPrivacy:
        """Return the mechanism itself.

        Raises:
            ValueError: a norm comes: nothing is clipped.
        """
        if clip is not None:
            raise ValueError(
                f"Expected no clipping norm with the task for clipping.form=fixed, got {clip}"
            )
        return self

    def at_silo(self) -> NoPrivacy:
        """Return the silo carries out all of it."""
        return self

    def events(self, server_round: int) -> Counter[DpEvent]:
        """Return events without a guarantee."""
        event = no_guarantee("privacy.mode=none: training without clipping or noise")
        return multiset({event: self.releases})

    def cost(self) -> RoundCost:
        """Return the round's cost; no noise is calibrated for it."""
        return RoundCost(self.sampling_rate, self.releases)

    def release_noise(self) -> None:
        """None is added."""
        return

    def noise_std(self, params: Mapping[str, Tensor]) -> dict[str, float] | None:
        """Zero in each entry; None where the server does not read entries of the update."""
        return dict.fromkeys(params, 0.0) if self.keeps_all else None

    def train(self, work: LocalWork) -> LocalResult:
        """Take the local steps; the result is private and leaves all the same.

        Raises:
            ValueError: a noise multiplier above 0.
        """
        if self.estimates is not None:
            return self.walk(forward_only(work.tunable), work)
        check_noise("none", "client", self.noise_multiplier)
        tally = Tally()
        update = plain_update(work, self.plan, self.sampling_rate, tally, None)
        noise_std = self.noise_std(update)
        if work.encoding is None:
            return tally.result(update, noise_std)
        rounding = work.streams("round", self.plan.count)
        code = encode_released_update(update, work.encoding, rounding=rounding)
        return tally.result(dict(code.tensors), noise_std)

    def walk(self, model: ForwardOnly, work: LocalWork) -> LocalResult:
        """Train like :meth:`ZerothOrder.walk`, without clipping and noise."""
        check_noise("none", "client", self.noise_multiplier)
        tally = Tally()
        estimates = self.estimates
        if estimates is None:
            raise ValueError("Expected model.access=black-box to train through outputs alone")
        return tally.result({NUMBERS: estimates.walk(model, work, plain_sum(tally), None)})


@dataclass(frozen=True)
class Kind:
    """One kind of mechanism.

    Attributes:
        name: of it.
        applies: whether it is the one that settings ask for.
        make: of settings (a silo's own), sampling rate and noise multiplier.
    """

    name: str
    applies: Callable[[Settings], bool]
    make: Callable[[Settings, float, float], Mechanism]


KINDS: list[Kind] = [
    Kind("dp-sgd", lambda settings: True, DpSgd.of),
    Kind("client-update", lambda settings: settings.privacy.unit == "client", ClientUpdate.of),
    Kind(
        "sum-share",
        lambda settings: settings.privacy.noise_by == "sum",
        lambda its, rate, noise: SumShare.of(
            StepPlan.of(its), its.privacy, its.secure, its.clipping, rate, noise
        ),
    ),
    Kind("zeroth-order", lambda settings: settings.model.access == "black-box", ZerothOrder.of),
    Kind("no-privacy", lambda settings: settings.privacy.mode == "none", NoPrivacy.of),
]
"""All kinds; the last one that applies is taken."""


def register_mechanism(kind: Kind) -> Callable[[], None]:
    """Add a kind of mechanism to this process, which comes before those there are.

    Returns:
        A function that takes it away again.

    Raises:
        ValueError: there is one of that name.
    """
    if kind.name in [known.name for known in KINDS]:
        raise ValueError(f"Expected a new name for a mechanism, got {kind.name!r}")
    KINDS.append(kind)
    return lambda: KINDS.remove(kind)


def make_mechanism(
    settings: Settings, *, sampling_rate: float, noise_multiplier: float
) -> Mechanism:
    """Return the mechanism that the settings ask for.

    Args:
        settings: the silo's own (``Settings.for_silo``).
        sampling_rate: of each example in a local step.
        noise_multiplier: noise standard deviation over sensitivity; 0 where it is not known yet.

    Raises:
        ValueError: no such mechanism; the message says why.
    """
    kind = next(kind for kind in reversed(KINDS) if kind.applies(settings))
    return kind.make(settings, sampling_rate, noise_multiplier)
