"""The PRV accountant: Opacus' numerical composition, valid within its own error terms."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from dp_accounting import dp_event as dp
from dp_accounting.dp_event import DpEvent
from opacus.accountants.analysis import prv as opacus_prv
from scipy.special import erfc

from privacy.accountants.base import Accountant
from privacy.vocabulary import Relation

# Said by Opacus of the RDP bracket that its PRV accountant starts from; the result does not hang on it.
warnings.filterwarnings("ignore", message="Optimal order is the", module="opacus")

EPSILON_ERROR = 0.01  # Opacus' default
_DELTA_ERROR_SHARE = 1e-3  # Opacus' default: delta_error = delta / 1000
_DELTA_ERROR = 1e-10  # where delta is what is asked
_LARGEST_DOMAIN = 2**25  # points; more does not fit ordinary memory


class _AddDirectionPrv:
    """The loss ln(N(0, s^2) / ((1-q) N(0, s^2) + q N(1, s^2))) under N(0, s^2).

    Opacus has the other direction (a record is removed) only. The interface of Opacus'
    PoissonSubsampledGaussianPRV, as far as its discretisation uses it.
    """

    def __init__(self, sample_rate: float, noise_multiplier: float) -> None:
        self.sample_rate = sample_rate
        self.noise_multiplier = noise_multiplier

    def cdf(self, t: Any) -> npt.NDArray[np.float64]:
        q, sigma = self.sample_rate, self.noise_multiplier
        rest = np.expm1(-np.asarray(t, dtype=np.float64)) + q
        z = np.log(np.where(rest > 0, rest / q, 1.0))
        inside = erfc((sigma**2 * z + 0.5) / (sigma * math.sqrt(2))) / 2
        return np.where(rest > 0, inside, 1.0)


class PrvAccountant(Accountant):
    """Composes privacy random variables (Gopi, Lee and Wutschitz 2021), in both directions.

    The upper end of the method's error interval is given, with Opacus' default error of 0.01 in
    epsilon and delta / 1000 in delta.
    """

    name = "prv"
    is_bound = True
    trust = "a valid upper bound within its own error terms (0.01 in epsilon)"

    def _refusal(self, event: DpEvent) -> str | None:
        if isinstance(event, dp.GaussianDpEvent):
            return None
        sampled = isinstance(event, dp.PoissonSampledDpEvent) and isinstance(
            event.event, dp.GaussianDpEvent
        )
        if not sampled:
            return "only (Poisson-sampled) Gaussian mechanisms have a privacy random variable here"
        if self.relation is Relation.REPLACE_ONE:
            return "its privacy random variable is stated for add-or-remove-one only"
        return None

    def _epsilon(self, events: Counter[DpEvent], delta: float) -> float:
        if delta == 0:
            return math.inf
        error = delta * _DELTA_ERROR_SHARE
        composed = _composed(frozenset(events.items()), self.relation, error)
        return max(_upper_epsilon(part, delta, error) for part in composed)

    def _delta(self, events: Counter[DpEvent], epsilon: float) -> float:
        composed = _composed(frozenset(events.items()), self.relation, _DELTA_ERROR)
        shifted = min(epsilon, 700.0) - EPSILON_ERROR
        estimates = [
            math.inf if part is None else float(part.compute_delta_estimate(shifted))
            for part in composed
        ]
        return max(estimates) + _DELTA_ERROR


def _upper_epsilon(part: Any, delta: float, delta_error: float) -> float:
    """The upper end of epsilon; infinite where the method cannot give one."""
    if part is None:
        return math.inf
    try:
        with np.errstate(all="ignore"):
            upper = float(part.compute_epsilon(delta, delta_error, EPSILON_ERROR)[2])
    except (ValueError, RuntimeError, IndexError):
        return math.inf
    return math.inf if math.isnan(upper) else upper


@lru_cache(maxsize=8)
def _composed(
    items: frozenset[tuple[DpEvent, int]], relation: Relation, delta_error: float
) -> tuple[Any, ...]:
    """Compose each direction; None for a direction where the method fails or needs too much."""
    counts: Counter[tuple[float, float]] = Counter()  # (rate, noise multiplier)
    precision = 0.0
    for event, count in items:
        if isinstance(event, dp.GaussianDpEvent):
            precision += count / event.noise_multiplier**2
        else:
            counts[event.sampling_probability, event.event.noise_multiplier] += count
    if precision > 0:
        factor = 2.0 if relation is Relation.REPLACE_ONE else 1.0
        counts[1.0, precision**-0.5 / factor] += 1
    parts = sorted(counts.items())
    numbers = [count for _, count in parts]
    remove = [opacus_prv.PoissonSubsampledGaussianPRV(q, s) for (q, s), _ in parts]
    directions = [remove]
    if any(q < 1 for (q, _), _ in parts):
        directions.append([_AddDirectionPrv(q, s) for (q, s), _ in parts])
    with np.errstate(all="ignore"):
        try:
            reach = opacus_prv.compute_safe_domain_size(remove, numbers, EPSILON_ERROR, delta_error)
        except (ValueError, OverflowError):
            return tuple(None for _ in directions)
        mesh = EPSILON_ERROR / math.sqrt(sum(numbers) * math.log(12 / delta_error) / 2)
        if not math.isfinite(reach) or 2 * reach / mesh > _LARGEST_DOMAIN:
            return tuple(None for _ in directions)
        domain = opacus_prv.Domain.create_aligned(-reach, reach, mesh)
        return tuple(_compose_direction(prvs, numbers, domain) for prvs in directions)


def _compose_direction(prvs: list[Any], numbers: list[int], domain: Any) -> Any:
    try:
        discrete = [
            opacus_prv.discretize(
                opacus_prv.TruncatedPrivacyRandomVariable(prv, domain.t_min, domain.t_max), domain
            )
            for prv in prvs
        ]
        return opacus_prv.compose_heterogeneous(discrete, numbers)
    except (RuntimeError, ValueError):
        return None
