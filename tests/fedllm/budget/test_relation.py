"""The neighbouring relation of a run: what may be asked, what old runs and rows are read as, what is said."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accounting_commands import call, call_json
from report_runs import Page, new_run, trained

from client.config import SiloConfig
from fedllm.budget.account import SiloAccount
from fedllm.budget.local_policy import LimitRefused, LocalPolicy
from fedllm.budget.recorded_rows import OLDER_ROWS
from fedllm.report import write_report
from fedllm.report.build import build
from fedllm.run.folder import RunFolder
from fedllm.settings.io import SettingsError, load_settings, parse_settings
from fedllm.settings.removed import without_removed
from privacy.accountants import make_accountant
from privacy.guarantee import Relation
from privacy.ledger.ledger import Ledger

EARLIER = Path(__file__).parents[2] / "support" / "earlier_run"
"""A run folder written by the code of before zero-out had a name, with public sizes."""
EARLIER_EPSILON = 1.2805184990638088
SECRET: dict[str, Any] = {"data": {"sizes": "private"}, "client": {"sampling_rate": 0.05}}
ADD = {"privacy": {"relation": "add-or-remove-one"}}
Make = Callable[..., Any]


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EARLIER, tmp_path / "earlier"))


# -- settings ------------------------------------------------------------------------------------


def test_the_default_is_zero_out_whatever_the_sizes() -> None:
    assert parse_settings({}).privacy.relation == "zero-out"
    assert parse_settings(SECRET).privacy.relation == "zero-out"


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        (ADD, "or data.sizes=private"),
        (ADD | {"client": {"sampling_rate": 0.05}}, "data.sizes=public"),
        (SECRET | {"privacy": {"unit": "client", "relation": "add-or-remove-one"}}, "unit=client"),
        (
            {
                "privacy": {
                    "unit": "client",
                    "noise_by": "server",
                    "relation": "add-or-remove-one",
                },
                "server": {"sampling": "poisson", "fraction": 0.5},
            },
            "privacy.unit=client",
        ),
        ({"privacy": {"relation": "replace-one"}}, "privacy.unit=example"),
    ],
)
def test_what_is_not_proven_is_refused_with_what_to_write(tree: Any, named: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse_settings(tree)
    (line,) = str(raised.value).splitlines()
    assert "Expected privacy.relation=zero-out" in line
    assert named in line
    assert "got privacy.relation=" in line


def test_adding_or_removing_needs_secret_sizes_and_has_them() -> None:
    assert parse_settings(SECRET | ADD).privacy.relation == "add-or-remove-one"
    # Without a guarantee there is no relation to refuse.
    parse_settings({"privacy": {"mode": "none", "relation": "add-or-remove-one"}})


# -- a silo config --------------------------------------------------------------------------------


def own(**budget: Any) -> SiloConfig:
    quantities = budget.pop("quantities", ("update",))
    tree = {
        "name": "clinic",
        "data": {"path": "x.jsonl", "labels": ("a", "b")},
        "budget": {"epsilon": 3.0, "delta": 1e-5} | budget,
        "limits": {"quantities": quantities},
    }
    return SiloConfig.model_validate(tree)


def test_a_silo_that_tells_its_size_has_no_budget_for_adding_or_removing() -> None:
    assert own().local_policy().bound().budget.relation is Relation.ZERO_OUT
    asked = {"relation": "add-or-remove-one"}
    with pytest.raises(ValueError, match=r"Expected budget\.relation=zero-out .*quantities"):
        own(quantities=("update", "size"), **asked)
    with pytest.raises(ValueError, match=r"Expected budget\.relation=zero-out for budget\.unit=cl"):
        own(unit="client", **asked)
    bounds = own(**asked).local_policy()
    with pytest.raises(LimitRefused, match=r"Expected data\.sizes=private"):
        bounds.check_kind(parse_settings({}))
    bounds.check_kind(parse_settings(SECRET))


# -- ledgers -------------------------------------------------------------------------------------


def test_rows_say_whether_the_number_was_public(tmp_path: Path) -> None:
    for tree, sizes in (({}, "public"), (SECRET | ADD, "private")):
        with Ledger(tmp_path / f"{sizes}.sqlite") as ledger:
            account = made(parse_settings(tree), ledger)
            account.spend_training(1, "train/1")
            (row,) = ledger.entries()
        assert row.details["sizes"] == sizes
        assert row.details["relation"] == str(account.relation)


def made(settings: Any, ledger: Ledger, run: str = "run-1", **options: Any) -> SiloAccount:
    settings = settings.model_copy(
        update={
            "privacy": settings.privacy.model_copy(
                update={"noise_multiplier": 4.0, "epsilon": None}
            )
        }
    )
    given = {"party": "alpha", "examples": 60, "rounds": 3} | options
    return SiloAccount(settings, run=run, ledger=ledger, **given)


def test_a_ledger_with_public_numbers_is_none_for_adding_or_removing(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        made(parse_settings({}), ledger).spend_training(1, "train/1")
        with pytest.raises(ValueError, match=r"public numbers of examples.*run-1.*zero-out"):
            made(parse_settings(SECRET | ADD), ledger, "run-2")
        bounds = LocalPolicy(3.0, 1e-5, relation="add-or-remove-one")
        with pytest.raises(ValueError, match="public numbers of examples"):
            made(parse_settings(SECRET), ledger, "run-2", own=bounds)
        # The other way round they compose: who can prove more proves less.
        made(parse_settings(SECRET), ledger, "run-3").spend_training(1, "train/2")
    with Ledger(tmp_path / "other.sqlite") as ledger:
        for round_ in (1, 2):  # its own rows are private ones
            made(parse_settings(SECRET | ADD), ledger).spend_training(round_, f"train/{round_}")
        made(parse_settings({}), ledger, "run-2").spend_training(1, "train/3")
        spent = ledger.spent("server", party="alpha")
    assert spent.total() == 3
    found = call_json("account", ledger=tmp_path / "other.sqlite", delta=1e-5)
    assert found["relation"] == "zero-out"
    assert found["pld"]["epsilon"] == pytest.approx(make_accountant("pld").epsilon(spent, 1e-5))


# -- an earlier run ------------------------------------------------------------------------------


def test_an_earlier_run_opens_verifies_and_reports_the_same_numbers(earlier: Path) -> None:
    assert RunFolder.open(earlier).settings().privacy.relation == "zero-out"
    found = call_json("ledger", "verify", earlier / "ledger.sqlite")
    assert (found["ok"], found["rows"]) == (True, 6)
    report = build(earlier)
    assert report["problems"] == ["no checkpoint is whole: the model is lost"]  # not kept here
    assert OLDER_ROWS in report["notes"]
    guarantee = report["guarantee"]
    assert guarantee["relation"] == "zero-out"
    assert guarantee["epsilon"] == pytest.approx(EARLIER_EPSILON, rel=1e-9)
    assert "replaced by an empty one, the number of examples being public" in guarantee["sentence"]


def test_an_earlier_ledger_alone_is_accounted_as_what_it_proves(earlier: Path) -> None:
    path = earlier / "ledger.sqlite"
    found = call_json("account", ledger=path, delta=1e-5)
    assert found["relation"] == "zero-out"
    assert found["notes"] == [OLDER_ROWS]
    assert found["pld"]["epsilon"] == pytest.approx(EARLIER_EPSILON, rel=1e-9)
    asked = call_json("account", ledger=path, delta=1e-5, relation="add-or-remove-one")
    assert asked["pld"]["epsilon"] == float("inf") or asked["pld"]["epsilon"] == "Infinity"
    assert any("zero-out" in reason for reason in asked["no_guarantee"])
    shown = " ".join(call("account", ledger=path, delta=1e-5).stdout.split())
    assert "Rows of an earlier version" in shown
    (earlier / "settings.toml").unlink()  # the ledger's rows tell the relation then
    assert build(earlier)["guarantee"]["relation"] == "zero-out"


def test_an_earlier_experiment_is_not_started_anew_as_it_stands(earlier: Path) -> None:
    with pytest.raises(SettingsError, match=r"Expected no zeroth_order\.noise \(removed"):
        load_settings(earlier / "settings.toml")
    tree = without_removed(tomllib.loads((earlier / "settings.toml").read_text()))
    with pytest.raises(SettingsError, match=r"Expected privacy\.relation=zero-out"):
        parse_settings(tree)
    parse_settings({**tree, "privacy": {**tree["privacy"], "relation": "zero-out"}})


# -- words ---------------------------------------------------------------------------------------


def test_report_and_commands_say_which_relation_in_words(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path))
    path = write_report(run)
    page = Page(path.read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.words).split())
    assert "one training example replaced by an empty one, the number of examples being" in text
    assert "adding or removing" not in build(run)["guarantee"]["sentence"]
    secret = trained(new_run(tmp_path, **SECRET, **ADD), sizes="private")
    guarantee = build(secret)["guarantee"]
    assert guarantee["level"] == "guaranteed"
    assert "added or removed, the number of examples being secret" in guarantee["sentence"]
    for command in ("account", "calibrate"):
        given = {"delta": 1e-5, "sample-rate": 0.01, "steps": 10}
        given |= {"noise-multiplier": 1.0} if command == "account" else {"epsilon": 1.0}
        found = call_json(command, **given)
        assert found["relation"] == "zero-out"
        assert "replaced by an empty one" in found["assumes"]
