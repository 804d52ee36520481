"""One round at one silo: what leaves, its noise, its divisor, its streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.training.steps import LocalResult, check_noise, poisson_batch
from fedllm.training.tunable import Tunable, initial_params, shared_tunable
from privacy.mechanisms.sampling import poisson_sample
from privacy.randomness import generator
from tests.support.local_training import train_locally
from tests.support.tiny_tunables import shaken

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def tunable(tiny_settings: Make) -> Tunable:
    return shared_tunable(tiny_settings())


@pytest.fixture(scope="module")
def features(tunable: Tunable, word_records: Any) -> list[Feature]:
    return tunable.task.features(word_records(40, 3))


@pytest.fixture(scope="module")
def params(tunable: Tunable, tiny_settings: Make) -> dict[str, Tensor]:
    """Not the initial ones: with a head of zeros the prefix has no gradient."""
    return shaken(initial_params(tunable, tiny_settings()))


def seeded(*labels: str | int) -> Any:
    return lambda purpose, step: generator(1, *labels, purpose, step)


def train(
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    settings: Any,
    streams: Any = None,
    rate: float = 0.2,
    noise: float | None = None,
) -> LocalResult:
    return train_locally(
        tunable,
        params,
        features,
        settings,
        sampling_rate=rate,
        noise_multiplier=settings.privacy.noise_multiplier if noise is None else noise,
        streams=streams or seeded(),
    )


def flat(tensors: dict[str, Tensor]) -> np.ndarray:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)]).double().numpy()


ONE_STEP = {
    "client.local_steps": 1,
    "client.learning_rate": 1.0,
    "privacy.clip": 0.4,
    "privacy.noise_multiplier": 1.7,
    "client.batch_size": 5,
}


@pytest.mark.parametrize("prefix_scale", [1.0, 0.25])
@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_noise_that_leaves_has_the_promised_size(
    prefix_scale: float,
    rate: float,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    tiny_settings: Make,
) -> None:
    """std = noise_multiplier * clip / batch_size (prefix: over its scale), by a chi-squared test.

    The same sampling with and without noise gives the noise alone: 120 rounds of 162 entries, so
    that a noise wrong by 10 % is found (power > 0.999 at significance 1e-6). Rate 0: each batch is empty.
    """
    settings = tiny_settings(**ONE_STEP, **{"privacy.prefix_scale": prefix_scale})
    noises: dict[str, list[np.ndarray]] = {name: [] for name in params}
    for repetition in range(120):
        streams = seeded(repetition)
        noisy = train(tunable, params, features, settings, streams, rate)
        bare = noiseless(tunable, params, features, settings, streams, rate)
        for name in params:
            noises[name].append((noisy.update[name] - bare[name]).flatten().double().numpy())
    for name, values in noises.items():
        expected = 1.7 * 0.4 / 5 / (prefix_scale if name == "prefix" else 1.0)
        sample = np.concatenate(values) / expected
        n = sample.size
        low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], n) / n
        assert low < (sample**2).mean() < high, name
        assert abs(sample.mean()) < 5.5 / n**0.5
        assert stats.kstest(sample, "norm").pvalue > 1e-6
        assert train(tunable, params, features, settings).noise_std[name] == pytest.approx(expected)
    joined = np.concatenate([np.stack(noises[name]) for name in sorted(noises)], axis=1)
    assert joined.shape[0] == 120
    between = np.corrcoef(joined)[np.triu_indices(120, 1)]
    assert np.abs(between).max() < 0.55, "two rounds share noise"


def noiseless(
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    settings: Any,
    streams: Any,
    rate: float,
) -> dict[str, Tensor]:
    """The update without noise: per-example gradients clipped here, over the drawn batch."""
    drawn = streams("sample", 0).random(len(features)) < rate
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    scale = {n: settings.privacy.prefix_scale if n == "prefix" else 1.0 for n in params}
    for feature in [f for f, taken in zip(features, drawn, strict=True) if taken]:
        leaves = {n: v.clone().unsqueeze(0).requires_grad_(True) for n, v in params.items()}
        loss = tunable.losses(leaves, tunable.task.collate([feature])).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()))
        one = {n: g[0] * scale[n] for n, g in zip(leaves, grads, strict=True)}
        norm = float(torch.cat([g.flatten() for g in one.values()]).norm())
        for name, gradient in one.items():
            total[name] += gradient * min(1.0, settings.privacy.clip / max(norm, 1e-30))
    return {
        name: -value / scale[name] / settings.client.batch_size for name, value in total.items()
    }


@pytest.mark.parametrize("prefix_scale", [1.0, 0.25, 3.0])
def test_update_is_minus_the_rate_times_the_clipped_mean_gradient(
    prefix_scale: float,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    tiny_settings: Make,
) -> None:
    """With next to no noise; the divisor is the expected size although 40 examples are drawn."""
    quiet = {"privacy.noise_multiplier": 1e-9, "privacy.prefix_scale": prefix_scale}
    settings = tiny_settings(**ONE_STEP | quiet)
    got = train(tunable, params, features, settings, seeded(), 1.0)
    expected = noiseless(tunable, params, features, settings, seeded(), 1.0)
    assert got.examples == 40
    assert got.clipped > 5, "the scale must matter"
    for name in params:
        assert expected[name].abs().max() > 1e-3
        torch.testing.assert_close(got.update[name], expected[name], rtol=1e-3, atol=1e-6)
    doubled = tiny_settings(**ONE_STEP | quiet | {"client.batch_size": 10})
    half = train(tunable, params, features, doubled, seeded(), 1.0)
    np.testing.assert_allclose(flat(half.update) * 2, flat(got.update), rtol=1e-3, atol=1e-6)


def test_a_batch_is_all_that_was_drawn(features: list[Feature]) -> None:
    """However many: batches above the expected size are as frequent as those below."""
    sizes = []
    for seed in range(60):
        batch = poisson_batch(features, 0.5, generator(seed))
        drawn = poisson_sample(len(features), 0.5, generator(seed))
        assert [id(example) for example in batch] == [id(features[i]) for i in drawn]
        sizes.append(len(batch))
    assert sum(size > 20 for size in sizes) > 10
    assert sum(size < 20 for size in sizes) > 10


def test_several_steps_are_a_walk_with_fresh_batches_and_noise(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    """Two steps in one round are two rounds of one step with the streams of steps 0 and 1."""
    one = tiny_settings(**ONE_STEP)
    two = tiny_settings(**ONE_STEP | {"client.local_steps": 2})
    got = train(tunable, params, features, two).update
    first = train(tunable, params, features, one).update
    middle = {name: params[name] + first[name] for name in params}
    second = train(
        tunable, middle, features, one, lambda purpose, step: generator(1, purpose, 1)
    ).update
    for name in params:
        torch.testing.assert_close(got[name], first[name] + second[name], rtol=1e-4, atol=1e-5)
    assert not torch.equal(first["prefix"], second["prefix"])


@pytest.mark.parametrize("mode", ["empty", "no examples"])
def test_empty_batch_still_releases_noise(
    mode: str,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    tiny_settings: Make,
) -> None:
    settings = tiny_settings(**ONE_STEP)
    some = features if mode == "empty" else []
    got = train(tunable, params, some, settings, rate=0.0 if some else 0.5)
    assert got.examples == 0
    for value in got.update.values():
        assert (value != 0).all()


def test_neighbouring_data_move_the_update_by_at_most_clip_over_batch_size(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    """Same noise, same sampling of the others: the last example is added or not."""
    settings = tiny_settings(**ONE_STEP)
    with_it = train(tunable, params, features, settings, rate=1.0).update
    without = train(tunable, params, features[:-1], settings, rate=1.0).update
    moved = np.linalg.norm(flat(with_it) - flat(without))
    assert 0 < moved <= settings.privacy.clip / settings.client.batch_size * (1 + 1e-4)


def test_same_streams_same_bits_and_others_differ(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    settings = tiny_settings()
    first = train(tunable, params, features, settings, seeded("a")).update
    again = train(tunable, params, features, settings, seeded("a")).update
    other = train(tunable, params, features, settings, seeded("b")).update
    for name in params:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


CLIENT = {
    "privacy.unit": "client",
    "privacy.clip": 0.01,
    "privacy.noise_multiplier": 0.5,
    "client.local_steps": 3,
}


def test_client_level_update_is_clipped_and_noised(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    settings = tiny_settings(**CLIENT)
    by_server = tiny_settings(**CLIENT, **{"privacy.noise_by": "server"})
    bare = train(tunable, params, features, by_server, seeded(0), noise=0.0)
    assert np.linalg.norm(flat(bare.update)) <= 0.01 * (1 + 1e-6)
    assert np.linalg.norm(flat(bare.update)) == pytest.approx(0.01, rel=1e-5), "was not clipped"
    assert bare.clipped == 1
    samples = []
    for repetition in range(60):
        # Full batches: what is trained is the same each time, only the noise differs.
        got = train(tunable, params, features, settings, seeded(repetition), 1.0)
        samples.append(flat(got.update))
    plain = train(tunable, params, features, by_server, seeded(0), 1.0, noise=0.0)
    noise = (np.stack(samples) - flat(plain.update)) / (0.5 * 0.01)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], noise.size) / noise.size
    assert low < (noise**2).mean() < high
    assert got.noise_std == pytest.approx(dict.fromkeys(params, 0.005))


def test_client_level_without_noise_by_the_client_is_deterministic_given_the_batches(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    settings = tiny_settings(**CLIENT, **{"privacy.noise_by": "server"})
    first = train(tunable, params, features, settings, seeded("a"), 1.0, noise=0.0).update
    second = train(tunable, params, features, settings, seeded("b"), 1.0, noise=0.0).update
    assert np.array_equal(flat(first), flat(second))


def test_non_finite_client_update_becomes_zero_and_is_counted(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    settings = tiny_settings(
        **CLIENT, **{"privacy.noise_by": "server", "client.learning_rate": 1e38}
    )
    got = train(tunable, params, features, settings, seeded(), 1.0, noise=0.0)
    assert got.nonfinite == 1
    assert not flat(got.update).any()


def test_without_privacy_nothing_is_clipped_or_noised(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    settings = tiny_settings(
        **ONE_STEP | {"privacy.mode": "none", "privacy.clip": 1e-6, "client.batch_size": 40}
    )
    got = train(tunable, params, features, settings, rate=1.0, noise=0.0)
    other = train(tunable, params, features, settings, seeded("b"), rate=1.0, noise=0.0)
    assert np.array_equal(flat(got.update), flat(other.update))
    assert np.linalg.norm(flat(got.update)) > 1e-3
    assert got.noise_std == dict.fromkeys(params, 0.0)


@pytest.mark.parametrize(
    ("changes", "noise"),
    [
        ({}, 0.0),
        ({}, -1.0),
        ({}, float("nan")),
        ({}, float("inf")),
        ({"privacy.unit": "client"}, 0.0),
        ({"privacy.unit": "client", "privacy.noise_by": "server"}, 1.0),
        ({"privacy.mode": "none"}, 1.0),
    ],
)
def test_a_noise_multiplier_that_breaks_the_promise_is_refused(
    changes: dict[str, Any],
    noise: float,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    tiny_settings: Make,
) -> None:
    settings = tiny_settings(**changes)
    with pytest.raises(ValueError, match=r"Expected .*noise_multiplier"):
        check_noise(settings.privacy.mode, settings.privacy.noise_by, noise)
    with pytest.raises(ValueError, match=r"Expected .*noise_multiplier"):
        train(tunable, params, features, settings, noise=noise)


def test_local_adam_runs_and_claims_no_noise_size(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    got = train(tunable, params, features, tiny_settings(**{"client.optimizer": "adam"}))
    assert got.noise_std is None
    assert np.isfinite(flat(got.update)).all()
