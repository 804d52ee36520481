"""``fedllm calibrate``, run as a user runs it."""

from __future__ import annotations

import pytest
from accounting_commands import (
    DELTA,
    REFERENCE,
    call,
    call_json,
    direct,
    printed_cells,
    sampled,
)


def test_calibrated_noise_is_the_reference_table_s() -> None:
    found = call_json("calibrate", epsilon=3, **REFERENCE)
    assert found["noise_multiplier"] == pytest.approx(0.6429, rel=5e-3)
    assert 3 * 0.999 <= found["epsilon"] <= 3
    cost = direct({sampled(REFERENCE["sample-rate"], found["noise_multiplier"]): 1000})
    assert found["epsilon"] == pytest.approx(cost, rel=2e-3)
    assert (found["accountant"], found["delta"], found["bound"]) == ("pld", DELTA, True)
    assert (found["unit"], found["relation"]) == ("example", "zero-out")
    assert (found["adversary"], found["steps"]) == ("server", 1000)


def test_calibrated_by_rdp() -> None:
    found = call_json("calibrate", epsilon=1, accountant="rdp", **REFERENCE)
    assert found["noise_multiplier"] == pytest.approx(1.0419, rel=5e-3)
    assert found["accountant"] == "rdp"
    cost = direct({sampled(REFERENCE["sample-rate"], found["noise_multiplier"]): 1000}, "rdp")
    assert cost <= 1 + 1e-9


@pytest.mark.parametrize(("epsilon", "noise"), [(0.3, 1.7171), (1, 0.8823), (8, 0.4834)])
def test_rest_of_the_reference_table(epsilon: float, noise: float) -> None:
    found = call_json("calibrate", epsilon=epsilon, **REFERENCE)
    assert found["noise_multiplier"] == pytest.approx(noise, rel=5e-3)
    assert found["epsilon"] <= epsilon


def test_solve_for_steps() -> None:
    given = {"delta": DELTA, "sample-rate": 0.05, "noise-multiplier": 1.0}
    found = call_json("calibrate", epsilon=2, **given, **{"solve-for": "steps"})
    steps = found["steps"]
    assert direct({sampled(0.05, 1.0): steps}) <= 2 * (1 + 1e-4)
    assert direct({sampled(0.05, 1.0): steps + 2}) > 2 * (1 - 1e-4)
    assert found["epsilon"] <= 2


def test_solve_for_sample_rate_and_delta() -> None:
    given = {"noise-multiplier": 1.0, "steps": 100}
    found = call_json("calibrate", epsilon=1, delta=DELTA, **given, **{"solve-for": "sample-rate"})
    rate = found["sample_rate"]
    assert direct({sampled(rate, 1.0): 100}) == pytest.approx(1, rel=3e-3)
    assert found["epsilon"] <= 1
    again = call_json(
        "calibrate", epsilon=1, **given, **{"solve-for": "delta", "sample-rate": rate}
    )
    assert again["delta"] == pytest.approx(DELTA, rel=2e-2)
    assert again["epsilon"] == 1


def test_replace_one_needs_more_noise() -> None:
    given = {"epsilon": 2, "delta": DELTA, "sample-rate": 1, "steps": 1}
    add = call_json("calibrate", **given)
    replace = call_json("calibrate", relation="replace-one", unit="client", **given)
    ratio = replace["noise_multiplier"] / add["noise_multiplier"]
    assert ratio == pytest.approx(2, rel=3e-3)
    assert (replace["relation"], replace["unit"]) == ("replace-one", "client")


def test_printed_calibration_holds_as_printed() -> None:
    given = {"epsilon": 2, "steps": 50, "delta": DELTA, "sample-rate": 0.03}
    result = call("calibrate", **given)
    assert result.exit_code == 0
    cells = printed_cells(result.stdout)
    printed = sampled(float(cells["sample rate"]), float(cells["noise multiplier"]))
    assert direct({printed: int(cells["steps"])}) <= 2
    assert float(cells["delta"]) == DELTA
    assert cells["epsilon"].endswith("(upper bound; target 2)")
    named = {"accountant": "PLD", "unit": "example", "adversary": "server"}
    assert cells | named | {"relation": "zero-out"} == cells


@pytest.mark.parametrize(
    ("name", "sign"), [("noise-multiplier", 1), ("sample-rate", -1), ("delta", 1)]
)
def test_what_is_printed_is_rounded_towards_more_privacy(name: str, sign: int) -> None:
    given = {"noise-multiplier": 1.1, "steps": 50, "delta": DELTA, "sample-rate": 0.03}
    given = {key: value for key, value in given.items() if key != name} | {"solve-for": name}
    exact = call_json("calibrate", epsilon=0.7, **given)[name.replace("-", "_")]
    text = printed_cells(call("calibrate", epsilon=0.7, **given).stdout)[name.replace("-", " ")]
    assert 0 < sign * (float(text) - exact) < 1e-5 * exact
