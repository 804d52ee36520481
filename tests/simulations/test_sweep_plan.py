"""A sweep's file, its trials, its statistics and its texts, without running anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from scipy import stats

from fedllm.run.folder import RunFolder
from fedllm.settings.io import SettingsError
from simulations.sweep import words
from simulations.sweep.plan import Sweep, load_sweep
from simulations.sweep.statistics import gap_closed, holm, paired, paired_examples, summary

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def plan(tmp_path: Path, tiny_tree: Callable[..., dict[str, Any]]) -> Callable[..., Sweep]:
    """``plan(**top)``: the trials of a small sweep's file."""

    def make(**top: Any) -> Sweep:
        tree = {"name": "small", "base": tiny_tree(), "arms": {"plain": {}}} | top
        file = tmp_path / "sweep.toml"
        file.write_text(tomli_w.dumps(tree), encoding="utf-8")
        return load_sweep(file)

    return make


def test_cells_are_all_combinations_and_without_privacy_one_for_all_epsilons(
    plan: Callable[..., Sweep],
) -> None:
    sweep = plan(
        arms={"plain": {}, "free": {"privacy": {"mode": "none"}}},
        epsilon=[3.0, 8.0],
        seeds=[4, 5],
        datasets={"long": {"task": {"max_length": 16}}, "short": {"task": {"max_length": 8}}},
    )
    assert len(sweep.trials) == 2 * 2 * (2 + 1)
    for trial in sweep.trials:
        assert trial.settings.seed == trial.seed
        assert trial.settings.task.max_length == {"long": 16, "short": 8}[trial.dataset]
        assert trial.settings.privacy.epsilon == trial.epsilon
        assert (trial.epsilon is None) == (trial.arm == "free")
    assert len({trial.key for trial in sweep.trials}) == len(sweep.trials)


def test_an_arm_may_be_a_table_dotted_keys_or_a_list(plan: Callable[..., Sweep]) -> None:
    arms = {
        "table": {"awp": {"form": "per-example", "gamma": 0.1}},
        "dotted": {"awp.form": "per-example", "awp.gamma": 0.1},
        "list": ["awp.form=per-example", "awp.gamma=0.1"],
    }
    sweep = plan(arms=arms)
    assert {(c.settings.awp.form, c.settings.awp.gamma) for c in sweep.trials} == {
        ("per-example", 0.1)
    }


def test_a_dataset_replaces_lists_and_merges_tables(plan: Callable[..., Sweep]) -> None:
    sweep = plan(datasets={"a": {"task": {"labels": ["low", "high"], "max_length": 9}}})
    task = sweep.trials[0].settings.task
    assert task.max_length == 9
    assert task.text == ("text",)


@pytest.mark.parametrize(
    ("top", "words_"),
    [
        ({"arms": {}}, "Expected arms"),
        ({"baseline": "absent"}, "Expected baseline to name one of the arms plain"),
        ({"reference": "absent"}, "Expected reference to name one of the arms plain"),
        ({"epsilon": [0.0]}, "epsilon"),
        ({"epsilons": [1.0]}, "Expected a known key, got epsilons"),
        ({"metric": "beauty"}, "metric"),
        ({"base": "absent.toml"}, "Expected base to be an experiment's TOML file"),
        ({"arms": {"plain": {"awp": {"gama": 1}}}}, "arm 'plain': Expected a known key"),
        ({"arms": {"a b": {}, "a-b": {}}}, "differ in letters and digits"),
        ({"settings": {"privacy": {"epsilon": -1}}}, "privacy.epsilon"),
        ({"settings": ["privacy.epsilon"]}, "Expected section.key=value"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    plan: Callable[..., Sweep], top: dict[str, Any], words_: str
) -> None:
    with pytest.raises(SettingsError, match=words_):
        plan(**top)


def test_only_must_name_an_arm(plan: Callable[..., Sweep]) -> None:
    sweep = plan(arms={"plain": {}, "other": {"seed": 9}})
    assert [c.arm for c in load_sweep(sweep.source, ["other"]).chosen] == ["other"]
    with pytest.raises(SettingsError, match="Expected --only to name one of the arms plain, other"):
        load_sweep(sweep.source, ["absent"])


def test_a_run_folder_is_a_cells_only_with_the_same_settings(
    plan: Callable[..., Sweep], tmp_path: Path
) -> None:
    sweep = plan(folder=str(tmp_path / "out"))
    trial = sweep.trials[0]
    path = sweep.run_path(trial)
    assert not path.exists()
    server = trial.settings.server.model_copy(update={"rounds": 99})
    RunFolder.create(trial.settings.model_copy(update={"server": server}), path)
    beside = sweep.run_path(trial)
    assert beside == path.with_name(f"{path.name}-2")
    RunFolder.create(trial.settings, beside)
    assert sweep.run_path(trial) == beside


def test_paired_is_scipys_paired_t_test_over_common_seeds() -> None:
    rng = np.random.default_rng(0)
    arm = {seed: float(v) for seed, v in enumerate(rng.normal(0.8, 0.02, 6))}
    base = {seed: float(v) for seed, v in enumerate(rng.normal(0.78, 0.02, 5))}
    found = paired(arm, base)
    assert found is not None
    common = sorted(base)
    test = stats.ttest_rel([arm[s] for s in common], [base[s] for s in common])
    interval = test.confidence_interval(0.95)
    assert found.n == 5
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert paired({1: 0.5}, {2: 0.5}) is None
    one = paired({1: 0.7}, {1: 0.5})
    assert one is not None
    assert (one.n, one.p, one.error) == (1, None, None)
    level = paired({1: 0.75, 2: 0.5}, {1: 0.5, 2: 0.25})
    assert level is not None
    assert level.p is None, "without spread there is no test"


def test_an_example_counts_once_however_many_seeds_judged_it() -> None:
    base = {
        1: [("a", False), ("b", True), ("c", True)],
        2: [("a", False), ("b", True), ("c", False)],
    }
    arm = {1: [("a", True), ("b", True), ("c", False)], 2: [("a", True), ("b", False), ("c", True)]}
    found = paired_examples(arm, base)
    assert found is not None
    differences = [1.0, -0.5, 0.0]
    assert found.n == 3
    assert found.difference == pytest.approx(np.mean(differences))
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    doubled = paired_examples(arm | {3: arm[1]}, base | {3: base[1]})
    assert doubled is not None
    assert doubled.n == 3, "another seed is no other example"


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_summary_and_gap() -> None:
    found = summary([0.7, 0.8, 0.9])
    assert (found.n, found.mean, found.spread) == pytest.approx((3, 0.8, 0.1))
    assert found.error == pytest.approx(0.1 / math.sqrt(3))
    assert summary([0.7]).spread is None
    with pytest.raises(ValueError, match="at least one value"):
        summary([])
    assert gap_closed(0.85, 0.8, 0.9) == pytest.approx(0.5)
    assert gap_closed(0.8, 0.8, 0.8) is None


def test_a_gap_within_the_noise_is_not_stated() -> None:
    row = {
        "arm": "x",
        "seeds": [1, 2, 3],
        "planned": 4,
        "summary": {"mean": 0.8123, "spread": 0.01, "error": 0.005},
        "over_seeds": {"difference": 0.012, "low": -0.001, "high": 0.025, "p": 0.0001, "n": 3},
        "over_examples": None,
        "gap_closed": 0.5,
        "gap": {"difference": 0.024, "error": 0.02},
        "cost": 1.934,
        "guarantee": None,
        "no_privacy": False,
    }
    row["over_seeds"]["p_holm"] = 0.02  # type: ignore[index]
    texts = words.row_texts(row, "accuracy")
    assert texts["gap"] == ("–", "50 %, gap within the noise")
    assert texts["mean"] == ("81.23", "")
    assert texts["difference"] == ("+1.20", "[-0.10, +2.50]")
    assert texts["p"] == ("< 0.001", "n = 3, Holm 0.020")
    assert texts["n"] == ("3", "of 4")
    row["gap"] = {"difference": 0.024, "error": 0.005}
    assert words.row_texts(row, "accuracy")["gap"] == ("50 %", "")


@pytest.mark.parametrize("name", ["privacy-flat", "privacy-flat-qnli", "privacy-flat-tweets"])
def test_the_sweeps_that_come_along_are_accepted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLLM_TEST_DATA", "/data")
    sweep = load_sweep(ROOT / "simulations" / "experiments" / f"{name}.toml")
    assert {sweep.baseline, sweep.reference} < set(sweep.arms)
    assert len(sweep.seeds) >= 3
    for trial in sweep.trials:
        assert (trial.settings.privacy.mode == "none") == (trial.arm == sweep.reference)
        assert trial.settings.awp.form != "batch"
        assert trial.settings.layers.form != "paper"
        assert trial.settings.teacher.kind != "nonprivate"


@pytest.mark.parametrize(
    ("name", "trials"), [("sst2-accuracy", 4), ("black-box", 6), ("clipping", 4)]
)
def test_the_sweeps_behind_tables_are_accepted(
    name: str, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLLM_TEST_DATA", "/data")
    sweep = load_sweep(ROOT / "simulations" / "experiments" / f"{name}.toml")
    assert len(sweep.trials) == trials
    for trial in sweep.trials:
        assert (trial.settings.privacy.mode == "none") == (trial.arm == sweep.reference)
