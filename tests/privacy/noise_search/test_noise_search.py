"""The search for noise: the published table, brute force around its answers, and what it must refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accountants import make_accountant
from privacy.accountants.gaussian_curve import gaussian_epsilon
from privacy.events.constructors import scalar_noise
from privacy.mechanisms.scalar_noise import (
    ExponentialPowerNoise,
    GaussianNoise,
    LaplaceNoise,
    LmoNoise,
    ScalarNoise,
    StaircaseNoise,
)
from privacy.noise_search import search as search_module
from privacy.noise_search.families import search_spaces
from privacy.noise_search.noise_file import read_noise
from privacy.noise_search.question import NoiseQuestion, Objective
from privacy.noise_search.search import NoiseSearch, accounted_epsilon, figures, search_noise
from privacy.noise_search.vectors import spread_losses
from tests.support.scalar_noise import brute_force_epsilon

# Noise std at equal (epsilon, delta), as a ratio to the Gaussian's: two digits of the LMO-DP page's table.
CELLS = [
    (1, 1.0, 1e-5, 1.0, {"laplace": 0.38, "staircase": 0.37}),
    (10, 1.0, 1e-5, 0.3, {"laplace": 1.28, "exponential-power": 0.98}),
    (100, 0.01, 1e-5, 3.0, {"laplace": 0.56, "staircase": 0.46}),
]


def ratios(search: NoiseSearch) -> dict[str, float]:
    return {f: c.noise.std / search.gaussian.noise.std for f, c in search.candidates.items()}


@pytest.mark.parametrize(("steps", "rate", "delta", "epsilon", "cells"), CELLS)
def test_cells_of_the_published_table(
    steps: int, rate: float, delta: float, epsilon: float, cells: dict[str, float]
) -> None:
    question = NoiseQuestion(epsilon, delta, steps, rate)
    found = search_noise(question, families=tuple(cells))
    for family, published in cells.items():
        assert ratios(found)[family] == pytest.approx(published, rel=0.01, abs=0.005)
    for candidate in found.candidates.values():
        assert epsilon * 0.9998 <= candidate.epsilon <= epsilon
        assert accounted_epsilon(candidate.noise, question) == candidate.epsilon


@pytest.mark.parametrize(
    ("family", "steps", "rate"),
    [("exponential-power", 8, 1.0), ("staircase", 8, 1.0), ("laplace", 30, 0.05)],
)
def test_the_answer_is_enough_and_half_a_percent_less_is_not(
    family: str, steps: int, rate: float
) -> None:
    """Brute-force binning: the bins that round down break the target with less noise of that shape."""
    epsilon, delta = 0.7, 1e-5
    question = NoiseQuestion(epsilon, delta, steps, rate)
    noise = search_noise(question, families=(family,)).candidates[family].noise
    assert brute_force_epsilon(noise, rate, steps, delta)[0] <= epsilon
    less = noise.scaled(0.99)
    if isinstance(noise, StaircaseNoise):  # its amount is the loss of a step
        less = StaircaseNoise(noise.epsilon / 0.99, noise.gamma, noise.period)
    assert brute_force_epsilon(less, rate, steps, delta)[0] > epsilon * 0.998
    assert accounted_epsilon(noise.scaled(0.995), question) > epsilon or family == "staircase"


@given(st.floats(0.05, 5), st.floats(1e-11, 1e-3), st.integers(1, 300), st.floats(0.005, 1))
@settings(max_examples=8, deadline=None)
def test_every_answer_keeps_to_its_target(
    epsilon: float, delta: float, steps: int, rate: float
) -> None:
    question = NoiseQuestion(epsilon, delta, steps, rate)
    for family, candidate in search_noise(question, families=("laplace",)).candidates.items():
        event = scalar_noise(candidate.noise, steps, rate)
        spent = make_accountant("pld").epsilon({event: 1}, delta)
        assert epsilon * 0.9998 <= spent <= epsilon, family


def test_one_number_with_hardly_a_delta_gets_the_published_staircase() -> None:
    """Geng and Viswanath: the best gamma for E|x| is 1 / (1 + e^(epsilon / 2)) where delta is 0."""
    question = NoiseQuestion(2.0, 1e-12, objective=Objective.MEAN_ABS)
    found = search_noise(question, families=("laplace", "staircase"))
    noise = found.winner.noise
    assert isinstance(noise, StaircaseNoise)
    assert noise.epsilon == pytest.approx(2.0, rel=1e-3)
    assert noise.gamma == pytest.approx(1 / (1 + math.e), abs=0.03)
    assert noise.mean_abs == pytest.approx(math.e / math.expm1(2.0), rel=2e-3)
    assert found.winner.value == noise.mean_abs


def test_usefulness_prefers_a_peak_to_a_small_variance() -> None:
    question = NoiseQuestion(0.3, 1e-5, 10, objective=Objective.USEFULNESS, gamma=2.0)
    found = search_noise(question, families=("laplace",))
    assert ratios(found)["laplace"] > 1
    assert isinstance(found.winner.noise, LaplaceNoise)
    assert found.winner.value == pytest.approx(1 - found.winner.noise.usefulness(2.0))
    unset = NoiseQuestion(0.3, 1e-5, 10, objective=Objective.USEFULNESS)
    wide = search_noise(unset, families=("exponential-power",))
    assert wide.question.gamma == wide.gaussian.noise.std
    best = max(c.noise.usefulness(wide.question.gamma) for c in wide.candidates.values())
    assert wide.winner.noise.usefulness(wide.question.gamma) == pytest.approx(best, rel=2e-3)
    assert best > 0.69  # a Gaussian is within its standard deviation 68.3 % of the time


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.1, 1.0])
def test_the_best_mixture_is_plain_laplace(epsilon: float) -> None:
    found = search_noise(NoiseQuestion(epsilon, 1e-5, 10), families=("laplace", "lmo"))
    assert ratios(found)["lmo"] == pytest.approx(ratios(found)["laplace"], rel=2e-3)


def test_an_answer_is_kept_by_family_and_whatever_else_lies_there_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = NoiseQuestion(1.0, 1e-6)

    def interrupt(share: float, family: str) -> None:
        if family == "staircase":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_noise(question, tmp_path, interrupt, ("laplace", "staircase"))
    assert len(list(tmp_path.glob("noise-*.json"))) == 2  # the Gaussian and Laplace
    first = search_noise(question, tmp_path, families=("laplace", "staircase"))
    with monkeypatch.context() as patch:
        patch.setattr(search_module._Search, "run", lambda self: pytest.fail("searched again"))
        again = search_noise(question, tmp_path, families=("laplace", "staircase"))
        assert again == first
        # Another objective or target is another question.
        for other in (
            NoiseQuestion(1.0, 1e-6, objective=Objective.MEAN_ABS),
            NoiseQuestion(1.0, 1e-6, 2),
            NoiseQuestion(1.0, 1e-6, dimension=2),
        ):
            with pytest.raises(pytest.fail.Exception):
                search_noise(other, tmp_path, families=("laplace",))
    for file in tmp_path.glob("noise-*.json"):
        stored = json.loads(file.read_text())
        stored["result"]["noise"]["parameters"] = {"scale": -1}
        file.write_text(json.dumps(stored))
    assert search_noise(question, tmp_path, families=("laplace", "staircase")) == first


# -- vectors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [1, 7, 1024])
@pytest.mark.parametrize(("rate", "steps"), [(1.0, 3), (0.05, 40)])
def test_a_spread_change_costs_gaussian_noise_the_same(
    entries: int, rate: float, steps: int
) -> None:
    """The Gaussian is round: how a change is spread does not matter to it."""
    delta = 1e-6
    parts = spread_losses(GaussianNoise(2.0), entries, rate, steps, 1e-3)
    exact = make_accountant("pld").epsilon(
        {scalar_noise(GaussianNoise(2.0), steps, rate): 1}, delta
    )
    assert max(part.epsilon(delta) for part in parts) == pytest.approx(exact, rel=5e-3)


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 1), (1.0, 20), (0.05, 40)])
def test_a_change_of_one_entry_is_that_of_a_number(rate: float, steps: int) -> None:
    for noise in (LaplaceNoise(2.0), ExponentialPowerNoise(1.4, 2.0), StaircaseNoise(0.6, 0.3)):
        parts = spread_losses(noise, 1, rate, steps, 1e-3)
        exact = make_accountant("pld").epsilon({scalar_noise(noise, steps, rate): 1}, 1e-6)
        found = max(part.epsilon(1e-6) for part in parts)
        assert found == pytest.approx(exact, rel=5e-3)


def test_a_widely_spread_change_costs_the_root_of_the_fisher_information() -> None:
    """Laplace noise of scale b on many entries tends to GDP(1 / b), whatever its pure epsilon."""
    (part,) = spread_losses(LaplaceNoise(3.0), 4096, 1.0, 1, 1e-3)
    assert part.epsilon(1e-5) == pytest.approx(gaussian_epsilon(1 / 3.0, 1e-5), rel=0.01)


def test_the_gaussian_wins_for_vectors_and_the_factor_is_said() -> None:
    found = search_noise(NoiseQuestion(1.0, 1e-5, dimension=4096), families=("laplace",))
    assert isinstance(found.winner.noise, GaussianNoise)
    assert not found.undecided
    shown = figures(found)
    assert shown["family"] == "gaussian"
    assert shown["ratio_std"] == 1
    by_family = {best["family"]: best for best in shown["families"]}
    assert by_family["laplace"]["floor"]
    assert by_family["laplace"]["ratio_std"] == pytest.approx(math.sqrt(2), rel=0.01)
    assert by_family["laplace"]["ratio_mean_abs"] == pytest.approx(1.2533, rel=0.01)


def test_for_few_entries_laplace_wins_with_a_proof_and_no_floor_is_ever_offered() -> None:
    epsilon, entries = 0.3, 4
    question = NoiseQuestion(epsilon, 1e-10, dimension=entries)
    found = search_noise(question, families=("laplace", "staircase"))
    assert found.proven is not None
    assert found.winner == found.proven
    # Pure privacy: an L1 norm of at most 2 against the scale.
    assert found.winner.noise.parameters["scale"] == pytest.approx(2 / epsilon, rel=1e-3)
    floor = found.candidates["laplace"]
    assert floor.noise.std <= found.winner.noise.std * 1.005  # their discretisation
    assert all(c.floor for f, c in found.candidates.items() if f != "gaussian")


def test_what_may_need_less_but_has_no_guarantee_is_named_and_not_offered() -> None:
    question = NoiseQuestion(0.3, 1e-5, 10, dimension=2)
    found = search_noise(question, families=("laplace", "exponential-power"))
    assert found.candidates["exponential-power"].value < 0.995 * found.gaussian.value
    assert found.undecided == ["exponential-power"]
    assert found.winner == found.gaussian
    # Pure privacy proves Laplace noise only where there is much more of it.
    assert found.proven is not None
    assert found.proven.value > found.gaussian.value


# -- questions and files -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epsilon": 0.0}, "got epsilon=0"),
        ({"epsilon": math.inf}, "got epsilon=inf"),
        ({"delta": 1e-14}, "Expected 1e-13 <= delta < 1, got delta=1e-14"),
        ({"steps": 1.5}, "got steps=1.5"),
        ({"dimension": 0}, "got dimension=0"),
        ({"sampling_rate": 0.0}, "got sampling_rate=0"),
        ({"gamma": -1.0}, "got gamma=-1"),
    ],
)
def test_questions_that_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseQuestion(**{"epsilon": 1.0, "delta": 1e-5, **values})  # type: ignore[arg-type]


def test_a_file_of_the_search_is_read_back(tmp_path: Path) -> None:
    noise: ScalarNoise = StaircaseNoise(0.3, 0.4)
    path = tmp_path / "noise.json"
    path.write_text(json.dumps({**noise.to_dict(), "std": noise.std, "question": {}}))
    assert read_noise(path) == noise
    for text, message in (
        ("[]", "keys family and parameters"),
        ("{", "fedllm noise-search"),
        ('{"family": "laplace", "parameters": {"scale": 0}}', "got scale=0.*noise.json"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_noise(path)
    with pytest.raises(ValueError, match=r"missing.json"):
        read_noise(tmp_path / "missing.json")


def test_laplace_noise_of_a_small_loss_is_accounted_tightly() -> None:
    """Its loss of 1e-5 is below the interval that larger losses are given: once 3.4 times too much."""
    count, scale = 10**6, 1e5
    found = make_accountant("pld").epsilon({scalar_noise(LaplaceNoise(scale), count): 1}, 1e-6)
    # By the central limit: a million losses of 1e-5 are those of a Gaussian of mu = 1e-2.
    assert found == pytest.approx(gaussian_epsilon(math.sqrt(count) / scale, 1e-6), rel=0.01)


@given(
    st.tuples(*(st.floats(0, 1) for _ in range(3)), st.floats(-1.3, 4.1), st.floats(0, 1)),
    st.floats(0.1, 50),
)
def test_every_mixture_that_is_tried_has_the_asked_mean_of_its_terms(
    shape: tuple[float, ...], amount: float
) -> None:
    """E[u] = 1 / amount, in the asked shares: Gamma, truncated normal, exponential, uniform."""
    noise = search_spaces(1)[-1].make(shape, amount)
    assert isinstance(noise, LmoNoise)
    assert float(noise.mean_inverse_scale(0.0)) == pytest.approx(1 / amount, rel=1e-9)
    whole = max(1.0, sum(shape[:3]))
    assert noise.a1 * amount == pytest.approx(shape[0] / whole, abs=1e-12)
    normal = shape[1] / whole if shape[4] >= 1e-6 else 0.0
    assert noise.a2 * amount == pytest.approx(normal, abs=1e-12)
    assert noise.a3 * amount == pytest.approx(shape[2] / whole, abs=1e-12)


def test_the_search_tries_truncated_normal_terms() -> None:
    (space,) = (s for s in search_spaces(1) if s.family == "lmo")
    tried = [space.make(shape, 1.0) for shape in space.grid]
    assert any(isinstance(n, LmoNoise) and n.a2 > 0 and n.a1 == 0 for n in tried)
    assert any(isinstance(n, LmoNoise) and n.a2 > 0 and n.a1 > 0 for n in tried)
    assert isinstance(tried[0], LmoNoise)
    assert tried[0].parameters["a4"] == 1.0
    assert tried[0].std == pytest.approx(math.sqrt(2), rel=1e-6)
