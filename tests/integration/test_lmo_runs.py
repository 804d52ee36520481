"""``privacy.mechanism = "lmo"``: from the settings to the noise that leaves, the ledger and the report."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from accounting_commands import call, call_json

from fedllm.report.build import build
from fedllm.report.page.render import render
from fedllm.run.folder import RunFolder
from fedllm.settings.io import SettingsError, load_settings, parse_settings, to_toml
from fedllm.training.noise import Noise, multiplier_of, noise_of
from privacy.accountants import make_accountant
from privacy.accountants.gaussian_curve import gaussian_epsilon
from privacy.accountants.vector_bound import gaussian_bound
from privacy.events.constructors import dp_sgd, poisson_sampled
from privacy.events.kinds import VectorNoiseDpEvent
from privacy.events.kinds import noise_of as noise_in
from privacy.ledger.ledger import Ledger
from privacy.mechanisms.scalar_noise import LmoNoise
from privacy.randomness import generator
from tests.support.local_training import training_events
from tests.support.scalar_noise import PAPER_STRONG

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
Make = Callable[..., Any]
FLAT = {
    name: PAPER_STRONG.parameters[name]
    for name in [
        "a1",
        "a3",
        "a4",
        "gamma_shape",
        "gamma_scale",
        "exponential_rate",
        "uniform_low",
        "uniform_high",
    ]
}
LMO: dict[str, Any] = {
    "privacy.mechanism": "lmo",
    "privacy.noise": json.dumps(PAPER_STRONG.to_dict()),
}

EARLIER = Path(__file__).parents[1] / "support" / "earlier_run"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path_factory.getbasetemp() / "calibrations"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy.mechanism": "lmo"}, "Expected privacy.noise"),
        (
            {"privacy.noise": LMO["privacy.noise"]},
            "Expected privacy.mechanism=lmo for privacy.noise",
        ),
        ({"privacy.noise_scale": 1.0}, "Expected privacy.mechanism=lmo for privacy.noise_scale"),
        (LMO | {"privacy.noise_scale": 1.0, "privacy.noise_multiplier": 1.0}, "got both"),
    ],
)
def test_settings_that_are_refused(
    tiny_settings: Make, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        tiny_settings(**changes)


def test_the_noise_file_is_read_once_and_travels_with_the_settings(
    tiny_tree: Make, tmp_path: Path
) -> None:
    import tomli_w

    (tmp_path / "noise.json").write_text(json.dumps(FLAT))
    tree = tiny_tree(**{"privacy.mechanism": "lmo", "privacy.noise": "noise.json"})
    (tmp_path / "experiment.toml").write_text(tomli_w.dumps(tree))
    settings = load_settings(tmp_path / "experiment.toml")
    (tmp_path / "noise.json").unlink()
    assert noise_of(settings) == PAPER_STRONG
    (tmp_path / "again.toml").write_text(to_toml(settings))
    assert load_settings(tmp_path / "again.toml") == settings
    with pytest.raises(SettingsError, match=r"privacy\.noise=.*noise\.json"):
        load_settings(tmp_path / "experiment.toml")
    for content, reason in (("{}", "a1 a3 a4"), ("[", "Expecting"), ('{"family": "x"}', "keys")):
        (tmp_path / "noise.json").write_text(content)
        with pytest.raises(SettingsError, match=reason):
            load_settings(tmp_path / "experiment.toml")
    staircase = {"family": "staircase", "parameters": {"epsilon": 1.0, "gamma": 0.5, "period": 1.0}}
    (tmp_path / "noise.json").write_text(json.dumps(staircase))
    with pytest.raises(SettingsError, match="no bound here"):
        load_settings(tmp_path / "experiment.toml")


@pytest.mark.parametrize("multiplier", [0.7, 5.0])
def test_the_noise_that_is_added_is_the_noise_of_the_event(
    tiny_settings: Make, multiplier: float
) -> None:
    settings = tiny_settings(**LMO, **{"privacy.clip": 0.25})
    added = Noise.of(settings, multiplier)
    found = added.add(torch.zeros(400, 500), 0.25, generator(6)).double().numpy()
    (event,) = training_events(settings, 1, sampling_rate=1.0, noise_multiplier=multiplier).keys()
    assert isinstance(event, VectorNoiseDpEvent)
    noise = noise_in(event)
    flat = found.reshape(-1) / 0.25
    assert scipy.stats.kstest(flat, lambda v: 1 - noise.survival(v)).pvalue > 1e-6
    assert added.std == noise.std
    assert flat.std() == pytest.approx(noise.std, rel=0.02)
    # The same guarantee as of the Gaussian mechanism, proven; the standard deviation is larger.
    assert 1 / gaussian_bound(noise) == pytest.approx(multiplier, rel=1e-7)
    assert 1 / gaussian_bound(noise) >= multiplier
    assert noise.std > 1.7 * multiplier
    with pytest.raises(ValueError, match="noise_multiplier=0"):
        Noise.of(settings, 0.0).add(torch.zeros(3), 0.25, generator(6))
    with pytest.raises(ValueError, match="finite vector"):
        Noise.of(settings, 1.0).add(torch.tensor([math.nan]), 0.25, generator(6))


def test_events_are_sampled_and_composed_as_those_of_gaussian_noise(tiny_settings: Make) -> None:
    accountant = make_accountant("pld")
    for changes in (
        {},
        {"privacy.unit": "client"},
    ):
        costs = []
        for mechanism in (LMO, {}):
            settings = tiny_settings(**mechanism, **changes)
            events = training_events(settings, 1, sampling_rate=0.1, noise_multiplier=1.3)
            costs.append(accountant.epsilon(events, 1e-6))
        assert costs[0] == pytest.approx(costs[1], rel=1e-6)
        assert costs[0] <= costs[1]  # scaled up by a hair, so that round-off never exceeds a budget


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"privacy.unit": "client", "client.local_steps": 2},
        {"privacy.unit": "client", "privacy.noise_by": "server"},
    ],
    ids=["example", "client", "trusted-server"],
)
def test_a_run_keeps_to_its_target_and_its_report_shows_the_claim_beside_the_truth(
    start_run: Start, in_process: Federate, changes: dict[str, Any]
) -> None:
    target = {"privacy.noise_multiplier": None, "privacy.epsilon": 4.0, "privacy.accountant": "pld"}
    run = start_run("lmo", **LMO, **target, **changes)
    assert in_process(run) == "finished"
    delta = 1e-5
    adversary = "outsider" if "privacy.noise_by" in changes else "server"
    with Ledger(run.ledger_path, read_only=True) as ledger:
        for party in ledger.parties():
            spent = ledger.spent(adversary, party=party)
            assert 4.0 * 0.99 <= make_accountant("pld").epsilon(spent, delta) <= 4.0
    report = build(run)
    section = report["lmo"]
    assert section["silo"] in report["run"]["silos"] or section["silo"] == "*"
    for part in (section["step"], section["training"]):
        assert part["spread"] < part["bound"]
    assert section["training"]["bound"] <= 4.0 * (1 + 1e-6)
    assert section["training"]["bound"] >= 4.0 * 0.97
    assert section["std"] > 1.4 * section["gaussian_std"]
    html = render(report, "0" * 64)
    assert "LMO noise" in html
    assert html.index('<strong class="bad">no bound</strong>') > html.index("LMO noise")
    plain = build(start_run("plain"))
    assert plain["lmo"] is None
    assert 'id="lmo"' not in render(plain, "0" * 64)


def test_the_papers_use_of_a_parameter_file_is_exposed(
    start_run: Start, in_process: Federate
) -> None:
    """noise_scale = 1: the file's noise as it is, and the budget is the ledger's, not the claim's."""
    changes = {
        "privacy.noise_multiplier": None,
        "privacy.noise_scale": 1.0,
        "privacy.epsilon": 50.0,
        "client.local_steps": 1,
        "server.rounds": 2,
        "client.sampling_rate": 1.0,
    }
    run = start_run("paper", **LMO, **changes)
    assert in_process(run) == "finished"
    section = build(run)["lmo"]
    expected = PAPER_STRONG.parameters
    for name in ("a1", "a3", "a4"):
        assert section["parameters"][name] == pytest.approx(expected[name], rel=1e-9)
    assert section["step"]["claimed"] == pytest.approx(0.203, rel=0.01)
    assert section["step"]["spread"] == pytest.approx(0.807, rel=0.01)
    assert not section["step"]["order_exists"]
    assert section["largest_order"] == pytest.approx(21)
    mu = gaussian_bound(PAPER_STRONG)
    assert section["step"]["bound"] == pytest.approx(gaussian_epsilon(mu, 1e-5), rel=1e-6)
    assert section["training"]["bound"] == pytest.approx(
        gaussian_epsilon(mu * math.sqrt(2), 1e-5), rel=1e-3
    )


def test_the_scale_and_the_multiplier_name_the_same_noise(tiny_settings: Make) -> None:
    settings = tiny_settings(**LMO)
    noise = Noise.of(settings, multiplier_of(PAPER_STRONG, 2.5)).scaled
    assert isinstance(noise, LmoNoise)
    x = np.array([0.0, 3.0, 30.0])
    np.testing.assert_allclose(noise.survival(x), PAPER_STRONG.scaled(2.5).survival(x), rtol=1e-9)
    one = poisson_sampled(
        0.1, tuple(training_events(settings, 1, sampling_rate=1.0, noise_multiplier=2.0))
    )
    assert make_accountant("pld").epsilon({one: 5}, 1e-6) == pytest.approx(
        make_accountant("pld").epsilon({dp_sgd(0.1, 2.0, 5): 1}, 1e-6), rel=1e-6
    )
    assert parse_settings(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("changes", "steps", "rate"),
    [
        ({"client.sampling_rate": 0.25, "client.local_steps": 3}, 6, 0.25),
        ({"privacy.unit": "client", "privacy.noise_by": "server"}, 2, 1.0),
    ],
    ids=["example", "trusted-server"],
)
def test_a_run_reproduces_the_claim_with_the_scale_that_lmo_check_prints(
    start_run: Start,
    in_process: Federate,
    tmp_path: Path,
    changes: dict[str, Any],
    steps: int,
    rate: float,
) -> None:
    (tmp_path / "noise.json").write_text(json.dumps(FLAT))
    asked = {"epsilon": 2.0, "steps": steps, "delta": 1e-5, "sample-rate": rate}
    found = call_json("lmo-check", tmp_path / "noise.json", **asked)["training"]
    shown = " ".join(call("lmo-check", tmp_path / "noise.json", **asked).stdout.split())
    assert f"privacy.noise_scale = {found['scale']:.6g} is claimed to cost" in shown
    usual: dict[str, Any] = {
        "server.rounds": 2,
        "privacy.noise_multiplier": None,
        "privacy.epsilon": None,
        "privacy.noise_scale": found["scale"],
    }
    run = start_run("claim", **LMO, **usual, **changes)
    assert in_process(run) == "finished"
    content = build(run)
    section = content["lmo"]
    assert (section["steps"], section["sampling_rate"]) == (steps, rate)
    assert 0.99 * 2.0 <= section["published"] <= 2.0
    assert section["published"] == pytest.approx(found["claimed_epsilon"])
    assert section["training"]["spread"] == pytest.approx(found["spread_epsilon"], rel=1e-3)
    assert section["training"]["bound"] == pytest.approx(found["epsilon_bound"], rel=1e-3)
    assert section["training"]["spread"] > 5 * 2.0
    assert content["guarantee"]["epsilon"] == pytest.approx(found["epsilon_bound"], rel=1e-3)


@pytest.mark.parametrize("figure", ["claimed", "true"])
def test_an_earlier_run_with_noise_for_a_figure_that_is_no_bound_is_labelled(
    tmp_path: Path, figure: str
) -> None:
    folder = Path(shutil.copytree(EARLIER, tmp_path / "earlier"))
    path = folder / "settings.toml"
    text = path.read_text("utf-8")
    path.write_text(text.replace('calibrate_to = "proven"', f'calibrate_to = "{figure}"'), "utf-8")
    content = build(folder)
    assert content["headline"].startswith(
        f"NO GUARANTEE at epsilon = 3, to which the noise was calibrated (privacy.calibrate_to = {figure})"
    )
    assert content["guarantee"]["level"] == "not-as-asked"
    html = render(content, "0" * 64)
    assert html.index("NO GUARANTEE at epsilon = 3") < html.index("<h1>")
    assert not build(EARLIER)["headline"].startswith("NO GUARANTEE")
