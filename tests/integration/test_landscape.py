"""``fedllm landscape`` on runs of the real federation with a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedllm.data.silos import load_federation
from fedllm.models.prefix import PREFIX
from fedllm.run.folder import RunFolder
from fedllm.tasks.base import expand_params
from simulations.cli.main import app
from simulations.in_process import federate
from simulations.landscape import landscape, objective
from simulations.landscape.checkpoints import (
    PRIVATE_LABEL,
    SubjectError,
    held_out_for_all,
    load_subjects,
    make_subject_tunable,
)
from simulations.landscape.landscape import Grids, Plan, measure, random_direction

SMALL = Plan(grid=3, span=0.5, products=6, probes=2, group=4)


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_settings: Callable[..., Any]
) -> dict[str, Path]:
    """A DP run, one without privacy whose prefix is on the upper layer alone, and one not begun."""
    folder = tmp_path_factory.mktemp("landscape-runs")
    common = {"data.silo_names": ["gamma", "delta"], "server.rounds": 2}
    changes: dict[str, dict[str, Any]] = {
        "dp": common,
        "sparse": common | {"prefix.layers": [-1], "privacy": {"mode": "none"}},
        "other-length": common | {"prefix.length": 3, "privacy": {"mode": "none"}},
    }
    for name, change in changes.items():
        federate(RunFolder.create(tiny_settings(**change), folder / name))
    RunFolder.create(tiny_settings(**common), folder / "not-begun")
    return {name: folder / name for name in (*changes, "not-begun")}


def test_directions_are_shared_and_filter_normalised(runs: dict[str, Path]) -> None:
    whole, sparse = load_subjects([runs["dp"], runs["sparse"]])
    for name in (whole, sparse):
        assert name.round == 2
    a, b = make_subject_tunable(whole), make_subject_tunable(sparse)
    names = [PREFIX]
    first = random_direction(a, whole.params, (0, 1), names, 0, 0).reshape(
        whole.params[PREFIX].shape
    )
    upper = random_direction(b, sparse.params, (1,), names, 0, 0).reshape(
        sparse.params[PREFIX].shape
    )
    assert torch.equal(first[1], upper[0])
    assert not torch.equal(first[0], first[1])
    assert torch.allclose(first.norm(dim=-1), torch.ones(first.shape[:-1]))
    other = random_direction(a, whole.params, (0, 1), names, 0, 1).reshape(first.shape)
    assert not torch.equal(first, other)


def test_the_curve_is_the_loss_along_the_direction(runs: dict[str, Path], tmp_path: Path) -> None:
    subject = load_subjects([runs["dp"]])[0]
    tunable = make_subject_tunable(subject)
    data = held_out_for_all([subject], "evaluation", 10)
    found = measure(subject, tunable, data, SMALL, tmp_path)
    features = tunable.task.features(data.records)
    direction = random_direction(tunable, subject.params, (0, 1), [PREFIX], 0, 0)
    prefix = subject.params[PREFIX]
    step = direction.reshape(prefix.shape) * prefix.norm(dim=-1, keepdim=True)
    for place, value in zip(found["axis"], found["curves"]["random"], strict=True):
        moved = {**subject.params, PREFIX: prefix + place * step}
        losses = []
        with torch.no_grad():
            for feature in features:  # one at a time, with the formula written out
                batch = tunable.task.collate([feature])
                losses.append(float(tunable.losses(expand_params(moved, 1), batch)))
        assert value == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["axis"] == [-0.5, 0.0, 0.5]
    middle = [
        found["curves"]["random"][1],
        found["curves"]["sharpest"][1],
        found["plane"][1][1],
        found["metrics"]["loss"],
    ]
    assert middle == pytest.approx([middle[0]] * 4, rel=1e-5)
    assert found["plane"][0][1] == pytest.approx(found["curves"]["random"][0], rel=1e-6)
    assert found["layers"] == [0, 1]
    assert found["filters"] == 2 * 2 * 4 * 2


def test_a_plane_with_the_sharpest_direction(runs: dict[str, Path], tmp_path: Path) -> None:
    subject = load_subjects([runs["dp"]])[0]
    tunable = make_subject_tunable(subject)
    data = held_out_for_all([subject], "evaluation", 10)
    found = measure(subject, tunable, data, replace(SMALL, second="sharpest"), tmp_path)
    assert found["plane"][1] == pytest.approx(found["curves"]["sharpest"], rel=1e-6)
    across = [row[1] for row in found["plane"]]
    assert across == pytest.approx(found["curves"]["random"], rel=1e-6)
    with pytest.raises(ValueError, match="second=sharpest"):
        Plan(second="sharpest", sharpness=False)


def test_curvature_is_that_of_the_sharpest_curve(runs: dict[str, Path], tmp_path: Path) -> None:
    subject = load_subjects([runs["dp"]])[0]
    tunable = make_subject_tunable(subject)
    data = held_out_for_all([subject], "evaluation", 10)
    plan = Plan(grid=3, span=0.03, two_d=False, products=80, probes=2, group=4)
    found = measure(subject, tunable, data, plan, tmp_path)
    low, middle, high = found["curves"]["sharpest"]
    second = (low - 2 * middle + high) / 0.03**2
    assert second == pytest.approx(found["sharpness"]["curvature_sharpest"], rel=0.05, abs=2e-3)
    low, middle, high = found["curves"]["random"]
    random = (low - 2 * middle + high) / 0.03**2
    assert random < found["sharpness"]["curvature_sharpest"] + 2e-3


def test_an_interrupted_measurement_goes_on(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = load_subjects([runs["dp"]])[0]
    tunable = make_subject_tunable(subject)
    data = held_out_for_all([subject], "evaluation", 8)
    plan = Plan(grid=5, sharpness=False)
    whole = measure(subject, tunable, data, plan, tmp_path / "whole")
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(subject, tunable, data, plan, tmp_path / "cut", advance)
    computed = 0
    value = objective.Objective.value

    def counted(self: Any, shift: Any = None) -> float:
        nonlocal computed
        computed += 1
        return float(value(self, shift))

    monkeypatch.setattr(landscape.Objective, "value", counted)
    assert measure(subject, tunable, data, plan, tmp_path / "cut") == whole
    assert computed == 5 + 25 - 13
    computed = 0
    assert measure(subject, tunable, data, plan, tmp_path / "cut") == whole
    assert computed == 0
    wider = Plan(grid=3, sharpness=False, seed=1)  # other directions: other values
    measure(subject, tunable, data, wider, tmp_path / "cut")
    assert computed == 3 + 9


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "a.json"
    store = Grids(path)
    assert store.get("x", lambda: 1.5) == 1.5
    store.save()
    assert Grids(path).get("x", lambda: 2.0) == 1.5
    path.write_text("{", encoding="utf-8")
    assert Grids(path).get("x", lambda: 2.0) == 2.0


def test_no_run_trained_on_what_is_measured(
    runs: dict[str, Path], tmp_path: Path, tiny_settings: Callable[..., Any]
) -> None:
    """Runs with seeds of their own hold out different texts: what is common to both is used."""
    found = []
    for seed in (1, 2):
        change = {
            "seed": seed,
            "server.rounds": 1,
            "data.validation": None,
            "data.holdout": 0.4,
            "privacy": {"mode": "none"},
        }
        found.append(RunFolder.create(tiny_settings(**change), tmp_path / f"seed-{seed}"))
        federate(found[-1])
    subjects = load_subjects([run.path for run in found])
    data = held_out_for_all(subjects, "evaluation", 1000)
    texts = {record["text"] for record in data.records}
    own = {
        r["text"]
        for run in found
        for silo in load_federation(run.settings()).silos
        for r in silo.train.records
    }
    assert texts
    assert not texts & own
    assert data.label is None
    private = held_out_for_all(subjects, "silos", 1000)
    assert private.label == PRIVATE_LABEL
    assert {record["text"] for record in private.records} <= own


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["not-begun"], {}, "Expected a checkpoint in the run .*not-begun, it has none"),
        (["dp"], {"round": 7}, "a checkpoint of round 7 .* rounds 1, 2"),
        (["dp", "other-length"], {}, "prefix.length=2 in .*prefix.length=3"),
        (["dp", "dp"], {}, "twice"),
        (["dp", "sparse"], {"labels": ["one"]}, "one label for each of 2 runs, got 1"),
    ],
)
def test_what_cannot_be_compared(
    runs: dict[str, Path], names: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SubjectError, match=message):
        load_subjects([runs[name] for name in names], **options)


def test_checkpoints_of_one_run(runs: dict[str, Path]) -> None:
    folder = runs["dp"] / "checkpoints"
    subjects = load_subjects([folder / "round-00001", folder / "round-00002"])
    assert [s.label for s in subjects] == ["dp, round 1", "dp, round 2"]


def test_command(runs: dict[str, Path], tmp_path: Path) -> None:
    options = ["--grid", "3", "--examples", "8", "--m", "4", "--products", "4"]
    common = ["landscape", str(runs["dp"]), str(runs["sparse"]), *options, "--out", str(tmp_path)]
    done = CliRunner().invoke(app, [*common, "--label", "DP", "--label", "sparse, no privacy"])
    assert done.exit_code == 0, done.output
    assert "top eigenvalue" in " ".join(done.output.split())
    result = json.loads((tmp_path / "landscape.json").read_text(encoding="utf-8"))
    assert [row["layers"] for row in result["rows"]] == [[0, 1], [1]]
    assert result["private"] is None
    assert "on different layers" in (tmp_path / "landscape.md").read_text(encoding="utf-8")
    for name in ("curves", "contours", "surfaces"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    again = CliRunner().invoke(app, [*common, "--json", "--data", "silos", "--one-d"])
    assert again.exit_code == 0, again.output
    private = json.loads(again.stdout)
    assert private["private"] == PRIVATE_LABEL
    assert private["rows"][0]["plane"] is None
    assert set(private["figures"]) == {"curves"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "4"], "--grid=4"),
        (["--span", "0"], "--span=0"),
        (["--examples", "3"], "--examples=3"),
        (["--data", "public"], "public.source"),
        (["--second", "sharpest", "--no-sharpness"], "--no-sharpness"),
    ],
)
def test_bad_options(runs: dict[str, Path], options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["landscape", str(runs["dp"]), *options])
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1
