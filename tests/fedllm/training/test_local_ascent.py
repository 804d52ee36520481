"""Local training with each form of the perturbation, against the method written down step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from fedllm.codec import Layout, make_codec
from fedllm.data.batches import Feature
from fedllm.settings.codec import CodecSettings
from fedllm.training.encoding import Encoding
from fedllm.training.gradients import clipped_gradient_sum, gradient_sum
from fedllm.training.perturbation import Perturbation
from fedllm.training.steps import LocalResult
from fedllm.training.tunable import Tunable, initial_params, shared_tunable
from privacy.mechanisms.gaussian import add_gaussian
from privacy.mechanisms.sampling import poisson_sample
from privacy.randomness import generator
from tests.support.local_training import train_locally
from tests.support.tiny_tunables import shaken

Make = Callable[..., Any]
NOISE, RATE, GAMMA = 0.02, 0.5, 1.0
"""So that gradients decide where a step goes, and the perturbation decides the gradients."""
CHANGES = {
    "client.local_steps": 3,
    "client.learning_rate": 1.0,
    "client.batch_size": 5,
    "privacy.noise_multiplier": NOISE,
    "privacy.clip": 5.0,
    "privacy.prefix_scale": 0.5,
    "awp.gamma": GAMMA,
}
IN_CODE = {"codec.name": "random-projection", "codec.ratio": 4.0, "codec.noise": "in-code"}


@pytest.fixture(scope="module")
def tunable(tiny_settings: Make) -> Tunable:
    return shared_tunable(tiny_settings())


@pytest.fixture(scope="module")
def features(tunable: Tunable, word_records: Any) -> list[Feature]:
    return tunable.task.features(word_records(30, 3))


@pytest.fixture(scope="module")
def params(tunable: Tunable, tiny_settings: Make) -> dict[str, Tensor]:
    return shaken(initial_params(tunable, tiny_settings()), 2)


def streams(*labels: str | int) -> Any:
    return lambda purpose, step: generator(1, *labels, purpose, step)


def encoding_of(settings: Any, params: Mapping[str, Tensor]) -> Encoding | None:
    if not settings.codec.active:
        return None
    chosen = CodecSettings(name=settings.codec.name, ratio=settings.codec.ratio)
    codec = make_codec(chosen, Layout.of(params), None, 3)
    return Encoding.of(codec, codec.version, settings, params)


def train(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: list[Feature],
    settings: Any,
    noise: float = NOISE,
    source: Any = None,
    **options: Any,
) -> LocalResult:
    return train_locally(
        tunable,
        params,
        features,
        settings,
        sampling_rate=RATE,
        noise_multiplier=noise,
        streams=source or streams(),
        encoding=encoding_of(settings, params),
        **options,
    )


def walk(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: list[Feature],
    settings: Any,
    form: str,
) -> dict[str, Tensor]:
    """The update of a round by the method's own words: unit example, SGD, noise at the silo."""
    clip = settings.privacy.clip
    scales = {n: settings.privacy.prefix_scale if n == "prefix" else 1.0 for n in params}
    encoding = encoding_of(settings, params)
    perturbation = Perturbation(GAMMA)
    weights = {n: v.clone() for n, v in params.items()}

    def noisy(point: Mapping[str, Tensor], batch: list[Feature], rng: Any) -> dict[str, Tensor]:
        sums = clipped_gradient_sum(
            tunable,
            point,
            batch,
            clip_norm=clip,
            scales=scales,
            max_tokens=10_000,
            codec=None if encoding is None else encoding.codec,
            perturbation=perturbation if form == "per-example" else None,
        ).sums
        flat = torch.cat([value.flatten() for value in sums])
        flat = add_gaussian(flat, clip, NOISE, rng)
        if encoding is not None:
            return encoding.unflatten(encoding.codec.reconstruct(flat))
        parts = flat.split([params[n].numel() for n in sorted(params)])
        return {
            n: part.reshape(params[n].shape) / scales[n]
            for n, part in zip(sorted(params), parts, strict=True)
        }

    for step in range(settings.client.local_steps):
        drawn = poisson_sample(len(features), RATE, streams()("sample", step))
        batch = [features[i] for i in drawn]
        point = weights
        if form == "batch":
            raw = gradient_sum(tunable, weights, batch, max_tokens=10_000)
            ascent = dict(zip(sorted(params), raw, strict=True))
            point = dict(weights)
            for layer in range(len(weights["prefix"])):
                g, w = ascent["prefix"][layer], weights["prefix"][layer]
                moved = w + GAMMA * w.norm() * g / g.norm()
                point["prefix"] = point["prefix"].clone()
                point["prefix"][layer] = moved
        step_sum = noisy(point, batch, streams()("noise", step))
        divisor = settings.client.batch_size
        weights = {n: weights[n] - step_sum[n] / divisor for n in weights}
    return {n: weights[n] - params[n] for n in weights}


@pytest.mark.parametrize("codec", ["none", "in-code"])
@pytest.mark.parametrize("form", ["per-example", "batch"])
def test_a_round_is_the_method_step_by_step(
    form: str,
    codec: str,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    tiny_settings: Make,
) -> None:
    """Three steps; the code that is sent is that of the steps that moved the weights."""
    settings = tiny_settings(**CHANGES, **{"awp.form": form}, **IN_CODE if codec != "none" else {})
    result = train(tunable, params, features, settings)
    update = result.update
    if codec != "none":
        encoding = encoding_of(settings, params)
        assert encoding is not None
        update = encoding.unflatten(encoding.codec.reconstruct(update["code"]))
    wanted = walk(tunable, params, features, settings, form)
    plain = train(tunable, params, features, tiny_settings(**CHANGES)).update
    for name, value in wanted.items():
        torch.testing.assert_close(update[name], value, rtol=1e-3, atol=1e-4)
    if codec == "none":
        difference = (update["prefix"] - plain["prefix"]).norm()
        assert difference > 0.03 * plain["prefix"].norm(), "the perturbation does nothing"


@pytest.mark.parametrize("form", ["per-example", "batch"])
def test_rounds_after_the_last_perturbed_one_are_plain(
    form: str,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    tiny_settings: Make,
) -> None:
    settings = tiny_settings(**CHANGES, **{"awp.form": form, "awp.rounds": 2})
    plain = train(tunable, params, features, tiny_settings(**CHANGES))
    third = train(tunable, params, features, settings, server_round=3)
    second = train(tunable, params, features, settings, server_round=2)
    assert third.noise_std == plain.noise_std
    for name in params:
        assert torch.equal(plain.update[name], third.update[name])
        assert not torch.equal(plain.update[name], second.update[name])


CLIENT = {"privacy.unit": "client", "privacy.clip": 0.01, "privacy.prefix_scale": 1.0}


@pytest.mark.parametrize("form", ["per-example", "batch"])
def test_at_client_level_the_whole_round_is_clipped_whatever_the_form(
    form: str,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    tiny_settings: Make,
) -> None:
    by_server = {"privacy.noise_by": "server", "privacy.noise_multiplier": 0.5}
    settings = tiny_settings(**CHANGES | CLIENT | by_server, **{"awp.form": form})
    update = train(tunable, params, features, settings, noise=0.0).update
    flat = torch.cat([value.flatten() for value in update.values()])
    assert float(flat.norm()) == pytest.approx(0.01, rel=1e-5)
    plain = tiny_settings(**CHANGES | CLIENT | by_server)
    other = train(tunable, params, features, plain, noise=0.0).update
    assert not torch.allclose(update["prefix"], other["prefix"], rtol=1e-2)


def test_without_privacy_batch_is_the_paper_s_own_method(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    """One step, no clipping: the plain gradient at w + v, v along the batch's gradient at w."""
    changes = CHANGES | {"client.local_steps": 1, "privacy.mode": "none"}
    settings = tiny_settings(**changes, **{"awp.form": "batch"})
    update = train(tunable, params, features, settings, noise=0.0).update
    drawn = poisson_sample(len(features), RATE, streams()("sample", 0))
    batch = [features[i] for i in drawn]

    def gradient(point: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sums = gradient_sum(tunable, point, batch, max_tokens=10_000)
        return dict(zip(sorted(params), sums, strict=True))

    wanted = gradient(Perturbation(GAMMA).perturbed(params, gradient(params)))
    for name in params:
        expected = -wanted[name] / settings.client.batch_size
        torch.testing.assert_close(update[name], expected, rtol=1e-3, atol=1e-5)
