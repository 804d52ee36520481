"""The attack on low-order bits succeeds where it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulations.attacks import low_order_bits as noise_attack

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
