"""Noise that runs of earlier versions chose for a few numbers: no setting any more; such a run opens as what it did."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from accounting_commands import call_json

from fedllm.report import write_report
from fedllm.report.build import build
from fedllm.run.folder import NUMBERS, RunFolder, RunFolderError
from fedllm.settings.checks.black_box import noises_numbers
from fedllm.settings.io import SettingsError, load_settings
from fedllm.training.noise import noise_of
from privacy.events.serialization import kind
from privacy.ledger.ledger import Ledger

SUPPORT = Path(__file__).parents[2] / "support"
"""``earlier_numbers`` chose exponential-power noise for the numbers of a black-box step (``zeroth_order.noise =
"searched"``), ``earlier_counts`` has Laplace noise on the silos' counts (``evaluation.clients_family``)."""
Copy = Callable[[str], Path]


@pytest.fixture
def earlier(tmp_path: Path) -> Copy:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(SUPPORT / f"earlier_{name}", tmp_path / name))

    return copy


@pytest.mark.parametrize("key", ["zeroth_order.noise=searched", "zeroth_order.noise=gaussian"])
def test_an_experiment_that_names_the_choice_is_told_what_replaced_it(
    key: str, tmp_path: Path
) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text("")
    with pytest.raises(SettingsError, match=r"privacy\.mechanism=lmo and privacy\.noise") as raised:
        load_settings(file, [key])
    assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(SettingsError, match=r"see evaluation\.clients_noise\)"):
        load_settings(file, ["evaluation.clients_family=laplace"])


def test_a_run_that_chose_noise_for_its_numbers_opens_verifies_and_reports_the_same(
    earlier: Copy,
) -> None:
    path = earlier("numbers")
    told = json.loads((path / NUMBERS).read_text())
    settings = RunFolder.open(path).settings()
    assert noises_numbers(settings)
    assert settings.privacy.clip == told["clip"] == pytest.approx(1 / 3)
    noise = noise_of(settings)
    assert noise is not None
    assert noise.to_dict() == told["noise"]
    found = call_json("ledger", "verify", path / "ledger.sqlite")
    assert (found["ok"], found["rows"]) == (True, 20)
    report = build(path)
    assert report["problems"] == ["no checkpoint is whole: the model is lost"]  # not kept here
    assert report["guarantee"]["epsilon"] == pytest.approx(3.9979953744236987, rel=1e-9)
    section = report["black_box"]
    assert (section["released"], section["clip"]) == ("numbers", told["clip"])
    assert section["noise"]["family"] == "exponential-power"
    assert section["noise"]["std"] == pytest.approx(0.9597778549719911, rel=1e-9)
    assert section["noise"]["gaussian_std"] == pytest.approx(1.1561719585914068, rel=1e-3)
    assert report["lmo"] is None
    titles = {item["title"]: item["text"] for item in report["assumptions"]}
    assert "each to [-0.333333, 0.333333]" in titles["Clipping"]
    assert "exponential-power" in write_report(RunFolder.open(path)).read_text(encoding="utf-8")


def test_a_choice_that_is_lost_or_damaged_is_told(earlier: Copy) -> None:
    path = earlier("numbers")
    (path / NUMBERS).write_text('{"noise": {"family": "laplace"}}')
    with pytest.raises(RunFolderError, match=r"numbers\.json is damaged"):
        RunFolder.open(path)
    assert any(NUMBERS in problem for problem in build(path)["problems"])
    (path / NUMBERS).unlink()
    report = build(path)
    assert any(problem.startswith(f"{NUMBERS} is missing") for problem in report["problems"])
    assert report["guarantee"]["epsilon"] == pytest.approx(3.9979953744236987, rel=1e-9)


def test_a_choice_of_one_vector_is_a_run_with_one_vector(earlier: Copy) -> None:
    path = earlier("numbers")
    (path / NUMBERS).write_text('{"noise": null, "clip": 0.5, "released": "vector"}')
    settings = RunFolder.open(path).settings()
    assert (settings.privacy.mechanism, settings.privacy.clip) == ("gaussian", 0.5)
    assert not noises_numbers(settings)


def test_a_run_with_other_noise_on_its_counts_opens_verifies_and_reports_the_same(
    earlier: Copy,
) -> None:
    path = earlier("counts")
    assert RunFolder.open(path).settings().evaluation.clients == "private"
    found = call_json("ledger", "verify", path / "ledger.sqlite")
    assert (found["ok"], found["rows"]) == (True, 20)
    with Ledger(path / "ledger.sqlite", read_only=True) as ledger:
        assert "ScalarNoise" in {kind(event) for event in ledger.spent("server", party="alpha")}
    report = build(path)
    assert report["problems"] == ["no checkpoint is whole: the model is lost"]
    assert report["guarantee"]["epsilon"] == pytest.approx(3.9979848975148444, rel=1e-9)
    mechanisms = {r["mechanism"] for r in report["releases"] if r["purpose"] == "evaluate"}
    assert mechanisms == {"one number with laplace noise"}
