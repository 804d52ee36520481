"""Checks of updates, and the mean whose weights no data touches."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from server.aggregation import (
    Contribution,
    UpdateRefused,
    check_update,
    clip_update,
    mean_update,
)

PARAMS = {"head.bias": torch.zeros(3), "prefix": torch.zeros(2, 2)}


def update(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {n: torch.randn(v.shape, generator=rng) * scale for n, v in PARAMS.items()}


def silos(count: int, std: float | None = 1.0) -> list[Contribution]:
    noise = None if std is None else dict.fromkeys(PARAMS, std)
    return [Contribution(f"s{i:02}", update(i), noise) for i in range(count)]


def test_good_update_passes_as_it_is() -> None:
    good = update(1)
    got = check_update(dict(reversed(good.items())), PARAMS, 100.0)
    assert list(got) == sorted(PARAMS)
    assert all(torch.equal(got[n], good[n]) for n in PARAMS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prefix": torch.full((2, 2), float("nan"))}, "finite numbers for prefix"),
        ({"prefix": torch.tensor([[1.0, -math.inf], [0, 0]])}, "finite numbers for prefix"),
        ({"prefix": torch.zeros(4)}, r"shape \(2, 2\) for prefix, got \(4,\)"),
        ({"prefix": torch.zeros(2, 2, dtype=torch.float64)}, "float32 for prefix"),
        ({"prefix": torch.zeros(2, 2, dtype=torch.int32)}, "float32 for prefix"),
        ({"extra": torch.zeros(1)}, "Expected the tensors"),
        ({"prefix": torch.full((2, 2), 51.0)}, "max_update_norm=100.0"),
        ({"prefix": torch.full((2, 2), 3e38)}, "max_update_norm=100.0"),
    ],
)
def test_unusable_update_is_refused_by_name(change: dict[str, Tensor], named: str) -> None:
    with pytest.raises(UpdateRefused, match=named):
        check_update(update(1) | change, PARAMS, 100.0)


def test_missing_tensor_is_refused() -> None:
    with pytest.raises(UpdateRefused, match="Expected the tensors"):
        check_update({"prefix": torch.zeros(2, 2)}, PARAMS, 100.0)


def test_mean_has_equal_weights_and_does_not_depend_on_the_order_of_arrival() -> None:
    contributions = silos(7)
    mean, std = mean_update(contributions, PARAMS, 7)
    for name in PARAMS:
        expected = torch.stack([c.update[name].double() for c in contributions]).mean(0)
        torch.testing.assert_close(mean[name].double(), expected, rtol=1e-6, atol=1e-7)
    assert std == pytest.approx(dict.fromkeys(PARAMS, 7**0.5 / 7))
    for order in ([6, 2, 0, 1, 5, 3, 4], list(reversed(range(7)))):
        again, _ = mean_update([contributions[i] for i in order], PARAMS, 7)
        assert all(torch.equal(mean[n], again[n]) for n in PARAMS)


def test_noise_of_the_mean_is_known_only_where_all_silos_tell_theirs() -> None:
    assert mean_update([*silos(2), *silos(1, None)], PARAMS, 3)[1] is None


def test_divisor_is_the_one_given() -> None:
    full, _ = mean_update(silos(3), PARAMS, 1.0)
    tenth, std = mean_update(silos(3), PARAMS, 10.0)
    for name in PARAMS:
        torch.testing.assert_close(full[name] / 10, tenth[name])
    assert std == pytest.approx(dict.fromkeys(PARAMS, 3**0.5 / 10))
    nothing, std = mean_update([], PARAMS, 4.0)
    assert not any(value.any() for value in nothing.values())
    assert std == dict.fromkeys(PARAMS, 0.0)


@pytest.mark.parametrize("divisor", [0.0, -1.0, math.nan, math.inf])
def test_impossible_divisor_is_refused(divisor: float) -> None:
    with pytest.raises(ValueError, match="Expected divisor > 0"):
        mean_update(silos(2), PARAMS, divisor)


@given(values=st.lists(st.floats(width=32), min_size=7, max_size=7), clip=st.floats(1e-3, 1e3))
@hypothesis_settings(max_examples=200, deadline=None)
def test_server_clip_is_total(values: list[float], clip: float) -> None:
    raw = torch.tensor(values, dtype=torch.float32)
    got = clip_update({"head.bias": raw[:3], "prefix": raw[3:].reshape(2, 2)}, clip)
    flat = torch.cat([got["head.bias"], got["prefix"].flatten()]).double()
    assert torch.isfinite(flat).all()
    assert float(flat.norm()) <= clip
    if torch.isfinite(raw).all() and float(raw.double().norm()) <= clip * (1 - 1e-6):
        torch.testing.assert_close(flat.float(), raw)
    if not torch.isfinite(raw).all():
        assert not flat.any()
