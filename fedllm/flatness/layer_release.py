"""A silo's release for the choice of layers: its scores, under differential privacy.

Scores are those of :mod:`fedllm.flatness.layer_scores`, of L candidates. The caller must have recorded
the event (:meth:`ScoreRelease.events`) before. Only the order of the scores matters, so the
private forms measure an example's differences from their own mean over the candidates,
d_i = (s_i1 - mean, ..., s_iL - mean): what all layers share is most of s_i (ten times what they differ by,
on a small encoder), and would ask for a bound, and so for noise, as much larger.

**private, unit example.** With each d_i clipped to the L2 norm B sqrt(L) (B = ``layers.bound`` bounds the
root mean square of its L entries; entries clipped to [-B, B] would be within the same ball), the silo
releases (sum over a Poisson sample of d_i + noise) / n with a public divisor n = ``layers.examples``.
Without ``layers.bound`` B = 1 and every d_i is scaled to the norm itself, up or down: how large losses are
depends on the head and on the warm-up, and their order over the layers does not (what Bu et al. 2023, arXiv
2206.07136, do with gradients).

Guarantee: d_i is a function of example i and of public values, as its ascent step is along its own
gradient (or along public random directions). Adding or removing example i thus changes the sum by d_i
alone, of norm at most B sqrt(L), and the release is the Poisson-sampled Gaussian mechanism with noise
multiplier ``layers.noise`` over that sensitivity. With a step along the batch's gradient, one example
would move v and with it every other d_j: the clipped sum could change by up to 2 B n sqrt(L).

**private, unit client.** The mean of d_i over a sample of the silo's examples, clipped (or scaled) to the
same norm, plus the same noise. Guarantee: the record is the silo, its vector is one release of norm at most
B sqrt(L), and the release is the Gaussian mechanism. (How the silo samples, and what it divides by, is
then its own affair.)

**private-top-k.** Each entry of d_i is clipped to [-B, B] (without ``layers.bound``: d_i is divided by its
largest entry in size) and rounded to a multiple of B / 2^20, so that the sums over the sample are whole
numbers. Of these utilities the silo makes one noisy choice of the
layers to keep, and releases it as a vote of 0 or 1 for each (one shot: ``layers.keep`` votes; a step of a
greedy search: all but one). Guarantee: adding or removing an example changes each utility by at most 2^20,
so the choice (:func:`privacy.mechanisms.permute_and_flip.noisy_top`) is eps'-DP in exact arithmetic, and with the Poisson
sample ``layers.epsilon``-DP for eps' = :func:`privacy.mechanisms.permute_and_flip.amplified`. Unit client: the utilities are
the bounded and rounded means over a sample of the silo's examples; without the silo they are 0, which
changes each by at most 2^20 as well, and nothing is amplified: eps' = ``layers.epsilon``.

**paper.** S_l of the mean loss over a sample, as it is: no guarantee, and the ledger's event says so.

A number that is not finite counts as 0, in all forms. All is in real arithmetic, see
:mod:`privacy.mechanisms.gaussian`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.flatness.layer_choice import kept_in_a_step
from fedllm.flatness.layer_scores import (
    Sharpness,
    example_sharpness,
    make_sharpness,
    mean_sharpness,
)
from fedllm.settings.experiment import Settings
from fedllm.tasks.base import Params
from fedllm.training.batch.contained import Failures, report_lost_step
from fedllm.training.steps import Streams
from fedllm.training.tunable import Tunable
from privacy.events.constructors import dp_sgd, gaussian, no_guarantee, pure_dp
from privacy.events.multiset import multiset
from privacy.mechanisms.clipping import clip_and_sum
from privacy.mechanisms.gaussian import add_gaussian
from privacy.mechanisms.permute_and_flip import amplified, noisy_top
from privacy.mechanisms.sampling import poisson_sample
from privacy.randomness import RandomSource

_MARGIN = 1.0 - 2.0**-22
UNITS = 2**20
"""Whole units in ``layers.bound``: the sensitivity of a utility."""


@dataclass(frozen=True)
class ScoreRelease:
    """One release of a silo's scores: what it is made of, and what it costs.

    Attributes:
        form, keep, search, noise, epsilon, bound, examples, releases: of ``[layers]``.
        sharpness: how the scores are measured.
        private: whether there is noise (``privacy.mode = "dp"``).
        by_client: whether the record is the silo with all its examples.
        batch_size: expected size of a batch of training.
    """

    form: str
    keep: int
    search: str
    noise: float
    epsilon: float
    bound: float | None
    examples: int
    releases: int | None
    sharpness: Sharpness
    private: bool
    by_client: bool
    batch_size: float

    # -- what it costs ---------------------------------------------------------------------------

    @property
    def asked(self) -> bool:
        """True if the silos release anything for the choice."""
        return self.form not in ("none", "public")

    def rate(self, sampling_rate: float) -> float:
        """Return the probability of each example to be in the sample that the scores are measured on.

        Args:
            sampling_rate: of each example in a step of training.
        """
        return min(1.0, sampling_rate * self.examples / self.batch_size)

    def events(self, sampling_rate: float) -> Counter[DpEvent]:
        """Return the events of one release; empty where none is asked for. The module says what is proven.

        Args:
            sampling_rate: as for :meth:`rate`.
        """
        if not self.asked:
            return Counter()
        if not self.private:
            return multiset({no_guarantee("privacy.mode=none: layers' scores without noise"): 1})
        if self.form == "paper":
            return multiset({no_guarantee("layers.form=paper: layers' scores sent as they are"): 1})
        if self.form == "private-top-k":
            return multiset({pure_dp(self.epsilon): 1})
        if self.by_client:
            return multiset({gaussian(self.noise): 1})
        return multiset({dp_sgd(self.rate(sampling_rate), self.noise, 1): 1})

    def planned(self, sampling_rate: float) -> Counter[DpEvent]:
        """Return all events of a run, with a guarantee or without.

        Raises:
            ValueError: how many releases there will be is not known (``layers.releases``).
        """
        events = self.events(sampling_rate)
        if events and self.releases is None and self.search == "greedy":
            raise ValueError(
                "Expected layers.releases, the number of layers that a greedy search drops, got none"
            )
        return Counter({event: count * (self.releases or 1) for event, count in events.items()})

    def sensitivity(self, candidates: int) -> float:
        """Return B sqrt(L), the maximum L2 norm of one record's vector of scores."""
        return (self.bound or 1.0) * math.sqrt(candidates)

    def noise_std(self, candidates: int) -> float:
        """Return the standard deviation of the noise in each score of a release (public); 0 without noise."""
        if self.form != "private" or not self.private:
            return 0.0
        return self.noise * self.sensitivity(candidates) / self._divisor

    @property
    def _divisor(self) -> float:
        return 1.0 if self.by_client else float(self.examples)

    def kept(self, candidates: int) -> int:
        """Return the number of votes among the candidates."""
        return kept_in_a_step(candidates, self.keep, self.search)

    # -- the release -----------------------------------------------------------------------------

    def release(
        self,
        tunable: Tunable,
        params: Params,
        features: Sequence[Feature],
        candidates: Sequence[int],
        *,
        sampling_rate: float,
        streams: Streams,
    ) -> Tensor:
        """Return a silo's scores (``private-top-k``: votes) as they leave it, float64 [candidates].

        Args:
            params: public: where the scores are measured (see :func:`fedllm.silo.silo`).
            sampling_rate: of each example in the sample: :meth:`rate`.
            streams: source of randomness for sampling ("sample") and noise ("noise").
        """
        drawn = poisson_sample(len(features), sampling_rate, streams("sample", 0))
        sample = [features[i] for i in drawn]
        if self.form == "paper":
            if not sample:
                return torch.zeros(len(candidates), dtype=torch.float64)
            return mean_sharpness(tunable, params, sample, candidates, self.sharpness).nan_to_num(
                0.0
            )
        failures = Failures() if self.private else None
        differences = relative(
            example_sharpness(tunable, params, sample, candidates, self.sharpness, failures)
        )
        if failures is not None:
            report_lost_step(len(sample) * len(candidates), failures.count)
        if self.form == "private-top-k":
            rate = 1.0 if self.by_client else sampling_rate
            return self._votes(differences, rate, streams("noise", 0))
        if self.by_client:
            differences = differences.sum(0, keepdim=True) / max(1, len(sample))
        sensitivity = self.sensitivity(len(candidates))
        if self.bound is None:
            # To a little less, as clipping does, so that rounding to float32 does not go beyond.
            differences = _scaled(differences, differences.norm(dim=1)) * (sensitivity * _MARGIN)
        total = clip_and_sum([differences], sensitivity).sums[0].double()
        if not self.private:
            return total / self._divisor
        return add_gaussian(total, sensitivity, self.noise, streams("noise", 0)) / self._divisor

    def _votes(self, differences: Tensor, rate: float, rng: RandomSource) -> Tensor:
        """Return 1 for each candidate that the silo would keep, else 0."""
        if self.by_client:
            differences = differences.sum(0, keepdim=True) / max(1, len(differences))
        if self.bound is None:
            units = _scaled(differences, differences.abs().amax(dim=1)) * UNITS
        else:
            units = differences * (UNITS / self.bound)
        utilities = [int(value) for value in units.round().clamp(-UNITS, UNITS).long().sum(0)]
        count = self.kept(len(utilities))
        if self.private:
            chosen = noisy_top(utilities, count, UNITS, amplified(self.epsilon, rate), rng)
        else:
            order = sorted(range(len(utilities)), key=lambda place: (utilities[place], place))
            chosen = order[len(order) - count :]
        votes = torch.zeros(len(utilities), dtype=torch.float64)
        votes[chosen] = 1.0
        return votes


def make_score_release(settings: Settings) -> ScoreRelease:
    """Return the release that the settings ask a silo for.

    Args:
        settings: the silo's own (``Settings.for_silo``).
    """
    layers, privacy = settings.layers, settings.privacy
    return ScoreRelease(
        form=layers.form,
        keep=layers.keep,
        search=layers.search,
        noise=layers.noise,
        epsilon=layers.epsilon,
        bound=layers.bound,
        examples=layers.examples,
        releases=layers.releases,
        sharpness=make_sharpness(settings),
        private=privacy.mode == "dp",
        by_client=privacy.unit == "client",
        batch_size=float(settings.client.batch_size or 1),
    )


def _scaled(rows: Tensor, sizes: Tensor) -> Tensor:
    """Return each row over its size; a row of zeros stays."""
    return rows / torch.where(sizes > 0, sizes, 1.0)[:, None]


def relative(sharpness: Tensor) -> Tensor:
    """Return each row minus its own mean; a row with an entry that is not finite counts as 0."""
    finite = sharpness.isfinite().all(dim=1, keepdim=True)
    known = torch.where(finite, sharpness, 0.0)
    return known - known.mean(dim=1, keepdim=True)
