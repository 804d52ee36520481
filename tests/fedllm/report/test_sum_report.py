"""The report of a run with sums: the assumption first, each adversary with its own epsilon, and figures of the ledger."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from report_runs import finish_round, new_run

from fedllm.budget.account import SiloAccount
from fedllm.budget.sums.terms import SumTerms
from fedllm.report import build, write_report
from fedllm.report.guarantee import shown
from fedllm.report.signature import (
    generate_key,
    load_private_key,
    load_public_key,
    sign_report,
    verify_report,
)
from fedllm.run.folder import RunFolder
from privacy.accountants import make_accountant
from privacy.ledger.ledger import Ledger, composed

SILOS = {"A": 100, "B": 200, "C": 100, "D": 200}
ROUNDS = 3


def run_of_sums(
    tmp_path: Path, pinned: bool = False, secure: Any = None, **privacy: Any
) -> RunFolder:
    """A run folder as the system leaves it: accounts write the ledger, no model is trained."""
    own = {"noise_by": "sum", "noise_multiplier": 1.0, "epsilon": None, "colluding": [1, 2], **privacy}  # fmt: skip
    run = new_run(
        tmp_path, privacy=own, client={"local_steps": 1, "batch_size": 10}, secure=secure or {}
    )
    with Ledger(run.ledger_path) as ledger:
        for name, examples in SILOS.items():
            one = SiloAccount(
                run.settings(), run=run.run_id, party=name, examples=examples, rounds=ROUNDS, ledger=ledger
            )  # fmt: skip
            one.join_sum(SumTerms(len(SILOS), 500, one.noise_multiplier, pinned))
            for server_round in range(1, ROUNDS + 1):
                one.spend_training(server_round, f"train/{server_round}")
    for server_round in range(1, ROUNDS + 1):
        finish_round(run, server_round, len(SILOS))
    run.write_json("silos.json", {n: {"examples": e, "left": None} for n, e in SILOS.items()})
    run.write_json("environment.json", {"python": "3", "platform": "x", "cpu": None, "cores": 1, "memory_bytes": None, "gpus": [], "packages": {}, "git": None})  # fmt: skip
    return run


def of_ledger(run: RunFolder, adversary: str) -> float:
    """The largest epsilon over the silos, computed here."""
    with Ledger(run.ledger_path, read_only=True) as ledger:
        rows = ledger.entries()
    pld = make_accountant("pld")
    return max(
        float(pld.epsilon(composed([r for r in rows if r.party == n], adversary), 1e-5))
        for n in ("A", "B")  # the others are the same
    )


@pytest.mark.parametrize(("pinned", "m"), [(False, 0), (True, 1)])
def test_the_first_line_names_the_assumption_and_each_adversary(
    pinned: bool, m: int, tmp_path: Path
) -> None:
    run = run_of_sums(tmp_path, pinned, {"colluding": m})
    found = build(run)
    statement = found["guarantee"]
    calibrated = "sum-only:1" if m else "sum-only"
    assert (statement["level"], statement["adversary"]) == ("sum-only", calibrated)
    assert statement["epsilon"] == pytest.approx(of_ledger(run, calibrated))
    sentence = found["headline"]
    assumption, _, rest = sentence.partition(f"epsilon = {shown(of_ledger(run, calibrated))}")
    assert "ASSUMES" in assumption
    assert "X25519" in assumption
    assert ("assumes that the server relays keys honestly" in assumption) is not pinned
    assert "a server that learns only sums" in rest or m
    others = statement["others"]
    for name in ("outsider", "sum-only", "sum-only:1", "sum-only:2", "server", "colluding:1"):
        assert others[name] == pytest.approx(of_ledger(run, name)), name
    assert others["outsider"] == others["sum-only"] < others["sum-only:2"] < others["server"]
    assert others["server"] == others["colluding:1"]
    _, _, without = rest.partition(
        "Without the assumption, by a silo's own share of the noise alone:"
    )
    assert f"epsilon = {shown(others['server'])}" in without
    assert f"epsilon = {shown(others['sum-only:2'])}" in rest.partition("Without the")[0]
    assert math.isfinite(others["server"])


def test_an_account_at_a_silo_alone_would_state_more(tmp_path: Path) -> None:
    """The noise that is shown is that of the sum, and the events of each adversary are in the table."""
    found = build(run_of_sums(tmp_path))
    [mechanism] = found["silos"][0]["trainings"]
    assert mechanism["noise_multiplier"] == pytest.approx(1.0, rel=0.02)
    seen = {row["mechanism"]: row["seen_by"] for row in found["releases"]}
    assert any("4 shares" in name and "sum-only" in who for name, who in seen.items())
    assert any("one share" in name and "server" in who for name, who in seen.items())
    assert found["epsilon_by_round"]["adversary"] == "sum-only"
    assumed = {item["title"]: item["text"] for item in found["assumptions"]}
    assert "Each silo a share" in assumed["Who adds the noise"]
    assert "discrete" in assumed["Noise in integers"]


def test_the_page_is_written_and_is_verified(tmp_path: Path) -> None:
    run = run_of_sums(tmp_path)
    run.set_state(status="finished", round=ROUNDS)
    write_report(run)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "assumes that the server relays keys honestly" in page
    public, _ = generate_key(tmp_path / "keys" / "officer.pem")
    sign_report(run.path, load_private_key(tmp_path / "keys" / "officer.pem"), name="Ada", role="officer")  # fmt: skip
    found = verify_report(run.path, load_public_key(public))
    assert found.ok, [check.text for check in found.checks if not check.ok]
    assert found.statement is not None
    assert "ASSUMES that the masks hide all but their sum" in found.statement["headline"]


def test_a_seed_is_named_before_the_assumption(tmp_path: Path) -> None:
    found = build(run_of_sums(tmp_path, randomness="seeded"))
    assert found["guarantee"]["level"] == "conditional"
    assert found["headline"].startswith(
        "Guaranteed ONLY against those who do not know the seed: ASSUMES"
    )
