"""What ``evaluation.clients = "auto"`` becomes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedllm.budget.evaluation_choice import HELD_OUT, decide_evaluation, noise_error
from fedllm.settings.experiment import Settings
from fedllm.silo.evaluation import make_count_release
from privacy.mechanisms.discrete_gaussian import add_discrete_gaussian
from simulations.benchmarks.support import tiny

Make = Callable[..., Settings]
SENSIBLE = {
    "data.validation": None,
    "privacy.noise_multiplier": None,
    "privacy.epsilon": 8.0,
    "evaluation.every": 5,
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two silos of 7,000 examples, and one of 90 that ``data.min_size`` may leave out."""
    folder = tmp_path_factory.mktemp("large")
    rows = [
        row
        for seed, (name, count) in enumerate({"a": 7000, "b": 7000, "small": 90}.items())
        for row in tiny.make_records(count, seed, name)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    Path(folder, "train.jsonl").write_text(text, encoding="utf-8")
    Path(folder, "validation.jsonl").write_text(text[:4000].rpartition("\n")[0], encoding="utf-8")
    return str(folder)


def test_the_silos_evaluate_where_it_is_sensible(tiny_settings: Make, large: str) -> None:
    settings = tiny_settings(**SENSIBLE, **{"data.path": large, "data.min_size": 100})
    chosen = decide_evaluation(settings)
    assert settings.evaluation.clients == "auto"
    assert not settings.evaluation.by_silos
    assert (chosen.evaluation.clients, chosen.evaluation.clients_holdout) == ("private", HELD_OUT)
    assert decide_evaluation(chosen) is chosen


@pytest.mark.parametrize(
    "changes",
    [
        {"data.validation": "validation.jsonl"},
        {"data.holdout": 0.1},
        {"data.min_size": 1},  # a silo of 90 examples holds out too few
        {"data.silo_names": ["a"], "evaluation.clients_noise": 200.0},  # noise alone
        {"privacy.epsilon": 0.3},  # too dear
        {"privacy.epsilon": None, "privacy.noise_multiplier": 1.0},
        {"privacy.noise_multiplier": 1.0},  # the user's own noise leaves no known room
        {"privacy.mode": "none"},
        {"evaluation.clients": "off"},
        {"evaluation.every": 1, "server.rounds": 300},
        {"privacy.silos": {"b": {"epsilon": 0.3}}},
    ],
)
def test_elsewhere_they_do_not(changes: dict[str, Any], tiny_settings: Make, large: str) -> None:
    plain = SENSIBLE | {"data.path": large, "data.min_size": 100} | changes
    chosen = decide_evaluation(tiny_settings(**plain)).evaluation
    assert (chosen.clients, chosen.clients_holdout) == ("off", 0.0)


def test_the_error_of_the_noise_is_what_is_drawn(tiny_settings: Make) -> None:
    sigma, held, accuracy = make_count_release(tiny_settings()).sigma, [700, 500], 0.6
    rng = np.random.default_rng(3)
    found = []
    for _ in range(400):
        pairs = [
            add_discrete_gaussian(np.array([accuracy * n, n], dtype=int), 1, sigma, rng)
            for n in held
        ]
        correct, count = np.sum(pairs, axis=0)
        found.append(correct / count)
    bound = noise_error(held, sigma)
    assert bound / math.sqrt(2) < np.std(found) < bound
