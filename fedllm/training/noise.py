"""The noise of one release: Gaussian, or of a file that ``privacy.noise`` names.

A noise multiplier means the same for both: 1 / mu of the mechanism for a vector clipped to norm 1. For
Gaussian noise it is the standard deviation over the clipping norm. LMO noise is scaled so that the mu
that is *proven* for it on vectors (:mod:`privacy.accountants.vector_bound`) is the same: what calibrates
Gaussian noise calibrates it too, and the ledger costs both alike, whatever is claimed for either.

Training through a model's outputs alone (:mod:`fedllm.training.zeroth_order`) releases single numbers, each of sensitivity
``clip``. Noise of a file is then a number's own: its loss is exact, any family will do, the noise multiplier is its
standard deviation over the clipping norm, and each number is a separate event.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from dp_accounting.dp_event import ComposedDpEvent, DpEvent
from torch import Tensor

from fedllm.files.bounded_json import read_bounded
from fedllm.settings.checks.black_box import noises_numbers
from fedllm.settings.experiment import Settings
from privacy.accountants.vector_bound import gaussian_bound, why_no_bound
from privacy.events.constructors import gaussian, scalar_noise, vector_noise
from privacy.mechanisms.gaussian import add_gaussian
from privacy.mechanisms.scalar_noise import ScalarNoise
from privacy.mechanisms.scalar_noise.lmo import noise_from_json
from privacy.mechanisms.scalar_noise.vector import add_scalar_noise
from privacy.randomness import RandomSource

_MARGIN = 1e-8  # of scale: more than round-off between here and the accountants


@dataclass(frozen=True)
class Noise:
    """The noise of one release, in units of its clipping norm.

    Attributes:
        multiplier: noise multiplier; 0 adds nothing and has no event.
        unit: the noise of multiplier 1; None for Gaussian noise.
        alone: whether each number of a release is a separate event; else the vector is one event.
    """

    multiplier: float
    unit: ScalarNoise | None = None
    alone: bool = False

    @classmethod
    def of(cls, settings: Settings, multiplier: float) -> Noise:
        """Return the noise that the settings ask for.

        Raises:
            ValueError: as :func:`noise_of`.
        """
        file, alone = noise_of(settings), noises_numbers(settings)
        if file is None:
            return cls(multiplier)
        return cls(multiplier, _unit_number(file) if alone else _unit(file), alone)

    def of_multiplier(self, multiplier: float) -> Noise:
        """Return the same noise at another size."""
        return replace(self, multiplier=multiplier)

    @property
    def scaled(self) -> ScalarNoise | None:
        """The noise of each coordinate; None for Gaussian noise."""
        return None if self.unit is None else self.unit.scaled(self.multiplier)

    def event(self) -> DpEvent:
        """Return the event of one release that :meth:`add` adds its noise to.

        Raises:
            ValueError: the noise multiplier is not finite and > 0.
        """
        if self.unit is None:
            return gaussian(self.multiplier)
        noise = self.unit.scaled(self.multiplier)
        # The bound of a vector holds whatever the number of coordinates, which is not known before the model is.
        return scalar_noise(noise) if self.alone else vector_noise(noise, 0)

    @property
    def std(self) -> float:
        """Standard deviation of the noise of each coordinate; may be infinite."""
        if self.unit is None or self.multiplier == 0:
            return self.multiplier
        return self.unit.scaled(self.multiplier).std

    def add(self, vector: Tensor, clip: float, rng: RandomSource) -> Tensor:
        """Add noise to every coordinate of a vector of sensitivity ``clip`` (L2; of single numbers: each).

        Guarantee: its event is :meth:`event`.

        Raises:
            ValueError: the noise multiplier is not finite and > 0, or the vector not finite.
        """
        if not (math.isfinite(self.multiplier) and self.multiplier > 0):
            raise ValueError(
                f"Expected a finite noise_multiplier > 0, got noise_multiplier={self.multiplier}"
            )
        if self.unit is None:
            return add_gaussian(vector, clip, self.multiplier, rng)
        return add_scalar_noise(vector, clip, self.unit.scaled(self.multiplier), rng)


@dataclass(frozen=True)
class RoundCost:
    """A round of training as calibration sees it: equal sampled mechanisms, all of the noise multiplier looked for.

    Attributes:
        sampling_rate: probability of each record to be in one of them.
        mechanisms: how many a round.
        noise: of multiplier 1, where each is a single number with independent noise; None for one that costs what a
            Gaussian vector costs.
        truncated: number of records and the most of a sample, where it is cut; else None.
    """

    sampling_rate: float
    mechanisms: int
    noise: ScalarNoise | None = None
    truncated: tuple[int, int] | None = None


def sampled_fraction(settings: Settings) -> float:
    """Return the probability of a silo to be in a round's sum: 1 unless a server draws it by a Poisson sample and
    adds the noise."""
    server = settings.server
    sampled = settings.privacy.noise_by == "server" and server.sampling == "poisson"
    return server.fraction if sampled else 1.0


def together(events: Sequence[DpEvent]) -> DpEvent:
    """Return the event of several releases of the same records."""
    return events[0] if len(events) == 1 else ComposedDpEvent(tuple(events))


# -- noise of a file -----------------------------------------------------------------------------


def noise_of(settings: Settings) -> ScalarNoise | None:
    """Return the noise in ``privacy.noise``, not scaled; None for Gaussian noise.

    Raises:
        ValueError: the file is missing, is not noise, or noise that vectors have no bound for.
    """
    if settings.privacy.mechanism == "gaussian":
        return None
    numbers = noises_numbers(settings)
    text = str(settings.privacy.noise)
    return _read(text, numbers) if text.lstrip().startswith("{") else _in_file(Path(text), numbers)


def multiplier_of_scale(settings: Settings) -> float | None:
    """Return the noise multiplier that ``privacy.noise_scale`` stands for; None if it is not set.

    Raises:
        ValueError: as :func:`noise_of`.
    """
    scale, noise = settings.privacy.noise_scale, noise_of(settings)
    if scale is None or noise is None:
        return None
    return scale * _size(noise) if noises_numbers(settings) else multiplier_of(noise, scale)


def multiplier_of(noise: ScalarNoise, scale: float) -> float:
    """Return the noise multiplier with which noise on vectors is ``scale`` times the noise."""
    return scale / (gaussian_bound(noise) * (1 + _MARGIN))


def noise_text(path: Path, *, numbers: bool = False) -> str:
    """Return a noise file's content on one line, as settings that travel hold it.

    Args:
        numbers: whether it is for single numbers, where every family has a guarantee.

    Raises:
        ValueError: no such file, or it is not noise.
    """
    return json.dumps(_in_file(path, numbers).to_dict(), sort_keys=True)


def _in_file(path: Path, numbers: bool) -> ScalarNoise:
    try:
        return _read(path.read_text("utf-8"), numbers)
    except (OSError, ValueError) as error:
        raise ValueError(f"Expected noise in privacy.noise={str(path)!r}: {error}") from None


@lru_cache(maxsize=64)
def _read(text: str, numbers: bool) -> ScalarNoise:
    """Read noise from JSON."""
    try:
        noise = noise_from_json(read_bounded(text, "noise"))
    except ValueError as error:
        raise ValueError(f"Expected noise in privacy.noise: {error}") from None
    reason = None if numbers else why_no_bound(noise)
    if reason is not None:
        raise ValueError(f"Expected Gaussian, Laplace or LMO noise in privacy.noise: {reason}")
    return noise


@lru_cache(maxsize=64)
def _unit(noise: ScalarNoise) -> ScalarNoise:
    """Return the noise scaled to be 1-GDP on vectors of sensitivity 1."""
    return noise.scaled(gaussian_bound(noise) * (1 + _MARGIN))


@lru_cache(maxsize=64)
def _unit_number(noise: ScalarNoise) -> ScalarNoise:
    """Return the noise scaled to standard deviation 1 (where that is infinite: to width 1)."""
    return noise.scaled(1 / _size(noise))


def _size(noise: ScalarNoise) -> float:
    return noise.std if math.isfinite(noise.std) else noise.width
