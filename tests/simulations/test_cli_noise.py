"""``fedllm noise-search`` as a user meets it: the answer, its file, at once the second time, errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from privacy.noise_search.noise_file import read_noise
from simulations.cli.accounting import noise_search as cli_noise
from simulations.cli.main import app

ASKED = ["noise-search", "--epsilon", "1", "--delta", "1e-6", "--steps", "3"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_answer_its_file_and_the_same_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = CliRunner()
    found = runner.invoke(app, [*ASKED, "--json"])
    assert found.exit_code == 0, found.output
    first = json.loads(found.stdout)
    assert first["family"] in ("laplace", "staircase", "exponential-power", "lmo")
    noise = read_noise(first["file"])
    assert (noise.family, noise.parameters) == (first["family"], first["parameters"])
    assert first["std"] == noise.std
    assert first["mean_abs"] == noise.mean_abs
    assert first["ratio_std"] == pytest.approx(noise.std / first["gaussian_std"])
    gaussian_mean = first["gaussian_std"] * math.sqrt(2 / math.pi)
    assert first["ratio_mean_abs"] == pytest.approx(noise.mean_abs / gaussian_mean)
    assert first["question"]["steps"] == 3

    def searched(*args: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr("privacy.noise_search.search._Search.run", searched)
    wanted = tmp_path / "deep" / "noise.json"
    again = runner.invoke(app, [*ASKED, "--json", "--output", str(wanted)])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == {**first, "file": str(wanted)}
    assert read_noise(wanted) == noise
    shown = runner.invoke(app, ASKED)
    assert shown.exit_code == 0
    assert "noise wins (least std)" in shown.stdout
    assert "upper bound by PLD; relation: zero-out" in " ".join(shown.stdout.split())


def test_what_is_said_of_vectors() -> None:
    floor = {"family": "laplace", "ratio_std": 1.41, "floor": True}
    gaussian = {"family": "gaussian", "ratio_std": 1.0, "floor": False}
    found = {"family": "gaussian", "question": {}, "families": [gaussian, floor], "undecided": []}
    assert cli_noise._verdict(found) == [
        "Gaussian noise wins; std of the others, as a factor of its: laplace at least 1.410"
    ]
    unclear = cli_noise._verdict({**found, "undecided": ["laplace"]})
    assert unclear[-1].startswith("Not decided: laplace may need less noise, but no proof")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epsilon", "1"], "Missing option '--delta'"),
        (["--epsilon", "0", "--delta", "1e-5"], "Expected --epsilon to be a finite number > 0"),
        (["--epsilon", "1", "--delta", "1e-14"], "from 1e-13 to below 1, got --delta=1e-14"),
        (["--epsilon", "1", "--delta", "0.1", "--sample-rate", "2"], "got --sample-rate=2.0"),
        (["--epsilon", "1", "--delta", "0.1", "--gamma", "2"], "--objective usefulness"),
        (["--epsilon", "1", "--delta", "0.1", "--output", "x.txt"], "end in .json"),
        (["--epsilon", "1", "--delta", "0.1", "--sensitivity-dimension", "0"], "whole number >= 1"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str) -> None:
    found = CliRunner().invoke(app, ["noise-search", *arguments])
    assert found.exit_code == 2
    assert message in found.stderr
    assert found.stderr.count("\n") == 1
