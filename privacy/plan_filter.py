"""Privacy filter over plans: admit a further plan within (epsilon, delta), even if chosen adaptively.

A *plan* is a multiset of mechanisms that is fixed before its first release: one run's. The first plan on a
ledger is chosen before anything was released; a later one may be chosen after seeing everything so far. Tight
composition (privacy loss distributions) is a theorem about mechanisms fixed beforehand; asked again before
each choice it is no filter and can be exceeded.

**Inside a plan.** Let D, D' be neighbours and (P_j, Q_j) a dominating pair of the plan's mechanism j. Whatever
the parameters with which mechanism j is used, and whatever was released before, its output is a (random)
function of one draw from P_j under D, from Q_j under D' (Blackwell; Dong, Roth and Su 2022, theorem 2). Draw all
of them when the plan is admitted. What is released of the plan, in whatever order, chosen how one likes, with
mechanisms left out, and interleaved with other plans, is a function of these draws and of coins that do not
depend on the data. So the plan as a whole is dominated by the product of its pairs (Zhu, Dong and Wang 2022,
theorem 10), and several plans, interleaved or not, are a function of the composition in which each plan gives
all its draws at once, at its admission.

**Across plans.** That composition is fully adaptive: plan i is a function of what came before. Two filters hold.

*Gaussian* (`kind="gdp"`). Let the whole curve of plan i >= 2 obey delta_i(e) <= delta_mu_i(e) + floor_i for all
e >= 0 and both directions, delta_mu being the curve of mu-GDP. The pair "with probability t_i say everything, else
N(0, 1) against N(mu_i, 1)" with t_i = floor_i / (1 - delta_mu_i(0)) has the curve t_i + (1 - t_i) delta_mu_i >=
delta_mu_i + floor_i, and dominates. Admit plan i only while the sum of mu_i^2 stays <= m^2 and the sum of t_i <= t.
(1) Without the t_i: N(0, 1) against N(mu_i, 1) is, rescaled, the increment of a Brownian motion X with drift b = 0 or 1
over a time mu_i^2. Use the increment from s_i = mu_2^2 + ... + mu_(i-1)^2 to s_i + mu_i^2: the s_i are stopping times,
mu_i is known at s_i, and by the strong Markov property the increment has the right distribution given the past. So all
later plans together are a function of (X_s) for s <= m^2, whose likelihood ratio depends on X_(m^2) alone (Girsanov):
N(0, m^2) against N(m^2, m^2), which is m-GDP. (Smith and Thakurta 2022; Koskela, Tobaben and Honkela 2023.) This holds
given any output of plan 1, which was fixed beforehand, so that all plans together are dominated by the product of plan
1's pair and the Gaussian one of m. (2) With the t_i: outside of the event that some plan says everything, of probability
at most t under either data set, the densities are those of (1) times a common factor <= 1. So delta(epsilon) <=
delta of (plan 1 x m-GDP) + t. m is the largest for which that is at most delta. Later plan k = 1, 2, ... gets
t / (k (k + 1)), which sums to less than t. A single plan needs no t: it has all of delta.

*Renyi at one order* (`kind="renyi"`). Where the sum of the plans' divergences of the order, plan 1's included, never
exceeds B, the adaptive composition has divergence at most B (Feldman and Zrnic 2021, theorem 3.1), and (epsilon, delta)
follows by the conversion of Canonne, Kamath and Steinke 2020, proposition 12. B is the largest that converts.

**Which.** `choose` depends on plan 1 and the budget alone, both fixed before any output, and is never asked again for
the same budget: taking the better one at each step would be no theorem. It takes the filter that leaves room for more
plans like the first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.special
from dp_accounting.dp_event import DpEvent

from privacy.accountants.dominating import DominatingGdpAccountant
from privacy.accountants.dominating_mu import log_gaussian_delta
from privacy.accountants.losses.distribution import LossDistribution
from privacy.accountants.pld import PldAccountant
from privacy.accountants.rdp import ORDERS, RdpAccountant
from privacy.events.multiset import is_private, multiset
from privacy.guarantee import Relation

RESERVE = 0.1
"""Share of delta that later plans' tails may use together (the t of the module's text, over delta)."""

_ATOMS = 20_000
_LARGEST_EPSILON = 1e4
_MARGIN = 1 + 1e-9  # on sums of positive terms, far above round-off
_ROUND_OFF = 1e-14  # of a difference of two normal tails
_Items = frozenset[tuple[DpEvent, int]]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Terms:
    """The limit on later plans, fixed with the first plan.

    Attributes:
      kind: "gdp" or "renyi".
      limit: gdp: m^2, for the sum of mu^2 of the later plans. renyi: what plan 1 leaves of the divergence.
      order: renyi: the order; gdp: 0.
      reserve: gdp: the part of delta that later plans' tails use; renyi: 0.
    """

    kind: Literal["gdp", "renyi"]
    limit: float
    order: float = 0.0
    reserve: float = 0.0

    def __post_init__(self) -> None:
        """Validate; ValueError names the field."""
        if self.kind not in ("gdp", "renyi"):
            raise ValueError(f"Expected a filter of kind gdp or renyi, got kind={self.kind!r}")
        if not (0 <= self.limit < math.inf):
            raise ValueError(f"Expected a finite limit >= 0, got limit={self.limit}")
        if self.kind == "renyi" and not self.order > 1:
            raise ValueError(f"Expected an order > 1, got order={self.order}")
        if not 0 <= self.reserve < 1:
            raise ValueError(f"Expected 0 <= reserve < 1, got reserve={self.reserve}")

    def to_plain(self) -> dict[str, Any]:
        """Return the terms for a ledger's row."""
        return asdict(self)

    def describe(self) -> str:
        """Return the filter in words."""
        if self.kind == "gdp":
            return "a filter on the sum of squared mu of the later plans"
        return f"a filter on the Renyi divergence of order {self.order:g}"


def choose(first: Mapping[DpEvent, int], epsilon: float, delta: float, relation: Relation) -> Terms:
    """Return the terms for all plans after `first`, from `first` and the budget alone.

    Args:
      first: The first plan, or all that was released before plans were kept.
      epsilon, delta: The budget; finite, 0 <= delta < 1.
      relation: The neighbouring relation.
    """
    return _choose(frozenset(multiset(first).items()), epsilon, delta, Relation(relation))


@lru_cache(maxsize=1024)
def _choose(items: _Items, epsilon: float, delta: float, relation: Relation) -> Terms:
    first = Counter(dict(items))
    gaussian = gaussian_terms(first, epsilon, delta, relation)
    renyi = renyi_terms(first, epsilon, delta, relation)
    if renyi is None or not first:
        return gaussian
    # Compare the filters in units of plans like the first. The comparison uses nothing that was
    # released, so the choice does not void either theorem.
    copies = [
        terms.limit / cost if (cost := charge(terms, first, 1, relation)) > 0 else math.inf
        for terms in (gaussian, renyi)
    ]
    return renyi if copies[1] > copies[0] else gaussian


def charge(terms: Terms, plan: Mapping[DpEvent, int], place: int, relation: Relation) -> float:
    """Return a later plan's share of the terms' limit; infinite where it cannot be bounded.

    Args:
      place: 1 for the first of the later plans, 2 for the next, ...
    """
    items = frozenset(multiset(plan).items())
    return _charge(terms, items, place, Relation(relation))


@lru_cache(maxsize=4096)
def _charge(terms: Terms, items: _Items, place: int, relation: Relation) -> float:
    events = Counter(dict(items))
    if not events:
        return 0.0
    if not all(map(is_private, events)):
        return math.inf
    if terms.kind == "renyi":
        accountant = RdpAccountant(relation)
        if not accountant.supports(events):
            return math.inf
        index = ORDERS.index(terms.order)
        return float(accountant.divergences(events)[index]) * _MARGIN
    # Later plan k gets t / (k (k + 1)); these shares sum to less than t for any number of plans.
    share = terms.reserve / (place * (place + 1))
    # t = floor / (1 - delta_mu(0)), and no mu above m is admitted: 1 - delta_m(0) = 2 Phi(-m / 2).
    floor = share * 2 * float(scipy.special.ndtr(-math.sqrt(terms.limit) / 2))
    if floor <= 0:
        return math.inf
    dominating = DominatingGdpAccountant(relation, floor)
    if not dominating.supports(events) or dominating.floor(events) > floor:
        return math.inf
    mu = dominating.mu(events)
    return math.inf if mu is None else mu**2


def used(terms: Terms, later: Sequence[Mapping[DpEvent, int]], relation: Relation) -> float:
    """Return the shares of later plans, in the order of their admission, of the terms' limit."""
    return math.fsum(charge(terms, plan, k, relation) for k, plan in enumerate(later, 1))


def equivalent_epsilon(
    terms: Terms, first: Mapping[DpEvent, int], total: float, delta: float, relation: Relation
) -> float:
    """Return the epsilon at delta that a filter with limit `total` would hold; may be infinite.

    Args:
      first: The first plan.
      total: What later plans use up, or would.
    """
    if not math.isfinite(total):
        return math.inf
    items = multiset(first)
    if terms.kind == "renyi":
        index = ORDERS.index(terms.order)
        spent = float(RdpAccountant(relation).divergences(items)[index]) * _MARGIN + total
        return max(0.0, spent - _room(terms.order, 0.0, delta))
    rest = delta - terms.reserve
    parts = _atoms(frozenset(items.items()), Relation(relation))

    def excess(epsilon: float) -> float:
        return _composed_delta(parts, math.sqrt(total), epsilon) - rest

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > _LARGEST_EPSILON:
            return math.inf
    root = float(scipy.optimize.brentq(excess, 0.0, high, xtol=1e-12))
    return root * (1 + 1e-9) + 1e-9


def _room(order: float, epsilon: float, delta: float) -> float:
    """Return the largest divergence of an order that converts to (epsilon, delta); may be negative."""
    if delta <= 0:
        return -math.inf
    # Canonne, Kamath and Steinke 2020, proposition 12, solved for the divergence.
    return epsilon - math.log1p(-1 / order) + (math.log(delta) + math.log(order)) / (order - 1)


def renyi_terms(
    first: Counter[DpEvent], epsilon: float, delta: float, relation: Relation
) -> Terms | None:
    """Return the Renyi filter at the order that leaves the most in units of plan 1; None if there is none."""
    accountant = RdpAccountant(relation)
    if delta <= 0 or not accountant.supports(first) or not all(map(is_private, first)):
        return None
    best: tuple[float, Terms] | None = None
    for order, own in zip(ORDERS, accountant.divergences(first) * _MARGIN, strict=True):
        if not (math.isfinite(own) and own > 0):
            continue
        left = _room(order, epsilon, delta) - float(own)
        if best is None or left / own > best[0]:
            best = left / float(own), Terms("renyi", max(0.0, left), float(order))
    return None if best is None else best[1]


def gaussian_terms(
    first: Counter[DpEvent], epsilon: float, delta: float, relation: Relation
) -> Terms:
    """Return the Gaussian filter: the largest m with which plan 1 keeps to the budget, and the reserve."""
    reserve = RESERVE * delta
    nothing = Terms("gdp", 0.0, reserve=reserve)
    accountant = PldAccountant(relation)
    if delta <= 0 or not accountant.supports(first) or not all(map(is_private, first)):
        return nothing
    parts = _atoms(frozenset(first.items()), relation)
    rest = delta - reserve

    def fits(m: float) -> bool:
        # Step (2) of the module: delta(plan 1 x m-GDP) + t <= delta, with t = reserve.
        return _composed_delta(parts, m, epsilon) <= rest

    if not fits(0.0):
        return nothing
    low, high = 0.0, 1.0
    while fits(high):
        low, high = high, 2 * high
        if high > _LARGEST_EPSILON:
            break
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return Terms("gdp", low**2, reserve=reserve)


def _composed_delta(parts: Sequence[tuple[Array, Array, float]], m: float, epsilon: float) -> float:
    """Return delta at epsilon of a plan's loss distributions, each composed with an m-GDP mechanism.

    With L the plan's loss it is the mean of delta_m(epsilon - L), exact at every atom.
    """
    worst = 0.0
    for losses, masses, rest in parts:
        if m > 0:
            curve = np.exp(log_gaussian_delta(m, epsilon - losses))
        else:
            curve = -np.expm1(np.minimum(epsilon - losses, 0.0))
        worst = max(worst, float(masses @ curve) * _MARGIN + rest)
    return worst


@lru_cache(maxsize=16)
def _atoms(items: _Items, relation: Relation) -> tuple[tuple[Array, Array, float], ...]:
    """Return (losses, masses, infinite mass and round-off) of each direction, on a coarser grid; rounded up."""
    if not items:
        return ((np.zeros(1), np.ones(1), 0.0),)
    pair = PldAccountant(relation).composed(Counter(dict(items)))
    return tuple(_coarse(part) for part in pair)


def _coarse(part: LossDistribution) -> tuple[Array, Array, float]:
    losses, masses = part.losses, np.maximum(part.probs, 0.0)
    width = -(-losses.size // _ATOMS)
    if width > 1:  # each group's mass goes to its largest loss: delta can only grow
        starts = np.arange(0, losses.size, width)
        masses = np.add.reduceat(masses, starts)
        losses = losses[np.minimum(starts + width, losses.size) - 1]
    return losses, masses, part.infinity + part.error + _ROUND_OFF
