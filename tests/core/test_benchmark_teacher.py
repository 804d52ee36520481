"""The cost of a teacher is measured on the real steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simulations.benchmark import teacher_cost, workload


def test_cost_command(
    tmp_path: Path, tiny_model: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bert"
    tiny_model("bert", dtype=torch.float32).save_pretrained(folder)
    workload.stand_in_tokenizer(encoder=True, words=50).save_pretrained(folder)
    out = tmp_path / "cost.json"
    small = ["--repeats", "2", "--batch", "4", "--data", "random", "--device", "cpu"]
    teacher_cost.main(["--model", str(folder), "--json", str(out), *small])
    text = capsys.readouterr().out
    result = json.loads(out.read_text())["models"][0]
    assert set(result["seconds"]) == {teacher_cost.PLAIN, *teacher_cost.COMPARED}
    assert all(name in text for name in result["seconds"])
    assert result["bytes"]["nonprivate"] == 2 * result["bytes"]["plain"]
    for name in teacher_cost.COMPARED:
        wall = result["seconds"][name]["wall"]
        assert len(wall) == 2
        assert result["ratios"][name]["median"] > 0
    # A pull without text does not touch the model.
    closeness = result["cpu_time_ratios"]["server, closeness"]["median"]
    assert closeness < result["cpu_time_ratios"]["server, distillation"]["median"]
