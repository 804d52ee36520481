"""The words of a guarantee."""

from __future__ import annotations

import math

import dp_accounting
import pytest

from privacy.guarantee import Adversary, Guarantee, Relation, Unit


def guarantee(**changes):
    values = {
        "epsilon": 2.9994,
        "delta": 1e-5,
        "unit": Unit.EXAMPLE,
        "relation": Relation.ADD_OR_REMOVE_ONE,
        "adversary": "server",
        "accountant": "pld",
        "bound": True,
    }
    return Guarantee(**(values | changes))


def test_sentence_names_everything():
    sentence = guarantee(mu=0.5).sentence()
    for part in (
        "Guaranteed", "3", "1e-05", "example", "add-or-remove-one", "server", "pld", "mu = 0.5"
    ):  # fmt: skip
        assert part in sentence
    sentence = guarantee(unit="client", adversary="colluding:3").sentence()
    assert "all data of one client" in sentence
    assert "controls 3 other clients" in sentence


def test_printed_epsilon_is_rounded_up():
    assert "epsilon = 2.001 " in guarantee(epsilon=2.0001).sentence()
    assert "epsilon = 2 " in guarantee(epsilon=2.0).sentence()


def test_an_approximation_is_never_called_guaranteed():
    sentence = guarantee(accountant="gdp-clt", bound=False).sentence()
    assert sentence.startswith("Estimated, not guaranteed")


def test_infinite_epsilon_says_that_nothing_is_guaranteed():
    sentence = guarantee(epsilon=math.inf, note="Losses are released.").sentence()
    assert sentence.startswith("No privacy is guaranteed")
    assert "Losses are released." in sentence


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", -1.0),
        ("epsilon", math.nan),
        ("delta", -0.1),
        ("delta", 1.1),
        ("unit", "user"),
        ("relation", "replace"),
        ("adversary", "everyone"),
    ],
)
def test_bad_values(field, value):
    with pytest.raises(ValueError, match=str(value) if field != "epsilon" else "epsilon"):
        guarantee(**{field: value})


def test_adversary():
    assert Adversary("colluding:03") == "colluding:3"
    assert Adversary("colluding:3").colluders == 3
    order = ["outsider", "server", "colluding:1", "colluding:2", "colluding:10"]
    shuffled = [order[i] for i in (3, 0, 4, 2, 1)]
    assert sorted(shuffled, key=lambda a: Adversary(a).strength) == order
    assert {"server": 1}[Adversary("server")] == 1


@pytest.mark.parametrize(
    "text", ["", "Server", "colluding", "colluding:", "colluding:0", "colluding:-1", "colluding:x",
             "colluding:1.5", "colluding:²", "server:1"]
)  # fmt: skip
def test_bad_adversary(text):
    with pytest.raises(ValueError, match="Expected adversary"):
        Adversary(text)


def test_relation_is_dp_accountings():
    names = {r.dp_accounting for r in Relation}
    assert names == {
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        dp_accounting.NeighboringRelation.REPLACE_ONE,
        dp_accounting.NeighboringRelation.REPLACE_SPECIAL,
    }


def test_adversaries_are_ordered_by_what_they_see():
    names = [
        "outsider",
        "sum-only",
        "sum-only:1",
        "sum-only:12",
        "server",
        "colluding:1",
        "colluding:3",
    ]
    mixed = names[3:] + names[:3]
    assert sorted(mixed, key=lambda name: Adversary(name).strength) == names
    assert len({Adversary(name).strength for name in names}) == len(names)
    assert [Adversary(name).sees_sums for name in names] == [
        False,
        True,
        True,
        True,
        False,
        False,
        False,
    ]
    assert Adversary("sum-only:012") == "sum-only:12"
    assert Adversary("sum-only:12").colluders == 12
    assert "learns only sums" in Adversary("sum-only").describe()
    assert (
        "learns only sums over the clients and controls 1 other client"
        in Adversary("sum-only:1").describe()
    )
    for wrong in ("sum-only:0", "sum-only:", "sum-only:-1", "sum-only:x", "sum", "sum-only:1:2"):
        with pytest.raises(ValueError, match="Expected adversary"):
            Adversary(wrong)
