"""Training through a model's outputs alone: DP zeroth-order steps along public random directions.

A step at the weights w (compare DP-ZO, Tang et al. 2024, arXiv 2401.04343; MeZO, Malladi et al. 2023; two-point
estimates along random signs, Spall 1992). For each direction z_k of K and each example i of a Poisson batch

    g_ik = (loss_i(w + c z_k) - loss_i(w - c z_k)) / 2c,

the g_ik are clipped and summed over the batch, noise is added, and the sum is divided by the expected size
of the batch: s_k. The weights move by -lr/K sum_k s_k z_k. The directions follow from a seed that the server
announces with the round, so a silo sends the s_k alone and the server rebuilds the update (post-processing).

Guarantee. Directions, smoothing c and weights are public (the weights are functions of earlier releases), so an
example's row g_i = (g_i1 ... g_iK) is a function of this example alone, whatever the server announces.

* Unit ``example``, Gaussian noise: the row is clipped to L2 norm C over all directions together. Adding or
  removing an example changes the vector of K sums by at most C in L2 norm, each has noise of standard
  deviation sigma C: one Poisson-subsampled Gaussian mechanism of noise multiplier sigma, whatever K.
* Unit ``example``, noise of a file: each direction draws a Poisson batch of its own, and each g_ik is clipped to
  [-C, C]. An example changes the k-th sum by at most C: K Poisson-subsampled events of one number each
  (:class:`privacy.events.kinds.ScalarNoiseDpEvent`), with independent batches. (On one common batch the K numbers
  would be one event that no accountant here represents.)
* Unit ``client``: nothing is clipped or noised within the local steps. The silo's T K numbers of a round are
  clipped as one vector to L2 norm C and get Gaussian noise (one Gaussian mechanism), or each is clipped to
  [-C, C] and gets a file's noise (T K events of one number). With noise by the server it is added to the sum
  over the silos.

The events must be recorded before; :class:`fedllm.silo.silo.SiloWorker` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from dp_accounting.dp_event import DpEvent
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.settings.experiment import Settings
from fedllm.training.batch.contained import Failures, example_rows, report_lost_step
from fedllm.training.black_box.directions import NUMBERS, Directions
from fedllm.training.black_box.forward_only import ForwardOnly, forward_only
from fedllm.training.noise import Noise, RoundCost, sampled_fraction
from fedllm.training.steps import (
    LocalResult,
    LocalWork,
    StepPlan,
    Tally,
    check_noise,
    poisson_batch,
)
from privacy.events.constructors import poisson_sampled
from privacy.events.multiset import multiset
from privacy.mechanisms.clipping import clip_and_sum, clip_vector
from privacy.randomness import RandomSource

Release = Callable[[Tensor, int], Tensor]
"""The sum of a batch's rows as it may be used, of the rows (B, k) and the number of their draw in the round."""


@dataclass(frozen=True)
class Estimates:
    """Computes the scalar estimates of a round, independent of their release.

    Attributes:
        plan: of the local steps.
        directions: a step.
        smoothing: distance of the two points of a difference.
        sampling_rate: probability of each example to be in a batch.
        alone: whether each direction has a batch of its own.
    """

    plan: StepPlan
    directions: int
    smoothing: float
    sampling_rate: float
    alone: bool = False

    @classmethod
    def of(cls, settings: Settings, sampling_rate: float, *, alone: bool = False) -> Estimates:
        """Return the estimates of these settings."""
        how = settings.zeroth_order
        return cls(StepPlan.of(settings), how.directions, how.smoothing, sampling_rate, alone)

    def walk(
        self, model: ForwardOnly, work: LocalWork, release: Release, failures: Failures | None
    ) -> Tensor:
        """Return the numbers of all local steps, (steps, K) float32; each step's move the weights for the next.

        Args:
            release: makes of the rows of each draw their sum.
            failures: where examples that raise are counted; None lets them raise.

        Raises:
            ValueError: no directions came with the work.
        """
        directions = work.directions
        if directions is None:
            raise ValueError("Expected the directions of the round, got none")
        names = sorted(work.params)
        weights = {name: work.params[name].to(model.device, torch.float32) for name in names}
        found = []
        for step in range(self.plan.count):
            row = self._step(model, weights, work, directions, step, release, failures)
            found.append(row)
            if step + 1 < self.plan.count:
                moved = directions.step_update(row, step)
                weights = {name: weights[name] + moved[name].to(model.device) for name in weights}
        return torch.stack(found)

    def _step(
        self,
        model: ForwardOnly,
        weights: Mapping[str, Tensor],
        work: LocalWork,
        directions: Directions,
        step: int,
        release: Release,
        failures: Failures | None,
    ) -> Tensor:
        """Return one step's scalar estimates (K,)."""
        every = range(directions.count)
        groups = [[k] for k in every] if self.alone else [list(every)]
        numbers = torch.zeros(directions.count)
        for group in groups:
            place = step * directions.count + group[0]
            batch = poisson_batch(work.features, self.sampling_rate, work.streams("sample", place))
            rows = self._differences(model, weights, batch, directions, step, group, failures)
            numbers[group] = release(rows, place) / self.plan.divisor
        return numbers

    def _differences(
        self,
        model: ForwardOnly,
        weights: Mapping[str, Tensor],
        batch: Sequence[Feature],
        directions: Directions,
        step: int,
        chosen: Sequence[int],
        failures: Failures | None,
    ) -> Tensor:
        """Return g_ik of the batch along the chosen directions, (B, len(chosen)) float32 on the CPU, rows in the
        order of the micro-batches; with ``failures`` a row of zeros for an example that raises."""
        c = self.smoothing
        device = model.device

        def compute(examples: Sequence[Feature]) -> list[Tensor]:
            parts = list(model.batches(examples, self.plan.max_tokens))
            columns = []
            for k in chosen:
                z = {
                    name: value.to(device) for name, value in directions.direction(step, k).items()
                }
                ahead = {name: value + c * z[name] for name, value in weights.items()}
                behind = {name: value - c * z[name] for name, value in weights.items()}
                found = [model.losses(ahead, part) - model.losses(behind, part) for part in parts]
                columns.append(torch.cat([each.cpu() for each in found]) / (2 * c))
            return [torch.stack(columns, dim=1)]

        if not batch:
            return torch.zeros(0, len(chosen))
        before = 0 if failures is None else failures.count
        (rows,) = example_rows(compute, batch, [(len(chosen),)], failures)
        if failures is not None:
            report_lost_step(len(batch), failures.count - before)
        return rows


@dataclass(frozen=True)
class ZerothOrder:
    """The mechanism of scalar estimates along random directions: one noisy vector, or independent noise on each
    number.

    Attributes:
        estimates: how the numbers are found.
        unit: "example" or "client".
        fraction: unit client: probability of the silo to be in a round's sum, see :class:`ClientUpdate`.
        clip: clipping norm of an example's row, or of the silo's numbers; with noise on single numbers of each.
        noise: of a vector or of each number; multiplier 0 where others add it.
        noise_by: "client" or "server".
    """

    estimates: Estimates
    unit: str
    fraction: float
    clip: float
    noise: Noise
    noise_by: str

    private = True
    adaptive = False

    @classmethod
    def of(cls, settings: Settings, sampling_rate: float, noise_multiplier: float) -> ZerothOrder:
        """Return the mechanism of these settings."""
        noise = Noise.of(settings, noise_multiplier)
        return cls(
            estimates=Estimates.of(settings, sampling_rate, alone=noise.alone),
            unit=settings.privacy.unit,
            fraction=sampled_fraction(settings),
            clip=settings.privacy.clip,
            noise=noise,
            noise_by=settings.privacy.noise_by,
        )

    @property
    def noise_multiplier(self) -> float:
        """Noise multiplier of a vector, or of each number."""
        return self.noise.multiplier

    @property
    def sampling_rate(self) -> float:
        """Probability of each example to be in a batch."""
        return self.estimates.sampling_rate

    def at_clip(self, clip: float | None) -> ZerothOrder:
        """Return the mechanism of a round whose task brings ``clip``.

        Raises:
            ValueError: one comes; the norm is fixed here.
        """
        if clip is not None:
            raise ValueError(
                f"Expected no clipping norm with the task for clipping.form=fixed, got {clip}"
            )
        return self

    def at_silo(self) -> ZerothOrder:
        """Return the silo's part: without noise where the server adds it."""
        if self.noise_by == "client":
            return self
        return replace(self, noise=self.noise.of_multiplier(0.0))

    def unsampled(self) -> ZerothOrder:
        """Return the mechanism without amplification by the draw of the silos."""
        return replace(self, fraction=1.0)

    # -- what a round costs ----------------------------------------------------------------------

    @property
    def _rate(self) -> float:
        """Probability of each record to be in one release."""
        return self.sampling_rate if self.unit == "example" else self.fraction

    @property
    def _releases(self) -> int:
        """Events of one round."""
        steps = self.estimates.plan.count
        if self.noise.alone:
            # Unit example: each number is of a Poisson batch of its own. Unit client: each bounds what the
            # silo contributes to it.
            return steps * self.estimates.directions
        return steps if self.unit == "example" else 1

    def events(self, server_round: int) -> Counter[DpEvent]:
        """Return the events of one round: a vector a step (unit client: a round), or one a number."""
        event = self.noise.event()
        if self._rate < 1:
            event = poisson_sampled(self._rate, (event,))
        return multiset({event: self._releases})

    def cost(self) -> RoundCost:
        """Return a sampled mechanism for each event."""
        unit = self.noise.unit if self.noise.alone else None
        return RoundCost(self._rate, self._releases, noise=unit)

    def release_noise(self) -> Noise:
        """Return the noise of each number."""
        return self.noise

    def noise_std(self, params: Mapping[str, Tensor]) -> dict[str, float] | None:
        """Return None: the noise is on scalar estimates, not on the update's entries."""
        return None

    # -- the release -----------------------------------------------------------------------------

    def train(self, work: LocalWork) -> LocalResult:
        """Run the local steps through the model's outputs; see :meth:`walk`."""
        return self.walk(forward_only(work.tunable), work)

    def walk(self, model: ForwardOnly, work: LocalWork) -> LocalResult:
        """Run the local zeroth-order steps; see the module for what is released.

        The randomness of number k of step t is that of (purpose, t K + k) where each has its own.

        Returns:
            With the update ``{NUMBERS: (local steps, K) float32}``. Counts are of pairs of an example and a clipped
            row; norms those of the rows before clipping.

        Raises:
            ValueError: a noise multiplier that does not fit who adds the noise.
        """
        check_noise("dp", self.noise_by, self.noise_multiplier)
        tally = Tally()

        def noisy(rows: Tensor, place: int) -> Tensor:
            total = clip_and_sum([rows], self.clip)
            tally.add((total.count, total.clipped, total.nonfinite), total.norms)
            return self.noise.add(total.sums[0], self.clip, work.streams("noise", place))

        if self.unit == "example":
            numbers = self.estimates.walk(model, work, noisy, tally.failures)
            return tally.result({NUMBERS: numbers})
        numbers = self.estimates.walk(model, work, plain_sum(tally), tally.failures)
        numbers, clipped, bad = clip_numbers(numbers, self.clip, each=self.noise.alone)
        tally.clipped, tally.nonfinite = int(clipped), int(bad)
        if self.noise_by == "client":
            last = self.estimates.plan.count * self.estimates.directions
            numbers = self.noise.add(numbers, self.clip, work.streams("noise", last))
        return tally.result({NUMBERS: numbers})

    def add_noise(self, total: Tensor, rng: RandomSource) -> Tensor:
        """Add the server's noise to a sum of messages that are clipped to ``clip`` each."""
        return self.noise.add(total, self.clip, rng)

    def noisy_share(self, count: float, expected: float, rng: RandomSource) -> float:
        """Refuse: no count is released here.

        Raises:
            ValueError: always.
        """
        raise ValueError("Expected clipping.form=fixed for model.access=black-box, got a count")


def plain_sum(tally: Tally) -> Release:
    """Return the bare sum of rows, which are counted in ``tally``: private."""

    def sums(rows: Tensor, _: int) -> Tensor:
        tally.examples += len(rows)
        return rows.double().sum(0).float()

    return sums


def clip_numbers(numbers: Tensor, clip: float, *, each: bool) -> tuple[Tensor, bool, bool]:
    """Return a silo's numbers at unit client, clipped: as one vector to L2 norm ``clip``, or each to [-clip, clip].

    Guarantee: the silo contributes at most ``clip`` to what the noise covers, whatever it sends.

    Returns:
        (float32 of the same shape, whether any was clipped, whether any was not finite and became zero).
    """
    if not each:
        return clip_vector(numbers, clip)
    finite = torch.isfinite(numbers)
    kept = torch.where(finite, numbers, 0.0).float()
    return kept.clamp(-clip, clip), bool((kept.abs() > clip).any()), not bool(finite.all())
