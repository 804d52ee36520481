"""Additive noise for one real number, a family a file; importing the package loads them all."""

from __future__ import annotations

from privacy.scalar_noise.base import ScalarNoise, noise_from_dict
from privacy.scalar_noise.gaussian import GaussianNoise
from privacy.scalar_noise.laplace import LaplaceNoise

__all__ = ["GaussianNoise", "LaplaceNoise", "ScalarNoise", "noise_from_dict"]
