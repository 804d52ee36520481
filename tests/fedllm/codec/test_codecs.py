"""Codecs: what they keep, what travels, and that a projection never stretches a difference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedllm.codec import Code, Codec, CodecSettings, Layout, Prior, codec_from_state, make_codec
from fedllm.codec.autoencoder import train_autoencoder
from fedllm.codec.linear import Linear
from fedllm.codec.prior import leading_directions, prior_from_gradients
from fedllm.codec.quantise import Quantised
from fedllm.codec.random_projection import RandomProjection, hadamard, powers_of_two
from privacy.randomness import generator

LAYOUT = Layout({"prefix": (2, 2, 3, 4, 8), "head.weight": (2, 16), "head.bias": (2,)})
D = LAYOUT.dimension
RATIO = 8.0


def gradients(count: int, seed: int = 0) -> torch.Tensor:
    """Vectors of unequal variances and a common direction."""
    rng = generator(seed, "test")
    scale = torch.from_numpy(np.exp(1.5 * generator(9).standard_normal(D)))
    common = torch.from_numpy(generator(8).standard_normal(D))
    factor = torch.from_numpy(rng.standard_normal((count, 1)))
    noise = torch.from_numpy(rng.standard_normal((count, D)))
    return (noise * scale + 3 * factor * common).float()


PRIOR = prior_from_gradients("low-rank", LAYOUT, gradients(40), rank=3)
CONFIGURATIONS = {
    "none": {},
    "fp16": {},
    "int8": {},
    "top-k": {},
    "random-projection": {},
    "random-projection/4": {"bits": 4},
    "linear": {},
    "linear/16": {"bits": 16},
    "linear/8": {"bits": 8},
    "linear/4": {"bits": 4},
    "autoencoder": {"steps": 30, "width": 8},
    "autoencoder/8": {"steps": 30, "width": 8, "bits": 8},
}


def build(name: str, seed: int = 0) -> Codec:
    wanted = CodecSettings(name=name.split("/")[0], ratio=RATIO, **CONFIGURATIONS[name])  # type: ignore[arg-type]
    return make_codec(wanted, LAYOUT, PRIOR, seed)


@pytest.fixture(scope="module")
def codecs() -> dict[str, Codec]:
    return {name: build(name) for name in CONFIGURATIONS}


WITH_CONSTANT = [name for name in CONFIGURATIONS if not name.startswith(("autoencoder", "top-k"))]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_project_never_stretches_a_difference(
    codecs: dict[str, Codec], seed: int, scale: float
) -> None:
    draw = np.random.default_rng(seed)
    a, b = torch.from_numpy(draw.standard_normal((2, D))) * scale
    sparse = torch.zeros(D, dtype=torch.float64)
    sparse[int(draw.integers(D))] = scale
    for name in WITH_CONSTANT:
        codec = codecs[name]
        assert codec.lipschitz is not None
        for x, y in ((a, b), (a, a + sparse), (sparse, 0 * a)):
            moved = (codec.project(x.float()).double() - codec.project(y.float()).double()).norm()
            limit = codec.lipschitz * float((x.float().double() - y.float().double()).norm())
            rounding = 1e-6 * float(x.norm() + y.norm())
            assert float(moved) <= limit * (1 + 1e-5) + rounding, name


@pytest.mark.parametrize("name", WITH_CONSTANT)
def test_lipschitz_constant_by_singular_values(codecs: dict[str, Codec], name: str) -> None:
    codec = codecs[name]
    matrix = codec.project(torch.eye(D)).double()
    largest = float(torch.linalg.svdvals(matrix)[0])
    assert codec.lipschitz is not None
    assert largest <= codec.lipschitz * (1 + 1e-5)


@pytest.mark.parametrize("name", ["linear", "random-projection"])
def test_rows_are_orthonormal_and_the_decoder_is_the_transpose(
    codecs: dict[str, Codec], name: str
) -> None:
    codec = codecs[name]
    rows = codec.project(torch.eye(D)).double().T
    assert torch.allclose(rows @ rows.T, torch.eye(codec.code_dimension).double(), atol=1e-5)
    decoder = codec.reconstruct(torch.eye(codec.code_dimension)).double()
    assert torch.allclose(decoder, rows, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_linear_means_linear(codecs: dict[str, Codec], name: str) -> None:
    codec = codecs[name]
    a, b = gradients(2, seed=5)
    together = codec.reconstruct(codec.project(a + 2 * b))
    apart = codec.reconstruct(codec.project(a)) + 2 * codec.reconstruct(codec.project(b))
    same = torch.allclose(together, apart, rtol=1e-4, atol=1e-4)
    assert same == codec.linear


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_batches_and_wire_agree_with_single_vectors(codecs: dict[str, Codec], name: str) -> None:
    codec = codecs[name]
    some = gradients(6, seed=3).reshape(2, 3, D)
    projected = codec.project(some)
    assert projected.shape == (2, 3, codec.code_dimension)
    assert codec.reconstruct(projected).shape == some.shape
    assert torch.allclose(projected[1, 2], codec.project(some[1, 2]), rtol=1e-4, atol=1e-4)
    code = codec.encode(some[0, 0], generator(0))
    assert code.bytes == codec.bytes
    direct = codec.reconstruct(projected[0, 0])
    lost = (codec.decode(code) - direct).norm() / direct.norm()
    assert lost < (0.35 if "/4" in name else 0.06 if ("8" in name) else 1e-3)


def test_bytes(codecs: dict[str, Codec]) -> None:
    assert codecs["none"].bytes == 4 * D
    assert codecs["fp16"].bytes == 2 * D
    assert codecs["int8"].bytes == D + 4 * -(-D // 256)
    k = int(D / RATIO)
    assert codecs["linear"].bytes == codecs["random-projection"].bytes == 4 * k
    assert codecs["linear/16"].bytes == 2 * k
    assert codecs["linear/4"].bytes == -(-k // 2) + 4
    assert 4 * (k - 16) < codecs["autoencoder"].bytes <= 4 * k
    assert 4 * k - 6 < codecs["top-k"].bytes <= 4 * k


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_state_gives_the_same_codec(codecs: dict[str, Codec], name: str) -> None:
    codec = codecs[name]
    again = codec_from_state(*codec.state())
    assert again.version == codec.version
    vector = gradients(1, seed=4)[0]
    codes = [c.encode(vector, generator(1)).tensors for c in (codec, again)]
    assert all(torch.equal(codes[0][key], codes[1][key]) for key in codes[0])
    assert torch.equal(codec.decode(Code(codes[0])), again.decode(Code(codes[1])))


def test_versions_tell_codecs_apart(codecs: dict[str, Codec]) -> None:
    assert len({codec.version for codec in codecs.values()}) == len(codecs)
    assert build("random-projection", 1).version != codecs["random-projection"].version
    assert build("autoencoder").version == codecs["autoencoder"].version
    tensors, meta = codecs["linear"].state()
    tensors["directions"] = -tensors["directions"]
    assert codec_from_state(tensors, meta).version != codecs["linear"].version


@pytest.mark.parametrize("bits", [8, 4])
def test_stochastic_rounding_is_unbiased_and_never_far(bits: int) -> None:
    codec = Quantised(RandomProjection(512, 300, 0), bits)
    code = torch.from_numpy(generator(3).standard_normal(300)).float()
    code[:256] *= 1e-20
    code[7] = 0.0
    rng = generator(0)
    decoded = torch.stack([codec.decode_code(codec.encode_code(code, rng)) for _ in range(1000)])
    steps = codec.encode_code(code, rng).tensors["scales"].repeat_interleave(256)[:300]
    assert bool(((decoded - code).abs() <= steps * (1 + 1e-5)).all())
    # Standard error of a mean of 1000 with a deviation of at most half a step; six of them.
    assert bool(((decoded.mean(0) - code).abs() <= 6 * steps / 2 / 1000**0.5 + 1e-30).all())
    assert not bool(codec.decode_code(codec.encode_code(torch.zeros(300), rng)).any())


def test_random_projection_keeps_its_share_of_any_vector() -> None:
    """Relative error 1 - k/d on average over the seeds, even for one coordinate alone."""
    d, k = 100, 25
    unit = torch.zeros(d)
    unit[17] = 1.0
    kept = [float(RandomProjection(d, k, seed).project(unit).square().sum()) for seed in range(400)]
    assert np.mean(kept) == pytest.approx(k / d, abs=float(4 * np.std(kept) / 20))


def test_hadamard() -> None:
    matrix = hadamard(torch.eye(8))
    assert torch.allclose(matrix @ matrix.T, torch.eye(8), atol=1e-6)
    assert torch.allclose(matrix.abs(), torch.full((8, 8), 8**-0.5))
    assert powers_of_two(36864) == [32768, 4096]
    assert powers_of_two(7) == [4, 2, 1]


def diagonal(variance: torch.Tensor) -> Prior:
    d = len(variance)
    return Prior("coordinate", torch.zeros(d), variance, torch.zeros(0, d), torch.zeros(0))


def test_linear_takes_the_largest_variances() -> None:
    variance = torch.from_numpy(generator(2).random(50)).float()
    codec = Linear.from_prior(diagonal(variance), 12, seed=0)
    assert set(codec.state()[0]["coordinates"].tolist()) == set(variance.topk(12).indices.tolist())


def test_ties_are_broken_by_the_seed() -> None:
    chosen = [
        tuple(
            Linear.from_prior(diagonal(torch.ones(500)), 50, s).state()[0]["coordinates"].tolist()
        )
        for s in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert max(chosen[0]) > 400


def test_linear_loses_no_more_than_the_best_code_by_much() -> None:
    """Against the leading eigenvectors of the prior's covariance, which no code of k rows beats."""
    k = 24
    codec = Linear.from_prior(PRIOR, k, seed=0)
    covariance = torch.diag(PRIOR.variance) + PRIOR.basis.T @ torch.diag(PRIOR.basis_variance) @ (
        PRIOR.basis
    )
    best = torch.linalg.eigvalsh(covariance.double())[-k:].sum()
    rows = codec.project(torch.eye(D)).double().T
    kept = torch.trace(rows @ covariance.double() @ rows.T)
    assert len(codec.state()[0]["directions"]) >= 1
    assert 0.97 * best <= kept <= best * (1 + 1e-6)


def test_a_direction_that_the_coordinates_hold_makes_room() -> None:
    basis = torch.zeros(2, 40)
    basis[0, 3] = basis[1, 20] = 1.0
    variance = torch.linspace(0.1, 1.0, 40)
    variance[3] = 5.0
    prior = Prior("low-rank", torch.zeros(40), variance, basis, torch.tensor([9.0, 8.0]))
    codec = Linear.from_prior(prior, 6, seed=0)
    assert codec.code_dimension == 6
    rows = codec.project(torch.eye(40)).T
    assert torch.allclose(rows @ rows.T, torch.eye(6), atol=1e-6)
    assert float(rows[:, 3].norm()) == pytest.approx(1.0)
    assert float(rows[:, 20].norm()) == pytest.approx(1.0)


def test_directions_may_be_the_whole_code_and_travel_on_their_support() -> None:
    """Ten directions that live in a tenth of the coordinates: no coordinate is sent, nor the rest."""
    rng = generator(4)
    inside = torch.from_numpy(rng.permutation(400)[:40]).sort().values
    basis = torch.zeros(10, 400)
    basis[:, inside] = torch.linalg.qr(torch.from_numpy(rng.standard_normal((40, 10))))[0].T.float()
    outside = torch.full((400,), 1e-6)
    prior = Prior("low-rank", torch.zeros(400), outside, basis, torch.linspace(2.0, 1.0, 10))
    codec = Linear.from_prior(prior, 10, seed=0)
    tensors, meta = codec.state()
    assert tensors["coordinates"].numel() == 0
    assert tensors["directions"].shape == (10, 40)
    assert torch.equal(tensors["support"].long(), inside)
    vector = torch.from_numpy(rng.standard_normal((3, 400))).float()
    expected = vector @ basis.T @ basis
    assert torch.allclose(codec.reconstruct(codec.project(vector)), expected, atol=1e-5)
    # As a wire gives them back: tensors without elements have no strides of their own.
    again = {name: torch.from_numpy(np.array(value.numpy())) for name, value in tensors.items()}
    again["coordinates"] = torch.from_numpy(np.frombuffer(b"", dtype=np.int32).copy())
    assert codec_from_state(again, meta).version == codec.version


def test_what_the_support_leaves_out_is_negligible() -> None:
    spread = prior_from_gradients("low-rank", LAYOUT, gradients(60), rank=12)
    codec = Linear.from_prior(spread, 12, seed=0)
    rows = codec.project(torch.eye(D)).double().T
    assert torch.allclose(rows @ rows.T, torch.eye(12, dtype=torch.float64), atol=1e-6)
    kept = (rows @ spread.basis.double().T @ spread.basis_variance.sqrt().diag().double()).square()
    assert float(kept.sum()) >= (1 - 2e-4) * float(spread.basis_variance.sum())


def test_linear_refuses_rows_that_stretch() -> None:
    tensors, meta = Linear.from_prior(PRIOR, 24, seed=0).state()
    tensors["directions"] = tensors["directions"] * 1.01
    with pytest.raises(ValueError, match="orthonormal"):
        codec_from_state(tensors, meta)


def test_white_gradients_cannot_be_compressed() -> None:
    """Honest: on independent numbers of one variance every code errs by 1 - k/d or more."""
    white = torch.from_numpy(generator(1).standard_normal((200, D))).float()
    prior = prior_from_gradients("layerwise", LAYOUT, white)
    k = int(D / RATIO)
    fresh = torch.from_numpy(generator(7).standard_normal((400, D))).float()
    for codec in (
        Linear.from_prior(prior, k, 0),
        RandomProjection(D, k, 0),
        train_autoencoder(prior, k, 0, steps=100, width=16),
    ):
        lost = (codec.reconstruct(codec.project(fresh)) - fresh).square().sum()
        error = float(lost / fresh.square().sum())
        assert error > (1 - k / D) * 0.985, codec
        assert error < 1.005, codec


def test_autoencoder_learns_what_the_prior_knows() -> None:
    """On fresh synthetic gradients: near the best linear code of its size."""
    prior = prior_from_gradients("coordinate", LAYOUT, gradients(40))
    k = 48
    errors: list[float] = []
    seen: Callable[[int, float], None] = lambda step, error: errors.append(error)  # noqa: E731
    trained = train_autoencoder(prior, k, 0, steps=200, width=16, progress=seen)
    fresh = prior.sample(200, generator(4))
    best = Linear.from_prior(prior, trained.code_dimension, 0)
    lost = [
        float((c.reconstruct(c.project(fresh)) - fresh).square().sum() / fresh.square().sum())
        for c in (trained, best)
    ]
    assert lost[1] < lost[0] < lost[1] + 0.1
    assert min(errors) < errors[0]
    assert trained.lipschitz is None


def test_leading_directions_ignore_noise() -> None:
    rng = generator(0)
    n, d, noise = 60, 400, 1.0
    pure = torch.from_numpy(rng.standard_normal((n, d))) * noise
    assert len(leading_directions(pure, 8, noise * 1.05)[0]) == 0
    direction = torch.zeros(d).double()
    direction[:4] = 0.5
    strength = 100.0
    factor = torch.from_numpy(rng.standard_normal((n, 1))) * strength**0.5
    vectors, energy = leading_directions(pure + factor * direction, 8, noise * 1.05)
    assert len(vectors) == 1
    assert float((vectors[0].double() @ direction).abs()) > 0.9
    assert float(energy[0]) == pytest.approx(float(factor.square().mean()), rel=0.15)


def broken(code: Code, /, **changes: torch.Tensor) -> Code:
    return Code({**code.tensors, **changes})


def test_messages_from_anybody_are_checked(codecs: dict[str, Codec]) -> None:
    vector = gradients(1, seed=2)[0]
    made = {name: codec.encode(vector, generator(0)) for name, codec in codecs.items()}

    def refused(name: str, words: str, /, **changes: torch.Tensor) -> None:
        with pytest.raises(ValueError, match=words):
            codecs[name].decode(broken(made[name], **changes))

    k = codecs["linear"].code_dimension
    refused("linear", "Expected a linear code", extra=torch.zeros(1))
    refused("linear", "Expected a linear code", code=torch.zeros(k + 1))
    refused("linear", "Expected a linear code", code=torch.zeros(k).double())
    refused("linear", "finite", code=torch.full((k,), float("nan")))
    refused(
        "autoencoder",
        "finite",
        code=torch.full_like(made["autoencoder"].tensors["code"], torch.inf),
    )
    refused("fp16", "finite", code=torch.full((D,), torch.inf, dtype=torch.float16))
    scales = made["int8"].tensors["scales"]
    refused("int8", "scales >= 0", scales=-scales)
    refused("int8", "too large", scales=torch.full_like(scales, 3e38))
    refused("int8", "levels", values=torch.full((D,), -128, dtype=torch.int8))
    refused("linear/4", "levels", values=torch.full((-(-k // 2),), 0x88, dtype=torch.uint8))
    places = made["top-k"].tensors["indices"]
    refused("top-k", "ascending", indices=torch.zeros_like(places))
    refused("top-k", "ascending", indices=torch.full_like(places, D))
    with pytest.raises(ValueError, match="Expected a top-k code"):
        codecs["top-k"].decode(Code({"values": made["top-k"].tensors["values"]}))
    for name, codec in codecs.items():
        with pytest.raises(ValueError, match="shape"):
            codec.encode(
                torch.zeros(D - 1) if name != "top-k" else torch.zeros(D + 1), generator(0)
            )
        with pytest.raises(ValueError, match="finite"):
            codec.encode(torch.full((D,), float("nan")), generator(0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "autoencoder", "noise": "in-code"}, "Lipschitz"),
        ({"name": "top-k", "noise": "in-code"}, "Lipschitz"),
        ({"name": "int8", "bits": 4}, "codec.bits=32"),
        ({"name": "gzip"}, "random-projection"),
        ({"name": "linear", "ratio": 0.5}, "greater than or equal to 1"),
    ],
)
def test_settings_refuse(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        CodecSettings.model_validate(changes)


def test_what_a_codec_needs_is_asked_for() -> None:
    with pytest.raises(ValueError, match="prior of dimension"):
        make_codec(CodecSettings(name="linear"), LAYOUT, None, 0)
    with pytest.raises(ValueError, match=r"codec\.ratio"):
        make_codec(CodecSettings(name="linear", ratio=1e6), LAYOUT, PRIOR, 0)
    with pytest.raises(ValueError, match="name='pickle'"):
        codec_from_state({}, {"name": "pickle"})
    with pytest.raises(ValueError, match="state of codec linear"):
        codec_from_state({}, {"name": "linear"})
