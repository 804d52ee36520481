"""Black-box training: what a silo's numbers are clipped to, their events and calibration, and which settings fit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from black_box import BLACK_BOX, LAPLACE, NUMBER_NOISE

from fedllm.settings.io import SettingsError
from fedllm.training.zeroth_order import (
    clip_numbers,
)
from privacy.accountants import make_accountant
from privacy.calibration import calibrate_noise_multiplier
from privacy.events.constructors import dp_sgd, gaussian, scalar_noise
from privacy.mechanisms.scalar_noise import noise_from_dict
from tests.support.local_training import training_events

Make = Callable[..., Any]


def test_a_silos_numbers_are_clipped_whatever_they_are() -> None:
    numbers = torch.tensor([[3.0, -4.0, 0.0]])
    vector, clipped, bad = clip_numbers(numbers, 0.5, each=False)
    torch.testing.assert_close(vector, torch.tensor([[0.3, -0.4, 0.0]]))
    assert clipped
    assert not bad
    single, clipped, bad = clip_numbers(torch.tensor([[0.2, -4.0, torch.nan]]), 0.5, each=True)
    assert single.tolist() == [[pytest.approx(0.2), -0.5, 0.0]]
    assert clipped
    assert bad


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {dp_sgd(0.1, 1.3, 1): 2}),
        ({"privacy.unit": "client"}, {gaussian(1.3): 1}),
        (
            NUMBER_NOISE,
            {scalar_noise(noise_from_dict(LAPLACE).scaled(1.3 * 0.5**0.5), 1, 0.1): 6},
        ),
        (
            NUMBER_NOISE | {"privacy.unit": "client"},
            {scalar_noise(noise_from_dict(LAPLACE).scaled(1.3 * 0.5**0.5)): 6},
        ),
    ],
    ids=["example", "client", "example-numbers", "client-numbers"],
)
def test_events_of_a_round(
    changes: dict[str, Any], expected: dict[Any, int], tiny_settings: Make
) -> None:
    """Two local steps, three directions: one vector a step (round), or an event a number."""
    settings = tiny_settings(**BLACK_BOX | {"client.local_steps": 2} | changes)
    found = training_events(settings, 1, sampling_rate=0.1, noise_multiplier=1.3)
    accountant = make_accountant("pld")
    assert found.total() == sum(expected.values())
    assert accountant.epsilon(found, 1e-6) == pytest.approx(
        accountant.epsilon(Counter(expected), 1e-6), rel=1e-9
    )


def test_calibration_of_a_number_keeps_to_its_target() -> None:
    noise = noise_from_dict(LAPLACE).scaled(0.5**0.5)
    target: Any = {"epsilon": 1.0, "delta": 1e-6, "sampling_rate": 0.05, "steps": 12}
    found = calibrate_noise_multiplier(**target, noise=noise)
    event = scalar_noise(noise.scaled(found.noise_multiplier), 12, 0.05)
    assert 0.999 <= make_accountant("pld").epsilon({event: 1}, 1e-6) <= 1.0
    plain = calibrate_noise_multiplier(**target)
    assert found.noise_multiplier != plain.noise_multiplier
    assert found.noise_multiplier < plain.noise_multiplier  # few numbers, a small delta


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec.name": "int8"}, "Expected no codec"),
        ({"client.optimizer": "adam"}, r"client\.optimizer=sgd"),
        ({"privacy.prefix_scale": 0.5}, r"privacy\.prefix_scale=1"),
        (NUMBER_NOISE | {"privacy.accountant": "rdp"}, r"privacy\.accountant=pld"),
        (
            NUMBER_NOISE
            | {
                "privacy.unit": "client",
                "privacy.noise_by": "server",
                "server.sampling": "poisson",
            },
            r"directions=1 and client\.local_steps=1, or server\.sampling=fixed",
        ),
        ({"awp.form": "per-example"}, r"awp\.form"),
    ],
)
def test_settings_that_do_not_fit(
    changes: dict[str, Any], message: str, tiny_settings: Make
) -> None:
    with pytest.raises(SettingsError, match=message):
        tiny_settings(**BLACK_BOX | changes)


def test_a_staircase_is_noise_for_numbers_and_not_for_vectors(tiny_settings: Make) -> None:
    from fedllm.training.noise import Noise, noise_of

    parameters = {"epsilon": 1.0, "gamma": 0.5, "period": 1.0}
    named = {"privacy.noise": json.dumps({"family": "staircase", "parameters": parameters})}
    settings = tiny_settings(**BLACK_BOX | NUMBER_NOISE | named)
    noise = Noise.of(settings, 2.0).scaled
    assert noise is not None
    assert noise.family == "staircase"
    assert noise.std == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no bound"):
        noise_of(tiny_settings(**NUMBER_NOISE | named))
