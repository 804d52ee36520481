"""Zeroth-order steps: differences, clipping, noise, batches, and that nothing is kept for gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from black_box import BLACK_BOX, NUMBER_NOISE
from scipy import stats
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.tasks.base import expand_params
from fedllm.training.black_box.directions import (
    NUMBERS,
    Directions,
    DirectionsPlan,
    round_seed,
)
from fedllm.training.black_box.forward_only import LocalForwardOnly
from fedllm.training.gradients import per_example_gradients
from fedllm.training.tunable import Tunable, initial_params, shared_tunable
from privacy.mechanisms.sampling import poisson_sample
from privacy.randomness import generator
from tests.support.local_training import train_forward_only
from tests.support.tiny_tunables import shaken

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def tunable(tiny_settings: Make) -> Tunable:
    return shared_tunable(tiny_settings(**BLACK_BOX))


@pytest.fixture(scope="module")
def features(tunable: Tunable, word_records: Any) -> list[Feature]:
    return tunable.task.features(word_records(30, 3))


@pytest.fixture(scope="module")
def params(tunable: Tunable, tiny_settings: Make) -> dict[str, Tensor]:
    return shaken(initial_params(tunable, tiny_settings()))


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
        directions=Directions(DirectionsPlan.of(settings), params, "c0ffee"),
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


def test_differences_are_directional_derivatives(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    settings = tiny_settings(**BLACK_BOX, **{"zeroth_order.smoothing": 0.01})
    batch = tunable.task.collate(features[:4])
    grads = per_example_gradients(tunable, params, batch)
    directions = Directions(DirectionsPlan.of(settings), params, "c0ffee")
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
    directions = Directions(DirectionsPlan.of(settings), params, "c0ffee")
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
        directions=Directions(DirectionsPlan.of(settings), params, "1"),
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
            "directions": Directions(DirectionsPlan.of(settings), params, "c0ffee"),
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
        directions = Directions(
            DirectionsPlan.of(settings), weights, round_seed(0, "run", server_round)
        )
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
        (batch,) = model.batches(sorted(features, key=len)[:3], 10**6)
        assert not model.losses(wanting, batch).requires_grad
    assert kept == []
    with pytest.raises(Exception), hooks:  # noqa: B017 - what was packed is not given back
        per_example_gradients(tunable, params, tunable.task.collate(features[:3]))
    assert len(kept) > 5
