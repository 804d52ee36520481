"""Views: what each adversary sees of one release."""

from __future__ import annotations

import math

import numpy as np
import pytest

from privacy.accountants import make_accountant
from privacy.events import constructors as ev
from privacy.events.views import (
    MOST_COLLUDING,
    distributed_gaussian,
    same_for_all,
    server_gaussian,
    with_colluders,
)
from privacy.ledger.ledger import LedgerEntry, composed
from privacy.mechanisms.gaussian import gaussian
from privacy.randomness import generator


def entry(views):
    return LedgerEntry("run", "server", "client", "train", 0, "round-0", views)


def epsilon(views, adversary):
    return make_accountant("pld").epsilon(composed([entry(views)], adversary), 1e-5)


def test_local_noise_holds_against_everybody():
    step = ev.dp_sgd(0.1, 1.0, 3)
    views = with_colluders(step, [2, 5])
    assert {epsilon(views, a) for a in ("outsider", "server", "colluding:1", "colluding:5")} == {
        epsilon(same_for_all(step), "server")
    }


def test_colluding_clients_take_their_noise_away():
    views = distributed_gaussian(4.0, 16, secure_aggregation=True, colluding=range(1, 16))
    assert views["server"] == views["outsider"] == ev.gaussian(4.0)
    for m in range(1, 16):
        assert views[f"colluding:{m}"].noise_multiplier == pytest.approx(
            4.0 * math.sqrt(16 - m) / math.sqrt(16)
        )
    values = [epsilon(views, a) for a in ("outsider", "server", "colluding:1", "colluding:8")]
    assert values == sorted(values)
    assert values[-1] > values[1]


def test_the_noise_that_is_left_is_what_is_drawn():
    """By simulation: n clients' noise, less that of m."""
    n, m, total = 9, 4, 3.0
    share = total / math.sqrt(n)
    noise = np.stack([gaussian(100_000, share, generator(1, "noise", c)) for c in range(n)])
    left = noise.sum(axis=0) - noise[:m].sum(axis=0)
    views = distributed_gaussian(total, n, secure_aggregation=True, colluding=[m])
    assert left.std() == pytest.approx(views[f"colluding:{m}"].noise_multiplier, rel=0.02)
    assert noise.sum(axis=0).std() == pytest.approx(views["server"].noise_multiplier, rel=0.02)


def test_without_secure_aggregation_the_server_sees_each_share():
    views = distributed_gaussian(4.0, 16, secure_aggregation=False, colluding=[3])
    assert views["server"].noise_multiplier == pytest.approx(1.0)
    assert views["colluding:3"] == views["server"]
    assert views["outsider"] == ev.gaussian(4.0)


def test_server_noise_protects_against_outsiders_only():
    views = server_gaussian(2.0, reason="the server is trusted", colluding=[1])
    assert epsilon(views, "outsider") < 5
    assert epsilon(views, "server") == math.inf
    assert epsilon(views, "colluding:1") == math.inf
    assert views["server"].reason == "the server is trusted"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((1.0, 0), "clients"), ((0.0, 3), "noise_multiplier"), ((1.0, 3, [3]), "m=3"),
     ((1.0, 3, [0]), "m=0")],
)  # fmt: skip
def test_bad_arguments(arguments, name):
    multiplier, clients, *rest = arguments
    with pytest.raises(ValueError, match=name):
        distributed_gaussian(
            multiplier, clients, secure_aggregation=True, colluding=rest[0] if rest else ()
        )


def test_a_row_names_so_many_numbers_of_colluders():
    event = ev.gaussian(1.0)
    assert len(with_colluders(event, range(1, MOST_COLLUDING + 1))) == MOST_COLLUDING + 2
    with pytest.raises(ValueError, match=f"at most {MOST_COLLUDING} numbers .* got 20000"):
        with_colluders(event, range(1, 20_001))
