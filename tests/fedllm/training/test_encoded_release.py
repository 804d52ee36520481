"""What a silo sends where a codec is in use: its norm, its noise, and what the server makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from fedllm.codec import Code, Codec, Layout, make_codec
from fedllm.codec.base import State
from fedllm.codec.downlink import decode_params, encode_params
from fedllm.codec.prior import Prior
from fedllm.codec.random_projection import RandomProjection
from fedllm.codec.store import (
    CodecMissing,
    codec_from_store,
    keep_in_store,
    read_codec,
    write_codec,
)
from fedllm.codec.top_k import TopK
from fedllm.data.batches import Feature
from fedllm.settings.experiment import Settings
from fedllm.settings.io import SettingsError
from fedllm.training.encoding import Encoding, encode_client_update
from fedllm.training.gradients import clipped_gradient_sum
from fedllm.training.statistics import make_statistics_release, statistics_point
from fedllm.training.steps import LocalResult
from fedllm.training.tunable import Tunable, initial_params, shared_tunable
from privacy.randomness import generator
from tests.support.local_training import train_locally
from tests.support.tiny_tunables import shaken

Make = Callable[..., Any]
SLOW = hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
IN_CODE = {"codec.noise": "in-code"}
TRUSTED = {"privacy.unit": "client", "privacy.noise_by": "server", "codec.prior_source": "public"}


class Amplifier(RandomProjection):
    """Linear, and a hundred times longer than what it encodes: clipping must hold it all the same."""

    lipschitz = 100.0

    def project(self, vectors: Tensor) -> Tensor:
        return super().project(vectors) * 100

    def state(self) -> State:
        tensors, meta = super().state()
        return tensors, meta | {"factor": 100}


@pytest.fixture(scope="module")
def tunable(tiny_settings: Make) -> Tunable:
    return shared_tunable(tiny_settings())


@pytest.fixture(scope="module")
def features(tunable: Tunable, word_records: Any) -> list[Feature]:
    return tunable.task.features(word_records(24, 3))


@pytest.fixture(scope="module")
def params(tunable: Tunable, tiny_settings: Make) -> dict[str, Tensor]:
    return shaken(initial_params(tunable, tiny_settings()))


def streams(purpose: str, step: int) -> np.random.Generator:
    return generator(1, purpose, step)


def some_codec(name: str, params: Mapping[str, Tensor], ratio: float = 4.0) -> Codec:
    layout = Layout.of(params)
    d = layout.dimension
    if name == "amplifier":
        return Amplifier(d, int(d / ratio), 7)
    rng = torch.Generator().manual_seed(5)
    prior = Prior(
        "coordinate",
        torch.zeros(d),
        torch.rand(d, generator=rng),
        torch.zeros(0, d),
        torch.zeros(0),
    )
    from fedllm.settings.codec import CodecSettings

    return make_codec(CodecSettings(name=name, ratio=ratio, steps=5), layout, prior, 3)  # type: ignore[arg-type]


def encoding_of(codec: Codec, settings: Settings, params: Mapping[str, Tensor]) -> Encoding:
    """For this codec, whatever ``codec.name`` the settings have."""
    named = settings.codec.model_copy(update={"name": codec.name})
    settings = settings.model_copy(update={"codec": named})
    return Encoding.of(codec, codec.version, settings, params)


def test_a_codec_from_the_server_must_be_the_named_one(tiny_settings: Make) -> None:
    """One that chooses coordinates by the data tells the choice beside noise that is in the code."""
    params = {"head.weight": torch.zeros(4, 5)}
    settings = tiny_settings(**IN_CODE, **{"codec.name": "linear"})
    chooses = TopK.of_ratio(20, 4.0)
    with pytest.raises(ValueError, match=r"codec\.name=linear.*got top-k"):
        Encoding.of(chooses, chooses.version, settings, params)
    with pytest.raises(ValueError, match=r"codec\.noise=in-code, got top-k"):
        encoding_of(chooses, settings, params)


def train(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: list[Feature],
    settings: Settings,
    encoding: Encoding | None = None,
    noise: float = 0.8,
) -> LocalResult:
    return train_locally(
        tunable,
        params,
        features,
        settings,
        sampling_rate=0.5,
        noise_multiplier=noise,
        streams=streams,
        encoding=encoding,
    )


@pytest.mark.parametrize("name", ["none", "linear", "random-projection", "amplifier"])
@given(data=st.data())
@SLOW
def test_a_silos_noiseless_code_has_at_most_the_clipping_norm(
    name: str, data: st.DataObject, params: dict[str, Tensor], tiny_settings: Make
) -> None:
    """Unit client: adding or removing the silo changes the sum of codes by at most the clip, and
    replacing it by at most twice that; whatever the update and the codec."""
    settings = tiny_settings(**IN_CODE, **{"codec.name": "random-projection"}, **TRUSTED)
    encoding = encoding_of(some_codec(name, params), settings, params)
    assert encoding.in_code
    seed = data.draw(st.integers(0, 10**6))
    size = 10 ** data.draw(st.floats(-6, 12))
    bad = data.draw(st.booleans())
    rng = torch.Generator().manual_seed(seed)
    update = {n: torch.randn(v.shape, generator=rng) * size for n, v in params.items()}
    if bad:
        update["prefix"].view(-1)[0] = data.draw(st.sampled_from([math.nan, math.inf]))
    clip = settings.privacy.clip
    code, _, was_bad = encode_client_update(
        update,
        encoding,
        clip=clip,
        noise=None,
        rng=streams("noise", 0),
        rounding=streams("round", 0),
    )
    assert float(code.tensors["code"].double().norm()) <= clip
    assert was_bad == bad
    if bad:
        assert not bool(code.tensors["code"].any())


@pytest.mark.parametrize("name", ["none", "linear", "random-projection", "amplifier"])
@given(left_out=st.integers(0, 23), scale=st.floats(0.01, 50))
@SLOW
def test_one_example_moves_the_sum_of_codes_by_at_most_the_clipping_norm(
    name: str,
    left_out: int,
    scale: float,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
) -> None:
    codec, clip = some_codec(name, params), 0.5
    kept = [feature for n, feature in enumerate(features) if n != left_out]

    def total(batch: list[Feature]) -> Tensor:
        found = clipped_gradient_sum(
            tunable,
            params,
            batch,
            clip_norm=clip,
            scales=dict.fromkeys(params, scale),
            max_tokens=128,
            codec=codec,
        )
        assert found.count == len(batch)
        return found.sums[0].double()

    assert total([]).shape == (codec.code_dimension,)
    assert float((total(features) - total(kept)).norm()) <= clip * (1 + 1e-5)
    if scale >= 10:  # the clip binds: the bound is reached
        assert float((total(features) - total(kept)).norm()) > 0.9 * clip


@pytest.mark.parametrize("name", ["none", "linear", "random-projection"])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_code_that_is_sent_is_what_moved_the_weights(
    name: str,
    scale: float,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    tiny_settings: Make,
) -> None:
    """Unit example, noise in the code, two steps: a plain loop of released codes gives the same."""
    changes = IN_CODE | {"codec.name": "random-projection", "privacy.prefix_scale": scale}
    settings = tiny_settings(**changes)
    codec = some_codec(name, params)
    encoding = encoding_of(codec, settings, params)
    result = train(tunable, params, features, settings, encoding)
    sent = encoding.unflatten(codec.decode(Code(result.update)))
    from privacy.mechanisms.gaussian import add_gaussian
    from privacy.mechanisms.sampling import poisson_sample

    weights = {n: v.clone() for n, v in params.items()}
    for step in range(settings.client.local_steps):
        drawn = poisson_sample(len(features), 0.5, streams("sample", step))
        total = clipped_gradient_sum(
            tunable,
            weights,
            [features[i] for i in drawn],
            clip_norm=settings.privacy.clip,
            scales=encoding.scales,
            max_tokens=settings.client.max_tokens,
            codec=codec,
        ).sums[0]
        noisy = add_gaussian(total, settings.privacy.clip, 0.8, streams("noise", step))
        moved = encoding.unflatten(codec.reconstruct(noisy))
        rate = settings.client.learning_rate / float(settings.client.batch_size)
        weights = {n: weights[n] - rate * moved[n] for n in weights}
    assert settings.client.local_steps > 1
    for n, value in sent.items():
        torch.testing.assert_close(value, weights[n] - params[n], rtol=1e-4, atol=1e-5)


def test_in_code_with_all_coordinates_is_training_without_a_codec(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    plain = train(tunable, params, features, tiny_settings())
    settings = tiny_settings(**IN_CODE, **{"codec.name": "int8"})
    encoding = encoding_of(some_codec("none", params), settings, params)
    encoded = train(tunable, params, features, settings, encoding)
    decoded = encoding.unflatten(encoded.update["code"])
    for name, value in plain.update.items():
        torch.testing.assert_close(decoded[name], value, rtol=1e-4, atol=1e-5)
    assert encoded.noise_std == plain.noise_std


@pytest.mark.parametrize("unit", ["example", "client"])
def test_before_encoding_is_the_code_of_what_would_be_sent_without(
    unit: str,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
    tiny_settings: Make,
) -> None:
    changes = {"privacy.unit": unit}
    settings = tiny_settings(**changes, **{"codec.name": "random-projection"})
    codec = some_codec("random-projection", params)
    encoding = encoding_of(codec, settings, params)
    assert not encoding.in_code
    plain = train(tunable, params, features, tiny_settings(**changes))
    encoded = train(tunable, params, features, settings, encoding)
    torch.testing.assert_close(
        encoded.update["code"], codec.project(Layout.of(params).flatten(plain.update))
    )
    assert encoded.noise_std is None


def test_noise_in_the_code_has_k_dimensions(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    """Same multiplier and clip: the decoded noise is shorter by the root of the ratio."""
    d = Layout.of(params).dimension
    lengths = {}
    for where in ("in-code", "before-encoding"):
        settings = tiny_settings(
            **{"privacy.unit": "client", "codec.name": "random-projection", "codec.noise": where}
        )
        codec = some_codec("random-projection" if where == "in-code" else "none", params, 8)
        encoding = encoding_of(codec, settings, params)
        noisy = train(tunable, params, features, settings, encoding, noise=50.0)
        lengths[where] = float(codec.decode(Code(noisy.update)).norm())
    clip = settings.privacy.clip
    assert lengths["before-encoding"] == pytest.approx(50 * clip * math.sqrt(d), rel=0.15)
    assert lengths["in-code"] == pytest.approx(50 * clip * math.sqrt(d // 8), rel=0.35)


@pytest.mark.parametrize("unit", ["example", "client"])
@pytest.mark.parametrize("kind", ["layerwise", "factored", "coordinate", "low-rank"])
def test_statistics_carry_their_noise_and_see_the_prefix(
    unit: str,
    kind: str,
    tunable: Tunable,
    features: list[Feature],
    tiny_settings: Make,
) -> None:
    """Over many streams the release has the promised standard deviation around the same value."""
    settings = tiny_settings(
        **{
            "privacy.unit": unit,
            "codec.name": "linear",
            "codec.prior": kind,
            "codec.statistics_noise": 3.0,
            "client.sampling_rate": 1.0,
        }
    )
    start = initial_params(tunable, settings)
    point = statistics_point(start, 0)
    release = make_statistics_release(settings)
    statistics = release.statistics(point)
    drawn = [
        release.release(
            tunable,
            point,
            features,
            sampling_rate=1.0,
            streams=lambda purpose, step, n=n: generator(n, purpose, step),
        )
        for n in range(8)
    ]
    divisor = float(settings.client.batch_size) if unit == "example" else 1.0
    std = 3.0 * statistics.sensitivity() / divisor
    spread = torch.stack(drawn).std(0)
    assert float(spread.square().mean().sqrt()) == pytest.approx(std, rel=0.25)
    free = settings.model_copy(
        update={"privacy": settings.privacy.model_copy(update={"mode": "none"})}
    )
    exact = make_statistics_release(free).release(
        tunable, point, features, sampling_rate=1.0, streams=streams
    )
    _, seconds = statistics.unscale(exact)
    assert 0 < float(exact.norm()) <= len(features) / divisor
    groups = statistics.partitions[0][0]
    prefix = statistics.layout.unflatten(groups)["prefix"]
    assert float(seconds[0][prefix.reshape(-1).unique()].sum()) > 0


def test_the_point_of_the_statistics_differs_in_matrices_of_zeros_alone(
    tunable: Tunable, tiny_settings: Make
) -> None:
    start = initial_params(tunable, tiny_settings())
    point = statistics_point(start, 4)
    changed = {name for name in start if not torch.equal(start[name], point[name])}
    assert changed == {name for name, v in start.items() if v.dim() > 1 and not bool(v.any())}
    assert changed
    again = statistics_point(start, 4)
    assert all(torch.equal(point[name], again[name]) for name in point)


def test_a_codec_in_a_file_is_checked_against_its_hash(
    tmp_path: Path, params: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path / "cache"))
    codec = some_codec("linear", params)
    path = tmp_path / "codec.safetensors"
    write_codec(path, *codec.state())
    assert read_codec(path, codec.version).version == codec.version
    with pytest.raises(ValueError, match="it was changed"):
        read_codec(path, "0" * 64)
    with pytest.raises(CodecMissing):
        codec_from_store(codec.version)
    with pytest.raises(ValueError, match="it was changed"):
        keep_in_store(*codec.state(), "0" * 64)
    with pytest.raises(CodecMissing, match="hexadecimal"):
        codec_from_store("../../codec")
    keep_in_store(*codec.state(), codec.version)
    assert codec_from_store(codec.version).version == codec.version


@pytest.mark.parametrize("how", ["none", "fp16", "int8"])
def test_parameters_come_down_as_they_went(how: Any, params: dict[str, Tensor]) -> None:
    sent = encode_params(params, how, streams("down", 0))
    found = decode_params(sent, how)
    size = sum(value.numel() * value.element_size() for value in sent.values())
    plain = sum(4 * value.numel() for value in params.values())
    assert size <= plain * {"none": 1, "fp16": 0.5, "int8": 0.4}[how]
    for name, value in params.items():
        assert found[name].shape == value.shape
        step = {"none": 0.0, "fp16": 2.0**-10, "int8": 1 / 127}[how] * float(value.abs().max())
        assert float((found[name] - value).abs().max()) <= step


def test_parameters_in_bits_that_lack_their_scales_are_refused(params: dict[str, Tensor]) -> None:
    sent = encode_params(params, "int8", streams("down", 0))
    sent.pop(next(name for name in sent if name.startswith("scales.")))
    with pytest.raises(ValueError, match="8 bits"):
        decode_params(sent, "int8")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (IN_CODE | {"codec.name": "linear", "client.optimizer": "adam"}, "client.optimizer"),
        (IN_CODE | {"codec.name": "autoencoder"}, "codec.noise"),
        (
            {
                "codec.name": "linear",
                "codec.prior": "low-rank",
                "privacy.unit": "client",
                "privacy.noise_by": "server",
            },
            "codec.prior_source",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    changes: dict[str, Any], named: str, tiny_settings: Make
) -> None:
    with pytest.raises((SettingsError, ValueError), match=named):
        tiny_settings(**changes)
