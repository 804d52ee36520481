"""Adaptive clipping at a silo: the events of a round, and noise that has the size they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.settings.io import SettingsError
from fedllm.training.adaptive_clip import SumNoise, next_clip
from fedllm.training.gradients import clipped_gradient_sum
from fedllm.training.mechanism import Mechanism, make_mechanism
from fedllm.training.tunable import Tunable, initial_params, shared_tunable
from privacy.accountants import make_accountant
from privacy.events.constructors import dp_sgd, gaussian
from privacy.events.multiset import multiset
from privacy.mechanisms.clipping import ClippedSum
from privacy.randomness import generator
from tests.support.local_training import train_locally, training_events
from tests.support.tiny_tunables import shaken

Make = Callable[..., Any]
ADAPTIVE = {"clipping.form": "adaptive", "clipping.count_share": 0.2}
ONE_STEP = ADAPTIVE | {
    "client.local_steps": 1,
    "client.learning_rate": 1.0,
    "privacy.noise_multiplier": 1.7,
    "client.batch_size": 5,
}


@pytest.fixture(scope="module")
def tunable(tiny_settings: Make) -> Tunable:
    return shared_tunable(tiny_settings())


@pytest.fixture(scope="module")
def features(tunable: Tunable, word_records: Any) -> list[Feature]:
    return tunable.task.features(word_records(12, 3))


@pytest.fixture(scope="module")
def params(tunable: Tunable, tiny_settings: Make) -> dict[str, Tensor]:
    return shaken(initial_params(tunable, tiny_settings()))


@pytest.mark.parametrize("rate", [1.0, 0.1])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"privacy.unit": "client"},
        {
            "privacy.unit": "client",
            "privacy.noise_by": "server",
            "server.sampling": "poisson",
            "server.fraction": 0.3,
        },
    ],
    ids=["example", "client", "poisson-server"],
)
def test_a_round_costs_what_its_noise_multiplier_says(
    changes: dict[str, Any], rate: float, tiny_settings: Make
) -> None:
    accountant = make_accountant("pld")
    costs = []
    for form in (ADAPTIVE, {}):
        settings = tiny_settings(**form, **changes)
        events = training_events(settings, 1, sampling_rate=rate, noise_multiplier=1.4)
        costs.append(accountant.epsilon(multiset(events), 1e-6))
    assert costs[0] == pytest.approx(costs[1], rel=1e-9)
    if changes == {}:
        expected = accountant.epsilon(multiset({dp_sgd(rate, 1.4, 1): 2}), 1e-6)
        assert costs[0] == pytest.approx(expected, rel=1e-9)


def test_the_events_hold_sum_and_count(tiny_settings: Make) -> None:
    settings = tiny_settings(**ADAPTIVE)
    both = (gaussian(1 / 0.8**0.5), gaussian(1 / 0.2**0.5))
    assert SumNoise.of(settings, 1.0).events() == both
    assert SumNoise.of(tiny_settings(), 1.0).events() == (gaussian(1.0),)


def test_sum_and_count_carry_the_noise_of_their_events(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    """All examples in each batch: the sum is known, and what is left is noise. 150 rounds."""
    scales = dict.fromkeys(params, 1.0)

    def clipped(clip: float) -> ClippedSum:
        return clipped_gradient_sum(
            tunable, params, features, clip_norm=clip, scales=scales, max_tokens=4096
        )

    clip = float(clipped(1.0).norms.quantile(0.4))
    settings = tiny_settings(**ONE_STEP | {"privacy.clip": clip})
    exact = clipped(clip)
    below = int((exact.norms <= clip).sum())
    assert 0 < below < len(features)
    sums, counts = [], []
    for repetition in range(150):

        def streams(purpose: str, step: int, repetition: int = repetition) -> Any:
            return generator(1, repetition, purpose, step)

        found = train_locally(
            tunable,
            params,
            features,
            settings,
            sampling_rate=1.0,
            noise_multiplier=1.7,
            streams=streams,
        )
        noise = [
            (-found.update[n] * 5 - s).flatten()
            for n, s in zip(sorted(params), exact.sums, strict=True)
        ]
        sums.append(torch.cat(noise).double().numpy())
        assert found.below is not None
        counts.append((found.below - 0.5) * 5 - (below - len(features) / 2))
        std = 1.7 / 0.8**0.5 * clip
        assert found.noise_std == pytest.approx(dict.fromkeys(params, std / 5))
    for sample, expected in ((np.concatenate(sums), std), (np.array(counts), 1.7 / 0.2**0.5 / 2)):
        n = sample.size
        low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], n) / n
        assert low < (sample**2).mean() / expected**2 < high
        assert abs(sample.mean()) < 5.5 * expected / n**0.5
    together = np.corrcoef(np.stack(sums)[:, 0], np.array(counts))[0, 1]
    assert abs(together) < 0.45, "sum and count share noise"


@pytest.mark.parametrize("clip", [1e-5, 1e5])
def test_a_silo_tells_whether_its_update_was_clipped(
    clip: float,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    tiny_settings: Make,
) -> None:
    bare = {"privacy.unit": "client", "privacy.noise_by": "server", "privacy.clip": clip}

    def below(noise: float, seed: int, **changes: Any) -> float:
        found = train_locally(
            tunable,
            params,
            features,
            tiny_settings(**ADAPTIVE | bare | changes),
            sampling_rate=1.0,
            noise_multiplier=noise,
            streams=lambda purpose, step: generator(seed, purpose, step),
        )
        assert found.below is not None
        return found.below

    expected = float(clip > 1)
    assert below(0.0, 1) == expected
    by_client = {"privacy.noise_by": "client", "privacy.clip": 1e3 if clip > 1 else 1e-3}
    sample = np.array([below(0.8, seed, **by_client) for seed in range(60)]) - expected
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], sample.size) / sample.size
    assert low < (sample**2).mean() / (0.8 / 0.2**0.5 / 2) ** 2 < high


def mechanism(settings: Any) -> Mechanism:
    return make_mechanism(settings, sampling_rate=0.1, noise_multiplier=0.0)


def test_a_norm_comes_where_it_is_asked_for_and_nowhere_else(tiny_settings: Make) -> None:
    settings = tiny_settings(**ADAPTIVE)
    adaptive, fixed = mechanism(settings), mechanism(tiny_settings())
    assert adaptive.at_clip(0.25).clip == 0.25
    for clip in (None, 0.0, 1e9, float("nan")):
        with pytest.raises(ValueError, match="Expected a clipping norm from"):
            adaptive.at_clip(clip)
    assert fixed.at_clip(None) == fixed
    with pytest.raises(ValueError, match="Expected no clipping norm"):
        fixed.at_clip(0.25)
    without = mechanism(tiny_settings(**ADAPTIVE | {"privacy.mode": "none"}))
    assert without.at_clip(None) == without
    how = {"quantile": settings.clipping.quantile, "learning_rate": settings.clipping.learning_rate}
    assert next_clip(0.25, [], **how) == (0.25, {"clip": 0.25})
    moved, told = next_clip(0.25, [5.0, 3.0], **how)
    assert moved == pytest.approx(0.25 * np.exp(-0.1))
    assert told == {"clip": 0.25, "below_clip": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec.bits": 8}, "Expected no codec for clipping.form=adaptive"),
        ({"model.access": "black-box"}, "Expected model.access=white-box for clipping.form"),
        ({"clipping.count_share": 1.0}, "clipping.count_share"),
        ({"clipping.quantile": 0.0}, "clipping.quantile"),
        (
            {
                "privacy.mechanism": "lmo",
                "privacy.noise": '{"family": "laplace", "parameters": {"scale": 1.0}}',
            },
            "Expected privacy.mechanism=gaussian",
        ),
    ],
)
def test_what_cannot_be_accounted_together_is_refused(
    changes: dict[str, Any], message: str, tiny_settings: Make
) -> None:
    with pytest.raises(SettingsError, match=message):
        tiny_settings(**ADAPTIVE | changes)
