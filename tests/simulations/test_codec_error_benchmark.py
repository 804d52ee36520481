"""The command behind the codecs' figures, on a tiny model and random words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simulations.benchmarks.codec import error as codec_error
from simulations.benchmarks.support import workload


def test_command_writes_all_lines(
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    tiny_model("bert", dtype=torch.float32).save_pretrained(folder)
    workload.stand_in_tokenizer(encoder=True, words=50).save_pretrained(folder)
    out = tmp_path / "out.json"
    arguments = f"--model {folder} --data random --device cpu --prefix-length 2 --group 4 --fit 6"
    arguments += f" --held-out 3 --public 4 --warm-up 2 --ratios 8 --steps 3 --json {out}"
    codec_error.main(arguments.split())
    first = json.loads(out.read_text())
    codec_error.main(arguments.split())  # from the cache: the same gradients, the same errors
    again = json.loads(out.read_text())
    assert [line["error"] for line in first["lines"]] == [line["error"] for line in again["lines"]]
    lines = {(x["codec"], x["prior"], x["source"]): x for x in first["lines"]}
    assert len(lines) == len(first["lines"]) == 3 + 2 + 4 * (5 + 1)
    assert lines["none", "", ""]["error"] == 0
    assert lines["linear", "coordinate", "exact"]["error"] < 1
    for line in first["lines"]:
        assert line["beats_zeros"] == (line["error"] < 1)
        if line["ratio"] > 1:
            assert line["bytes"] * line["ratio"] <= 4 * first["dimension"]
    shown = capsys.readouterr().out
    assert "NO PRIVACY GUARANTEE" in shown
    marked = sum("does not beat zeros" in row for row in shown.splitlines())
    assert marked == 2 * sum(not line["beats_zeros"] for line in first["lines"])
