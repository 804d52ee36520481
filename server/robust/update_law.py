"""Bound the length of an honest silo's update, and refuse longer ones.

Guarantee: none of privacy (checks of released values are post-processing). What is proven is about honest silos, which
do as the settings say with the noise multiplier that they tell: whatever their data are, the probability that a run
refuses any of their updates for being longer than its law is at most `FALSE_REFUSALS`. The run's replies are its rounds
times its silos, R; each gets the exponent x = ln(R / FALSE_REFUSALS), so it is longer with probability at most exp(-x),
and the union over R replies adds up to `FALSE_REFUSALS`. A round that is repeated after a crash has replies of its own,
which add their share.

It holds for this length alone. An honest silo is refused with certainty, whatever its length, where it calibrates its noise
itself and that is above ``server.max_noise_ratio`` times the median silo's (below), and where its update is longer than
``server.max_update_norm``. `server.robust.limit_warnings` names the silos whose settings make the first likely; what earlier runs in a
silo's ledger and the budget of its config add to its noise, the server does not know.

An update's *length* is the L2 norm of all its tensors in the coordinates in which it is clipped (the prefix times
``privacy.prefix_scale``); with noise in the code or along random directions that of the code or the numbers.
:mod:`privacy.mechanisms.norm_tails` proves the tails. With clipping norm C, T local steps, learning rate r, divisor B, and k(x) the
largest sample at exponent x (from B alone: a Poisson batch has B records expected, or fewer; from rate times size where
``client.sampling_rate`` is set), each form has its law:

* *Unit example, SGD.* The update is -r/B times the sum over T steps of G_t + Z_t, ||G_t|| <= C n_t, n_t the step's sample:
  `walk` over steps of norm at most C k. For Gaussian noise also ||sum G_t|| + ||sum Z_t||, with sum Z_t ~ N(0, T s^2 I):
  the smaller of the two bounds, each at half the probability. So for perturbed gradients (clipped as any others; two
  sums of one step have sqrt(2) times the noise), and with adaptive clipping (C is the round's).
* *Unit example, Adam.* Whatever the gradients, a step moves a coordinate by at most r sqrt(sum_i w_i^2 / u_i), w and u the
  weights of past gradients and squares in Adam's bias-corrected means (Cauchy-Schwarz): exact, noise and all, and so
  without privacy as well.
* *Unit client.* ||clip(update)|| <= C, with noise by the client `NoiseLength.bound(C)`; with noise by the server C.
* *Through a model's outputs.* The T K numbers are T noisy vectors side by side.
* *Codecs.* Linear ones have orthonormal rows: what is decoded is the noisy sum's projection to k dimensions, which is no
  longer, and the projected noise is Gaussian in k dimensions. ``top-k`` leaves out. Rounding adds at most a share:
  stochastic rounding errs by less than the chunk's largest entry over 127 (8 bits) or 7 (4 bits), so a chunk of 256 by
  less than 16/127 or 16/7 of its length; float16 by 2^-11 of an entry, or 2^-25.

Where there is no law (`why_no_law`), ``server.max_update_norm`` is the only limit, and the run says so.

The noise multiplier is the silo's word, and a silo that calls its noise large raises its own limit. So it has to be
``privacy.noise_multiplier`` where that is set, and else at most ``server.max_noise_ratio`` times the median silo's (per
divisor): below half of hostile silos that is between honest ones. The standard deviation of an update's noise follows from
the multiplier: the server computes it, and a silo that tells another one is refused.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from fedllm.settings.experiment import Settings
from fedllm.settings.kinds import CODECS
from fedllm.settings.sections import ClientSettings
from fedllm.training.encoding import Encoding
from fedllm.training.gradients import gradient_scales
from fedllm.training.mechanism import Mechanism, make_mechanism
from fedllm.training.noise import Noise
from privacy.mechanisms.norm_tails import (
    GaussianLength,
    NoiseLength,
    ScalarLength,
    largest_sample,
    side_by_side,
    walk,
)
from server.aggregation import Contribution, UpdateRefused

FALSE_REFUSALS = 1e-6
"""Probability at most that a run refuses any honest update for being longer than its law."""
_SLACK = 1e-3  # relative, for float32 and for rows that are orthonormal to 1e-6
_ROUNDING = {8: 16 / 127, 4: 16 / 7, 16: 2.0**-11}
_EPSILON = 2.0**-23  # float32, of an entry of the parameters
_SAME = 1e-4  # relative, between what two machines compute of one formula
_ADAM = (0.9, 0.999)  # torch's betas, with which the silos train


def why_no_law(settings: Settings, examples: int | None) -> str | None:
    """Return the reason why the length of a silo's update has no bound, or None if it has one.

    Args:
        settings: the silo's own (``Settings.for_silo``).
        examples: its public number of examples; None where it is private.
    """
    privacy, client, codec = settings.privacy, settings.client, settings.codec
    if not CODECS[codec.name].bounded:
        return f"codec.name={codec.name} may lengthen an update by no known factor"
    by_adam = client.optimizer == "adam" and settings.model.access == "white-box"
    if privacy.mode == "none" and not by_adam:
        return "privacy.mode=none clips nothing"
    if privacy.mode == "dp" and privacy.unit == "client":
        return None
    if client.sampling_rate is not None and examples is None and not by_adam:
        return "data.sizes=private leaves the number of examples in a step unknown"
    return None


class MadeLaw(NamedTuple):
    """The computed law of one silo's updates, valid while it reports the same noise multiplier.

    Attributes:
        settings: the run's; numbers: noise multiplier, clipping norm, and what else decides.
        trained: names of the tensors that the round trains.
        length: that an honest silo's steps exceed with the probability of `UpdateLaw.limit`; None without a law.
        noise_std: of each entry of its update, as the server computes it.
    """

    settings: Settings
    numbers: tuple[float, float, int, int]
    trained: tuple[str, ...]
    length: float | None
    noise_std: dict[str, float] | None


@dataclass(frozen=True)
class UpdateLaw:
    """The laws of one round's updates.

    Attributes:
        settings: the run's.
        clip: its clipping norm.
        replies: rounds of the run times its silos.
        params: the global parameters.
        sizes: the silos' public numbers of examples, where they are known.
        encoding: the codec, where there is one.
        made: each silo's mechanism with the numbers that it was made for; kept between rounds.
    """

    settings: Settings
    clip: float
    replies: int
    params: Mapping[str, Tensor]
    sizes: Mapping[str, int | None]
    encoding: Encoding | None = None
    made: dict[str, MadeLaw] = field(default_factory=dict)

    def check(self, found: Sequence[Contribution]) -> tuple[list[Contribution], dict[str, str]]:
        """The contributions that are within their laws, and why the others are not, by silo.

        What stays has the noise that the server computes for it in the place of what the silo told.
        """
        own = dict.fromkeys([c.silo for c in found], self.settings)
        if self.settings.privacy.silos:
            own = {silo: self.settings.for_silo(silo) for silo in own}
        told = [c for c in found if math.isfinite(c.noise_multiplier)]
        shares = [c.noise_multiplier / _noise_divisor(own[c.silo]) for c in told]
        median = statistics.median_high(shares) if told else 0.0  # of two the larger
        kept, refused = [], {}
        for contribution in found:
            try:
                kept.append(self._checked(contribution, own[contribution.silo], median))
            except UpdateRefused as error:
                refused[contribution.silo] = str(error)
        return kept, refused

    def limit(self, silo: str, noise_multiplier: float) -> float | None:
        """The length that an honest update exceeds with probability at most `FALSE_REFUSALS` / `replies`; None
        where there is no law.

        Raises:
            ValueError: a noise multiplier that no noise has.
        """
        settings = self.settings.for_silo(silo)
        return self._limit(settings, self._made(silo, settings, noise_multiplier))

    def _limit(self, settings: Settings, made: MadeLaw) -> float | None:
        length = made.length
        if length is None:
            return None
        if settings.model.access == "black-box":
            return length * (1 + _SLACK)
        # The update is a difference of float32 parameters: each step rounds every entry once.
        drift = (settings.client.local_steps + 1) * _EPSILON * (self._largest + length)
        return self._rounded(length * (1 + _SLACK) + drift)

    def length(self, update: Mapping[str, Tensor]) -> float:
        """The length of a contribution's update."""
        scales = self._scales
        return math.sqrt(
            sum(
                float((value.double() * scales.get(n, 1.0)).square().sum())
                for n, value in update.items()
            )
        )

    # -- inside ----------------------------------------------------------------------------------

    @cached_property
    def _scales(self) -> dict[str, float]:
        return gradient_scales(self.settings.privacy.prefix_scale, self.params)

    @cached_property
    def _largest(self) -> float:
        """Length of the global parameters."""
        return self.length(self.params)

    def _made(self, silo: str, own: Settings, noise_multiplier: float) -> MadeLaw:
        """Compute a silo's law, or return the one of an earlier round if its numbers are the same."""
        numbers = (noise_multiplier, self.clip, self.replies, self._noisy)
        made, trained = self.made.get(silo), tuple(sorted(self.params))
        same = made is not None and (made.numbers, made.trained) == (numbers, trained)
        if made is None or made.settings is not self.settings or not same:
            made = self.made[silo] = self._make(silo, own, numbers)
        return made

    def _make(
        self, silo: str, settings: Settings, numbers: tuple[float, float, int, int]
    ) -> MadeLaw:
        examples = self.sizes.get(silo)
        exponent = math.log(self.replies / FALSE_REFUSALS)
        # A silo's sampling rate changes nothing here.
        mechanism = make_mechanism(settings, sampling_rate=1.0, noise_multiplier=numbers[0])
        mechanism = mechanism.at_clip(self.clip if mechanism.adaptive else None)
        length: float | None
        if why_no_law(settings, examples) is not None or is_unknown(mechanism):
            length = None
        elif settings.model.access == "black-box":
            length = self._numbers(settings, mechanism, examples, exponent)
        elif settings.privacy.mode == "dp" and settings.privacy.unit == "client":
            length = self._client(mechanism, exponent)
        elif settings.client.optimizer == "adam":
            length = _adam(settings, self.params, self._scales)
        else:
            length = self._steps(settings, mechanism, examples, exponent)
        trained = tuple(sorted(self.params))
        return MadeLaw(self.settings, numbers, trained, length, mechanism.noise_std(self.params))

    @cached_property
    def _by_silos(self) -> bool:
        """True if the silos add the noise."""
        privacy = self.settings.privacy
        return privacy.mode == "dp" and privacy.noise_by == "client"

    def _checked(self, contribution: Contribution, own: Settings, median: float) -> Contribution:
        silo, noise = contribution.silo, contribution.noise_multiplier
        if self._by_silos:
            self._check_noise(contribution, own, median)
        try:
            made = self._made(silo, own, noise)
            limit, length = self._limit(own, made), self.length(contribution.update)
        except (ValueError, ArithmeticError) as error:
            raise UpdateRefused(f"Expected a mechanism with a bound, got {error}") from None
        if limit is not None and length > limit:
            raise UpdateRefused(
                f"Expected an update of norm at most {limit:.6g}, which an honest one of this run exceeds with "
                f"probability below {FALSE_REFUSALS:g} in all rounds and silos together, got {length:.6g}"
            )
        return self._with_own_noise(contribution, made.noise_std)

    def _check_noise(self, contribution: Contribution, own: Settings, median: float) -> None:
        noise = contribution.noise_multiplier
        if not (math.isfinite(noise) and noise > 0):
            raise UpdateRefused(
                f"Expected a finite noise-multiplier > 0 for privacy.mode=dp, got {noise}"
            )
        most = self.settings.server.max_noise_ratio
        given = own.privacy.noise_multiplier
        if given is not None:
            if not math.isclose(noise, given, rel_tol=_SAME):
                raise UpdateRefused(
                    f"Expected the noise-multiplier of privacy.noise_multiplier={given:g}, got {noise:g}"
                )
            return
        # Per divisor, since that is what the noise is in the update. The median is honest while fewer
        # than half of the silos are hostile.
        share = noise / _noise_divisor(own)
        if share > most * median:
            raise UpdateRefused(
                f"Expected noise at most server.max_noise_ratio={most:g} times the median silo's, got "
                f"{share / median:.3g} times (noise-multiplier {noise:g})"
            )

    def _with_own_noise(
        self, contribution: Contribution, std: Mapping[str, float] | None
    ) -> Contribution:
        """With the noise that the settings and the multiplier give each entry of the update, told or not: a silo that
        tells none leaves the correction of the others as it is.

        Raises:
            UpdateRefused: the silo told another one.
        """
        if self.settings.privacy.noise_by == "server":
            return contribution
        for name, told in (contribution.noise_std or {}).items():
            if std is not None and not math.isclose(told, std[name], rel_tol=_SAME):
                raise UpdateRefused(
                    f"Expected noise-std.{name}={std[name]:.6g} for the noise-multiplier "
                    f"{contribution.noise_multiplier:g}, got {told:.6g}"
                )
        return replace(contribution, noise_std=None if std is None else dict(std))

    @cached_property
    def _trained(self) -> int:
        return sum(value.numel() for value in self.params.values())

    @cached_property
    def _noisy(self) -> int:
        """Dimensions of the noise in what is decoded: those of the code where it is there, or a projection that
        Gaussian noise does not notice."""
        if self.encoding is None:
            return self._trained
        codec, gaussian = self.encoding.codec, self.settings.privacy.mechanism == "gaussian"
        fewer = self.encoding.in_code or (gaussian and codec.linear)
        return codec.code_dimension if fewer else self._trained

    def _steps(
        self, settings: Settings, mechanism: Mechanism, examples: int | None, exponent: float
    ) -> float:
        client, steps, clip = settings.client, settings.client.local_steps, mechanism.clip
        noise = noise_on(mechanism.release_noise(), clip, self._noisy)
        half = exponent + math.log(4)  # samples and noise, in two bounds
        step = clip * most_of(client, examples, 1, half + math.log(steps))
        # Two bounds for the sum of T noisy steps, each valid; the smaller one counts. The first lets data
        # follow the noise step by step; the second needs Gaussian noise, whose sum is one Gaussian
        # whatever the data, and then bounds the sampled records of all steps together.
        found = walk(noise, step, steps, half)
        if isinstance(noise, GaussianLength):
            added = GaussianLength(noise.dimension, noise.std * math.sqrt(steps)).bound(0.0, half)
            found = min(found, added + clip * most_of(client, examples, steps, half))
        return found * client.learning_rate / _divisor(client)

    def _client(self, mechanism: Mechanism, exponent: float) -> float:
        if self.settings.privacy.noise_by == "server":
            return mechanism.clip
        noise = noise_on(mechanism.release_noise(), mechanism.clip, self._noisy)
        return noise.bound(mechanism.clip, exponent)

    def _numbers(
        self, settings: Settings, mechanism: Mechanism, examples: int | None, exponent: float
    ) -> float:
        """Return the bound for the scalar estimates along random directions."""
        steps, count = settings.client.local_steps, settings.zeroth_order.directions
        noise, clip = mechanism.release_noise(), mechanism.clip
        alone = noise is not None and noise.alone
        if settings.privacy.unit == "client":
            length = clip * (math.sqrt(steps * count) if alone else 1.0)
            if settings.privacy.noise_by == "server":
                return length
            return noise_on(noise, clip, steps * count).bound(length, exponent)
        half = exponent + math.log(2)  # samples and noise
        batches = steps * (count if alone else 1)
        most = clip * most_of(settings.client, examples, 1, half + math.log(batches))
        length = most * (math.sqrt(count) if alone else 1.0)
        found = side_by_side(noise_on(noise, clip, count), length, steps, half)
        return found / _divisor(settings.client)

    def _rounded(self, length: float) -> float:
        """The length after the codec's number format."""
        codec = self.settings.codec
        bits = {"fp16": 16, "int8": 8}.get(codec.name, codec.bits)
        least = 2.0**-25 * math.sqrt(self._trained) if bits == 16 else 0.0
        return length * (1 + _ROUNDING.get(bits, 0.0)) + least


def is_unknown(mechanism: Mechanism) -> bool:
    """Return True if a mechanism of another package releases something else than clipped vectors with noise."""
    return mechanism.private and mechanism.release_noise() is None


def _divisor(client: ClientSettings) -> float:
    """Return the divisor of each gradient sum; also the expected number of records in a batch, if no rate is set."""
    return float(client.batch_size or 1)


def _noise_divisor(own: Settings) -> float:
    """Return the divisor by which the reported noise of silos is compared."""
    return 1.0 if own.privacy.unit == "client" else float(own.client.batch_size or 1)


def noise_on(noise: Noise | None, clip: float, dimension: int) -> NoiseLength:
    """The noise of :meth:`fedllm.training.noise.Noise.add` on so many coordinates, clipping norm included.

    Raises:
        ValueError: a noise multiplier that no noise has, or none at all.
    """
    if noise is None:
        raise ValueError("Expected a mechanism with noise, got one without")
    scaled = noise.scaled
    if scaled is None:
        return GaussianLength(dimension, noise.multiplier * clip)
    return ScalarLength(dimension, scaled.scaled(clip))


def most_of(client: ClientSettings, examples: int | None, steps: int, exponent: float) -> float:
    """Records in the samples of so many steps together at most, but with probability exp(-exponent).

    Raises:
        ValueError: ``why_no_law``.
    """
    expected, most = _divisor(client), float(client.max_batch or math.inf)
    if client.sampling_rate is not None:
        if examples is None:
            raise ValueError("Expected a public number of examples, got none")
        expected, most = client.sampling_rate * examples, min(most, float(examples))
    return min(most * steps, largest_sample(expected * steps, exponent))


def adam_travel(steps: int) -> float:
    """Return the largest change of a coordinate in so many steps of Adam, in learning rates.

    Step t moves it by m / sqrt(v), m = sum w_i g_i and v = sum u_i g_i^2 over i <= t with w_i = (1 - b1) b1^(t-i) / (1 -
    b1^t) and u_i the same with b2; m^2 <= (sum w_i^2 / u_i) v by Cauchy-Schwarz, and Adam's epsilon makes it less.
    """
    first, second = _ADAM
    total = 0.0
    for t in range(1, steps + 1):
        ages = torch.arange(t, dtype=torch.float64)
        w = (1 - first) * first**ages / (1 - first**t)
        u = (1 - second) * second**ages / (1 - second**t)
        total += math.sqrt(float((w * w / u).sum()))
    return total


def _adam(settings: Settings, params: Mapping[str, Tensor], scales: Mapping[str, float]) -> float:
    energy = sum(scales[name] ** 2 * value.numel() for name, value in params.items())
    reach = adam_travel(settings.client.local_steps)
    return settings.client.learning_rate * reach * math.sqrt(energy)
