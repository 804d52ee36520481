"""The public random directions along which a round's losses are compared.

They follow from a seed that the server announces with the round, so that a silo sends one number a direction and the
server rebuilds the update.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedllm.models.prefix import PREFIX
from fedllm.settings.experiment import Settings
from privacy.randomness import generator

NUMBERS = "numbers"
"""Name of the one tensor of a silo's message: (local steps, directions) float32, the s_k of each step."""


def round_seed(seed: int, run: str, server_round: int) -> str:
    """Return the public seed of a round's directions, 32 hexadecimal digits: what the server announces.

    A hash, so that it tells nothing of the seed that other streams of the run are drawn from.
    """
    named = json.dumps(["fedllm zeroth-order directions", int(seed), run, int(server_round)])
    return hashlib.sha256(named.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class DirectionsPlan:
    """The numbers of the directions of each round of a run.

    Attributes:
        count: K, directions of a local step.
        learning_rate: of a local step.
        relative: whether entries have the scale of their layer of the prefix; else 1.
        subspace: dimension of the subspace; 0 for all coordinates.
        seed: of the subspace; public.
    """

    count: int
    learning_rate: float
    relative: bool
    subspace: int
    seed: int

    @classmethod
    def of(cls, settings: Settings) -> DirectionsPlan:
        """Return the plan of the settings."""
        zeroth_order = settings.zeroth_order
        return cls(
            count=zeroth_order.directions,
            learning_rate=settings.client.learning_rate,
            relative=zeroth_order.scale == "prefix",
            subspace=zeroth_order.subspace,
            seed=settings.seed,
        )


class Directions:
    """The random directions of one round, the same at the server and all silos.

    An entry is +1 or -1 times its layer's scale: of the two-point estimate's usual choices the one with the least
    variance, and made of bits alone, so that it is the same on every machine. In a subspace of dimension
    m each coordinate belongs to one of m random groups, with a random sign, and a direction has one sign a
    group (a sparse embedding; Clarkson and Woodruff 2013): the m group vectors are orthogonal.

    Args:
        plan: their number and scale, and their subspace.
        params: the round's model, which gives shapes and scales.
        seed: see :func:`round_seed`.

    Raises:
        ValueError: the seed is no hexadecimal number, or the subspace is larger than the whole.
    """

    def __init__(self, plan: DirectionsPlan, params: Mapping[str, Tensor], seed: str) -> None:
        try:
            self._seed = int(seed, 16)
        except ValueError:
            raise ValueError(
                f"Expected a hexadecimal seed of the directions, got {seed!r}"
            ) from None
        self.count, self.learning_rate = plan.count, plan.learning_rate
        self.names = sorted(params)
        self.shapes = {name: params[name].shape for name in self.names}
        self.scales = {
            name: _scale(name, params[name]) if plan.relative else torch.ones(())
            for name in self.names
        }
        self.size = sum(shape.numel() for shape in self.shapes.values())
        self.subspace = plan.subspace
        if self.subspace > self.size:
            raise ValueError(
                f"Expected zeroth_order.subspace <= {self.size}, the number of trained coordinates, got "
                f"zeroth_order.subspace={self.subspace}"
            )
        if self.subspace:
            fixed = generator(plan.seed, "zeroth-order-subspace", self.size)
            words = np.frombuffer(fixed.bytes(8 * self.size), dtype="<u8")
            self._groups = torch.from_numpy((words % np.uint64(self.subspace)).astype(np.int64))
            self._signs = _signs(fixed.bytes(-(-self.size // 8)), self.size)

    def direction(self, step: int, number: int) -> dict[str, Tensor]:
        """Return the direction z of a local step, float32 on the CPU, by tensor.

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
        """Return the change of the weights in a local step: -lr/K sum_k s_k z_k.

        Args:
            numbers: s of the step, (K,).
        """
        total = {name: torch.zeros(shape) for name, shape in self.shapes.items()}
        for k, number in enumerate(numbers.tolist()):
            for name, z in self.direction(step, k).items():
                total[name] += z * (-self.learning_rate * number / self.count)
        return total

    def update(self, numbers: Tensor) -> dict[str, Tensor]:
        """Return the update of a round that a silo's numbers (or their mean over silos: it is linear) stand for.

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
    """Return the scale of directions: for the prefix the root mean square of each layer's keys, and of its values (1
    if that is 0); for a head, which starts at zero, 1."""
    if name != PREFIX:
        return torch.ones(())
    size = value.detach().float().cpu().square().mean(dim=(2, 3, 4), keepdim=True).sqrt()
    return torch.where(size > 0, size, 1.0)


def _signs(data: bytes, size: int) -> Tensor:
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=size)
    return torch.from_numpy(bits.astype(np.float32)).mul_(2).sub_(1)
