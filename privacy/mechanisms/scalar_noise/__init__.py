"""Additive noise for one real number, a family a file; importing the package loads them all."""

from __future__ import annotations

from privacy.mechanisms.scalar_noise.base import ScalarNoise, noise_from_dict
from privacy.mechanisms.scalar_noise.exponential_power import ExponentialPowerNoise
from privacy.mechanisms.scalar_noise.gaussian import GaussianNoise
from privacy.mechanisms.scalar_noise.laplace import LaplaceNoise
from privacy.mechanisms.scalar_noise.lmo import LmoNoise
from privacy.mechanisms.scalar_noise.staircase import StaircaseNoise

__all__ = [
    "ExponentialPowerNoise",
    "GaussianNoise",
    "LaplaceNoise",
    "LmoNoise",
    "ScalarNoise",
    "StaircaseNoise",
    "noise_from_dict",
]
