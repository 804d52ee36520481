"""Hostile silos' replacements of their updates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from server.aggregation import Contribution

HONEST, LABELS = "none", "label flip"
LOUD = "constant direction, 10 x noise claimed"
ATTACKS = (
    "sign flip",
    "scaled by -20",
    "constant direction",
    "constant direction, at the limit",
    LOUD,
    LABELS,
)
"""``label flip`` is in the silo's data; the others change its honest update."""


@dataclass(frozen=True)
class Hostile:
    """A silo that knows all that the server knows, and sends the worst of its kind that may pass.

    Attributes:
        attack: of ``ATTACKS``.
        noise_ratio: how much more noise than it has it may claim.
    """

    attack: str
    noise_ratio: float

    def claimed(self, noise_multiplier: float) -> float:
        """Return the noise that it says it used."""
        loud = self.attack == LOUD
        return noise_multiplier * (
            0.98 * self.noise_ratio if loud else 1.0
        )  # silos differ a little

    def sends(self, honest: Contribution, limit: float) -> Contribution:
        """Return the update instead of its honest one.

        Args:
            limit: the longest that passes with the noise that it claims.
        """
        update = honest.update
        if self.attack == "sign flip":
            return replace(honest, update=_times(update, -1.0))
        if self.attack == "scaled by -20":
            return replace(honest, update=_times(update, -20.0))
        if self.attack.startswith("constant direction"):
            longest = _length(update) if self.attack == "constant direction" else 0.999 * limit
            return replace(honest, update=_constant(update, longest))
        return honest


def flipped(classes: Tensor, count: int) -> Tensor:
    """Return the labels in the opposite order: the first class for the last."""
    return count - 1 - classes


def _times(update: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {name: factor * value for name, value in update.items()}


def _length(update: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in update.values()))


def _constant(update: Mapping[str, Tensor], length: float) -> dict[str, Tensor]:
    """Push towards the first class only: the same in every round, so that Adam adds it up."""
    found = {name: torch.zeros_like(value) for name, value in update.items()}
    for value in found.values():
        value[0] = 1.0
        value[1:] = -1.0
    size = _length(found)
    return {name: value * (length / size) for name, value in found.items()}
