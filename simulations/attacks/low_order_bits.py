"""An attack on the low-order bits of noisy values, against several ways to add Gaussian noise.

    python -m simulations.attacks.low_order_bits [--json OUT]

The attacker knows that a noisy sum is of one of two neighbouring data sets: no one was in the batch
(the sum is 0), or one example was, whose clipped gradient has the same value in all coordinates. It
looks at each coordinate's sign, binade and *lowest set bit*, and at nothing else. Near zero the sum
``0 + noise`` keeps all the bits of a small noise, while ``value + noise`` is the difference of larger
numbers and ends in zeros (Haney et al. 2022, "Precision-based attacks and interval refining").
It learns how often each pattern occurs under either data set from draws of its own, and then
decides by the likelihood ratio over all coordinates.

The advantage is the probability to say "no one" where no one was, less that where somebody was. For
real numbers no attacker of a Gaussian mechanism has more than 2 Phi(mu / 2) - 1, mu = 1 /
noise_multiplier. Anyone who has more breaks the guarantee. An attacker that stays below proves nothing:
another one may be better.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import norm

from privacy.mechanisms.gaussian import add_gaussian, gaussian
from privacy.randomness import generator
from simulations.benchmarks.support import timing

Values = npt.NDArray[np.float64]
Release = Callable[[Values, float], Values]
"""``release(sums, std)``: the sums with noise, each row one release."""

_BINADES = (-14, 5)  # of a value, relative to that of std; what is beyond counts as the last one
_LOWEST = (-80, 5)  # of the lowest set bit, relative to the same


def naive(sums: Values, std: float) -> Values:
    """Return value + std * z in float64, z from numpy's default generator."""
    return sums + std * np.random.default_rng().standard_normal(sums.shape)


def four_draws(sums: Values, std: float, *, dtype: torch.dtype) -> Values:
    """Return the sum of four draws, made and added in float64, not rounded to a grid."""
    noisy = torch.from_numpy(sums + gaussian(sums.shape, std, generator(None)))
    return noisy.to(dtype).double().numpy()


def opacus(sums: Values, std: float, *, secure: bool) -> Values:
    """Return Opacus' own noise in float32; in secure mode, the sum of four draws."""
    try:
        from opacus.optimizers.optimizer import _generate_noise
    except ModuleNotFoundError:
        raise ValueError(
            "Expected Opacus installed for its noise (pip install -e '.[comparison]'), got none"
        ) from None
    values = torch.from_numpy(sums).float()
    return (values + _generate_noise(std, values, secure_mode=secure)).double().numpy()


def ours(sums: Values, std: float, *, dtype: torch.dtype) -> Values:
    """Return `privacy.mechanisms.gaussian.add_gaussian`: four draws, rounded to the grid."""
    values = torch.from_numpy(sums).to(dtype)
    return add_gaussian(values, 1.0, std, generator(None)).double().numpy()


MECHANISMS: dict[str, Release] = {
    "naive, float64": naive,
    "four draws, no grid, float64": partial(four_draws, dtype=torch.float64),
    "four draws, no grid, float32": partial(four_draws, dtype=torch.float32),
    "Opacus, float32": partial(opacus, secure=False),
    "Opacus secure mode, float32": partial(opacus, secure=True),
    "fedllm, float64": partial(ours, dtype=torch.float64),
    "fedllm, float32": partial(ours, dtype=torch.float32),
}


@dataclass(frozen=True)
class Found:
    """Result of the attack.

    Attributes:
        advantage: measured; error: its standard error.
        bound: what no attacker exceeds against the Gaussian mechanism in real arithmetic.
        broken: the advantage is above the bound by more than five standard errors.
    """

    mechanism: str
    advantage: float
    error: float
    bound: float
    broken: bool


def attack(
    mechanism: str,
    *,
    coordinates: int = 1000,
    noise_multiplier: float = 1.1,
    trials: int = 1000,
) -> Found:
    """Train the attacker on ``trials`` releases of each data set, and test it on as many others.

    Args:
        mechanism: a name of ``MECHANISMS``.
        coordinates: length of a released sum; the example's gradient has norm 1.
        noise_multiplier: standard deviation of the noise in each coordinate.

    Raises:
        ValueError: an unknown mechanism, or fewer than 2 trials or 1 coordinate.
    """
    if mechanism not in MECHANISMS:
        raise ValueError(f"Expected one of {', '.join(MECHANISMS)}, got mechanism={mechanism!r}")
    if trials < 2 or coordinates < 1:
        raise ValueError(
            f"Expected trials >= 2 and coordinates >= 1, got trials={trials}, "
            f"coordinates={coordinates}"
        )
    nobody = np.zeros((trials, coordinates))
    somebody = np.full((trials, coordinates), 1 / math.sqrt(coordinates))
    seen = [_patterns(_release(mechanism, s, noise_multiplier)) for s in (nobody, somebody)]
    size = 2 * (1 + _BINADES[1] - _BINADES[0]) * (1 + _LOWEST[1] - _LOWEST[0])
    often = [np.bincount(p.ravel(), minlength=size) + 0.5 for p in seen]
    ratio = np.log(often[0] / often[0].sum()) - np.log(often[1] / often[1].sum())
    said = [
        ratio[_patterns(_release(mechanism, s, noise_multiplier))].sum(axis=1) > 0
        for s in (nobody, somebody)
    ]
    right, wrong = float(said[0].mean()), float(said[1].mean())
    error = math.sqrt((right * (1 - right) + wrong * (1 - wrong)) / trials)
    bound = float(2 * norm.cdf(1 / (2 * noise_multiplier)) - 1)
    slack = 5 * max(error, 1 / trials)
    return Found(mechanism, right - wrong, error, bound, right - wrong > bound + slack)


def _release(mechanism: str, sums: Values, std: float) -> Values:
    return MECHANISMS[mechanism](sums, std)


def _patterns(values: Values) -> npt.NDArray[np.int64]:
    """Return a number for (sign, binade, lowest set bit) of each value; a zero has the lowest of both."""
    fraction, exponent = np.frexp(values)
    mantissa = np.abs(np.ldexp(fraction, 53)).astype(np.int64)
    lowest_bit = np.where(mantissa == 0, 1, mantissa & -mantissa).astype(np.float64)
    lowest = exponent - 53 + np.frexp(lowest_bit)[1]
    binade = np.where(mantissa == 0, _BINADES[0], np.clip(exponent, *_BINADES)) - _BINADES[0]
    place = np.where(mantissa == 0, _LOWEST[0], np.clip(lowest, *_LOWEST)) - _LOWEST[0]
    rows = 1 + _BINADES[1] - _BINADES[0]
    sign = (values < 0).astype(np.int64)
    found = (place * rows + binade) * 2 + sign
    return np.asarray(found, dtype=np.int64)


def report(found: Sequence[Found], options: argparse.Namespace) -> str:
    """Return the advantages as text."""
    rows = [
        [
            f.mechanism,
            f"{f.advantage:.3f}",
            f"{f.error:.3f}",
            "BROKEN" if f.broken else "within the bound",
        ]
        for f in found
    ]
    return "\n".join(
        [
            f"{options.coordinates} coordinates, noise multiplier {options.noise_multiplier:g}, "
            f"{options.trials} releases of each data set; no attacker on real numbers has an "
            f"advantage above {found[0].bound:.3f}",
            timing.table(["mechanism", "advantage", "error", "verdict"], rows),
        ]
    )


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog="python -m simulations.attacks.low_order_bits", description=__doc__
    )
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--coordinates", type=int, default=1000)
    made.add_argument("--noise-multiplier", type=float, default=1.1)
    made.add_argument("--trials", type=int, default=2000)
    made.add_argument("--json", metavar="OUT", help="write the figures to this file")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the attack on every mechanism and print what it reached."""
    options = parser().parse_args(arguments)
    chosen = [name for name in MECHANISMS if find_spec("opacus") or "Opacus" not in name]
    if len(chosen) < len(MECHANISMS):
        print("Opacus left out: not installed (pip install -e '.[comparison]')")
    found = [
        attack(
            name,
            coordinates=options.coordinates,
            noise_multiplier=options.noise_multiplier,
            trials=options.trials,
        )
        for name in chosen
    ]
    print(report(found, options))
    if options.json:
        result: dict[str, Any] = {"options": vars(options), "found": [asdict(f) for f in found]}
        timing.write_json(options.json, result)


if __name__ == "__main__":
    main()
