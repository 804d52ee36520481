"""Probabilities of permute-and-flip by brute force."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence


def by_permutations(utilities: Sequence[float], sensitivity: float, epsilon: float) -> list[float]:
    """Probability of each candidate: every order, flip by flip."""
    taken = [math.exp(-epsilon * (max(utilities) - u) / (2 * sensitivity)) for u in utilities]
    found = [0.0] * len(utilities)
    orders = list(itertools.permutations(range(len(utilities))))
    for order in orders:
        reached = 1.0
        for place in order:
            found[place] += reached * taken[place] / len(orders)
            reached *= 1 - taken[place]
    return found


def by_subsets(
    utilities: Sequence[float], count: int, sensitivity: float, epsilon: float
) -> Counter[tuple[int, ...]]:
    """Probability of each set of candidates that are taken, or left out, one after the other."""
    keep = count <= len(utilities) - count
    picks = count if keep else len(utilities) - count
    signed = [u if keep else -u for u in utilities]
    found: Counter[tuple[int, ...]] = Counter()

    def go(left: list[int], picked: list[int], probability: float) -> None:
        if len(picked) == picks:
            chosen = picked if keep else [i for i in range(len(signed)) if i not in picked]
            found[tuple(sorted(chosen))] += probability
            return
        for place, p in enumerate(
            by_permutations([signed[i] for i in left], sensitivity, epsilon / picks)
        ):
            rest = [i for i in left if i != left[place]]
            go(rest, [*picked, left[place]], probability * p)

    go(list(range(len(signed))), [], 1.0)
    return found
