"""The mechanism that training releases its vectors with: Gaussian noise, or LMO noise of a file.

A noise multiplier means the same for both: 1 / mu of the mechanism for a vector clipped to norm 1. For
Gaussian noise it is the standard deviation over the clipping norm. LMO noise is scaled so that the mu
that is *proven* for it on vectors (:mod:`privacy.accountants.vector_bound`) is the same: what calibrates
Gaussian noise calibrates it too, and the ledger costs both alike, whatever is claimed for either.

Training through a model's outputs alone (:mod:`fedllm.training.zeroth_order`) releases single numbers, each of sensitivity
``clip``. Noise of a file is then a number's own: its loss is exact, any family will do, the noise multiplier is its
standard deviation over the clipping norm, and each number is an event of its own.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path

from dp_accounting.dp_event import DpEvent
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


def noise_of(settings: Settings) -> ScalarNoise | None:
    """The noise that ``privacy.noise`` names, as it is there; None for Gaussian noise.

    Raises:
        ValueError: the file is missing, is not noise, or noise that vectors have no bound for.
    """
    if settings.privacy.mechanism == "gaussian":
        return None
    numbers = noises_numbers(settings)
    text = str(settings.privacy.noise)
    return _read(text, numbers) if text.lstrip().startswith("{") else _in_file(Path(text), numbers)


def _in_file(path: Path, numbers: bool) -> ScalarNoise:
    try:
        return _read(path.read_text("utf-8"), numbers)
    except (OSError, ValueError) as error:
        raise ValueError(f"Expected noise in privacy.noise={str(path)!r}: {error}") from None


@lru_cache(maxsize=64)
def _read(text: str, numbers: bool) -> ScalarNoise:
    """Of JSON."""
    try:
        noise = noise_from_json(read_bounded(text, "noise"))
    except ValueError as error:
        raise ValueError(f"Expected noise in privacy.noise: {error}") from None
    reason = None if numbers else why_no_bound(noise)
    if reason is not None:
        raise ValueError(f"Expected Gaussian, Laplace or LMO noise in privacy.noise: {reason}")
    return noise


def noise_text(path: Path, *, numbers: bool = False) -> str:
    """A noise file's content on one line, as settings that travel hold it.

    Args:
        numbers: whether it is for single numbers, where every family has a guarantee.

    Raises:
        ValueError: no such file, or it is not noise.
    """
    return json.dumps(_in_file(path, numbers).to_dict(), sort_keys=True)


@lru_cache(maxsize=64)
def _unit(noise: ScalarNoise) -> ScalarNoise:
    """The noise scaled to be 1-GDP on vectors of sensitivity 1."""
    return noise.scaled(gaussian_bound(noise) * (1 + _MARGIN))


@lru_cache(maxsize=64)
def _unit_number(noise: ScalarNoise) -> ScalarNoise:
    """The noise scaled to standard deviation 1 (where that is infinite: to width 1)."""
    return noise.scaled(1 / _size(noise))


def _size(noise: ScalarNoise) -> float:
    return noise.std if math.isfinite(noise.std) else noise.width


def unit_noise(settings: Settings) -> ScalarNoise | None:
    """The noise of noise multiplier 1 in units of the clipping norm; None for Gaussian noise."""
    noise = noise_of(settings)
    if noise is None:
        return None
    return _unit_number(noise) if noises_numbers(settings) else _unit(noise)


def scaled_noise(settings: Settings, noise_multiplier: float) -> ScalarNoise | None:
    """The noise of each coordinate in units of the clipping norm; None for Gaussian noise."""
    noise = unit_noise(settings)
    return None if noise is None else noise.scaled(noise_multiplier)


def multiplier_of(noise: ScalarNoise, scale: float) -> float:
    """The noise multiplier with which ``scaled_noise`` is ``scale`` times the noise, on vectors."""
    return scale / (gaussian_bound(noise) * (1 + _MARGIN))


def number_multiplier(noise: ScalarNoise, scale: float) -> float:
    """As :func:`multiplier_of`, on single numbers."""
    return scale * _size(noise)


def release_event(settings: Settings, noise_multiplier: float) -> DpEvent:
    """The event of one vector, clipped to the clipping norm and noised by :func:`add_noise`; with noise of
    a file on single numbers, that of one of them."""
    noise = scaled_noise(settings, noise_multiplier)
    if noise is not None and noises_numbers(settings):
        return scalar_noise(noise)
    # The bound holds whatever the number of coordinates, which is not known before the model is.
    return gaussian(noise_multiplier) if noise is None else vector_noise(noise, 0)


def noise_std(settings: Settings, noise_multiplier: float) -> float:
    """Standard deviation of the noise of each coordinate over the clipping norm; may be infinite."""
    noise = None if noise_multiplier == 0 else scaled_noise(settings, noise_multiplier)
    return noise_multiplier if noise is None else noise.std


def add_noise(
    settings: Settings, vector: Tensor, noise_multiplier: float, rng: RandomSource
) -> Tensor:
    """A vector of sensitivity ``privacy.clip`` (L2), with noise on every coordinate.

    Guarantee: its event is :func:`release_event`.

    Raises:
        ValueError: the noise multiplier is not finite and > 0, or the vector not finite.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(
            f"Expected a finite noise_multiplier > 0, got noise_multiplier={noise_multiplier}"
        )
    clip = settings.privacy.clip
    noise = scaled_noise(settings, noise_multiplier)
    if noise is None:
        return add_gaussian(vector, clip, noise_multiplier, rng)
    return add_scalar_noise(vector, clip, noise, rng)
