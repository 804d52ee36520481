"""`--copies` and `--parties`: records that are there several times, or at several silos."""

from __future__ import annotations

from pathlib import Path

import pytest
from accounting_commands import call, call_json
from ledger_rows import add_rows

from privacy.accountants import make_accountant
from privacy.copies import events_of_copies
from privacy.events.constructors import dp_sgd
from privacy.events.multiset import multiset

DELTA = 1e-5
SCHEDULE = {"delta": DELTA, "sample-rate": 0.02, "noise-multiplier": 1.0, "steps": 60}


def test_account_of_copies() -> None:
    found = [call_json("account", copies=k, **SCHEDULE)["pld"]["epsilon"] for k in (1, 2, 4)]
    assert found == pytest.approx([1.209, 2.557, 5.380], abs=1e-3)
    shown = " ".join(call("account", copies=4, **SCHEDULE).stdout.split())
    assert "all 4 copies of a record together" in shown
    refused = call("account", copies=0, **SCHEDULE)
    assert refused.exit_code != 0
    assert "--copies" in refused.stderr


def test_calibrate_for_copies() -> None:
    given = {"epsilon": 2.557, "delta": DELTA, "sample-rate": 0.02, "steps": 60}
    found = call_json("calibrate", copies=2, **given)
    assert found["noise_multiplier"] == pytest.approx(1.0, rel=2e-3)
    assert found["copies"] == 2


def test_a_record_at_two_silos_costs_the_sum_of_their_events(tmp_path: Path) -> None:
    alpha, beta = dp_sgd(0.02, 1.0, 60), dp_sgd(0.05, 2.0, 40)
    common = dp_sgd(0.01, 3.0, 1)
    path = add_rows(
        tmp_path / "ledger.sqlite",
        ("alpha", alpha, 1), ("beta", beta, 1), ("gamma", alpha, 1), ("server", common, 1),
    )  # fmt: skip
    pld = make_accountant("pld")
    both = call_json("account", ledger=path, delta=DELTA, parties="alpha, beta")
    expected = multiset([alpha, beta, common])  # what concerns all is released once
    assert both["pld"]["epsilon"] == pytest.approx(pld.epsilon(expected, DELTA))
    assert list(both["parties"]) == ["alpha and beta"]
    alone = call_json("account", ledger=path, delta=DELTA)
    assert both["pld"]["epsilon"] > alone["pld"]["epsilon"]
    doubled = call_json("account", ledger=path, delta=DELTA, parties="alpha,beta", copies=2)
    copies = events_of_copies(expected, 2)
    assert doubled["pld"]["epsilon"] == pytest.approx(pld.epsilon(copies, DELTA))


@pytest.mark.parametrize(
    "options", [{"parties": "alpha,delta"}, {"parties": "alpha", "party": "alpha"}]
)
def test_parties_that_are_none(tmp_path: Path, options: dict[str, str]) -> None:
    path = add_rows(tmp_path / "ledger.sqlite", ("alpha", dp_sgd(0.02, 1.0, 60), 1))
    result = call("account", ledger=path, delta=DELTA, **options)
    assert result.exit_code != 0
    assert "Expected --part" in result.stderr
