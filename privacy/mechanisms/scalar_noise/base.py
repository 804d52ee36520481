"""Interface of scalar noise families, and the proof that a change by 1 is the worst case.

A `ScalarNoise` has a density that is symmetric about 0 and does not increase with |x|. For all of them
a change of the number by exactly 1 is the worst among changes of at most 1:

Let f be the density, 0 < u, eps >= 0, and H(u) the hockey-stick divergence of f from f(. - u), the
integral of f(x) - e^eps f(x - u) over A = {x: f(x) > e^eps f(x - u)}. On A f(x) > f(x - u), so |x| <
|x - u|, so x < u / 2. Left of u the shifted density only rises with x, so moving it further to the right
takes mass out of A: H does not decrease with u. The direction with both exchanged is the mirror image,
and eps < 0 follows from H_eps(P, Q) = 1 - e^eps + e^eps H_-eps(Q, P). So (f, f(. - 1)) dominates the
mechanism, for one of sensitivity 1, whatever the family.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from privacy.randomness import RandomSource

Array = npt.NDArray[np.float64]
Shape = Literal["log-concave", "log-convex", "steps"]
_FAMILIES: dict[str, type[ScalarNoise]] = {}


@dataclass(frozen=True)
class ScalarNoise(abc.ABC):
    """Noise for one real number that a record changes by at most 1; `scaled` for other units.

    Frozen and hashable: the fields of the dataclass are the parameters, all of them finite floats.

    Attributes:
      family: Its name in files and in the ledger.
      shape: What the logarithm of the density is on x > 0: concave, convex, or constant between
        `breaks`. (Laplace is both; either name will do.) The privacy loss is then monotone between the
        breaks and the breaks shifted by 1, which is what the accounting relies on.
    """

    family: ClassVar[str]
    shape: ClassVar[Shape]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the family known to `noise_from_dict`."""
        super().__init_subclass__(**kwargs)
        if "family" in cls.__dict__:
            _FAMILIES[cls.family] = cls

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters by name."""
        return {field.name: float(getattr(self, field.name)) for field in fields(self)}

    @abc.abstractmethod
    def log_density(self, x: npt.ArrayLike) -> Array:
        """Return log of the density at each x; symmetric. At a jump, the value on the side of 0."""

    @abc.abstractmethod
    def survival(self, x: npt.ArrayLike) -> Array:
        """Return P(X > x) at each x of either sign; small values keep their relative accuracy."""

    def log_survival(self, x: npt.ArrayLike) -> Array:
        """Return the log of `survival`; families whose survival underflows compute it separately."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.survival(x)))

    @property
    @abc.abstractmethod
    def std(self) -> float:
        """Standard deviation; may be infinite."""

    @property
    @abc.abstractmethod
    def mean_abs(self) -> float:
        """E|X|; may be infinite."""

    @property
    @abc.abstractmethod
    def peak_score(self) -> float:
        """An upper bound of the score -f'(x)/f(x) as x falls to 0; infinite where the density has a cusp."""

    @abc.abstractmethod
    def scaled(self, factor: float) -> Self:
        """Return the noise of factor * X, factor > 0: for a number of sensitivity `factor`."""

    @abc.abstractmethod
    def sample(self, shape: int | Sequence[int], source: RandomSource) -> Array:
        """Draw independent samples.

        Args:
          shape: The shape of the result.
          source: Where they are drawn from.

        Returns:
          A float64 array of that shape.
        """

    def breaks(self, largest: float) -> Array:
        """Return the points 0 <= x <= largest where the density is not smooth, ascending."""
        return np.zeros(1) if largest >= 0 else np.zeros(0)

    @property
    def width(self) -> float:
        """1 / (2 f(0)): a measure of spread that every family has (Laplace: its scale)."""
        return 0.5 * math.exp(-float(self.log_density(0.0)))

    def usefulness(self, gamma: float) -> float:
        """Return P(|X| < gamma), gamma >= 0."""
        return 1.0 - 2.0 * float(self.survival(gamma))

    def to_dict(self) -> dict[str, Any]:
        """Return {"family": ..., "parameters": {...}} in JSON types; `noise_from_dict` reads it."""
        return {"family": self.family, "parameters": self.parameters}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote; on a family it takes that family only.

        Raises:
          ValueError: Another shape, an unknown family, a missing or unknown parameter, or one that is
            out of range; the message names it.
        """
        if not isinstance(data, Mapping) or set(data) != {"family", "parameters"}:
            found = sorted(data) if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"Expected noise with the keys family and parameters, got {found}")
        family, values = data["family"], data["parameters"]
        chosen = _FAMILIES.get(family) if isinstance(family, str) else None
        if chosen is None or not issubclass(chosen, cls):
            known = sorted(name for name, each in _FAMILIES.items() if issubclass(each, cls))
            raise ValueError(f"Expected family={' | '.join(known)}, got family={family!r}")
        names = [field.name for field in fields(chosen)]
        if not isinstance(values, Mapping) or set(values) != set(names):
            given = sorted(values) if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(f"Expected the parameters {names} of {family}, got {given}")
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"Expected a number {name}, got {name}={value!r}")
        return chosen(**{name: float(values[name]) for name in names})


def noise_from_dict(data: Mapping[str, Any]) -> ScalarNoise:
    """Read the noise of any family that is loaded (`privacy.mechanisms.scalar_noise` loads them all).

    Raises:
      ValueError: See `ScalarNoise.from_dict`.
    """
    found: ScalarNoise = ScalarNoise.from_dict(data)
    return found


def require_positive(name: str, value: float) -> None:
    """Refuse a parameter that is not finite and > 0.

    Raises:
      ValueError: Names the parameter and its value.
    """
    if isinstance(value, bool) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"Expected a finite {name} > 0, got {name}={value}")


def require_not_negative(name: str, value: float) -> None:
    """Refuse a parameter that is not finite and >= 0.

    Raises:
      ValueError: Names the parameter and its value.
    """
    if isinstance(value, bool) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"Expected a finite {name} >= 0, got {name}={value}")
