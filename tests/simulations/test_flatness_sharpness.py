"""Eigenvalue, trace and m-sharpness against a known spectrum and against the full Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedllm.data.public import evaluation_set
from fedllm.models.backbone import load_backbone
from fedllm.models.prefix import PREFIX
from fedllm.tasks.base import expand_params
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from simulations.landscape.objective import (
    Objective,
    Part,
    filter_count,
    filter_norms,
    flatten,
    make_objective,
)
from simulations.landscape.sharpness import hutchinson_trace, m_sharpness, top_eigenvalue


def matrix(spectrum: list[float], seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((len(spectrum), len(spectrum))))
    return torch.from_numpy(basis @ np.diag(spectrum) @ basis.T)


def quadratic(h: Tensor, slope: Tensor | None = None) -> Objective:
    """Two examples with losses w'Hw and slope'w, so that the mean has the Hessian H."""
    slope = torch.zeros(len(h), dtype=h.dtype) if slope is None else slope
    parts = [
        Part(lambda w: (w @ h @ w)[None], examples=1, tokens=1),
        Part(lambda w: (slope @ w)[None], examples=1, tokens=1),
    ]
    return Objective(parts, torch.zeros(len(h), dtype=h.dtype))


@pytest.mark.parametrize(
    ("spectrum", "largest"),
    [
        ([5.0, 2.0, 1.0, 0.1, 0.0], 5.0),
        ([-7.0, 3.0, 1.0, -2.0], 3.0),  # the one of largest size is negative
        ([-4.0, -1.0, -0.5], -0.5),
        ([2.0, 2.0, 2.0], 2.0),
    ],
)
def test_known_spectrum(spectrum: list[float], largest: float) -> None:
    h = matrix(spectrum)
    with quadratic(h).hessian() as product:
        found = top_eigenvalue(
            product, torch.ones(len(h), dtype=h.dtype), products=500, tolerance=1e-9
        )
    assert found.converged
    assert found.value == pytest.approx(largest, rel=1e-6)
    assert float((h @ found.vector - largest * found.vector).norm()) < 1e-6


def test_a_stopped_iteration_says_how_far_it_is() -> None:
    h = matrix([1.0, 0.98, 0.5, 0.1])
    with quadratic(h).hessian() as product:
        found = top_eigenvalue(product, torch.ones(4, dtype=h.dtype), products=2, tolerance=1e-9)
    assert not found.converged
    assert found.products == 2
    assert min(abs(v - found.value) for v in (1.0, 0.98, 0.5, 0.1)) <= found.residual + 1e-12


def test_trace_within_its_error_and_exact_for_a_diagonal() -> None:
    diagonal = torch.diag(torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64))
    ones = torch.ones(3, dtype=torch.float64)
    assert hutchinson_trace(lambda v: diagonal @ v, ones) == (2.5, 0.0)
    h = matrix([9.0, 4.0, 1.0, 0.5, 0.1, -0.2])
    mean, error = hutchinson_trace(lambda v: h @ v, torch.ones(6, dtype=h.dtype), probes=400)
    assert 0 < error < 1
    assert abs(mean - 14.4) < 4 * error


def test_m_sharpness_of_quadratics_is_in_closed_form() -> None:
    h = matrix([4.0, 1.0, 0.25])
    slopes = [torch.tensor([1.0, 2.0, -1.0]).double(), torch.tensor([0.0, 0.5, 3.0]).double()]
    radius = 0.3
    wanted = []
    for slope in slopes:
        step = radius * slope / slope.norm()
        wanted.append(float((slope @ step + step @ h @ step) / 2))
    groups = [quadratic(h, slope) for slope in slopes]
    mean, error = m_sharpness(groups, radius)
    assert mean == pytest.approx(np.mean(wanted), rel=1e-12)
    assert error == pytest.approx(np.std(wanted, ddof=1) / np.sqrt(2), rel=1e-12)
    flat = quadratic(h)  # at its minimum: no gradient, no step
    assert m_sharpness([flat, flat], radius)[0] == 0.0


def test_scales_are_a_change_of_coordinates() -> None:
    h = matrix([4.0, 1.0, 0.25, 2.0])
    scales = torch.tensor([2.0, 0.5, 0.0, 1.0], dtype=h.dtype)
    plain = quadratic(h, torch.ones(4, dtype=h.dtype))
    scaled = plain.rescaled(scales)
    u = torch.tensor([1.0, -2.0, 5.0, 0.3], dtype=h.dtype)
    assert scaled.value(u) == pytest.approx(plain.value(scales * u))
    assert torch.equal(scaled.gradient(), scales * plain.gradient())
    with scaled.hessian() as product:
        assert torch.allclose(product(u), torch.diag(scales) @ h @ torch.diag(scales) @ u)
    assert scaled.dimension == 3


# On a real (tiny) model


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def scene(
    request: pytest.FixtureRequest,
    tiny_settings: Callable[..., Any],
    encoder_folder: Any,
    decoder_folder: Any,
) -> tuple[Tunable, dict[str, Tensor], list[Any]]:
    """A float64 backbone, parameters away from zero, and five examples."""
    changes: dict[str, Any] = {}
    if request.param == "decoder":
        changes = {
            "model.name": str(decoder_folder),
            "task.label_words": ["w5", "w6"],
            "task.prompt": "{text}",
        }
    settings = tiny_settings(**changes)
    backbone = load_backbone(
        str(settings.model.name), kind=request.param, dtype="float64", device="cpu"
    )
    tunable = make_tunable(settings, backbone)
    rng = torch.Generator().manual_seed(1)
    params = {
        name: value + 0.5 * torch.randn(value.shape, generator=rng)
        for name, value in initial_params(tunable, settings).items()
    }
    features = tunable.task.features(evaluation_set(settings).records)[:5]
    return tunable, params, features


def full_hessian(
    tunable: Tunable, params: dict[str, Tensor], features: list[Any], names: list[str]
) -> Tensor:
    """By torch.autograd.functional.hessian, one example at a time; no code of ours but the loss."""

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([params[name].numel() for name in names])
        varied = dict(zip(names, pieces, strict=True))
        moved = {n: varied[n].reshape(v.shape) if n in varied else v for n, v in params.items()}
        total = torch.zeros((), dtype=flat.dtype)
        for feature in features:
            batch = tunable.task.collate([feature])
            total = total + tunable.losses(expand_params(moved, 1), batch).double().sum()
        return total / len(features)

    with sdpa_kernel([SDPBackend.MATH]):
        found: Any = torch.autograd.functional.hessian(loss, flatten(params, names))
    return found


def test_full_hessian_agrees(scene: tuple[Tunable, dict[str, Tensor], list[Any]]) -> None:
    tunable, params, features = scene
    names = [PREFIX]
    oracle = full_hessian(tunable, params, features, names)
    objective = make_objective(tunable, params, features, over=names, max_tokens=12)
    assert len(objective.parts) > 2
    rng = torch.Generator().manual_seed(2)
    v = torch.randn(len(oracle), generator=rng)
    size = float((oracle @ v).norm())
    for keep_tokens in (0, 15, 10_000):  # no graph kept, some, all
        with objective.hessian(keep_tokens) as product:
            # parameters and losses are float32
            assert float((product(v) - oracle @ v).norm()) < 1e-4 * size
    values = torch.linalg.eigvalsh(oracle)
    with objective.hessian() as product:
        found = top_eigenvalue(product, objective.scales, products=300, tolerance=1e-2)
        mean, error = hutchinson_trace(product, objective.scales, probes=40)
    assert found.value == pytest.approx(float(values[-1]), rel=1e-3)
    assert abs(mean - float(values.sum())) < 4 * error


def test_filters_of_prefix_and_head(scene: tuple[Tunable, dict[str, Tensor], list[Any]]) -> None:
    _, params, _ = scene
    names = sorted(params)
    norms = filter_norms(params, names)
    prefix = params[PREFIX]
    place = sum(params[name].numel() for name in names if name < PREFIX)
    own = norms[place : place + prefix.numel()].reshape(prefix.shape)
    assert torch.allclose(own[1, 0, 1, 1], prefix[1, 0, 1, 1].norm().expand(prefix.shape[-1]))
    count = int(np.prod(prefix.shape[:-1]))
    if "head.bias" in params:
        count += len(params["head.weight"])
        assert not norms[: params["head.bias"].numel()].any()
    assert filter_count(params, names) == count


def test_measuring_leaves_the_model_as_it_was(
    scene: tuple[Tunable, dict[str, Tensor], list[Any]],
) -> None:
    tunable, params, features = scene
    before = {name: value.clone() for name, value in params.items()}
    objective = make_objective(tunable, params, features, over=[PREFIX])
    first = objective.value()
    with objective.hessian() as product:
        product(objective.gradient())
    assert objective.value() == first
    assert all(torch.equal(before[name], params[name]) for name in params)
    assert not any(p.requires_grad for p in tunable.backbone.model.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m_sharpness([], 0.1), "at least one group"),
        (lambda: m_sharpness([quadratic(matrix([1.0]))], 0.0), "radius=0"),
        (lambda: hutchinson_trace(lambda v: v, torch.ones(2), probes=1), "probes=1"),
        (lambda: top_eigenvalue(lambda v: v, torch.zeros(2)), "none"),
        (lambda: top_eigenvalue(lambda v: v * float("nan"), torch.ones(2)), "finite"),
        (lambda: Objective([], torch.zeros(2)), "at least one example"),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
