"""Zeroth-order steps: directions, differences, clipping, noise, batches, and that nothing is kept for gradients."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fedllm.forward_only import LocalForwardOnly
from fedllm.gradients import per_example_gradients
from fedllm.inputs import Feature
from fedllm.settings_io import SettingsError
from fedllm.silo_bounds import training_events
from fedllm.tasks.base import expand_params
from fedllm.tunable import Tunable, initial_params, shared_tunable
from fedllm.zeroth_order import (
    NUMBERS,
    Directions,
    clip_numbers,
    round_seed,
    train_forward_only,
)
from privacy.accountants import make_accountant
from privacy.calibration import calibrate_noise_multiplier
from privacy.events import dp_sgd, gaussian, scalar_noise
from privacy.randomness import generator
from privacy.sampling import poisson_sample
from privacy.scalar_noise import noise_from_dict

Make = Callable[..., Any]
LAPLACE = {"family": "laplace", "parameters": {"scale": 1.0}}
BLACK_BOX = {
    "model.access": "black-box",
    "zeroth_order.directions": 3,
    "client.local_steps": 1,
    "client.learning_rate": 1.0,
    "client.batch_size": 5,
}
NUMBER_NOISE = {
    "privacy.mechanism": "lmo",
    "privacy.noise": json.dumps(LAPLACE),
    "privacy.accountant": "pld",
}


@pytest.fixture(scope="module")
def tunable(tiny_settings: Make) -> Tunable:
    return shared_tunable(tiny_settings(**BLACK_BOX))


@pytest.fixture(scope="module")
def features(tunable: Tunable, word_records: Any) -> list[Feature]:
    return tunable.task.features(word_records(30, 3))


@pytest.fixture(scope="module")
def params(tunable: Tunable, tiny_settings: Make) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(2)
    start = initial_params(tunable, tiny_settings())
    return {n: v + 0.3 * torch.randn(v.shape, generator=rng) for n, v in start.items()}


def seeded(*labels: str | int) -> Any:
    return lambda purpose, step: generator(1, *labels, purpose, step)


def train(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: list[Feature],
    settings: Any,
    *,
    rate: float = 0.3,
    noise: float | None = None,
    streams: Any = None,
) -> Tensor:
    private = settings.privacy.mode == "dp"
    multiplier = settings.privacy.noise_multiplier if noise is None else noise
    result = train_forward_only(
        LocalForwardOnly(tunable),
        params,
        features,
        settings,
        sampling_rate=rate,
        noise_multiplier=multiplier if private else 0.0,
        streams=streams or seeded(),
        directions=Directions(settings, params, "c0ffee"),
    )
    assert list(result.update) == [NUMBERS]
    return result.update[NUMBERS]


def plain_differences(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    feature: Feature,
    directions: Directions,
    c: float,
    step: int = 0,
) -> np.ndarray:
    """g_k of one example, alone in its batch, straight from the definition."""
    found = []
    for k in range(directions.count):
        z = directions.direction(step, k)
        sides = []
        for sign in (1, -1):
            moved = {n: v + sign * c * z[n] for n, v in params.items()}
            batch = tunable.task.collate([feature])
            with torch.no_grad():
                sides.append(float(tunable.losses(expand_params(moved, 1), batch)))
        found.append((sides[0] - sides[1]) / (2 * c))
    return np.array(found)


# -- directions ----------------------------------------------------------------------------------


def test_directions_are_signs_times_scales_and_follow_from_the_seed(
    params: dict[str, Tensor], tiny_settings: Make
) -> None:
    settings = tiny_settings(**BLACK_BOX)
    one = Directions(settings, params, "c0ffee")
    z = one.direction(1, 2)
    rms = params["prefix"].square().mean(dim=(2, 3, 4), keepdim=True).sqrt()
    torch.testing.assert_close(z["prefix"].abs(), rms.expand_as(z["prefix"]))
    other = Directions(
        tiny_settings(**BLACK_BOX, **{"zeroth_order.scale": "one"}), params, "c0ffee"
    )
    signs = other.direction(1, 2)
    assert all(bool((value.abs() == 1).all()) for value in signs.values())
    assert torch.equal(signs["prefix"] * rms, z["prefix"])
    again = Directions(settings, params, "c0ffee").direction(1, 2)
    assert all(torch.equal(again[name], z[name]) for name in z)
    seen = {
        Directions(settings, params, seed).direction(step, k)["prefix"].sign().numpy().tobytes()
        for seed in ("c0ffee", "c0ffef")
        for step in range(2)
        for k in range(3)
    }
    assert len(seen) == 12


def test_signs_are_fair_and_independent(params: dict[str, Tensor], tiny_settings: Make) -> None:
    settings = tiny_settings(
        **BLACK_BOX | {"zeroth_order.directions": 200, "zeroth_order.scale": "one"}
    )
    found = Directions(settings, params, round_seed(0, "run", 1))
    rows = np.stack(
        [np.concatenate([v.flatten() for v in found.direction(0, k).values()]) for k in range(200)]
    )
    assert abs(rows.mean()) < 5.5 / rows.size**0.5
    for matrix in (rows, rows.T):  # directions among each other, coordinates among each other
        between = np.corrcoef(matrix)[np.triu_indices(matrix.shape[0], 1)]
        assert np.abs(between).max() < 6 / matrix.shape[1] ** 0.5


def test_a_subspace_is_what_all_rounds_move_in(
    params: dict[str, Tensor], tiny_settings: Make
) -> None:
    settings = tiny_settings(
        **BLACK_BOX | {"zeroth_order.directions": 40, "zeroth_order.scale": "one"},
        **{"zeroth_order.subspace": 6},
    )
    rows = [
        torch.cat(
            [v.flatten() for v in Directions(settings, params, seed).direction(0, k).values()]
        )
        for seed in ("1", "2")
        for k in range(40)
    ]
    stacked = torch.stack(rows).double()
    assert bool((stacked.abs() == 1).all())
    assert int(torch.linalg.matrix_rank(stacked)) == 6
    too_many = tiny_settings(**BLACK_BOX, **{"zeroth_order.subspace": 10**6})
    with pytest.raises(ValueError, match=r"zeroth_order\.subspace <= "):
        Directions(too_many, params, "1")
    with pytest.raises(ValueError, match="hexadecimal"):
        Directions(settings, params, "no seed")


def test_the_update_is_the_mean_over_directions_summed_over_steps(
    params: dict[str, Tensor], tiny_settings: Make
) -> None:
    settings = tiny_settings(**BLACK_BOX | {"client.learning_rate": 0.3, "client.local_steps": 2})
    directions = Directions(settings, params, "ab")
    numbers = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    expected = {name: torch.zeros_like(value) for name, value in params.items()}
    for step in range(2):
        for k in range(3):
            for name, z in directions.direction(step, k).items():
                expected[name] += -0.3 / 3 * numbers[step, k] * z
    found = directions.update(numbers)
    for name in params:
        torch.testing.assert_close(found[name], expected[name])
    with pytest.raises(ValueError, match=r"shape \(steps, 3\)"):
        directions.update(numbers[:, :2])


def test_the_announced_seed_tells_nothing_of_the_runs_seed_and_changes_with_the_round() -> None:
    seeds = {round_seed(s, run, r) for s in (0, 1) for run in ("a", "b") for r in (1, 2)}
    assert len(seeds) == 8
    assert all(len(seed) == 32 for seed in seeds)


# -- the step ------------------------------------------------------------------------------------


def test_differences_are_directional_derivatives(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    settings = tiny_settings(**BLACK_BOX, **{"zeroth_order.smoothing": 0.01})
    batch = tunable.task.collate(features[:4])
    grads = per_example_gradients(tunable, params, batch)
    directions = Directions(settings, params, "c0ffee")
    for k in range(3):
        z = directions.direction(0, k)
        along = sum((grads[n] * z[n]).flatten(1).sum(1) for n in z)
        found = [plain_differences(tunable, params, f, directions, 0.01)[k] for f in features[:4]]
        np.testing.assert_allclose(found, along, atol=2e-3)


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
@pytest.mark.parametrize("steps", [1, 2])
def test_numbers_are_clipped_sums_over_the_expected_batch(
    noise: str,
    steps: int,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    tiny_settings: Make,
) -> None:
    """By hand: the batch of each step (Laplace: of each number) drawn again, each example alone."""
    more = NUMBER_NOISE if noise == "laplace" else {}
    settings = tiny_settings(
        **BLACK_BOX | {"client.local_steps": steps} | more, **{"privacy.clip": 0.05}
    )
    found = train(tunable, params, features, settings, noise=1e-4).numpy()
    weights, clipped = dict(params), 0
    directions = Directions(settings, params, "c0ffee")
    for step in range(steps):
        rows = np.stack(
            [plain_differences(tunable, weights, f, directions, 0.01, step) for f in features]
        )
        expected = np.zeros(3)
        for k in range(3):
            place = step * 3 + (k if noise == "laplace" else 0)
            drawn = poisson_sample(len(features), 0.3, generator(1, "sample", place))
            chosen = rows[drawn]
            if noise == "laplace":
                clipped += int((np.abs(chosen[:, k]) > 0.05).sum())
                expected[k] = np.clip(chosen[:, k], -0.05, 0.05).sum() / 5
            else:
                norms = np.linalg.norm(chosen, axis=1)
                clipped += int((norms > 0.05).sum())
                expected[k] = (chosen[:, k] * np.minimum(1, 0.05 / norms)).sum() / 5
        np.testing.assert_allclose(found[step], expected, atol=3e-5)
        moved = directions.step_update(torch.from_numpy(found[step]), step)
        weights = {n: v + moved[n] for n, v in weights.items()}
    assert clipped > 3, "the bound must have mattered"


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_one_example_changes_the_numbers_by_at_most_the_clip(
    noise: str,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    tiny_settings: Make,
) -> None:
    """With and without each example, differences far above the bound, same noise: an L2 (each: an
    absolute) change of the bound exactly, over the divisor."""
    more = NUMBER_NOISE if noise == "laplace" else {}
    settings = tiny_settings(**BLACK_BOX | more, **{"privacy.clip": 1e-4})
    for left_out in range(4):
        chosen = [f for i, f in enumerate(features[:4]) if i != left_out]
        # Rate 1 draws everybody whatever the stream, and the noise is the same.
        change = train(tunable, params, features[:4], settings, rate=1.0, noise=0.1)
        change = change - train(tunable, params, chosen, settings, rate=1.0, noise=0.1)
        bound = 1e-4 / 5
        size = change.abs().max() if noise == "laplace" else change.norm()
        assert float(size) <= bound * 1.01
        assert float(size) >= bound * 0.95


def test_a_loss_that_is_not_finite_counts_as_nothing(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    class Broken(LocalForwardOnly):
        def losses(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
            found = super().losses(params, batch).clone()
            found[0] = torch.nan
            return found

    settings = tiny_settings(**BLACK_BOX)
    result = train_forward_only(
        Broken(tunable),
        params,
        features,
        settings,
        sampling_rate=1.0,
        noise_multiplier=1e-3,
        streams=seeded(),
        directions=Directions(settings, params, "1"),
    )
    assert bool(torch.isfinite(result.update[NUMBERS]).all())
    assert result.nonfinite > 0


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("gaussian", 0.3),
        ("gaussian", 1e-9),
        ("laplace", 0.3),
        ("client", 0.3),
        ("client-laplace", 0.3),
    ],
)
def test_noise_that_leaves_has_the_promised_size_and_law(
    kind: str,
    rate: float,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    tiny_settings: Make,
) -> None:
    """The same batches with hardly any noise give the noise alone: 250 steps of 3 numbers. At the tiny rate
    every batch is empty."""
    more: dict[str, Any] = NUMBER_NOISE if "laplace" in kind else {}
    if "client" in kind:
        more = more | {"privacy.unit": "client"}
    settings = tiny_settings(**BLACK_BOX | more, **{"privacy.clip": 0.4})
    cheap = FixedLosses()
    noises = []
    for repetition in range(250):
        options: Any = {
            "sampling_rate": rate,
            "streams": seeded(repetition),
            "directions": Directions(settings, params, "c0ffee"),
        }
        parts = [
            train_forward_only(
                cheap, params, features, settings, noise_multiplier=multiplier, **options
            ).update[NUMBERS]
            for multiplier in (1.7, 1e-5)
        ]
        noises.append((parts[0] - parts[1]).flatten().numpy())
    divisor = 1.0 if "client" in kind else 5.0
    rows = np.stack(noises) / (1.7 * 0.4 / divisor)
    sample = rows.flatten()
    if "laplace" in kind:
        law = stats.laplace(scale=0.5**0.5).cdf
        # Var of a Laplace sample's variance: kurtosis 6.
        assert abs((sample**2).mean() - 1) < 5.5 * (5 / sample.size) ** 0.5
    else:
        law = stats.norm.cdf
        low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], sample.size) / sample.size
        assert low < (sample**2).mean() < high
    assert stats.kstest(sample, law).pvalue > 1e-6
    assert np.abs(np.corrcoef(rows.T)[np.triu_indices(3, 1)]).max() < 5.5 / 250**0.5


class FixedLosses:
    """Losses without a model: quick, and different for each example and direction."""

    device = torch.device("cpu")

    def batches(self, features: Any, max_tokens: int) -> Any:
        yield features

    def losses(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        weight = params["prefix"].flatten()[:7].sum()
        return torch.tensor([float(len(f.input_ids)) for f in batch]) * 0.01 * weight


def test_steps_lower_the_loss(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    """Plain gradient descent in expectation: 30 steps without noise, everybody in each."""
    settings = tiny_settings(
        **BLACK_BOX | {"zeroth_order.directions": 8, "client.batch_size": len(features)},
        **{"privacy.mode": "none"},
    )
    weights = dict(params)
    before = tunable.evaluate(weights, features, 1000)["loss"]
    for server_round in range(30):
        directions = Directions(settings, weights, round_seed(0, "run", server_round))
        result = train_forward_only(
            LocalForwardOnly(tunable),
            weights,
            features,
            settings,
            sampling_rate=1.0,
            noise_multiplier=0.0,
            streams=seeded(),
            directions=directions,
        )
        moved = directions.update(result.update[NUMBERS])
        weights = {name: value + 0.1 * moved[name] for name, value in weights.items()}
    assert tunable.evaluate(weights, features, 1000)["loss"] < before - 0.03


# -- unit client ---------------------------------------------------------------------------------


def test_a_silos_numbers_are_clipped_whatever_they_are(tiny_settings: Make) -> None:
    client = BLACK_BOX | {"privacy.unit": "client", "privacy.clip": 0.5}
    numbers = torch.tensor([[3.0, -4.0, 0.0]])
    vector, clipped, bad = clip_numbers(numbers, tiny_settings(**client))
    torch.testing.assert_close(vector, torch.tensor([[0.3, -0.4, 0.0]]))
    assert clipped
    assert not bad
    single, clipped, bad = clip_numbers(
        torch.tensor([[0.2, -4.0, torch.nan]]), tiny_settings(**client | NUMBER_NOISE)
    )
    assert single.tolist() == [[pytest.approx(0.2), -0.5, 0.0]]
    assert clipped
    assert bad


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_what_a_silo_adds_at_unit_client_is_bounded(
    noise: str,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    tiny_settings: Make,
) -> None:
    more = NUMBER_NOISE if noise == "laplace" else {}
    settings = tiny_settings(
        **BLACK_BOX | {"client.local_steps": 3, "client.batch_size": 1} | more,
        **{"privacy.unit": "client", "privacy.clip": 1e-3},
    )
    found = train(tunable, params, features, settings, rate=1.0, noise=1e-6)
    assert found.shape == (3, 3)
    size = float(found.abs().max() if noise == "laplace" else found.norm())
    assert size == pytest.approx(1e-3, rel=1e-3)


# -- accounting ----------------------------------------------------------------------------------


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


# -- memory --------------------------------------------------------------------------------------


def test_nothing_is_kept_for_a_backward_pass(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    """Autograd is asked to keep no tensor, even where parameters want gradients; the gradients' step keeps many."""
    kept: list[int] = []
    wanting = {name: value.clone().requires_grad_(True) for name, value in params.items()}
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()), lambda t: t)
    with hooks:
        train(tunable, wanting, features, tiny_settings(**BLACK_BOX))
        model = LocalForwardOnly(tunable)
        (batch,) = model.batches(features[:3], 10**6)
        assert not model.losses(wanting, batch).requires_grad
    assert kept == []
    with pytest.raises(Exception), hooks:  # noqa: B017 - what was packed is not given back
        per_example_gradients(tunable, params, tunable.task.collate(features[:3]))
    assert len(kept) > 5


# -- settings ------------------------------------------------------------------------------------


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
    from fedllm.mechanism import noise_of, scaled_noise

    parameters = {"epsilon": 1.0, "gamma": 0.5, "period": 1.0}
    named = {"privacy.noise": json.dumps({"family": "staircase", "parameters": parameters})}
    settings = tiny_settings(**BLACK_BOX | NUMBER_NOISE | named)
    noise = scaled_noise(settings, 2.0)
    assert noise is not None
    assert noise.family == "staircase"
    assert noise.std == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no bound"):
        noise_of(tiny_settings(**NUMBER_NOISE | named))
