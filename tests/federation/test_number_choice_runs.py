"""``zeroth_order.noise = "searched"``: a black-box run chooses how its numbers are released, once, for everybody."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_silo import write_silo

from client.limits import check_limits
from client.silo_file import load_silo
from fedllm import number_release
from fedllm.mechanism import noise_of, unit_noise
from fedllm.number_release import with_number_noise
from fedllm.own_bounds import LimitRefused
from fedllm.report.build import build
from fedllm.report.render import render
from fedllm.run_folder import NUMBERS, RunFolder, RunFolderError
from fedllm.settings_io import SettingsError
from fedllm.settings_zeroth_order import noises_numbers, with_numbers
from privacy.accountants import make_accountant
from privacy.event_kinds import ScalarNoiseDpEvent
from privacy.ledger import Ledger
from privacy.number_choice import clip_ratio

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
Make = Callable[..., Any]
SIZES = {"alpha": 60, "beta": 45, "gamma": 30, "delta": 24}
CHOOSING = {
    "model.access": "black-box",
    "zeroth_order.directions": 3,
    "server.rounds": 2,
    "server.optimizer": "sgd",
    "privacy.accountant": "pld",
    "privacy.noise_multiplier": None,
    "privacy.epsilon": 4.0,
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path_factory.getbasetemp() / "number-choices"))


def told_in(run: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / NUMBERS).read_text())
    return found


def test_the_choice_is_in_every_silos_rows_in_the_report_and_holds_at_a_resume(
    start_run: Start, in_process: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run("run", **CHOOSING)
    stop = threading.Event()

    class Halt:
        def record(self, record: dict[str, Any]) -> None:
            if record["kind"] == "round" and record["round"] == 1:
                stop.set()

        def close(self) -> None:
            pass

    assert in_process(run, stop=stop, callbacks=[Halt()]) == "interrupted"
    told = told_in(run)
    assert told["released"] == "numbers"
    assert told["question"] == {
        "epsilon": 4.0,
        "delta": 1e-5,
        "sampling_rate": pytest.approx(8 / 37.5),  # of a silo of median size
        "steps": 4,
        "numbers": 3,
    }

    def again(**_: Any) -> None:
        raise AssertionError("a resumed run asks again")

    monkeypatch.setattr(number_release, "choose_release", again)
    assert in_process(RunFolder.open(run.path)) == "finished"
    assert told_in(run) == told
    settings = run.settings()
    assert noises_numbers(settings)
    assert settings.privacy.clip == pytest.approx(0.5 / clip_ratio(3))
    chosen = noise_of(settings)
    assert chosen is not None
    assert chosen.to_dict() == told["noise"]
    unit = unit_noise(settings)
    assert unit is not None
    with Ledger(run.ledger_path, read_only=True) as ledger:
        for party in SIZES:
            spent = ledger.spent("server", party=party)
            assert 4.0 * 0.99 <= make_accountant("pld").epsilon(spent, 1e-5) <= 4.0
            ((event, count),) = spent.items()
            assert count == 2 * 2 * 3
            inner = getattr(event, "event", event)
            assert isinstance(inner, ScalarNoiseDpEvent)
            row = next(iter(ledger.entries(party=party)))
            multiplier = float(str(row.details["noise_multiplier"]))
            assert inner.family == told["family"]
            assert dict(inner.parameters) == pytest.approx(unit.scaled(multiplier).parameters)
            assert row.details["clip"] == pytest.approx(settings.privacy.clip)
    report = build(run)
    section = report["black_box"]
    assert (section["released"], section["numbers"], section["bytes_up"]) == ("numbers", 6, 24)
    assert section["noise"]["family"] == told["family"]
    assert section["noise"]["std"] < section["noise"]["gaussian_std"]
    assert section["noise"]["epsilon"] == pytest.approx(4.0, rel=0.01)
    assert section["choice"]["families"][0]["ratio"] == min(told["ratios"].values())
    page = render(report, "0" * 64)
    assert 'id="number-noise"' in page
    assert told["reason"] in page
    (run.path / NUMBERS).unlink()
    assert any(NUMBERS in problem for problem in build(run)["problems"])


def test_where_one_vector_disturbs_less_the_run_says_so(
    start_run: Start, in_process: Federate
) -> None:
    """At unit client nobody is sampled: Gaussian noise on the vector of all numbers."""
    many = {"zeroth_order.directions": 40, "privacy.unit": "client", "privacy.epsilon": 0.5}
    run = start_run("run", **CHOOSING | many | {"server.rounds": 3})
    assert in_process(run) == "finished"
    told = told_in(run)
    assert (told["released"], told["family"], told["noise"]) == ("vector", "gaussian", None)
    assert min(told["ratios"].values()) > 0.98
    assert told["question"]["numbers"] == 2 * 40
    assert run.settings() == run._settings
    section = build(run)["black_box"]
    assert section["released"] == "vector"
    assert section["noise"]["family"] == "gaussian"
    assert section["noise"]["std"] == section["noise"]["gaussian_std"]
    assert section["choice"]["reason"] == told["reason"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"privacy.accountant": "rdp"}, "privacy.accountant=rdp"),
        ({"privacy.noise_multiplier": 1.0}, "privacy.noise_multiplier is given"),
        ({"privacy.delta": 1e-14}, "too small for the search"),
        (
            {
                "privacy.unit": "client",
                "privacy.noise_by": "server",
                "server.sampling": "poisson",
                "server.fraction": 0.5,
            },
            "one Poisson sample of silos",
        ),
    ],
)
def test_why_nothing_is_compared(changes: dict[str, Any], why: str, tiny_settings: Make) -> None:
    settings = tiny_settings(**CHOOSING | changes)
    same, told = with_number_noise(settings, SIZES)
    assert same == settings
    assert told is not None
    assert why in told["reason"]
    assert told["released"] == "vector"


def test_private_sizes_and_a_target_out_of_reach_leave_the_vector(tiny_settings: Make) -> None:
    settings = tiny_settings(**CHOOSING)
    _, told = with_number_noise(settings, dict.fromkeys(SIZES))
    assert told is not None
    assert "sizes are not public" in told["reason"]
    tiny_target = tiny_settings(**CHOOSING | {"privacy.epsilon": 1e-9, "privacy.delta": 1e-13})
    _, told = with_number_noise(tiny_target, SIZES)
    assert told is not None
    assert told["noise"] is None


def test_nothing_is_chosen_where_the_settings_name_the_noise(tiny_settings: Make) -> None:
    for changes in (
        {"zeroth_order.noise": "gaussian"},
        {"privacy.mode": "none"},
        {"model.access": "white-box"},
        {
            "privacy.mechanism": "lmo",
            "privacy.noise": json.dumps({"family": "laplace", "parameters": {"scale": 1.0}}),
        },
    ):
        settings = tiny_settings(**CHOOSING | changes)
        assert with_number_noise(settings, SIZES) == (settings, None)


def test_a_choice_by_hand_must_fit(tiny_settings: Make, start_run: Start) -> None:
    noise = json.dumps({"family": "laplace", "parameters": {"scale": 1.0}})
    chosen = {"zeroth_order.number_noise": noise}
    with pytest.raises(SettingsError, match=r"model\.access=black-box"):
        tiny_settings(**CHOOSING | chosen | {"model.access": "white-box"})
    lmo = {"privacy.mechanism": "lmo", "privacy.noise": noise}
    with pytest.raises(SettingsError, match=r"privacy\.mechanism=gaussian"):
        tiny_settings(**CHOOSING | chosen | lmo)
    with pytest.raises(SettingsError, match=r"privacy\.accountant=pld"):
        tiny_settings(**CHOOSING | chosen | {"privacy.accountant": "rdp"})
    with pytest.raises(ValueError, match="Expected noise and clip"):
        with_numbers(tiny_settings(**CHOOSING), {"noise": None})
    run = start_run("run", **CHOOSING)
    run.write_json(NUMBERS, {"noise": {"family": "laplace"}})
    with pytest.raises(RunFolderError, match=r"numbers\.json is damaged"):
        run.settings()
    assert any(NUMBERS in problem for problem in build(run)["problems"])


def test_a_silo_that_allows_gaussian_noise_alone_takes_no_other(
    tiny_settings: Make, tmp_path: Path
) -> None:
    """It refuses before the choice, and a choice that a server made without asking."""
    settings = tiny_settings(**CHOOSING)
    chosen, _ = with_number_noise(settings, SIZES)
    assert noises_numbers(chosen)
    hidden = chosen.model_copy(
        update={"zeroth_order": chosen.zeroth_order.model_copy(update={"noise": "gaussian"})}
    )
    file = write_silo(tmp_path, settings, tmp_path / "absent.jsonl", **{"budget.accountant": "pld"})
    silo = load_silo(file)
    check_limits(silo, settings)
    check_limits(silo, chosen)
    limits = silo.limits.model_copy(update={"mechanisms": ("gaussian",)})
    strict = silo.model_copy(update={"limits": limits})
    check_limits(strict, tiny_settings(**CHOOSING | {"zeroth_order.noise": "gaussian"}))
    for asked in (settings, chosen, hidden):
        with pytest.raises(LimitRefused, match=r"limits\.mechanisms.*zeroth_order\.noise=searched"):
            check_limits(strict, asked)
    budget = silo.budget.model_copy(update={"accountant": "rdp"})
    with pytest.raises(LimitRefused, match=r"budget\.accountant=pld.*zeroth_order\.noise=gaussian"):
        check_limits(silo.model_copy(update={"budget": budget}), settings)
