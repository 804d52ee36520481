"""What a silo releases of its layers' scores: bounded, noised by what is recorded, recorded before."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fedllm import messages as names
from fedllm.budget.account import SiloAccount
from fedllm.data.batches import Feature
from fedllm.data.silos import load_federation
from fedllm.flatness import layer_release
from fedllm.flatness.layer_release import ScoreRelease, make_score_release
from fedllm.flatness.layer_scores import make_sharpness
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training.statistics import statistics_point
from fedllm.training.tunable import Tunable, initial_params, shared_tunable
from privacy.accountants import make_accountant
from privacy.budget import BudgetExceeded
from privacy.events.constructors import dp_sgd, gaussian, pure_dp
from privacy.events.multiset import is_private, multiset
from privacy.guarantee import SERVER
from privacy.ledger.ledger import Ledger
from privacy.randomness import generator
from tests.support.choices import by_subsets
from tests.support.deep import LAYERS, deep_settings

Make = Callable[..., Any]
PRIVATE = {"layers.form": "private", "layers.examples": 16}
CANDIDATES = list(range(LAYERS))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, word_files: Path) -> Make:
    inner = deep_settings(tmp_path_factory.mktemp("deep"), word_files)
    return lambda **changes: inner(**(PRIVATE | changes))


@pytest.fixture(scope="module")
def tunable(make: Make) -> Tunable:
    return shared_tunable(make())


@pytest.fixture(scope="module")
def features(make: Make, tunable: Tunable) -> list[Feature]:
    return tunable.task.features(load_federation(make()).silos[0].train.records[:12])


@pytest.fixture(scope="module")
def point(make: Make, tunable: Tunable) -> dict[str, Tensor]:
    return statistics_point(initial_params(tunable, make()), 3)


def release(
    tunable: Tunable, point: Any, features: list[Feature], settings: Any, **options: Any
) -> Tensor:
    options = {"sampling_rate": 1.0, "streams": lambda purpose, step: generator(None)} | options
    return make_score_release(settings).release(tunable, point, features, CANDIDATES, **options)


@pytest.mark.parametrize("bound", [0.02, None])
def test_one_example_moves_the_sum_by_no_more_than_the_sensitivity(
    bound: float | None,
    make: Make,
    tunable: Tunable,
    features: list[Feature],
    point: dict[str, Tensor],
) -> None:
    """Against each neighbouring data set, without noise, at a bound that most differences exceed."""
    settings = make(**{"layers.bound": bound, "layers.radius": 0.7, "privacy.mode": "none"})
    whole = release(tunable, point, features, settings) * 16
    most = 0.0
    for gone in range(len(features)):
        left = release(tunable, point, features[:gone] + features[gone + 1 :], settings) * 16
        most = max(most, float((whole - left).norm()))
    sensitivity = (bound or 1.0) * math.sqrt(LAYERS)
    assert 0.99 * sensitivity < most <= sensitivity + 1e-5  # reached: the bound is no guess
    event = multiset(make_score_release(settings).events(0.5))
    assert not any(map(is_private, event))  # without noise


def test_a_shared_step_would_let_one_example_move_all(
    make: Make, tunable: Tunable, features: list[Feature], point: dict[str, Tensor]
) -> None:
    """Why the batch's gradient is not taken: at a bound that no difference exceeds, clipping leaves the
    sum of examples' differences along it, and one example in it moves that by more than the bound."""
    settings = make(**{"layers.radius": 0.9, "privacy.mode": "none"})

    def total(chosen: list[Feature]) -> Tensor:
        shared = layer_release.mean_sharpness(
            tunable, point, chosen, CANDIDATES, make_sharpness(settings)
        )
        return (shared - shared.mean()) * len(chosen)

    own = layer_release.relative(
        layer_release.example_sharpness(
            tunable, point, features, CANDIDATES, make_sharpness(settings)
        )
    )
    whole = total(features)
    moved = [total(features[:n] + features[n + 1 :]) - whole for n in range(len(features))]
    ratio = max(float(m.norm() / row.norm()) for m, row in zip(moved, own, strict=True))
    assert ratio > 1.5


def test_what_all_layers_share_is_taken_off_and_no_number_counts_as_nothing() -> None:
    given = torch.tensor([[5.0, 6.0, 10.0], [math.inf, 1.0, 0.0], [math.nan, 1, 2]])
    assert layer_release.relative(given.double()).tolist() == [[-2, -1, 3], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("bound", [0.2, None])
@pytest.mark.parametrize("unit", ["example", "client"])
def test_the_noise_is_what_the_event_says(
    unit: str, bound: float | None, make: Make, tunable: Tunable, point: dict[str, Tensor]
) -> None:
    """4 x 500 releases without an example: nothing but noise."""
    settings = make(
        **{"layers.noise": 3.0, "layers.bound": bound, "layers.examples": 8, "privacy.unit": unit}
    )
    drawn = torch.cat([release(tunable, point, [], settings) for _ in range(500)]).numpy()
    expected = 3.0 * (bound or 1.0) * math.sqrt(LAYERS) / (8 if unit == "example" else 1)
    assert make_score_release(settings).noise_std(LAYERS) == pytest.approx(expected)
    assert stats.kstest(drawn / expected, "norm").pvalue > 1e-4
    low, high = stats.chi2.ppf([1e-5, 1 - 1e-5], drawn.size)
    assert low < float(np.sum((drawn / expected) ** 2)) < high
    rate = make_score_release(settings).rate(0.5)
    event = dp_sgd(rate, 3.0, 1) if unit == "example" else gaussian(3.0)
    assert make_score_release(settings).events(0.5) == multiset({event: 1})


def test_examples_are_drawn_at_the_rate_of_the_event(
    make: Make, tunable: Tunable, features: list[Feature], point: dict[str, Tensor]
) -> None:
    """Each example is in the sample or not, by the rate that the event holds."""
    settings = make(**{"client.batch_size": 8, "layers.examples": 4})
    assert make_score_release(settings).rate(0.3) == pytest.approx(0.15)
    assert make_score_release(settings.model_copy()).rate(1.0) == 0.5
    assert (
        make_score_release(make(**{"client.batch_size": 8, "layers.examples": 64})).rate(0.3) == 1.0
    )
    asked: list[float] = []

    class Watched:
        def random(self, size: int) -> Any:
            asked.append(size)
            return np.array([0.149, 0.151] * (size // 2))

        def __getattr__(self, name: str) -> Any:
            return getattr(generator(1), name)

    sample: list[int] = []

    def seen(t: Any, p: Any, chosen: Any, candidates: Any, *rest: Any) -> Tensor:
        sample.extend(features.index(f) for f in chosen)
        return torch.zeros(len(chosen), len(candidates), dtype=torch.float64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_release, "example_sharpness", seen)
        release(
            tunable,
            point,
            features,
            settings,
            sampling_rate=make_score_release(settings).rate(0.3),
            streams=lambda purpose, step: Watched() if purpose == "sample" else generator(2),
        )
    assert asked == [12]
    assert sample == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("bound", [0.01, None])
def test_a_whole_silo_moves_its_vector_by_the_sensitivity(
    bound: float | None,
    make: Make,
    tunable: Tunable,
    features: list[Feature],
    point: dict[str, Tensor],
) -> None:
    settings = make(
        **{"layers.bound": bound, "layers.radius": 0.9, "privacy.unit": "client"}
        | {"privacy.mode": "none"}
    )
    found = release(tunable, point, features, settings)
    sensitivity = (bound or 1.0) * math.sqrt(LAYERS)
    assert 0.9 * sensitivity < float(found.norm()) <= sensitivity + 1e-9  # however many examples
    assert release(tunable, point, [], settings).tolist() == [0.0] * LAYERS


@pytest.mark.parametrize("bound", [0.1, None])
@pytest.mark.parametrize("unit", ["example", "client"])
def test_votes_of_a_silo_follow_the_noisy_choice(
    unit: str,
    bound: float | None,
    make: Make,
    tunable: Tunable,
    features: list[Feature],
    point: dict[str, Tensor],
) -> None:
    """Against the exact probabilities of the utilities that the differences give."""
    given = torch.tensor([[0.0, 0.05, -0.3, 0.1], [0.02, 0.05, -0.01, math.nan]]).double()
    centred = given[0] - given[0].mean()
    if unit == "client":
        centred /= 2  # the mean with the second example, which is no number and counts as 0
    units = centred.clamp(-0.1, 0.1) / 0.1 if bound else centred / float(centred.abs().max())
    own = {"layers.bound": bound, "privacy.unit": unit, "layers.epsilon": 4.0}
    settings = make(**own, **{"layers.form": "private-top-k"})
    assert make_score_release(settings).events(0.8) == multiset({pure_dp(4.0): 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_release, "example_sharpness", lambda *args: given)
        drawn = [release(tunable, point, features[:2], settings) for _ in range(1500)]
    assert all(sorted(votes.tolist()) == [0, 0, 1, 1] for votes in drawn)
    expected = by_subsets((units * 2**20).round().tolist(), 2, 2**20, 4.0)
    found = Counter(tuple(votes.nonzero().flatten().tolist()) for votes in drawn)
    names = sorted(expected)
    wanted = [expected[n] * 1500 for n in names]
    assert stats.chisquare([found[n] for n in names], wanted).pvalue > 1e-4


def test_a_sampled_choice_costs_what_is_recorded(
    make: Make, tunable: Tunable, features: list[Feature], point: dict[str, Tensor]
) -> None:
    """The noise is that of the larger epsilon which the sample brings down; not so at unit client."""
    asked: list[float] = []

    def watch(utilities: Any, count: int, sensitivity: int, epsilon: float, rng: Any) -> list[int]:
        assert (count, sensitivity, len(utilities)) == (2, 2**20, LAYERS)
        asked.append(epsilon)
        return [0, 1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_release, "noisy_top", watch)
        for unit in ("example", "client"):
            own = make(**{"layers.form": "private-top-k", "privacy.unit": unit})
            release(tunable, point, features[:3], own, sampling_rate=0.25)
    assert math.log1p(0.25 * math.expm1(asked[0])) == pytest.approx(0.5)
    assert asked[1] == 0.5


# -- the worker and its account ------------------------------------------------------------------


def scores(
    asked: SiloWorker, point: dict[str, Tensor], candidates: Sequence[int] = CANDIDATES
) -> tuple[Tensor, float]:
    """What the silo answers, and its sampling rate."""
    extras = {names.CANDIDATES: tuple(candidates)}
    answer = asked.answer(SiloTask(point, 0, 3, extras, names.ASK_SCORES))
    return answer.tensors[names.SCORES][names.SCORES], answer.numbers[names.SAMPLING_RATE]


def worker(settings: Any, folder: Path, name: str = "alpha") -> SiloWorker:
    silo = next(s for s in load_federation(settings).silos if s.name == name)
    settings = settings.model_copy(
        update={"layers": settings.layers.model_copy(update={"releases": 2})}
    )
    return SiloWorker(settings, silo, run="run-1", ledger=folder / "ledger.sqlite")


def scores_rows(folder: Path) -> list[Any]:
    with Ledger(folder / "ledger.sqlite", read_only=True) as ledger:
        return [row for row in ledger.entries() if row.purpose == "layer-scores"]


def test_the_row_is_on_disk_before_the_scores_are_measured(
    make: Make, tmp_path: Path, point: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = worker(make(), tmp_path)
    seen: list[int] = []
    inner = ScoreRelease.release

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        if args[3]:  # a release of no data comes first
            seen.append(len(scores_rows(tmp_path)))
        assert kwargs["sampling_rate"] == pytest.approx(16 / 60)
        return inner(*args, **kwargs)

    monkeypatch.setattr(ScoreRelease, "release", watched)
    first, rate = scores(asked, point)
    again, _ = scores(asked, point)
    assert torch.equal(first, again)  # seeded: the very same release, and one row
    other, _ = scores(asked, point, CANDIDATES[1:])
    assert seen == [1, 1, 2]
    assert not torch.equal(first[1:], other)  # other candidates, other noise
    row = scores_rows(tmp_path)[0]
    assert rate == pytest.approx(8 / 60)
    assert row.view(SERVER) == dp_sgd(make_score_release(make()).rate(rate), make().layers.noise, 1)
    with pytest.raises(ValueError, match="at least two ascending layers"):
        scores(asked, point, [0, 9])
    assert len(scores_rows(tmp_path)) == 2


def test_no_budget_no_scores(
    make: Make, tmp_path: Path, point: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The release alone is above the target: nothing is measured, nothing recorded."""
    asked = worker(make(**{"layers.noise": 0.3, "privacy.epsilon": 0.5}), tmp_path)

    inner = ScoreRelease.release

    def reached(*args: Any, **kwargs: Any) -> Any:
        assert not args[3], "measured without a row in the ledger"  # a release of no data may be
        return inner(*args, **kwargs)

    monkeypatch.setattr(ScoreRelease, "release", reached)
    with pytest.raises(BudgetExceeded, match=r"privacy\.epsilon"):
        scores(asked, point)
    assert scores_rows(tmp_path) == []


def test_scores_that_nobody_asked_for_are_refused(
    make: Make, tmp_path: Path, point: dict[str, Tensor]
) -> None:
    asked = worker(make(**{"layers.form": "public"}), tmp_path)
    with pytest.raises(ValueError, match="a request that the settings ask for"):
        scores(asked, point)
    assert scores_rows(tmp_path) == []


@pytest.mark.parametrize("unit", ["example", "client"])
def test_calibration_leaves_room_for_all_releases(unit: str, make: Make, tmp_path: Path) -> None:
    """A greedy search releases scores several times; with them the target is used up, not exceeded."""
    target = {"privacy.noise_multiplier": None, "privacy.epsilon": 4.0, "privacy.unit": unit}
    noises, releases = [], 3
    for form in ("public", "private"):
        greedy = {"layers.form": form, "layers.search": "greedy", "layers.noise": 6.0}
        settings = make(**target, **greedy)
        own = settings.layers.model_copy(update={"releases": releases})
        settings = settings.model_copy(update={"layers": own})
        ledger = Ledger(tmp_path / f"{form}.sqlite")
        account = SiloAccount(
            settings, run="r", party="alpha", examples=60, rounds=3, ledger=ledger
        )
        noises.append(account.noise_multiplier)
        planned = account.planned()
        scores = make_score_release(settings).planned(account.sampling_rate)
        assert sum(scores.values()) == (releases if form == "private" else 0)
        assert scores <= planned
        spent = make_accountant("rdp").epsilon(planned, settings.privacy.delta)
        assert 0.99 * 4.0 < spent <= 4.0
    assert noises[1] > noises[0]
    with pytest.raises(ValueError, match=r"Expected layers\.releases"):
        make_score_release(make(**{"layers.search": "greedy"})).planned(0.5)
