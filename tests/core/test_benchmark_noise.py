"""The attack on low-order bits succeeds where it should, and the cost of noise is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simulations.benchmark import noise_attack, noise_cost, workload

SMALL = {"coordinates": 600, "noise_multiplier": 1.1, "trials": 500}


@pytest.mark.parametrize("mechanism", ["naive, float64", "four draws, no grid, float64"])
def test_low_order_bits_betray_noise_without_a_grid(mechanism: str) -> None:
    found = noise_attack.attack(mechanism, **SMALL)
    assert found.advantage > 0.95
    assert found.bound == pytest.approx(0.3506, abs=1e-4)
    assert found.broken


@pytest.mark.parametrize("mechanism", ["Opacus, float32", "Opacus secure mode, float32"])
def test_opacus_noise_is_betrayed_in_both_modes(mechanism: str) -> None:
    pytest.importorskip("opacus")
    assert noise_attack.attack(mechanism, **SMALL).broken


@pytest.mark.parametrize("mechanism", ["fedllm, float64", "fedllm, float32"])
@pytest.mark.parametrize("noise_multiplier", [0.37, 1.1, 4.0])
def test_our_noise_shows_no_more_than_the_guarantee_allows(
    mechanism: str, noise_multiplier: float
) -> None:
    found = noise_attack.attack(mechanism, **SMALL | {"noise_multiplier": noise_multiplier})
    assert not found.broken, found


def test_the_attack_uses_what_the_guarantee_does_allow() -> None:
    """Signs and binades alone tell something at little noise: the attacker is not blind."""
    found = noise_attack.attack("fedllm, float32", **SMALL | {"noise_multiplier": 0.5})
    assert 0.3 < found.advantage < found.bound == pytest.approx(0.6827, abs=1e-4)


def test_attack_arguments() -> None:
    with pytest.raises(ValueError, match="mechanism='rot13'"):
        noise_attack.attack("rot13")
    with pytest.raises(ValueError, match="trials=1"):
        noise_attack.attack("naive, float64", trials=1)


def test_attack_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    noise_attack.main(["--trials", "40", "--coordinates", "500", "--json", str(out)])
    text = capsys.readouterr().out
    found = {f["mechanism"]: f for f in json.loads(out.read_text())["found"]}
    assert set(found) == set(noise_attack.MECHANISMS)
    assert found["naive, float64"]["broken"]
    assert "BROKEN" in text
    assert "within the bound" in text


def test_cost_command(
    tmp_path: Path, tiny_model: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bert"
    tiny_model("bert", dtype=torch.float32).save_pretrained(folder)
    workload.stand_in_tokenizer(encoder=True, words=50).save_pretrained(folder)
    out = tmp_path / "cost.json"
    small = ["--repeats", "2", "--batch", "4", "--data", "random", "--device", "cpu"]
    noise_cost.main(["--model", str(folder), "--json", str(out), *small])
    text = capsys.readouterr().out
    assert "AES-256-CTR" in text
    assert "goal <= 0.1" in text
    result = json.loads(out.read_text())
    measured = result["models"][0]["seconds"]
    assert {len(s["wall"]) for s in measured.values()} == {2}
    assert len(result["models"][0]["ratios"]) == len(noise_cost.RATIOS)
