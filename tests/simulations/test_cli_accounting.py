"""``fedllm account``, run as a user runs it; and bad input to it, ``calibrate`` and ``ledger``."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accounting_commands import (
    DELTA,
    FIXED,
    REFERENCE,
    call,
    call_json,
    direct,
    gdp_epsilon,
    sampled,
)
from dp_accounting import dp_event as dp
from ledger_rows import ADD

from privacy.events.constructors import dp_sgd, gaussian
from privacy.events.views import distributed_gaussian, server_gaussian

# -- account: a schedule -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accountant", "noise", "error"),
    [("pld", 0.8823, 5e-3), ("rdp", 1.0419, 1e-2), ("gdp_clt", 0.791, 5e-3)],
)
def test_account_gives_the_reference_table_s(accountant: str, noise: float, error: float) -> None:
    found = call_json("account", **REFERENCE, **{"noise-multiplier": noise})
    assert found[accountant]["epsilon"] == pytest.approx(1, rel=error)


def test_account_against_direct_calls() -> None:
    rate, noise, steps = 0.01, 1.0, 1000
    found = call_json(
        "account", steps=steps, delta=DELTA, **{"noise-multiplier": noise, "sample-rate": rate}
    )
    events = {sampled(rate, noise): steps}
    assert set(FIXED) <= set(found)
    assert "gdp_exact" not in found
    truth = direct(events)
    assert found["pld"]["epsilon"] == pytest.approx(truth, rel=1e-3)
    assert found["rdp"]["epsilon"] == pytest.approx(direct(events, "rdp"), rel=1e-6)
    mu = rate * math.sqrt(steps * (math.exp(noise**-2) - 1))
    assert found["gdp_clt"]["mu"] == pytest.approx(mu, rel=1e-9)
    assert found["gdp_clt"]["epsilon"] == pytest.approx(gdp_epsilon(mu), rel=1e-6)
    dominating = found["gdp_dominating"]
    assert dominating["epsilon"] == pytest.approx(gdp_epsilon(dominating["mu"]), rel=1e-6)
    for name in ("rdp", "gdp_dominating"):
        assert found[name]["epsilon"] > truth * 0.999
    assert [found[name]["bound"] for name in FIXED] == [True, True, False, True]
    assert (found["unit"], found["relation"]) == ("example", "zero-out")
    assert (found["adversary"], found["delta"]) == ("server", DELTA)


def test_exact_gdp_where_nothing_is_sampled() -> None:
    given = {"noise-multiplier": 10, "sample-rate": 1, "steps": 100, "delta": DELTA}
    found = call_json("account", **given)
    assert found["gdp_exact"]["mu"] == pytest.approx(1)
    assert found["gdp_exact"]["epsilon"] == pytest.approx(gdp_epsilon(1.0), rel=1e-6)
    assert found["gdp_exact"]["bound"] is True
    doubled = call_json("account", relation="replace-one", **given)
    assert doubled["gdp_exact"]["mu"] == pytest.approx(2)


def test_text_names_everything_beside_the_numbers() -> None:
    result = call("account", steps=100, delta=DELTA, **{"noise-multiplier": 1, "sample-rate": 0.01})
    assert result.exit_code == 0
    title = result.stdout.splitlines()[0]
    for word in ("delta = 1e-05", "unit: example", "zero-out", "adversary: server"):
        assert word in title
    rows = {line.split("│")[1].strip(): line for line in result.stdout.splitlines() if "│" in line}
    assert set(rows) == {"PLD", "RDP", "GDP dominating", "GDP-CLT"}
    for name, line in rows.items():
        assert ("approximation, not a bound" in line) == (name == "GDP-CLT")
        assert ("upper bound" in line) == (name != "GDP-CLT")


def test_an_accountant_that_cannot_says_why_and_the_others_go_on() -> None:
    given = {"noise-multiplier": 1, "sample-rate": 0.01, "steps": 10, "delta": DELTA}
    found = call_json("account", relation="replace-one", **given)
    assert found["pld"]["epsilon"] > 0
    for name in ("rdp", "gdp_clt"):
        assert found[name]["epsilon"] is None
        assert "PoissonSampled" in found[name]["unsupported"]
    printed = call("account", relation="replace-one", **given).stdout
    assert "The rdp accountant (relation replace-one) cannot represent PoissonSampled" in printed


@pytest.mark.parametrize(
    "given",
    [("2", "0.3", "3"), ("30", "0.001", "10")],  # absl complains of the first
)
def test_a_real_process_prints_json_and_nothing_else(given: tuple[str, str, str]) -> None:
    noise, rate, steps = given
    command = [sys.executable, "-m", "simulations.cli.main", "account", "--json", "--delta", "1e-5"]
    command += ["--noise-multiplier", noise, "--sample-rate", rate, "--steps", steps]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(FIXED) <= set(json.loads(done.stdout))


# -- account: a ledger -------------------------------------------------------------------------


def test_ledger_by_party_and_the_largest(make_ledger: Callable[..., Path]) -> None:
    path = make_ledger(
        ("alpha", dp_sgd(0.01, 1.0, 4), 10),
        ("beta", dp_sgd(0.02, 1.0, 4), 10),
        ("server", gaussian(20.0), 1),
    )
    found = call_json("account", ledger=path, delta=DELTA)
    alpha = direct({sampled(0.01, 1.0): 40, dp.GaussianDpEvent(20.0): 1})
    beta = direct({sampled(0.02, 1.0): 40, dp.GaussianDpEvent(20.0): 1})
    assert set(found["parties"]) == {"alpha", "beta"}
    assert found["parties"]["alpha"]["pld"]["epsilon"] == pytest.approx(alpha, rel=2e-3)
    assert found["parties"]["beta"]["pld"]["epsilon"] == pytest.approx(beta, rel=2e-3)
    assert found["pld"] == found["parties"]["beta"]["pld"] | {"party": "beta"}
    assert (found["unit"], found["relation"]) == ("example", "zero-out")
    one = call_json("account", ledger=path, delta=DELTA, party="alpha")
    assert one["pld"]["epsilon"] == found["parties"]["alpha"]["pld"]["epsilon"]
    common = call_json("account", ledger=path, delta=DELTA, party="server")
    assert common["gdp_exact"]["mu"] == pytest.approx(1 / 20)
    printed = call("account", ledger=path, delta=DELTA).stdout
    assert "the largest of 2 parties" in printed
    assert printed.count("adversary: server") == 2


def test_adversaries_have_their_own_numbers(make_ledger: Callable[..., Path]) -> None:
    views = distributed_gaussian(4.0, 4, secure_aggregation=True, colluding=[1])
    path = make_ledger(("server", views, 1), unit="client")
    outsider = call_json("account", ledger=path, delta=DELTA, adversary="outsider")
    colluding = call_json("account", ledger=path, delta=DELTA, adversary="colluding:1")
    assert outsider["gdp_exact"]["mu"] == pytest.approx(1 / 4)
    assert colluding["gdp_exact"]["mu"] == pytest.approx(1 / (4 * math.sqrt(3 / 4)))
    assert (colluding["unit"], colluding["adversary"]) == ("client", "colluding:1")
    refused = call("account", ledger=path, delta=DELTA, adversary="colluding:2")
    assert refused.exit_code == 2
    assert "colluding:2" in refused.stderr


def test_a_release_without_privacy_is_infinite(make_ledger: Callable[..., Path]) -> None:
    path = make_ledger(("alpha", server_gaussian(4.0, reason="server adds noise"), 1))
    found = call_json("account", ledger=path, delta=DELTA)
    assert {found[name]["epsilon"] for name in FIXED} == {"Infinity"}
    assert found["gdp_clt"]["bound"] is False
    assert found["no_guarantee"] == ["server adds noise"]
    outsider = call_json("account", ledger=path, delta=DELTA, adversary="outsider")
    assert outsider["gdp_exact"]["mu"] == pytest.approx(1 / 4)
    printed = call("account", ledger=path, delta=DELTA).stdout
    assert "NO GUARANTEE: server adds noise" in printed
    assert "upper bound" not in printed


def test_units_and_relations_do_not_mix(make_ledger: Callable[..., Path]) -> None:
    make_ledger(("alpha", gaussian(4.0), 1))
    path = make_ledger(("beta", gaussian(4.0), 1), unit="client")
    refused = call("account", ledger=path, delta=DELTA)
    assert refused.exit_code == 2
    assert "Expected --unit (client or example)" in refused.stderr
    found = call_json("account", ledger=path, delta=DELTA, unit="example")
    assert found["parties"]["alpha"]["gdp_exact"]["mu"] == pytest.approx(1 / 4)
    assert found["parties"]["beta"]["pld"]["epsilon"] == "Infinity"
    assert found["pld"]["epsilon"] == "Infinity"
    other = call_json("account", ledger=path, delta=DELTA, party="alpha", relation="replace-one")
    assert other["pld"]["epsilon"] == "Infinity"
    assert "do not compose" in other["no_guarantee"][0]


def test_ledger_s_relation_is_the_default(make_ledger: Callable[..., Path]) -> None:
    details = {"relation": "replace-one", "randomness": "seeded"}
    path = make_ledger(("alpha", gaussian(4.0), 1), unit="client", details=details)
    found = call_json("account", ledger=path, delta=DELTA)
    assert found["relation"] == "replace-one"
    assert found["gdp_exact"]["mu"] == pytest.approx(2 / 4)
    assert found["seeded_noise"] is True
    assert "there is no protection" in call("account", ledger=path, delta=DELTA).stdout


def test_ledger_s_smallest_delta_is_the_default(make_ledger: Callable[..., Path]) -> None:
    make_ledger(("alpha", gaussian(4.0), 1), details=ADD | {"delta": 1e-4})
    path = make_ledger(("alpha", gaussian(4.0), 1), details=ADD | {"delta": 1e-6})
    assert call_json("account", ledger=path) == call_json("account", ledger=path, delta=1e-6)
    assert call_json("account", ledger=path, delta=1e-4)["delta"] == 1e-4


def test_no_delta_anywhere(make_ledger: Callable[..., Path]) -> None:
    path = make_ledger(("alpha", gaussian(4.0), 1))
    refused = call("account", ledger=path)
    assert refused.exit_code == 2
    assert "Expected --delta above 0 and below 1 (the ledger records none)" in refused.stderr


def test_accountants_that_cannot_in_a_ledger(make_ledger: Callable[..., Path]) -> None:
    path = make_ledger(("alpha", dp.LaplaceDpEvent(3.0), 2), ("beta", gaussian(9.0), 1))
    found = call_json("account", ledger=path, delta=DELTA)
    assert found["gdp_clt"]["epsilon"] is None
    assert "Laplace" in found["gdp_clt"]["unsupported"]
    assert found["gdp_clt"]["party"] == "alpha"
    assert found["pld"]["epsilon"] == pytest.approx(2 / 3, rel=1e-2)
    assert "gdp_exact" not in found
    assert "gdp_exact" in found["parties"]["beta"]


def test_empty_ledger(make_ledger: Callable[..., Path]) -> None:
    path = make_ledger()
    assert call_json("account", ledger=path, delta=DELTA)["pld"]["epsilon"] == 0
    assert "The ledger is empty" in call("account", ledger=path, delta=DELTA).stdout


# -- bad input ---------------------------------------------------------------------------------

SCHEDULE = "--noise-multiplier 1 --sample-rate 0.1 --steps 10"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("calibrate", ["--epsilon"]),
        ("calibrate --epsilon x --delta 1e-5", ["--epsilon", "'x'", "float"]),
        (f"calibrate --epsilon -1 --delta 1e-5 {SCHEDULE[21:]}", ["--epsilon", "-1", "> 0"]),
        (f"calibrate --epsilon nan --delta 1e-5 {SCHEDULE[21:]}", ["--epsilon", "nan"]),
        ("calibrate --epsilon 3 --delta 1e-5 --steps 10", ["--sample-rate", "got none"]),
        (f"calibrate --epsilon 3 --delta 1e-5 {SCHEDULE}", ["no --noise-multiplier"]),
        (f"calibrate --epsilon 3 {SCHEDULE} --delta 1 --solve-for steps", ["--delta=1"]),
        (f"calibrate --epsilon 3 {SCHEDULE} --solve-for epsilon", ["--solve-for", "'epsilon'"]),
        (f"calibrate --epsilon 3 {SCHEDULE} --accountant gdp-clt", ["--accountant", "'pld'"]),
        (f"account {SCHEDULE}", ["--delta", "got none"]),
        ("account --delta 1e-5 --steps 3", ["--noise-multiplier, --sample-rate"]),
        (f"account --delta 1e-5 {SCHEDULE} --ledger x", ["--ledger or a schedule"]),
        (f"account --delta 1e-5 {SCHEDULE} --party x", ["--party", "--ledger"]),
        (f"account --delta 1e-5 {SCHEDULE} --adversary eve", ["'eve'", "colluding:m"]),
        (f"account --delta 1e-5 {SCHEDULE} --unit row", ["--unit", "'row'", "'client'"]),
        (f"account --delta 0 {SCHEDULE}", ["--delta=0", "above 0"]),
        ("account --delta 1e-5 --noise-multiplier 0 --sample-rate 1 --steps 1", ["=0", "> 0"]),
        (
            "account --delta 1e-5 --noise-multiplier 1 --sample-rate 2 --steps 1",
            ["--sample-rate=2"],
        ),
        ("account --delta 1e-5 --noise-multiplier 1 --sample-rate 1 --steps 0", ["--steps=0"]),
        ("account --delta 1e-5 --noise-multiplier 1 --sample-rate 1 --steps 1.5", ["integer"]),
        ("account --delta 1e-5 --ledger /nowhere/ledger", ["/nowhere/ledger", "no file"]),
        ("ledger verify /nowhere/ledger", ["/nowhere/ledger", "no file"]),
        ("ledger verify pyproject.toml --kept-head 3", ["--kept-head", "ROWS:HASH"]),
        ("ledger show pyproject.toml --limit -1", ["--limit=-1", ">= 0"]),
        ("ledger erase", ["'erase'"]),
    ],
)
def test_bad_input_is_one_line(line: str, words: list[str]) -> None:
    for more in ([], ["--json"]):
        if line == "ledger erase" and more:
            continue
        result = call(*line.split(), *more)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("fedllm: ")
        assert result.stderr.count("\n") == 1
        for word in words:
            assert word in result.stderr


def test_unknown_party(make_ledger: Callable[..., Path]) -> None:
    path = make_ledger(("alpha", gaussian(4.0), 1))
    result = call("account", ledger=path, delta=DELTA, party="omega")
    assert result.exit_code == 2
    assert "(alpha), got --party=omega" in result.stderr
