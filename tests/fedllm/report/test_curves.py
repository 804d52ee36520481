"""Adversaries beyond the server, and the drawn curves, against the accountants."""

from __future__ import annotations

import math
import re
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from report_runs import (
    COLLUDER,
    NOISE,
    ROUNDS,
    Page,
    enter,
    epsilon,
    finish_round,
    new_run,
    trained,
)

from fedllm.report import build, write_report
from fedllm.report.guarantee import shown
from fedllm.report.prose.glossary import plain_words
from privacy.accountants import make_accountant
from privacy.events.constructors import dp_sgd, gaussian, no_guarantee
from privacy.guarantee import Relation


def test_adversaries_that_collude_are_reported_as_the_ledger_has_them(tmp_path: Path) -> None:
    same, weaker, lost = gaussian(8.0), gaussian(4.0), no_guarantee("the others know its noise")
    views = {"server": same, "outsider": same, "colluding:1": weaker, "colluding:2": lost}
    run = trained(new_run(tmp_path, privacy={"unit": "client"}), views=views)
    report = build(run)
    for silo in report["silos"]:
        assert list(silo["adversaries"]) == ["outsider", "server", "colluding:1", "colluding:2"]
        one = silo["adversaries"]["colluding:1"]["headline"]["epsilon"]
        assert one == pytest.approx(epsilon({weaker: ROUNDS}), rel=1e-9)
        assert silo["adversaries"]["colluding:2"]["headline"]["epsilon"] == math.inf
    guarantee = report["guarantee"]
    assert guarantee["epsilon"] == pytest.approx(epsilon({same: ROUNDS}), rel=1e-9)
    assert guarantee["others"]["colluding:2"] == math.inf
    assert f"Against {COLLUDER}: epsilon = {shown(one)}" in guarantee["sentence"]
    assert "NO GUARANTEE against" in guarantee["sentence"]
    assert "the others know its noise" in guarantee["sentence"]
    text = write_report(run).read_text()
    assert '<p class="guarantee warn"' in text
    assert "colluding:1" in Page(text).words


def test_colluders_that_learn_no_more_are_said_to(tmp_path: Path) -> None:
    event = dp_sgd(0.02, NOISE, 1)
    views = {"server": event, "outsider": event, "colluding:1": event}
    guarantee = build(trained(new_run(tmp_path), views=views))["guarantee"]
    assert f"The same epsilon holds against {COLLUDER}." in guarantee["sentence"]
    assert guarantee["level"] == "guaranteed"


def test_a_row_that_says_nothing_about_an_adversary_gives_no_guarantee(tmp_path: Path) -> None:
    event = gaussian(8.0)
    run = trained(new_run(tmp_path, privacy={"unit": "client"}), event=event)
    views = {"server": event, "outsider": event, "colluding:1": event}
    enter(run, "A", 3, event, purpose="other", views=views)
    silos = {silo["silo"]: silo["adversaries"]["colluding:1"] for silo in build(run)["silos"]}
    assert silos["A"]["headline"]["epsilon"] == math.inf
    assert "3 of its ledger rows have no view for the adversary" in silos["A"]["reasons"][0]


@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize("noise", [0.6, 4.0])
def test_the_drawn_curves_are_those_of_the_ledger(
    tmp_path: Path, noise: float, relation: Relation
) -> None:
    event = dp_sgd(0.1, noise, 1)
    secret = relation is Relation.ADD_OR_REMOVE_ONE
    unit, sizes = ("example", "private") if secret else ("client", "public")
    new = new_run(
        tmp_path,
        privacy={"unit": unit, "relation": relation.value},
        data={"sizes": sizes},
        client={"sampling_rate": 0.1},
    )
    run = trained(new, {"A": 0.1}, event=event, sizes=sizes)
    report = build(run)
    curves = report["privacy_curves"]
    accountant = make_accountant("pld", relation)
    for at, delta, of_mu in curves["epsilon_delta"]:
        assert delta == pytest.approx(accountant.delta({event: ROUNDS}, at), rel=1e-9)
        assert of_mu >= delta  # the dominating curve is never below
    # The stated point is on the curve.
    xs, ys, _ = zip(*curves["epsilon_delta"], strict=True)
    stated = report["guarantee"]["epsilon"]
    assert math.exp(np.interp(stated, xs, np.log(ys))) == pytest.approx(1e-5, rel=0.05)
    floor, last = curves["mu_floor"], 1.0
    for alarms, missed, of_mu in curves["trade_off"]:
        assert of_mu <= missed + floor  # and its trade-off function never above
        assert missed <= 1 - alarms + 1e-12  # no test is worse than guessing
        assert missed <= last
        last = missed
        normal = NormalDist()
        if 0 < alarms < 1:
            assert of_mu == pytest.approx(normal.cdf(normal.inv_cdf(1 - alarms) - curves["mu"]))
    assert curves["mu"] == make_accountant("gdp-dominating", relation).mu({event: ROUNDS})


def test_the_trade_off_of_one_gaussian_is_known(tmp_path: Path) -> None:
    """sigma = 2, one release: f(alpha) = Phi(Phi^-1(1 - alpha) - 1/2) exactly."""
    run = new_run(tmp_path, privacy={"unit": "client"})
    enter(run, "A", 1, gaussian(2.0))
    finish_round(run, 1, 1)
    content = build(run)
    normal = NormalDist()
    for alarms, missed, _ in content["privacy_curves"]["trade_off"]:
        if 1e-3 < alarms < 0.999:
            exact = normal.cdf(normal.inv_cdf(1 - alarms) - 0.5)
            assert exact - 2e-4 <= missed <= exact  # pessimistic, and close
    exact = normal.cdf(normal.inv_cdf(0.01) + 0.5)
    found = re.search(r"recognises at most ([0-9.]+)%", plain_words(content) or "")
    assert found is not None
    assert 100 * exact <= float(found[1]) < 100 * exact + 0.25


def test_plain_words_only_where_something_is_guaranteed(tmp_path: Path) -> None:
    assert plain_words(build(trained(new_run(tmp_path, privacy={"mode": "none"})))) is None
    assert plain_words(build(new_run(tmp_path))) is None


def test_plain_words_hold_for_every_silo(tmp_path: Path) -> None:
    """The silo with the largest epsilon at delta is not the one where a test misses least."""
    events = {"A": dp_sgd(0.005, 0.55, 1), "B": dp_sgd(0.3, 2.8, 1)}
    run = new_run(tmp_path)
    for silo, event in events.items():
        for round_ in range(1, ROUNDS + 1):
            enter(run, silo, round_, event)
    report = build(run)
    at = {
        silo["silo"]: silo["adversaries"]["server"]["headline"]["epsilon"]
        for silo in report["silos"]
    }
    assert at["A"] > at["B"]
    assert report["privacy_curves"]["silo"] == "A"
    drawn = next(b for a, b, _ in report["privacy_curves"]["trade_off"] if abs(a - 0.01) < 1e-12)
    missed = report["meaning"]["missed"]
    assert missed < drawn - 0.001
    accountant = make_accountant("pld")
    for at_epsilon in np.linspace(0, 5, 101):  # the supremum over all epsilons is not below any
        delta = accountant.delta({events["B"]: ROUNDS}, float(at_epsilon))
        line = max(1 - delta - math.exp(at_epsilon) * 0.01, math.exp(-at_epsilon) * (0.99 - delta))
        assert line <= missed + 2e-4
