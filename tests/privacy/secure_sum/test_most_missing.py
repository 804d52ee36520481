"""`most_missing` against every strategy of a malicious server for few silos, and against linear algebra over formal masks."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import combinations, product

import pytest

from privacy.secure_sum.shares import honest_shares, most_missing


def subsets(items, most):
    for size in range(most + 1):
        yield from map(frozenset, combinations(sorted(items), size))


def answers(place, n, t):
    """All (told, dropped) that an honest silo accepts: at least n - t silos told, itself among them, and as many answered."""
    for outside in subsets(set(range(n)) - {place}, t):
        told = frozenset(range(n)) - outside
        for dropped in subsets(told, t - len(outside)):
            yield told, dropped


def known(strategy, n, t, m):
    """(silos whose self-mask is known, silos whose pairwise key is known) of n - m honest ones, by counts of shares."""
    honest, k = range(n - m), n - t
    seed = {j for j in honest if m + sum(j in told - gone for told, gone in strategy) >= k}
    key = {j for j in honest if m + sum(j in gone for _, gone in strategy) >= k}
    assert not seed & key
    return seed, key


def smallest_sum(strategy, n, t, m):
    """The least number of honest silos in a sum that the server learns; None if it learns none."""
    seed, key = known(strategy, n, t, m)
    best = None
    for told, _ in strategy:
        group = {j for j in seed if strategy[j][0] == told}
        if group and all(j in group or j in key for j in told if j < n - m):
            best = min(len(group), best or n)
    return best


def null_space(rows):
    """A basis of the vectors c with c . rows = 0, in exact fractions."""
    size = len(rows)
    table = [
        [Fraction(v) for v in row] + [Fraction(i == j) for j in range(size)]
        for i, row in enumerate(rows)
    ]
    width, top = len(rows[0]), 0
    for column in range(width):
        pivot = next((r for r in range(top, size) if table[r][column]), None)
        if pivot is None:
            continue
        table[top], table[pivot] = table[pivot], table[top]
        for r in range(top + 1, size):
            if table[r][column]:
                factor = table[r][column] / table[top][column]
                table[r] = [a - factor * b for a, b in zip(table[r], table[top], strict=True)]
        top += 1
    return [row[width:] for row in table[top:]]


def smallest_combination(strategy, n, t, m):
    """As `smallest_sum`, by linear algebra: masks are formal unknowns, and c . masked vectors must be free of unknown ones."""
    seed, key = known(strategy, n, t, m)
    honest = range(n - m)
    names = {}
    rows = []
    for j in honest:
        told = strategy[j][0]
        row = {} if j in seed else {("self", j): 1}
        for peer in told & set(honest) - {j}:
            if not {j, peer} & key:
                row["pair", min(j, peer), max(j, peer), told] = 1 if j < peer else -1
        rows.append(row)
        names |= dict.fromkeys(row)
    columns = list(names) or ["nothing"]
    basis = null_space([[row.get(column, 0) for column in columns] for row in rows])
    supports = [frozenset(j for j in honest if c[j]) for c in basis]
    assert sum(map(len, supports)) == len(
        frozenset().union(*supports)
    )  # disjoint: no smaller combination
    assert all(len({c[j] for j in honest if c[j]}) == 1 for c in basis)  # sums, with equal weights
    return min(map(len, supports), default=None)


@pytest.mark.parametrize(("n", "m"), [(3, 0), (4, 0), (5, 0), (4, 1), (5, 1), (5, 2)])
def test_no_strategy_leaves_out_more_and_one_as_many(n, m):
    """All strategies for one drop-out."""
    options = [list(answers(place, n, 1)) for place in range(n - m)]
    found = {smallest_sum(strategy, n, 1, m) for strategy in product(*options)}
    assert min(found - {None}) == honest_shares(n, 1, m) == n - m - most_missing(n, 1, m)


def climb(n, t, m, rng, steps):
    """Strategies from random changes of one silo's lists, kept where the sum gets no larger."""
    options = [list(answers(place, n, t)) for place in range(n - m)]
    everyone = frozenset(range(n))
    now, least = [(everyone, frozenset())] * (n - m), n - m
    for _ in range(steps):
        new = list(now)
        for place in rng.sample(range(n - m), rng.choice((1, 1, 2))):
            new[place] = rng.choice(options[place])
        yield new
        size = smallest_sum(new, n, t, m)
        if size is not None and size <= least:
            now, least = new, size


@pytest.mark.parametrize(("n", "t", "m"), [(5, 2, 0), (6, 2, 0), (6, 2, 1), (7, 3, 0)])
def test_no_strategy_of_a_search_leaves_out_more(n, t, m):
    rng, found = random.Random(n + t), set()
    for strategy in climb(n, t, m, rng, 800):
        found.add(smallest_sum(strategy, n, t, m))
    found.discard(None)
    assert (
        honest_shares(n, t, m) <= min(found) < n - m
    )  # the search finds smaller sums than that of all


@pytest.mark.parametrize(("n", "t", "m"), [(3, 1, 0), (5, 1, 1), (5, 2, 0), (7, 2, 1)])
def test_sums_over_silos_told_the_same_are_all_that_linear_algebra_finds(n, t, m):
    rng, learned = random.Random(n * t), 0
    for strategy in climb(n, t, m, rng, 150):
        one = smallest_sum(strategy, n, t, m)
        assert one == smallest_combination(strategy, n, t, m)
        learned += one is not None
    assert learned > 10


def test_closed_forms():
    for honest in range(1, 80):
        for t in range((honest + 1) // 2):
            found = most_missing(honest + 2, t, 2)
            assert t <= found <= honest - 1 or t == found == 0
            assert found <= t + t * t // (honest - 2 * t)
            assert found == t or honest <= t * t + t + 1
            if honest >= 3 * t:
                assert found == t + max(s for s in range(t + 1) if s * (honest - t - s) <= t * t)
            assert honest - found <= honest + 1 - most_missing(honest + 3, t, 2)
    assert most_missing(1000, 499, 0) == 999
    assert [most_missing(n, t, 0) for n, t in ((3, 1), (4, 1), (100, 9), (100, 10))] == [
        2,
        1,
        9,
        11,
    ]
