"""A silo's release for the choice of layers: its scores, under differential privacy.

Scores are those of :mod:`fedllm.flatness.layer_scores`, of L candidates. The caller must have recorded
the event (:func:`fedllm.budget.limits.score_events`) before. Only the order of the scores matters, so the
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
from collections.abc import Sequence

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.flatness.layer_choice import kept_in_a_step
from fedllm.flatness.layer_scores import example_sharpness, mean_sharpness
from fedllm.settings.experiment import Settings
from fedllm.tasks.base import Params
from fedllm.training.batch.contained import Failures, report_lost_step
from fedllm.training.steps import Streams
from fedllm.training.tunable import Tunable
from privacy.mechanisms.clipping import clip_and_sum
from privacy.mechanisms.gaussian import add_gaussian
from privacy.mechanisms.permute_and_flip import amplified, noisy_top
from privacy.mechanisms.sampling import poisson_sample
from privacy.randomness import RandomSource

_MARGIN = 1.0 - 2.0**-22
UNITS = 2**20
"""Whole units in ``layers.bound``: the sensitivity of a utility."""


def release_scores(
    tunable: Tunable,
    params: Params,
    features: Sequence[Feature],
    candidates: Sequence[int],
    settings: Settings,
    *,
    sampling_rate: float,
    streams: Streams,
) -> Tensor:
    """Return a silo's scores (``private-top-k``: votes) of the candidates as they leave it, float64 [candidates].

    Without privacy (``privacy.mode = "none"``) there is no noise.

    Args:
        params: public: where the scores are measured (see :func:`fedllm.silo.silo`).
        sampling_rate: of each example, :func:`fedllm.budget.limits.score_rate`.
        streams: source of randomness for sampling ("sample") and noise ("noise").
    """
    drawn = poisson_sample(len(features), sampling_rate, streams("sample", 0))
    sample = [features[i] for i in drawn]
    layers, by_client = settings.layers, settings.privacy.unit == "client"
    if layers.form == "paper":
        if not sample:
            return torch.zeros(len(candidates), dtype=torch.float64)
        return mean_sharpness(tunable, params, sample, candidates, settings).nan_to_num(0.0)
    failures = Failures() if settings.privacy.mode == "dp" else None
    differences = relative(
        example_sharpness(tunable, params, sample, candidates, settings, failures)
    )
    if failures is not None:
        report_lost_step(len(sample) * len(candidates), failures.count)
    if layers.form == "private-top-k":
        rate = 1.0 if by_client else sampling_rate
        return _votes(differences, settings, rate, streams("noise", 0))
    divisor = float(layers.examples)
    if by_client:
        divisor = 1.0
        differences = differences.sum(0, keepdim=True) / max(1, len(sample))
    sensitivity = score_sensitivity(settings, len(candidates))
    if layers.bound is None:
        # To a little less, as clipping does, so that rounding to float32 does not go beyond.
        differences = _scaled(differences, differences.norm(dim=1)) * (sensitivity * _MARGIN)
    total = clip_and_sum([differences], sensitivity).sums[0].double()
    if settings.privacy.mode == "none":
        return total / divisor
    return add_gaussian(total, sensitivity, layers.noise, streams("noise", 0)) / divisor


def _votes(differences: Tensor, settings: Settings, rate: float, rng: RandomSource) -> Tensor:
    """Return 1 for each candidate that the silo would keep, else 0."""
    layers = settings.layers
    if settings.privacy.unit == "client":
        differences = differences.sum(0, keepdim=True) / max(1, len(differences))
    if layers.bound is None:
        units = _scaled(differences, differences.abs().amax(dim=1)) * UNITS
    else:
        units = differences * (UNITS / layers.bound)
    utilities = [int(value) for value in units.round().clamp(-UNITS, UNITS).long().sum(0)]
    count = kept_in_a_step(len(utilities), settings)
    if settings.privacy.mode == "none":
        order = sorted(range(len(utilities)), key=lambda place: (utilities[place], place))
        chosen = order[len(order) - count :]
    else:
        chosen = noisy_top(utilities, count, UNITS, amplified(layers.epsilon, rate), rng)
    votes = torch.zeros(len(utilities), dtype=torch.float64)
    votes[chosen] = 1.0
    return votes


def _scaled(rows: Tensor, sizes: Tensor) -> Tensor:
    """Return each row over its size; a row of zeros stays."""
    return rows / torch.where(sizes > 0, sizes, 1.0)[:, None]


def relative(sharpness: Tensor) -> Tensor:
    """Return each row minus its own mean; a row with an entry that is not finite counts as 0."""
    finite = sharpness.isfinite().all(dim=1, keepdim=True)
    known = torch.where(finite, sharpness, 0.0)
    return known - known.mean(dim=1, keepdim=True)


def score_sensitivity(settings: Settings, candidates: int) -> float:
    """Return B sqrt(L), the maximum L2 norm of one record's vector of scores."""
    return (settings.layers.bound or 1.0) * math.sqrt(candidates)


def score_noise_std(settings: Settings, candidates: int) -> float:
    """Return the standard deviation of the noise in each score that a silo releases (public); 0 without noise."""
    layers = settings.layers
    if layers.form != "private" or settings.privacy.mode == "none":
        return 0.0
    divisor = 1.0 if settings.privacy.unit == "client" else float(layers.examples)
    return layers.noise * score_sensitivity(settings, candidates) / divisor
