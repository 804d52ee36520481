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

The event must be recorded before; :class:`fedllm.silo.silo.SiloWorker` does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.models.prefix import PREFIX
from fedllm.settings.checks.black_box import noises_numbers
from fedllm.settings.experiment import Settings
from fedllm.training.batch.contained import Failures, example_rows, report_lost_step
from fedllm.training.forward_only import ForwardOnly
from fedllm.training.mechanism import add_noise
from fedllm.training.steps import LocalResult, Streams, Tally, check_noise, poisson_batch
from privacy.mechanisms.clipping import clip_and_sum, clip_vector
from privacy.randomness import generator

NUMBERS = "numbers"
"""Name of the one tensor of a silo's message: (local steps, directions) float32, the s_k of each step."""


def round_seed(seed: int, run: str, server_round: int) -> str:
    """The public seed of a round's directions, 32 hexadecimal digits: what the server announces.

    A hash, so that it tells nothing of the seed that other streams of the run are drawn from.
    """
    named = json.dumps(["fedllm zeroth-order directions", int(seed), run, int(server_round)])
    return hashlib.sha256(named.encode()).hexdigest()[:32]


class Directions:
    """The random directions of one round, the same at the server and all silos.

    An entry is +1 or -1 times its layer's scale: of the two-point estimate's usual choices the one with the least
    variance, and made of bits alone, so that it is the same on every machine. In a subspace of dimension
    m each coordinate belongs to one of m random groups, with a random sign, and a direction has one sign a
    group (a sparse embedding; Clarkson and Woodruff 2013): the m group vectors are orthogonal.

    Args:
        settings: ``zeroth_order`` and ``seed`` (of the subspace).
        params: the round's model, which gives shapes and scales.
        seed: see :func:`round_seed`.

    Raises:
        ValueError: the seed is no hexadecimal number, or the subspace is larger than the whole.
    """

    def __init__(self, settings: Settings, params: Mapping[str, Tensor], seed: str) -> None:
        try:
            self._seed = int(seed, 16)
        except ValueError:
            raise ValueError(
                f"Expected a hexadecimal seed of the directions, got {seed!r}"
            ) from None
        self.count = settings.zeroth_order.directions
        self.learning_rate = settings.client.learning_rate
        self.names = sorted(params)
        self.shapes = {name: params[name].shape for name in self.names}
        relative = settings.zeroth_order.scale == "prefix"
        self.scales = {
            name: _scale(name, params[name]) if relative else torch.ones(()) for name in self.names
        }
        self.size = sum(shape.numel() for shape in self.shapes.values())
        self.subspace = settings.zeroth_order.subspace
        if self.subspace > self.size:
            raise ValueError(
                f"Expected zeroth_order.subspace <= {self.size}, the number of trained coordinates, got "
                f"zeroth_order.subspace={self.subspace}"
            )
        if self.subspace:
            fixed = generator(settings.seed, "zeroth-order-subspace", self.size)
            words = np.frombuffer(fixed.bytes(8 * self.size), dtype="<u8")
            self._groups = torch.from_numpy((words % np.uint64(self.subspace)).astype(np.int64))
            self._signs = _signs(fixed.bytes(-(-self.size // 8)), self.size)

    def direction(self, step: int, number: int) -> dict[str, Tensor]:
        """The direction z of a local step, float32 on the CPU, by tensor.

        Raises:
            ValueError: no such direction.
        """
        if not (0 <= number < self.count and step >= 0):
            raise ValueError(
                f"Expected step >= 0 and 0 <= number < {self.count}, got step={step}, number={number}"
            )
        size = self.subspace or self.size
        rng = generator(self._seed, "direction", step, number)
        flat = _signs(rng.bytes(-(-size // 8)), size)
        if self.subspace:
            flat = flat[self._groups] * self._signs
        return self._scaled(flat)

    def _scaled(self, flat: Tensor) -> dict[str, Tensor]:
        pieces = flat.split([self.shapes[name].numel() for name in self.names])
        return {
            name: piece.reshape(self.shapes[name]) * self.scales[name]
            for name, piece in zip(self.names, pieces, strict=True)
        }

    def step_update(self, numbers: Tensor, step: int) -> dict[str, Tensor]:
        """How the weights move in a local step: -lr/K sum_k s_k z_k.

        Args:
            numbers: s of the step, (K,).
        """
        total = {name: torch.zeros(shape) for name, shape in self.shapes.items()}
        for k, number in enumerate(numbers.tolist()):
            for name, z in self.direction(step, k).items():
                total[name] += z * (-self.learning_rate * number / self.count)
        return total

    def update(self, numbers: Tensor) -> dict[str, Tensor]:
        """The update of a round that a silo's numbers (or their mean over silos: it is linear) stand for.

        Args:
            numbers: (local steps, K).

        Raises:
            ValueError: another shape.
        """
        if numbers.dim() != 2 or numbers.shape[1] != self.count:
            raise ValueError(
                f"Expected numbers of shape (steps, {self.count}), got {tuple(numbers.shape)}"
            )
        total = {name: torch.zeros(shape) for name, shape in self.shapes.items()}
        for step, row in enumerate(numbers):
            for name, value in self.step_update(row, step).items():
                total[name] += value
        return total


def _scale(name: str, value: Tensor) -> Tensor:
    """Of the prefix the root mean square of each layer's keys, and of its values (1 where that is 0); of a
    head, which starts at zero, 1."""
    if name != PREFIX:
        return torch.ones(())
    size = value.detach().float().cpu().square().mean(dim=(2, 3, 4), keepdim=True).sqrt()
    return torch.where(size > 0, size, 1.0)


def _signs(data: bytes, size: int) -> Tensor:
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=size)
    return torch.from_numpy(bits.astype(np.float32)).mul_(2).sub_(1)


def train_forward_only(
    model: ForwardOnly,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    settings: Settings,
    *,
    sampling_rate: float,
    noise_multiplier: float,
    streams: Streams,
    directions: Directions,
) -> LocalResult:
    """Run ``client.local_steps`` zeroth-order steps from ``params``; see the module for what is released.

    Args:
        params: global parameters, float32.
        features: the silo's training examples.
        sampling_rate, noise_multiplier, streams: as for :func:`fedllm.training.dp_sgd.train_locally`. The
            randomness of number k of step t is that of (purpose, t K + k) where each has its own.
        directions: of this round.

    Returns:
        With the update ``{NUMBERS: (local steps, K) float32}``. Counts are of pairs of an example and a clipped
        row; norms those of the rows before clipping.

    Raises:
        ValueError: a noise multiplier that does not fit the mode.
    """
    check_noise(settings, noise_multiplier)
    weights = {name: params[name].to(model.device, torch.float32) for name in sorted(params)}
    by_client = settings.privacy.mode == "dp" and settings.privacy.unit == "client"
    tally, found = Tally(), []
    for step in range(settings.client.local_steps):
        row = _step(
            model,
            weights,
            features,
            settings,
            step=step,
            sampling_rate=sampling_rate,
            noise_multiplier=noise_multiplier,
            streams=streams,
            directions=directions,
            tally=tally,
        )
        found.append(row)
        if step + 1 < settings.client.local_steps:
            moved = directions.step_update(row, step)
            weights = {name: weights[name] + moved[name].to(model.device) for name in weights}
    numbers = torch.stack(found)
    if by_client:
        numbers, clipped, bad = clip_numbers(numbers, settings)
        tally.clipped, tally.nonfinite = int(clipped), int(bad)
        if settings.privacy.noise_by == "client":
            rng = streams("noise", settings.client.local_steps * directions.count)
            numbers = add_noise(settings, numbers, noise_multiplier, rng)
    return tally.result({NUMBERS: numbers})


def _step(
    model: ForwardOnly,
    weights: Mapping[str, Tensor],
    features: Sequence[Feature],
    settings: Settings,
    *,
    step: int,
    sampling_rate: float,
    noise_multiplier: float,
    streams: Streams,
    directions: Directions,
    tally: Tally,
) -> Tensor:
    """One step's numbers (K,), at unit example clipped and noised, else plain; counted in ``tally``."""
    per_example = settings.privacy.mode == "dp" and settings.privacy.unit == "example"
    every = range(directions.count)
    # Each group of directions has a batch, a clipping and a noise of its own.
    groups = [[k] for k in every] if noises_numbers(settings) else [list(every)]
    divisor = float(settings.client.batch_size or 1)
    numbers = torch.zeros(directions.count)
    for group in groups:
        place = step * directions.count + group[0]
        batch = poisson_batch(features, sampling_rate, streams("sample", place))
        failures = tally.contained(settings)
        rows = _differences(model, weights, batch, settings, directions, step, group, failures)
        if per_example:
            total = clip_and_sum([rows], settings.privacy.clip)
            sums = add_noise(settings, total.sums[0], noise_multiplier, streams("noise", place))
            tally.add((total.count, total.clipped, total.nonfinite), total.norms)
        else:
            sums = rows.double().sum(0).float()
            tally.examples += len(batch)
        numbers[group] = sums / divisor
    return numbers


def _differences(
    model: ForwardOnly,
    weights: Mapping[str, Tensor],
    batch: Sequence[Feature],
    settings: Settings,
    directions: Directions,
    step: int,
    chosen: Sequence[int],
    failures: Failures | None,
) -> Tensor:
    """g_ik of the batch along the chosen directions, (B, len(chosen)) float32 on the CPU, rows in the order of
    the micro-batches; with ``failures`` a row of zeros for an example that raises."""
    c = settings.zeroth_order.smoothing
    device = model.device

    def compute(examples: Sequence[Feature]) -> list[Tensor]:
        parts = list(model.batches(examples, settings.client.max_tokens))
        columns = []
        for k in chosen:
            z = {name: value.to(device) for name, value in directions.direction(step, k).items()}
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


def clip_numbers(numbers: Tensor, settings: Settings) -> tuple[Tensor, bool, bool]:
    """A silo's numbers at unit client, clipped to ``privacy.clip``: as one vector in L2 norm, or with noise of a
    file each to [-clip, clip].

    Guarantee: the silo contributes at most ``clip`` to what the noise covers, whatever it sends.

    Returns:
        (float32 of the same shape, whether any was clipped, whether any was not finite and became zero).
    """
    clip = settings.privacy.clip
    if not noises_numbers(settings):
        return clip_vector(numbers, clip)
    finite = torch.isfinite(numbers)
    kept = torch.where(finite, numbers, 0.0).float()
    return kept.clamp(-clip, clip), bool((kept.abs() > clip).any()), not bool(finite.all())
