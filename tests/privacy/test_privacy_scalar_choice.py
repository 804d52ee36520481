"""Which noise numbers get in a plan: never at a higher cost of the whole, and Gaussian beside DP-SGD."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from privacy.accountants import make_accountant
from privacy.event_counts import multiset
from privacy.event_json import event_to_json
from privacy.events import discrete_gaussian, dp_sgd, scalar_noise
from privacy.noise_question import NoiseQuestion
from privacy.noise_search import accounted_epsilon, search_noise
from privacy.scalar_choice import LEAST_GAIN, choose_noise
from privacy.scalar_noise import GaussianNoise, LaplaceNoise

TRAINING = {dp_sgd(0.05, 1.0, 300): 1}
DELTA = 1e-5


def cost(events: Counter) -> float:
    return make_accountant("pld").epsilon(events, DELTA)


def test_numbers_alone_get_other_noise_and_it_costs_no_more() -> None:
    choice = choose_noise(sigma=20.0, count=2, beside={}, delta=DELTA)
    assert choice.noise is not None
    assert choice.noise.std < 0.7 * 20.0  # what Laplace saves on two numbers
    assert min(choice.ratios.values()) == pytest.approx(choice.noise.std / 20.0)
    mine = cost(multiset({scalar_noise(choice.noise): 2}))
    theirs = cost(multiset({discrete_gaussian(20.0): 2}))
    assert 0.999 * theirs < mine <= theirs
    assert mine == pytest.approx(choice.epsilon, rel=1e-9)


def test_beside_training_laplace_needs_more_and_the_gaussian_stays() -> None:
    choice = choose_noise(sigma=20.0, count=20, beside=TRAINING, delta=DELTA)
    assert choice.noise is None
    # What composes with much counts by its Fisher information: Laplace's variance is twice as large.
    assert choice.ratios["laplace"] == pytest.approx(2**0.5, rel=0.03)
    assert min(choice.ratios.values()) > 1 - LEAST_GAIN


@pytest.mark.parametrize("family", ["laplace", "exponential-power"])
def test_a_family_named_by_hand_comes_in_the_amount_that_costs_as_much(
    family: str, tmp_path: Path
) -> None:
    choice = choose_noise(
        sigma=15.0, count=6, beside=TRAINING, delta=DELTA, family=family, cache_dir=tmp_path
    )
    assert choice.noise is not None
    assert choice.noise.family == family
    plan = multiset(TRAINING)
    mine = cost(plan + multiset({scalar_noise(choice.noise): 6}))
    theirs = cost(plan + multiset({discrete_gaussian(15.0): 6}))
    assert 0.999 * theirs < mine <= theirs
    again = choose_noise(
        sigma=15.0, count=6, beside=TRAINING, delta=DELTA, family=family, cache_dir=tmp_path
    )
    assert again == choice
    stays = choose_noise(
        sigma=15.0, count=6, beside=TRAINING, delta=DELTA, family="discrete-gaussian"
    )
    assert stays.noise is None
    with pytest.raises(ValueError, match="family='normal'"):
        choose_noise(sigma=15.0, count=6, beside={}, delta=DELTA, family="normal")


def test_a_question_counts_what_is_beside_it() -> None:
    beside = tuple((event_to_json(e), n) for e, n in multiset(TRAINING).items())
    question = NoiseQuestion(6.5, DELTA, steps=4, beside=beside)
    noise = LaplaceNoise(12.0)
    expected = cost(multiset(TRAINING) + multiset({scalar_noise(noise): 4}))
    assert accounted_epsilon(noise, question) == pytest.approx(expected, rel=1e-12)
    found = search_noise(question, families=("laplace",), light=True)
    for candidate in found.candidates.values():
        assert 6.5 * 0.999 <= candidate.epsilon <= 6.5
    assert isinstance(found.gaussian.noise, GaussianNoise)
    with pytest.raises(ValueError, match="keeps to the target"):
        search_noise(NoiseQuestion(0.5, DELTA, steps=4, beside=beside), families=("laplace",))
    with pytest.raises(ValueError, match="dimension=3"):
        NoiseQuestion(6.5, DELTA, dimension=3, beside=beside)
