"""Question of a noise search. Light to import, so that a cached answer returns at once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

SEARCH_FORMAT = 2  # part of every cache key: raise it when an answer may change
SMALLEST_DELTA = 1e-13  # below, floating point is most of what the accountant answers


class Objective(StrEnum):
    """Objective of the search; `usefulness` is the probability that |noise| is below `gamma`."""

    STD = "std"
    MEAN_ABS = "mean-abs"
    USEFULNESS = "usefulness"


@dataclass(frozen=True)
class NoiseQuestion:
    """The use of the noise: numbers, or vectors, that a record changes by at most 1 (in L2 norm).

    Attributes:
      epsilon, delta: The target of all steps together, under zero-out.
      steps: How many numbers (vectors) are released, each in a step of its own.
      sampling_rate: Probability of each record to be in a step, drawn again for each (Poisson).
      objective: What is made least (of usefulness: its complement).
      gamma: For usefulness: the error that is acceptable, in units of the sensitivity; 0 is the
        standard deviation of the Gaussian that keeps to the target.
      dimension: 1, or the number of a vector's entries, each with independent noise.

    Raises:
      ValueError: A value is out of range.
    """

    epsilon: float
    delta: float
    steps: int = 1
    sampling_rate: float = 1.0
    objective: Objective = Objective.STD
    gamma: float = 0.0
    dimension: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        if not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise ValueError(f"Expected a finite epsilon > 0, got epsilon={self.epsilon}")
        if not SMALLEST_DELTA <= self.delta < 1:
            raise ValueError(f"Expected {SMALLEST_DELTA:g} <= delta < 1, got delta={self.delta}")
        for name in ("steps", "dimension"):
            value = getattr(self, name)
            if isinstance(value, bool) or value != int(value) or value < 1:
                raise ValueError(f"Expected a whole number {name} >= 1, got {name}={value}")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(
                f"Expected 0 < sampling_rate <= 1, got sampling_rate={self.sampling_rate}"
            )
        if not (self.gamma >= 0 and math.isfinite(self.gamma)):
            raise ValueError(f"Expected a finite gamma >= 0, got gamma={self.gamma}")

    def to_dict(self) -> dict[str, Any]:
        """Return the question in JSON types."""
        return {**asdict(self), "objective": str(self.objective)}

    def key(self, **more: Any) -> dict[str, Any]:
        """Return the question as a cache's key."""
        return {"format": SEARCH_FORMAT, **self.to_dict(), **more}
