"""What is said of a run before it trains: checks against its silos, warnings, ``calibrate EXPERIMENT``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from fedllm.budget.plan import for_silos, warnings
from fedllm.settings.io import from_json, parse_settings, to_json, to_toml
from privacy.accountants import make_accountant
from privacy.events.constructors import dp_sgd, gaussian
from privacy.events.multiset import multiset
from privacy.events.views import same_for_all
from privacy.ledger.ledger import Ledger, LedgerEntry
from simulations.cli.main import app

Make = Callable[..., Any]
NAMES = ["alpha", "beta", "gamma", "delta"]
CALIBRATED = {"privacy.noise_multiplier": None, "privacy.epsilon": 2.0, "server.rounds": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "calibrations"
    monkeypatch.setenv("FEDLLM_CACHE", str(folder))


def test_a_division_in_which_one_record_moves_others_is_warned_of(tiny_settings: Make) -> None:
    sizes = dict.fromkeys(NAMES, 100)
    assert not any("divided" in text for text in warnings(tiny_settings(), sizes))
    for changes in (
        {"data.partition": "iid", "data.silos": 4},
        {"data.partition": "dirichlet", "data.silos": 4},
        {"data.limit": 50},
    ):
        (said,) = [t for t in warnings(tiny_settings(**changes), sizes) if "divided" in t]
        setting, value = next(iter(changes.items()))
        assert f"{setting}={value}: " in said
        assert "guarantee is for their data as divided" in said


@pytest.mark.parametrize(
    ("colluding", "silos", "expected"),
    [("others", 4, (3,)), ("others", 1, ()), ([], 4, ()), ([3, 1, 3], 4, (1, 3))],
)
def test_colluders_as_numbers(
    colluding: Any, silos: int, expected: Any, tiny_settings: Make
) -> None:
    settings = for_silos(tiny_settings(**{"privacy.colluding": colluding}), NAMES[:silos])
    assert settings.privacy.colluding == expected
    assert for_silos(settings, NAMES[:silos]) == settings
    assert from_json(to_json(settings)) == settings


def test_colluders_need_another_silo(tiny_settings: Make) -> None:
    with pytest.raises(ValueError, match=r"below 1, .* privacy\.colluding, got 1"):
        for_silos(tiny_settings(**{"privacy.colluding": [1]}), ["alpha"])


def test_unknown_silo_is_named_with_those_there_are(tiny_settings: Make) -> None:
    settings = tiny_settings(**{"privacy.silos": {"alfa": {"epsilon": 1.0}}})
    with pytest.raises(ValueError, match=r"\(alpha, beta, delta, gamma\), got 'alfa'.*'alpha'"):
        for_silos(settings, NAMES)
    many = [f"silo-{i:03d}" for i in range(300)]
    with pytest.raises(ValueError, match="and 280 more") as error:
        for_silos(settings, many)
    assert len(str(error.value)) < 500


def test_own_values_replace_the_runs_and_no_others(tiny_settings: Make) -> None:
    own = {"epsilon": 1.0, "run_epsilon": 0.5, "delta": 1e-6, "batch_size": 2, "sampling_rate": 0.3}
    settings = tiny_settings(**{"privacy.silos": {"alpha": own, "beta": {"delta": 1e-7}}})
    assert parse_settings(json.loads(to_json(settings))) == settings
    assert "privacy.silos.alpha]" in to_toml(settings)
    alpha, beta, gamma = (settings.for_silo(name) for name in NAMES[:3])
    assert (alpha.client.batch_size, alpha.client.sampling_rate) == (2, 0.3)
    for key in ("epsilon", "run_epsilon", "delta"):
        assert getattr(alpha.privacy, key) == own[key]
    assert (beta.privacy.delta, beta.privacy.epsilon) == (1e-7, settings.privacy.epsilon)
    assert beta.client == gamma.client == settings.client
    assert gamma.privacy.silos == {}
    assert gamma.for_silo("alpha") == gamma


@pytest.mark.parametrize(
    ("changes", "sizes", "said"),
    [
        ({}, {"a": 60, "b": 45}, []),
        ({"privacy.delta": 0.02}, {"a": 60, "b": 45}, ["a: ", "1/60 (one over the number of ex"]),
        ({"privacy.silos": {"a": {"delta": 0.1}}}, {"a": 60, "b": 45}, ["a: ", "1/60"]),
        ({}, {"a": 1}, ["a: ", "batch_size=8 is above the silo's 1 examples", "no amplification"]),
        ({"client.sampling_rate": 0.5}, {"a": 60}, ["draws 30 of 60", "scaled by 3.75"]),
        ({"client.sampling_rate": 0.2}, {"a": 60}, []),
        ({"client.sampling_rate": 0.01}, {"a": None}, []),
        ({"privacy.run_epsilon": 60.0}, {"a": 60}, ["privacy.run_epsilon=60 never decides"]),
        ({"privacy.unit": "client", "privacy.delta": 0.6}, {"a": 60, "b": 50}, ["1/2", "silos"]),
        ({"privacy.mode": "none", "privacy.delta": 0.6}, {"a": 60}, []),
    ],
)
def test_warnings(
    changes: dict[str, Any], sizes: dict[str, int | None], said: list[str], tiny_settings: Make
) -> None:
    found = warnings(tiny_settings(**changes), sizes)
    assert bool(found) is bool(said)
    for part in said:
        assert any(part in sentence for sentence in found), found


def test_the_same_warning_for_many_silos_is_one_sentence(tiny_settings: Make) -> None:
    (sentence,) = warnings(tiny_settings(), {f"s{i}": 3 for i in range(100)})
    assert "s0, s1, s10, s11, s12 and 95 more silos" in sentence


def call(*words: object, status: int = 0) -> Any:
    result = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "160"})
    assert result.exit_code == status, result.output
    return result


@pytest.fixture
def write(tiny_tree: Make, tmp_path: Path) -> Callable[..., Path]:
    def make(**changes: Any) -> Path:
        tree = tiny_tree(**CALIBRATED | changes)
        tree = {
            key: {k: v for k, v in value.items() if v is not None}
            if isinstance(value, dict)
            else value
            for key, value in tree.items()
        }
        file = tmp_path / "experiment.toml"
        file.write_text(tomli_w.dumps(tree), encoding="utf-8")
        return file

    return make


def test_calibrate_prints_the_plan_of_each_silo_without_a_model(
    write: Callable[..., Path],
) -> None:
    own = {"alpha": {"epsilon": 1.0, "delta": 1e-6}, "beta": {"sampling_rate": 0.3}}
    path = write(**{"privacy.silos": own, "model.name": "no-such-model"})
    found = json.loads(call("calibrate", path, "--json").stdout)
    assert sorted(found["silos"]) == sorted(NAMES)
    rates = {"alpha": 8 / 60, "beta": 0.3, "gamma": 8 / 30, "delta": 8 / 24}
    for name, silo in found["silos"].items():
        epsilon, delta = (1.0, 1e-6) if name == "alpha" else (2.0, 1e-5)
        assert (silo["target_epsilon"], silo["delta"]) == (epsilon, delta)
        assert (silo["rounds"], silo["steps"], silo["accountant"]) == (4, 8, "rdp")
        assert silo["sampling_rate"] == pytest.approx(rates[name])
        events = multiset({dp_sgd(silo["sampling_rate"], silo["noise_multiplier"], 1): 8})
        truly = make_accountant("rdp").epsilon(events, delta)
        assert silo["epsilon"] == pytest.approx(truly, rel=1e-9)
        assert epsilon * 0.998 <= truly <= epsilon
        assert silo["bound"] is True
        assert silo["figures"]["pld"]["epsilon"] < silo["epsilon"]
    printed = call("calibrate", path).stdout
    for part in (*NAMES, "1 at delta 1e-06", "0.3", "zero-out", "up to 3 other silos"):
        assert part in printed


def test_calibrate_counts_what_other_runs_spent_and_writes_nothing(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    ledger = tmp_path / "shared.sqlite"
    with Ledger(ledger) as opened:
        for party, noise in (("alpha", 1.0), ("beta", 4.0)):
            opened.append(
                LedgerEntry(
                    run="earlier",
                    party=party,
                    unit="example",
                    purpose="train",
                    round=1,
                    key="k",
                    views=same_for_all(gaussian(noise)),
                )
            )
        head = opened.head()
    path = write(**{"privacy.ledger": str(ledger)})
    found = json.loads(call("calibrate", path, "--json").stdout)["silos"]
    assert found["alpha"]["leaves"].startswith("privacy.epsilon (all runs on the ledger)")
    assert "noise_multiplier" not in found["alpha"]
    assert found["beta"]["spent"] > 0
    assert 2.0 * 0.998 <= found["beta"]["epsilon"] <= 2.0
    assert found["gamma"]["spent"] == 0
    assert "leaves" in call("calibrate", path).stdout
    with Ledger(ledger, read_only=True) as opened:
        assert opened.head() == head


@pytest.mark.parametrize("noise_by", ["client", "server"])
def test_calibrate_at_client_level(noise_by: str, write: Callable[..., Path]) -> None:
    path = write(**{"privacy.unit": "client", "privacy.noise_by": noise_by})
    found = json.loads(call("calibrate", path, "--json").stdout)
    noises = {silo["noise_multiplier"] for silo in found["silos"].values()}
    assert len(noises) == 1
    assert found["adversary"] == ("outsider" if noise_by == "server" else "server")
    truly = make_accountant("rdp").epsilon(multiset({gaussian(noises.pop()): 4}), 1e-5)
    assert 2.0 * 0.998 <= truly <= 2.0


def test_calibrate_without_privacy_says_so(write: Callable[..., Path]) -> None:
    path = write(**{"privacy.mode": "none"})
    assert "NO GUARANTEE" in call("calibrate", path).stdout
    found = json.loads(call("calibrate", path, "--json").stdout)
    assert {silo["epsilon"] for silo in found["silos"].values()} == {"Infinity"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bogus"], "--bogus"),
        (["runn"], "runn"),
        (["run"], "EXPERIMENT"),
        (["run", "--bogus"], "--bogus"),
        (["run", "nowhere.toml"], "nowhere.toml"),
        (["resume"], "RUN"),
        (["resume", "nowhere"], "nowhere"),
        (["predict", "nowhere", "text"], "nowhere"),
        (["export", "nowhere"], "DIR"),
        (["settings", "nowhere.toml"], "nowhere.toml"),
        (
            ["settings", "simulations/experiments/tweets.toml", "--set", "privacy.epsilom=3"],
            "epsilom",
        ),
        (["ledger", "bogus"], "bogus"),
        (["calibrate"], "--epsilon"),
        (["calibrate", "--epsilon", "x"], "'x'"),
        (["calibrate", "simulations/experiments/tweets.toml", "--epsilon", "3"], "--set"),
        (["calibrate", "simulations/experiments/tweets.toml", "--steps", "3"], "--steps"),
        (["calibrate", "--epsilon", "3", "--set", "a.b=1"], "--set"),
        (["account", "--delta", "1e-5", "--steps", "nan"], "nan"),
    ],
)
def test_each_error_is_one_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[3])
    result = call(*words, status=2)
    assert result.stdout == ""
    assert result.stderr.startswith("fedllm: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr


def test_several_wrong_settings_are_one_line(write: Callable[..., Path]) -> None:
    path = write(**{"privacy.epsilon": -1.0, "privacy.clip": 0.0})
    result = call("calibrate", path, status=2)
    assert result.stderr.count("\n") == 1
    assert "privacy.epsilon" in result.stderr
    assert "privacy.clip" in result.stderr


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from privacy import calibration

    def interrupted(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "calibrate_noise_multiplier", interrupted)
    schedule = ["--epsilon", 3, "--delta", 1e-5, "--sample-rate", 0.1, "--steps", 9]
    result = call("calibrate", *schedule, status=130)
    assert (result.stdout, result.stderr) == ("", "fedllm: interrupted\n")
