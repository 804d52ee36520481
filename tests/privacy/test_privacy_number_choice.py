"""A step's numbers as one vector or each by itself: signal against simulation, cost against the accountant."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from privacy.accountants import make_accountant
from privacy.clipping import clip_and_sum
from privacy.event_counts import multiset
from privacy.events import dp_sgd, scalar_noise
from privacy.number_choice import (
    LEAST_GAIN,
    choose_release,
    clip_ratio,
    least_signal,
    number_signal,
    vector_signal,
)

FEW = {"epsilon": 3.0, "delta": 1e-5, "sampling_rate": 0.02, "steps": 5, "numbers": 3}
MANY = {"epsilon": 0.5, "delta": 1e-5, "sampling_rate": 1.0, "steps": 200, "numbers": 4}


def moved(rows: torch.Tensor, clip: float, *, together: bool) -> float:
    """How far the clipped mean's first entry goes when all rows move along it, over how far they moved."""
    step = torch.zeros(rows.shape[1], dtype=rows.dtype)
    step[0] = 0.05
    sums = []
    for side in (rows + step, rows - step):
        if together:
            sums.append(float(clip_and_sum([side.float()], clip).sums[0][0]))
        else:
            sums.append(float(side[:, 0].clamp(-clip, clip).sum()))
    return (sums[0] - sums[1]) / (2 * 0.05 * len(rows))


@pytest.mark.parametrize("numbers", [1, 3, 16])
def test_signals_are_what_clipping_leaves(numbers: int) -> None:
    """The library's own clipping on 200,000 normal rows, moved a little both ways."""
    rng = np.random.default_rng(numbers)
    rows = torch.from_numpy(rng.standard_normal((200_000, numbers)))
    for share in (0.3, 1.0, 2.0):
        reach = share * math.sqrt(numbers)
        together = moved(rows, reach, together=True)
        assert vector_signal(numbers, reach) == pytest.approx(together, rel=0.01)
        single = reach / clip_ratio(numbers)
        alone = moved(rows, single, together=False)
        assert number_signal(single) == pytest.approx(alone, rel=0.01)
        assert alone / together >= least_signal(numbers) * 0.99


def test_bounds_of_equal_signal() -> None:
    assert clip_ratio(1) == pytest.approx(1.0)
    assert least_signal(1) == pytest.approx(1.0)
    for numbers in (2, 4, 8, 512):
        tiny = 1e-3 * math.sqrt(numbers)  # nearly every row is clipped
        ratio = clip_ratio(numbers)
        assert number_signal(tiny / ratio) == pytest.approx(vector_signal(numbers, tiny), rel=1e-4)
        assert 0.78 < least_signal(numbers) < 1
        assert math.sqrt(2 / math.pi) < ratio / math.sqrt(numbers) < 1
    assert clip_ratio(2**14) == pytest.approx(math.sqrt(2 / math.pi) * 2**7, rel=1e-4)
    with pytest.raises(ValueError, match="numbers >= 1"):
        clip_ratio(0)


def test_few_numbers_of_small_samples_get_noise_of_their_own(tmp_path: Path) -> None:
    choice = choose_release(**FEW, cache_dir=tmp_path)
    assert choice.noise is not None
    assert choice.noise.family != "gaussian"
    best = min(choice.ratios, key=lambda name: choice.ratios[name])
    assert choice.stds[choice.noise.family] <= choice.stds[best] * 1.001
    assert choice.ratios[best] < 1 - LEAST_GAIN
    # Either way the whole costs the target, by the accountant that reads the ledger.
    pld = make_accountant("pld")
    numbers = pld.epsilon(multiset({scalar_noise(choice.noise, 15, 0.02): 1}), 1e-5)
    vector = pld.epsilon(multiset({dp_sgd(0.02, choice.vector_std, 5): 1}), 1e-5)
    assert 3.0 * 0.998 <= numbers <= 3.0
    assert 3.0 * 0.998 <= vector <= 3.0
    assert choose_release(**FEW, cache_dir=tmp_path) == choice
    assert choose_release(**FEW) == choice


def test_the_ratio_is_never_better_than_what_is_measured() -> None:
    """Noise over signal by simulation, whatever the rows' size beside the clipping norm: at most the ratio that
    was told, and nearly that in the worst case."""
    choice = choose_release(**FEW)
    assert choice.noise is not None
    rng = np.random.default_rng(3)
    rows = torch.from_numpy(rng.standard_normal((200_000, 3)))
    measured = []
    for reach in (0.05, 0.5, 1.0, 1.5, 2.0, 3.0, 6.0):
        bound = reach / clip_ratio(3)
        numbers = choice.noise.std * bound / moved(rows, bound, together=False)
        vector = choice.vector_std * reach / moved(rows, reach, together=True)
        measured.append(numbers / vector)
    told = choice.ratios[choice.noise.family]
    assert max(measured) <= told * 1.01
    assert max(measured) >= told * 0.97
    assert min(measured) < told * 0.93


def test_many_numbers_of_everybody_stay_one_vector() -> None:
    choice = choose_release(**MANY)
    assert choice.noise is None
    # Without sampling Gaussian noise on the numbers is the vector's, and clipping them singly costs signal.
    assert choice.stds["gaussian"] == pytest.approx(2 * choice.vector_std, rel=0.01)
    expected = 2 / (clip_ratio(4) * least_signal(4))
    assert choice.ratios["gaussian"] == pytest.approx(expected, rel=0.01)
    assert min(choice.ratios.values()) > 1


def test_what_is_beside_takes_its_share() -> None:
    beside = {dp_sgd(0.02, 0.9, 60): 1}
    alone, shared = choose_release(**FEW), choose_release(**FEW, beside=beside)
    assert shared.vector_std > alone.vector_std
    assert shared.noise is not None
    plan = multiset(beside) + multiset({scalar_noise(shared.noise, 15, 0.02): 1})
    assert 3.0 * 0.998 <= make_accountant("pld").epsilon(plan, 1e-5) <= 3.0
    with pytest.raises(ValueError, match="the other events alone cost"):
        choose_release(**FEW, beside={dp_sgd(0.5, 0.5, 60): 1})
