"""Noise by a trusted server, at client level: clip, sum, record, add noise, divide.

Guarantee (unit ``client``, against outsiders; none against the server, which sees each update): the
released mean is a Gaussian mechanism of sensitivity ``clip`` on the sum of the updates, with Poisson
sampling of the silos where ``server.sampling = "poisson"``, each release of a draw of its own (:mod:`fedllm.budget.round_draws`). The divisor is the *expected* number of
silos, whatever the number that answered, and an empty round still releases its noise.
The statistics before training are one more such sum: of all silos' statistics, without sampling, each
of norm at most 1 (:mod:`fedllm.codec.statistics`), with noise of ``codec.statistics_noise``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fedllm.budget.account import SiloAccount
from fedllm.budget.accounts import spend_together
from fedllm.budget.release_id import Fingerprinted, params_digest, release_key, settings_digest
from fedllm.budget.round_draws import RoundDraws, draws_afresh
from fedllm.messages import BELOW
from fedllm.settings.experiment import Settings
from fedllm.training.mechanism import CentralMechanism, Mechanism, make_mechanism
from fedllm.training.steps import split_like
from privacy.budget import BudgetExceeded
from privacy.ledger.ledger import Ledger
from privacy.mechanisms.adaptive_clipping import SENSITIVITY
from privacy.mechanisms.clipping import clip_vector
from privacy.mechanisms.gaussian import add_gaussian
from privacy.randomness import RandomSource, generator
from server.aggregation import Contribution, MeanUpdate, clip_update, mean_update
from server.extensions.base import RoundExtension, ServerRun, Tensors
from server.replies.training import TrainingForm

_DRAW = "draw-"
Clip = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class SumInputs(Fingerprinted):
    """All inputs of the value of one noisy sum. A repeated round with other replies is another release, with other
    noise and another key; so is the same sum with noise of another size, which equal settings reach with another
    history.

    Attributes:
        purpose, server_round, settings, params: which release; digests of settings and parameters.
        total, count: digest of the sum, and the centred count of adaptive clipping (0 for none).
        noise_multiplier, clip, expected: the noise's size and the divisor.
    """

    purpose: str
    server_round: int
    settings: str
    params: str
    total: str
    count: float
    noise_multiplier: float
    clip: float
    expected: float


class CentralRelease:
    """Adds the noise for all silos together.

    Args:
        settings: unit client, noise by the server.
        run: the run's id.
        silos: names of all silos that could be drawn.
        planned: rounds in which each silo counts: all with Poisson sampling (being left out is
            part of the mechanism), its own with fixed sampling.
        draws: the silos of each round.
        ledger: the server's ledger.

    Attributes:
        clip: clipping norm of the updates that the next release is given; adaptive clipping moves it.
        below: adaptive clipping: noisy share of the last release's updates with norm at most ``clip``; else None.
        left: why a silo takes no part (any more), by name: its budget is spent. Its update is not in
            the sum, and no row counts it.

    Raises:
        ValueError: no noise multiplier reaches the target.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        run: str,
        silos: Sequence[str],
        draws: RoundDraws,
        ledger: Ledger,
    ) -> None:
        self.settings = settings
        self.draws = draws
        self.poisson = settings.server.sampling == "poisson"
        self.expected = settings.server.fraction * len(silos)
        if draws.rows is not None and not self.poisson:
            self.expected = float(len(draws.rows[0]))
        rounds = draws.rounds if self.poisson else max(draws.planned(name) for name in silos)
        self.clip = settings.privacy.clip
        self.below: float | None = None
        self.left: dict[str, str] = {}
        self.accounts: dict[str, SiloAccount] = {}
        for name in sorted(silos):
            try:
                self.accounts[name] = SiloAccount(
                    settings, run=run, party=name, examples=1, rounds=rounds, ledger=ledger
                )
            except BudgetExceeded as error:  # other runs have spent it
                self.left[name] = str(error)
        # One noise for the sum: the largest that any silo's history asks for; that of the plans once there are
        # any. A silo without one that asks for more leaves at its first round.
        planned = [n for a in self.accounts.values() if (n := a.book.stored_noise()) is not None]
        asked = planned or [a.noise_multiplier for a in self.accounts.values()]
        self.noise_multiplier = max(asked, default=0)
        for account in self.accounts.values():
            account.noise_multiplier = self.noise_multiplier
        self._released: dict[str, set[str]] = {}  # keys by draw
        if draws_afresh(settings) and settings.privacy.randomness == "seeded":
            for entry in ledger.entries():
                self._released.setdefault(entry.key.rpartition(_DRAW)[2], set()).add(entry.key)

    def release(
        self,
        server_round: int,
        clipped: Sequence[Contribution],
        params: Mapping[str, Tensor],
        like: Mapping[str, Tensor] | None = None,
    ) -> tuple[list[str], dict[str, Tensor] | None, dict[str, float] | None]:
        """Return the noisy mean of updates of norm at most ``clip`` each, and whom it is counted for.

        A silo whose budget does not allow the round leaves, and its update is left out. All are asked
        and recorded together, or none: the sum, and so the release, depends on who leaves.

        Args:
            params: the global parameters, which name the release.
            like: shapes of what is summed, where it is not the updates but their codes (whose norm
                is what ``clip`` bounds then): the noise lives in the code's dimensions.

        Returns:
            Names of the silos that the release is counted for, the mean and its noise's standard
            deviation; the latter two are None, and nothing was released, where all of them left.
        """
        self.below = None
        counted = list(self.accounts)
        if self.draws.rows is not None and not self.poisson:
            counted = self.draws.rows[server_round - 1]
        while counted := [name for name in counted if name not in self.left]:
            staying = [c for c in clipped if c.silo not in self.left]
            total, _ = mean_update(staying, params if like is None else like, 1.0)
            count = self._count(staying)
            digest = self._digest("train", server_round, total, params, count)
            for name in counted:
                self.accounts[name].clip = self.clip
            key = release_key(self.settings, "train", server_round, digest) + self._draw_name()
            parties = [self.accounts[name] for name in counted]
            with self._without_amplification(parties, key):
                refused = spend_together(parties, server_round, key)
            if not refused:
                self._released.setdefault(key.rpartition(_DRAW)[2], set()).add(key)
                self.below = self._noisy_share(server_round, digest, count)
                return counted, *self._noisy_mean(server_round, digest, total)
            self.left |= {account.party: str(error) for account, error in refused.items()}
        return [], None, None

    def _draw_name(self) -> str:
        """Return the end of the key of a release of a Poisson sample: which draw it is of; empty for none."""
        if not draws_afresh(self.settings):
            return ""
        if not self.draws.draw:
            raise ValueError("Expected a draw of the silos before the release of its sum, got none")
        return f"/{_DRAW}{self.draws.draw[:32]}"

    @contextmanager
    def _without_amplification(self, accounts: Sequence[SiloAccount], key: str) -> Iterator[None]:
        """Count a draw's second release as a Gaussian without sampling.

        It happens with seeded randomness alone, where a round is repeated and its replies differ. Proof
        that the sum is a bound: given the first release, the silo is in the sample with some probability q';
        N(1) with probability q', else N(0), against N(0), is a post-processing of N(1) against N(0) (keep
        the value with probability q', else draw N(0)), so the unsampled Gaussian dominates the second
        release for every outcome of the first, and adaptive composition holds.
        """
        _, mark, draw = key.rpartition(_DRAW)
        if not mark or not self._released.get(draw, set()) - {key}:
            yield
            return
        before = [account.mechanism for account in accounts]
        for account in accounts:
            account.mechanism = _central(account.mechanism).unsampled()
        try:
            yield
        finally:
            for account, mechanism in zip(accounts, before, strict=True):
                account.mechanism = mechanism

    def release_statistics(
        self, received: Mapping[str, Tensor], size: int, params: Mapping[str, Tensor]
    ) -> tuple[list[str], Tensor | None]:
        """Return the noisy mean of the silos' statistics, and whom it is counted for: all that were asked.

        Each is clipped to norm 1 here, whatever the silo says. Noise of standard deviation
        ``codec.statistics_noise`` is added to the sum, once; the divisor is the number of silos in the
        run, whatever the number that answered. As in :meth:`release`, a silo whose budget refuses
        leaves, and all are recorded together before the noise is drawn, or none.

        Args:
            received: statistics [size] by silo, of those that answered.
            size: of the statistic.
            params: the point of the statistics, which names the release.

        Returns:
            Names of the silos that it is counted for, and the mean, float64 [size]; None where all left.
        """
        settings, everybody = self.settings, len(self.accounts)
        while counted := [name for name in self.accounts if name not in self.left]:
            rows = [clip_vector(received[name], 1.0)[0] for name in counted if name in received]
            total = torch.stack([torch.zeros(size), *rows]).double().sum(0)
            digest = self._digest("statistics", 0, {"statistics": total}, params)
            key = release_key(settings, "statistics", 0, digest)
            accounts = [self.accounts[name] for name in counted]
            refused = spend_together(accounts, 0, key, statistics=True)
            self.left |= {account.party: str(error) for account, error in refused.items()}
            if refused:
                continue
            rng = self._stream("trusted-statistics", digest)
            noisy = add_gaussian(total, 1.0, settings.codec.statistics_noise, rng)
            return counted, noisy / everybody
        return [], None

    def _stream(self, *labels: str | int) -> RandomSource:
        """Return the noise stream: secret or, with seeded randomness, a function of the labels."""
        seeded = self.settings.privacy.randomness == "seeded"
        return generator(self.settings.seed, *labels) if seeded else generator(None)

    def _digest(
        self,
        purpose: str,
        server_round: int,
        total: Mapping[str, Tensor],
        params: Mapping[str, Tensor],
        count: float = 0.0,
    ) -> str:
        """Return the name of a release: with seeded randomness the fingerprint of all its inputs."""
        if self.settings.privacy.randomness == "os":
            return params_digest(params)
        return SumInputs(
            purpose=purpose,
            server_round=server_round,
            settings=settings_digest(self.settings),
            params=params_digest(params),
            total=params_digest(total),
            count=count,
            noise_multiplier=float(self.noise_multiplier),
            clip=float(self.clip),
            expected=float(self.expected),
        ).fingerprint()

    def _noisy_mean(
        self, server_round: int, digest: str, total: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        mechanism = self._mechanism()
        labels = ("trusted-noise", server_round, digest)
        rng = self._stream(*labels)
        flat = torch.cat([total[name].reshape(-1) for name in sorted(total)])
        flat = _central(mechanism).add_noise(flat, rng) / self.expected
        mean = dict(zip(sorted(total), split_like(flat, total), strict=True))
        noise = mechanism.release_noise()
        std = math.nan if noise is None else noise.std * mechanism.clip / self.expected
        return mean, dict.fromkeys(mean, std)

    def _mechanism(self) -> Mechanism:
        """Return the mechanism of the sum over the silos, at the round's clipping norm."""
        mechanism = make_mechanism(
            self.settings, sampling_rate=1.0, noise_multiplier=self.noise_multiplier
        )
        return mechanism.at_clip(self.clip if mechanism.adaptive else None)

    def _count(self, staying: Sequence[Contribution]) -> float:
        """Return the centred count of the silos' bits, each bounded here, whatever the silo says; private."""
        if not self._mechanism().adaptive:
            return 0.0
        told = [c.shares[BELOW] for c in staying if BELOW in c.shares]
        bits = [min(1.0, max(0.0, bit)) for bit in told]
        return sum(bits) - SENSITIVITY * len(bits)

    def _noisy_share(self, server_round: int, digest: str, count: float) -> float | None:
        """Return the noisy share of a centred count; its event is in the row of the round."""
        if not self._mechanism().adaptive:
            return None
        rng = self._stream("trusted-count", server_round, digest)
        return _central(self._mechanism()).noisy_share(count, self.expected, rng)


def make_central_release(
    settings: Settings,
    *,
    run: str,
    silos: Sequence[str],
    draws: RoundDraws,
    ledger: Ledger | Path,
) -> CentralRelease | None:
    """Return the object that adds a run's noise for all silos together; None where the silos add it, or nobody does.

    Args:
        ledger: the server's ledger, open, or its path.

    Raises:
        ValueError: as for :class:`CentralRelease`.
    """
    if settings.privacy.mode == "none" or settings.privacy.noise_by != "server":
        return None
    opened = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
    return CentralRelease(settings, run=run, silos=silos, draws=draws, ledger=opened)


def _central(mechanism: Mechanism) -> CentralMechanism:
    if not isinstance(mechanism, CentralMechanism):
        raise ValueError(f"Expected a mechanism whose noise a server can add, got {mechanism}")
    return mechanism


class CentralNoise(RoundExtension):
    """Clips what the silos sent, and releases its noisy mean.

    Args:
        trusted: records and adds the noise.
        clip: clips one silo's message instead of :func:`server.aggregation.clip_update`.
        releases: noisy vectors in one silo's message.
    """

    def __init__(
        self, trusted: CentralRelease, clip: Clip | None = None, releases: int = 1
    ) -> None:
        self.trusted = trusted
        self.clip = clip
        self.releases = releases

    def join(self, run: ServerRun) -> None:
        super().join(run)
        run.left.update(self.trusted.left)

    def keep_layers(self, layers: Sequence[int]) -> None:
        self.trusted.settings = self.run.settings

    def reply_form(self, form: TrainingForm) -> TrainingForm:
        return replace(form, smallest_noise=0.0, counts=False)

    def combine(
        self, server_round: int, accepted: Sequence[Contribution], like: Tensors
    ) -> MeanUpdate:
        """Return the noisy mean. Silos whose budget allows no other round leave the run, and are not in it."""
        run, trusted = self.run, self.trusted
        trusted.left.update(run.left)
        trusted.clip = run.clip
        clipped = [
            Contribution(c.silo, self._clipped(c.update), None, shares=c.shares) for c in accepted
        ]
        counted, mean, std = trusted.release(server_round, clipped, run.model.params, like)
        run.left.update(trusted.left)
        for name in counted:
            run.spending.add_training(
                name,
                server_round,
                sampling_rate=run.settings.server.fraction if trusted.poisson else 1.0,
                noise_multiplier=trusted.noise_multiplier,
                steps=self.releases,
            )
        shares = {} if trusted.below is None else {BELOW: [trusted.below]}
        return MeanUpdate(mean, std, shares)

    def _clipped(self, update: dict[str, Tensor]) -> dict[str, Tensor]:
        return clip_update(update, self.run.clip) if self.clip is None else self.clip(update)
