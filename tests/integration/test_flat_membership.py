"""Membership inference against models of the real federation, with a small random model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from typer.testing import CliRunner

from fedllm.run.folder import RunFolder
from privacy.randomness import generator
from simulations.attacks import auditing
from simulations.attacks.membership import federated_runs
from simulations.attacks.membership import flat as flat_membership
from simulations.attacks.membership import run as run_membership
from simulations.attacks.membership.attacks import areas, interval, paired, rate_over_runs
from simulations.attacks.membership.federated_runs import (
    Experiment,
    Row,
    attacked_losses,
    coins,
    load,
    proven_rates,
)
from simulations.in_process import federate

# Intervals


def test_intervals_over_runs_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        _, low, high = interval(list(rng.normal(0.6, 0.05, size=5)))
        inside += low <= 0.6 <= high
    assert abs(inside / 2000 - 0.95) < 3.3 * np.sqrt(0.95 * 0.05 / 2000)


def test_pairs_are_compared_run_by_run() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(0.6, 0.2, size=6)  # how hard a run is, shared by both rows
    other = hard + 0.05 + rng.normal(0, 0.01, size=6)
    found = paired(list(other), list(hard))
    assert found["difference"] == pytest.approx(float((other - hard).mean()))
    assert found["p"] == pytest.approx(float(ttest_1samp(other - hard, 0).pvalue))
    assert found["low"] > 0
    assert paired([0.5, 0.6], [0.5, 0.6])["p"] == 1.0


def test_rate_of_known_scores() -> None:
    """Members' scores are N(2, 1), the others' N(0, 1): TPR at 5 % is P[N(2, 1) > 1.645] = 0.639."""
    rng = np.random.default_rng(2)
    included = rng.random((20, 400)) < 0.5
    scores = rng.standard_normal(included.shape) + 2 * included
    found = rate_over_runs(included, scores, 0.05, generator(0, "test"))
    assert found["low"] < 0.639 < found["high"]
    assert found["high"] - found["low"] < 0.12
    assert abs(found["tpr"] - 0.639) < 0.05


# Runs of the federation


@pytest.fixture(scope="module")
def experiment(random_words_encoder: Path) -> Experiment:
    return Experiment(
        texts=64,
        silos=2,
        rounds=80,
        epsilon=1.0,
        sampling_rate=0.5,
        learning_rate=0.05,
        head_learning_rate=0.3,
        prefix_length=2,
        model=str(random_words_encoder),
        data="random",
    )


OPEN = Row("no privacy", ("privacy.mode=none",))


def test_canaries_and_coins(experiment: Experiment) -> None:
    texts = load(experiment)
    assert len(texts.candidates) == 64
    assert len({r["text"] for r in (*texts.candidates, *texts.validation)}) == 64 + 32
    assert np.array_equal(coins(experiment, 5)[:3], coins(experiment, 3))
    assert 0.3 < coins(experiment, 5).mean() < 0.7


@pytest.mark.slow
def test_members_of_federated_models_are_known_without_privacy_and_not_with_it(
    experiment: Experiment, tmp_path: Path
) -> None:
    result = flat_membership.measure(experiment, [Row("DP"), OPEN], 3, tmp_path)
    private, bare = result["rows"]
    # 32 texts of a group in 3 runs, half of them members: a standard error of about 0.06, and of
    # 0.042 for both groups together
    both = np.mean([bare[group]["loss"]["auc"][0] for group in flat_membership.GROUPS])
    assert both > 0.5 + 3.3 * 0.042
    assert bare["member_loss"] < bare["other_loss"]
    assert bare["proven"] is None
    assert 0.5 < private["proven"]["auc"] < 0.75
    for group in flat_membership.GROUPS:
        for attack in flat_membership.ATTACKS:
            found = private[group][attack]["auc"][0]
            assert found <= private["proven"]["auc"] + 3.3 * 0.06
    assert private["against"]["canaries"]["loss"]["difference"] == 0
    assert bare["against"]["canaries"]["loss"]["difference"] == pytest.approx(
        bare["canaries"]["loss"]["auc"][0] - private["canaries"]["loss"]["auc"][0]
    )
    shown = " ".join(str(part) for part in flat_membership.tables(result) if isinstance(part, str))
    assert "no bound" in shown


def test_finished_runs_are_not_trained_again(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Experiment(**{**vars(experiment), "rounds": 1})
    texts, included = load(short), coins(short, 2)
    trained: list[int] = []
    train = federated_runs._train

    def counted(*args: Any) -> dict[str, Any]:
        if len(trained) == 1 and args[-1] == 1 and not (tmp_path / "go").exists():
            raise KeyboardInterrupt
        trained.append(args[-1])
        return train(*args)

    monkeypatch.setattr(federated_runs, "_train", counted)
    with pytest.raises(KeyboardInterrupt):
        attacked_losses(short, OPEN, texts, included, tmp_path)
    (tmp_path / "go").touch()
    found = attacked_losses(short, OPEN, texts, included, tmp_path)
    assert trained == [0, 1]
    assert len(found) == 2
    assert attacked_losses(short, OPEN, texts, included, tmp_path) == found
    assert trained == [0, 1]


def test_a_row_with_a_labelled_form_has_no_bound(experiment: Experiment, tmp_path: Path) -> None:
    short = Experiment(**{**vars(experiment), "rounds": 1})
    texts, included = load(short), coins(short, 1)
    batch = Row("batch", ("awp.form=batch",))
    assert attacked_losses(short, batch, texts, included, tmp_path)[0]["proven"] is None
    valid = Row("valid", ("awp.form=per-example",))
    assert attacked_losses(short, valid, texts, included, tmp_path)[0]["proven"] is not None


def test_command(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        flat_membership, "Experiment", lambda **o: Experiment(**{**o, "data": "random"})
    )
    figure = tmp_path / "membership.png"
    options = ["--model", experiment.model, "--texts", "32", "--silos", "2", "--runs", "3"]
    options += ["--rounds", "1", "--row", "a: privacy.mode=none"]
    options += ["--row", "b: privacy.mode=none; prefix.length=1"]
    options += ["--work", str(tmp_path / "work"), "--figure", str(figure)]
    done = CliRunner().invoke(flat_membership.app, options)
    assert done.exit_code == 0, done.output
    assert figure.read_bytes().startswith(b"\x89PNG")
    again = CliRunner().invoke(flat_membership.app, [*options, "--json"])
    result = json.loads(again.stdout)
    assert [row["row"] for row in result["rows"]] == ["a", "b"]
    assert result["base"] == "a"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runs", "2"], "--runs=2"),
        (["--row", "privacy.mode=none"], "--row='NAME:"),
        (["--row", "a:", "--row", "b: awp.no=1"], "awp.no"),
        (["--row", "a:", "--row", "a:"], "twice"),
        (["--texts", "16"], "--texts=16"),
        (["--figure", "x.bmp"], "x.bmp"),
    ],
)
def test_bad_options(
    options: list[str], message: str, tmp_path: Path, experiment: Experiment
) -> None:
    small = ["--model", experiment.model, "--work", str(tmp_path), "--texts", "128"]
    done = CliRunner().invoke(flat_membership.app, [*small, *options])
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1


# One run


def test_one_run(tiny_settings: Callable[..., Any], tmp_path: Path) -> None:
    run = RunFolder.create(tiny_settings(**{"server.rounds": 2}), tmp_path / "run")
    federate(run)
    done = CliRunner().invoke(run_membership.app, [str(run.path), "--texts", "60"])
    assert done.exit_code == 0, done.output
    found = json.loads((run.path / "membership.json").read_text(encoding="utf-8"))
    loss, blind = found["attacks"]
    assert (loss["attack"], loss["runs"]) == ("loss threshold", 1)
    assert 0 <= loss["low"] <= loss["auc"] <= loss["high"] <= 1
    assert 0.5 <= blind["auc"] < 0.8
    assert found["members"] == 60
    assert found["origin"] == "the server's evaluation texts"
    assert "no bound" in found["label"]
    bound = proven_rates(run)
    assert bound is not None
    assert found["proven_auc"] == bound["auc"]
    members, others, _ = run_membership.groups(run.settings())
    losses = federated_runs.candidate_losses(run, [*members[:60], *others])
    area = auditing.area_under_curve(-losses[:60], -losses[60:])[0]
    assert loss["auc"] == pytest.approx(area)


@pytest.mark.parametrize(
    ("changes", "origin"),
    [
        ({"data.limit": 60}, "beyond data.limit"),
        ({"evaluation.clients_holdout": 0.4}, "silos' held-out"),
        ({"data.validation": None, "data.holdout": 0.4}, "server's evaluation"),
    ],
)
def test_others_trained_nothing(
    tiny_settings: Callable[..., Any], changes: dict[str, Any], origin: str
) -> None:
    members, others, found = run_membership.groups(tiny_settings(**changes))
    assert origin in found
    texts = {record["text"] for record in members}
    assert len(texts) == len(members)
    assert not texts & {record["text"] for record in others}


def test_too_few_texts(tiny_settings: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="at least 20 members"):
        run_membership.groups(tiny_settings(**{"data.silo_names": ["delta"], "data.limit": 20}))


def test_areas_are_of_each_run() -> None:
    included = np.array([[True, True, False, False], [True, False, True, False]])
    scores = np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    assert areas(included, scores) == [1.0, 0.25]
