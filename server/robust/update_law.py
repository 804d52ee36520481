"""How long an honest silo's update can be, and the refusal of longer ones.

Guarantee: none of privacy (checks of released values are post-processing). What is proven is about honest silos, which
do as the settings say with the noise multiplier that they tell: whatever their data are, the probability that a run
refuses any of their updates for being longer than its law is at most `FALSE_REFUSALS`. The run's replies are its rounds
times its silos, R; each gets the exponent x = ln(R / FALSE_REFUSALS), so it is longer with probability at most exp(-x),
and the union over R replies adds up to `FALSE_REFUSALS`. A round that is repeated after a crash has replies of its own,
which add their share.

It holds for this length alone. An honest silo is refused with certainty, whatever its length, where it calibrates its noise
itself and that is above ``server.max_noise_ratio`` times the median silo's (below), and where its update is longer than
``server.max_update_norm``. `limit_warnings` names the silos whose settings make the first likely; what earlier runs in a
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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedllm.budget.account import sampling_rate
from fedllm.settings.checks.black_box import noises_numbers
from fedllm.settings.experiment import Settings
from fedllm.settings.kinds import CODECS
from fedllm.training.adaptive_clip import is_adaptive
from fedllm.training.encoding import Encoding, gradient_scales
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
_SHOWN = 5  # names in a warning
_ADAM = (0.9, 0.999)  # torch's betas, with which the silos train


def why_no_law(settings: Settings, examples: int | None) -> str | None:
    """Why the length of a silo's update has no bound; None where it has one.

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
    """

    settings: Settings
    clip: float
    replies: int
    params: Mapping[str, Tensor]
    sizes: Mapping[str, int | None]
    encoding: Encoding | None = None

    def judge(self, found: Sequence[Contribution]) -> tuple[list[Contribution], dict[str, str]]:
        """The contributions that are within their laws, and why the others are not, by silo.

        What stays has the noise that the server computes for it in the place of what the silo told.
        """
        median = self._median_noise(found)
        kept, refused = [], {}
        for contribution in found:
            try:
                kept.append(self._checked(contribution, median))
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
        examples = self.sizes.get(silo)
        if why_no_law(settings, examples) is not None:
            return None
        mechanism = self._mechanism(settings, noise_multiplier)
        if _is_unknown(mechanism):
            return None
        exponent = math.log(self.replies / FALSE_REFUSALS)
        if settings.model.access == "black-box":
            return self._numbers(settings, mechanism, examples, exponent) * (1 + _SLACK)
        scales = gradient_scales(settings.privacy.prefix_scale, self.params)
        if settings.privacy.mode == "dp" and settings.privacy.unit == "client":
            length = self._client(mechanism, exponent)
        elif settings.client.optimizer == "adam":
            length = _adam(settings, self.params, scales)
        else:
            length = self._steps(settings, mechanism, examples, exponent)
        largest = math.sqrt(
            sum(float((p.double() * scales[n]).square().sum()) for n, p in self.params.items())
        )
        # The update is a difference of float32 parameters: each step rounds every entry once.
        drift = (settings.client.local_steps + 1) * _EPSILON * (largest + length)
        return self._rounded(length * (1 + _SLACK) + drift)

    def length(self, update: Mapping[str, Tensor]) -> float:
        """The length of a contribution's update."""
        scales = gradient_scales(self.settings.privacy.prefix_scale, update)
        return math.sqrt(
            sum(float((value.double() * scales[n]).square().sum()) for n, value in update.items())
        )

    # -- inside ----------------------------------------------------------------------------------

    def _mechanism(self, own: Settings, noise_multiplier: float) -> Mechanism:
        """A silo's mechanism of the round; its sampling rate changes nothing here."""
        mechanism = make_mechanism(own, sampling_rate=1.0, noise_multiplier=noise_multiplier)
        return mechanism.at_clip(self.clip if is_adaptive(own) else None)

    @property
    def _by_silos(self) -> bool:
        """Whether the silos add the noise."""
        privacy = self.settings.privacy
        return privacy.mode == "dp" and privacy.noise_by == "client"

    def _median_noise(self, found: Sequence[Contribution]) -> float:
        """The median (of two the larger) of the noise that silos tell, per divisor of their sums."""
        told = [self._per_divisor(c) for c in found if math.isfinite(c.noise_multiplier)]
        return statistics.median_high(told) if told else 0.0

    def _per_divisor(self, contribution: Contribution) -> float:
        if self.settings.privacy.unit == "client":
            return contribution.noise_multiplier
        return contribution.noise_multiplier / _divisor(self.settings.for_silo(contribution.silo))

    def _checked(self, contribution: Contribution, median: float) -> Contribution:
        silo, noise = contribution.silo, contribution.noise_multiplier
        if self._by_silos:
            self._check_noise(contribution, median)
        try:
            limit, length = self.limit(silo, noise), self.length(contribution.update)
        except (ValueError, ArithmeticError) as error:
            raise UpdateRefused(f"Expected a mechanism with a bound, got {error}") from None
        if limit is not None and length > limit:
            raise UpdateRefused(
                f"Expected an update of norm at most {limit:.6g}, which an honest one of this run exceeds with "
                f"probability below {FALSE_REFUSALS:g} in all rounds and silos together, got {length:.6g}"
            )
        return self._with_own_noise(contribution)

    def _check_noise(self, contribution: Contribution, median: float) -> None:
        silo, noise = contribution.silo, contribution.noise_multiplier
        if not (math.isfinite(noise) and noise > 0):
            raise UpdateRefused(
                f"Expected a finite noise-multiplier > 0 for privacy.mode=dp, got {noise}"
            )
        most, own = self.settings.server.max_noise_ratio, self.settings.for_silo(silo)
        given = own.privacy.noise_multiplier
        if given is not None:
            if not math.isclose(noise, given, rel_tol=_SAME):
                raise UpdateRefused(
                    f"Expected the noise-multiplier of privacy.noise_multiplier={given:g}, got {noise:g}"
                )
            return
        share = self._per_divisor(contribution)
        if share > most * median:
            raise UpdateRefused(
                f"Expected noise at most server.max_noise_ratio={most:g} times the median silo's, got "
                f"{share / median:.3g} times (noise-multiplier {noise:g})"
            )

    def _with_own_noise(self, contribution: Contribution) -> Contribution:
        """With the noise that the settings and the multiplier give each entry of the update, told or not: a silo that
        tells none leaves the correction of the others as it is.

        Raises:
            UpdateRefused: the silo told another one.
        """
        if self.settings.privacy.noise_by == "server":
            return contribution
        own = self.settings.for_silo(contribution.silo)
        mechanism = self._mechanism(own, contribution.noise_multiplier)
        std = mechanism.noise_std(self.params)
        for name, told in (contribution.noise_std or {}).items():
            if std is not None and not math.isclose(told, std[name], rel_tol=_SAME):
                raise UpdateRefused(
                    f"Expected noise-std.{name}={std[name]:.6g} for the noise-multiplier "
                    f"{contribution.noise_multiplier:g}, got {told:.6g}"
                )
        return replace(contribution, noise_std=std)

    @property
    def _trained(self) -> int:
        return sum(value.numel() for value in self.params.values())

    @property
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
        step = clip * most_of(settings, examples, 1, half + math.log(steps))
        found = walk(noise, step, steps, half)
        if isinstance(noise, GaussianLength):
            added = GaussianLength(noise.dimension, noise.std * math.sqrt(steps)).bound(0.0, half)
            found = min(found, added + clip * most_of(settings, examples, steps, half))
        return found * client.learning_rate / _divisor(settings)

    def _client(self, mechanism: Mechanism, exponent: float) -> float:
        if self.settings.privacy.noise_by == "server":
            return mechanism.clip
        noise = noise_on(mechanism.release_noise(), mechanism.clip, self._noisy)
        return noise.bound(mechanism.clip, exponent)

    def _numbers(
        self, settings: Settings, mechanism: Mechanism, examples: int | None, exponent: float
    ) -> float:
        """Of the numbers along random directions."""
        steps, count = settings.client.local_steps, settings.zeroth_order.directions
        alone = noises_numbers(settings)
        noise, clip = mechanism.release_noise(), mechanism.clip
        if settings.privacy.unit == "client":
            length = clip * (math.sqrt(steps * count) if alone else 1.0)
            if settings.privacy.noise_by == "server":
                return length
            return noise_on(noise, clip, steps * count).bound(length, exponent)
        half = exponent + math.log(2)  # samples and noise
        batches = steps * (count if alone else 1)
        most = clip * most_of(settings, examples, 1, half + math.log(batches))
        length = most * (math.sqrt(count) if alone else 1.0)
        found = side_by_side(noise_on(noise, clip, count), length, steps, half)
        return found / _divisor(settings)

    def _rounded(self, length: float) -> float:
        """The length after the codec's number format."""
        codec = self.settings.codec
        bits = {"fp16": 16, "int8": 8}.get(codec.name, codec.bits)
        least = 2.0**-25 * math.sqrt(self._trained) if bits == 16 else 0.0
        return length * (1 + _ROUNDING.get(bits, 0.0)) + least


def _is_unknown(mechanism: Mechanism) -> bool:
    """Whether a mechanism of another package releases something else than clipped vectors with noise."""
    return mechanism.private and mechanism.release_noise() is None


def _divisor(settings: Settings) -> float:
    """Of each gradient sum; also the records expected in a batch, where no rate is set."""
    return float(settings.client.batch_size or 1)


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


def most_of(settings: Settings, examples: int | None, steps: int, exponent: float) -> float:
    """Records in the samples of so many steps together at most, but with probability exp(-exponent).

    Raises:
        ValueError: ``why_no_law``.
    """
    client = settings.client
    expected, most = _divisor(settings), float(client.max_batch or math.inf)
    if client.sampling_rate is not None:
        if examples is None:
            raise ValueError("Expected a public number of examples, got none")
        expected, most = client.sampling_rate * examples, min(most, float(examples))
    return min(most * steps, largest_sample(expected * steps, exponent))


def adam_travel(steps: int) -> float:
    """How far a coordinate moves in so many steps of Adam at most, in learning rates.

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


def _expected_noise(settings: Settings, examples: int | None) -> float | None:
    """In proportion to the noise per divisor that one silo's calibration will find, about; None where it is not known.

    Noise grows at most about as the sampling rate, and as one over epsilon: no bound, for a warning alone.
    """
    privacy, client = settings.privacy, settings.client
    targets = [float(t) for t in (privacy.epsilon, privacy.run_epsilon) if t is not None]
    if not targets:
        return None
    if privacy.unit == "client":
        return 1 / min(targets)
    if client.sampling_rate is None and not examples:
        return None
    return sampling_rate(settings, examples or 1) / (min(targets) * _divisor(settings))


def _loud_silos(settings: Settings, sizes: Mapping[str, int | None]) -> list[str]:
    """Silos whose calibrated noise is expected above ``server.max_noise_ratio`` times the median silo's."""
    privacy = settings.privacy
    if privacy.mode != "dp" or privacy.noise_by == "server" or privacy.noise_multiplier is not None:
        return []
    each = {name: _expected_noise(settings.for_silo(name), size) for name, size in sizes.items()}
    known = {name: noise for name, noise in each.items() if noise is not None}
    if not known:
        return []
    most = settings.server.max_noise_ratio * statistics.median_high(known.values())
    return sorted(name for name, noise in known.items() if noise > most)


def limit_warnings(settings: Settings, sizes: Mapping[str, int | None]) -> list[str]:
    """What a run tells of its limits before it begins: where there is no law, which silos may be refused for honest
    noise, and where aggregation can leave nobody out.

    Args:
        sizes: public number of examples of each silo, None where private.
    """
    reasons = {why_no_law(settings.for_silo(name), size) for name, size in sizes.items()}
    if _is_unknown(make_mechanism(settings, sampling_rate=1.0, noise_multiplier=1.0)):
        reasons = {"its mechanism is one of another package"}
    found = [
        f"an honest update has no known bound on its norm ({reason}): the limit is server.max_update_norm="
        f"{settings.server.max_update_norm:g}"
        for reason in sorted(reason for reason in reasons if reason is not None)
    ]
    if loud := _loud_silos(settings, sizes):
        shown = ", ".join(loud[:_SHOWN]) + (
            f" and {len(loud) - _SHOWN} more" * (len(loud) > _SHOWN)
        )
        found.append(
            f"{shown}: the noise that its data and target ask for is expected above server.max_noise_ratio="
            f"{settings.server.max_noise_ratio:g} times the median silo's, and then every update of it is refused: "
            "raise server.max_noise_ratio or set privacy.noise_multiplier"
        )
    how, chosen = settings.server.aggregation, settings.server.fraction * len(sizes)
    if how in ("median", "trimmed-mean") and chosen < 3:
        found.append(
            f"server.aggregation={how} is the mean with fewer than 3 silos in a round, {chosen:g} are expected"
        )
    return found
