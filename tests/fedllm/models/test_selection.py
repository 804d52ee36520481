"""Zeros at padding: selected bit by bit, forward and backward, in every number format."""

from __future__ import annotations

import pytest
import torch

from fedllm.models.parts.selection import Padding

FORMATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), -1.0])
def test_only_padding_is_zero_whatever_stands_there(
    dtype: torch.dtype, tokens: int, bad: float
) -> None:
    at = (MASK == 0)[:, :, None, None]
    states = torch.randn(3, 4, 2, 5).to(dtype)
    states = torch.where(at, bad, states).transpose(1, tokens).requires_grad_(True)
    behind = torch.where(at, bad, torch.randn(3, 4, 2, 5).to(dtype)).transpose(1, tokens)
    expected = states.detach().masked_fill(at.transpose(1, tokens), 0.0)
    found = Padding(MASK).cleared([states], tokens)[0]
    (grad,) = torch.autograd.grad(found, states, behind)
    assert torch.equal(found, expected)
    assert torch.equal(grad, behind.masked_fill(at.transpose(1, tokens), 0.0))
    with torch.no_grad():
        assert torch.equal(Padding(MASK).cleared([states], tokens)[0], expected)


def test_nothing_changes_without_padding() -> None:
    """Whether batch mates have padding changes no bit."""
    states = torch.randn(3, 4, 2, 5)
    states[0, 0, 0, 0] = -0.0
    found = Padding(torch.ones(3, 4)).cleared([states], 1)[0]
    assert torch.equal(found.view(torch.int32), states.view(torch.int32))


def test_a_gradient_of_a_gradient_passes() -> None:
    states = torch.randn(3, 4, 2, 5, dtype=torch.float64, requires_grad=True)
    padding = Padding(MASK)
    assert torch.autograd.gradgradcheck(lambda x: padding.cleared([x], 1)[0] ** 2, states)
    assert torch.autograd.gradcheck(lambda x: padding.cleared([x], 1)[0] ** 2, states)
