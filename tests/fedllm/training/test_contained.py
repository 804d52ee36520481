"""An example that raises counts as zero in every private step; nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.flatness.layer_release import make_score_release
from fedllm.silo.evaluation import correct_answers
from fedllm.silo.task import SiloTask
from fedllm.training.batch.contained import Failures, example_rows
from fedllm.training.black_box.directions import Directions, DirectionsPlan, round_seed
from fedllm.training.black_box.forward_only import forward_only
from fedllm.training.dp_sgd import DpSgd
from fedllm.training.gradients import clipped_gradient_sum, gradient_sum
from fedllm.training.statistics import make_statistics_release
from fedllm.training.steps import LocalResult, LocalWork
from fedllm.training.tunable import Tunable, initial_params, shared_tunable
from privacy.randomness import generator
from tests.support.local_training import train_forward_only, train_locally
from tests.support.tiny_tunables import shaken

Make = Callable[..., Any]
POISON = {
    "a token outside the embedding": Feature([2, 10_000, 5], target=0),
    "longer than the positions": Feature([2] + [5] * 200, target=1),
    "no token": Feature([], target=0),
    "no target": Feature([2, 5, 6]),
    "an unknown class": Feature([2, 5, 6], target=9),
    "no whole number": Feature([2, None, 6], target=0),  # type: ignore[list-item]
}
"""Features that raise in collate, in the embedding, or in the loss."""


@pytest.fixture(scope="module")
def tunable(tiny_settings: Make) -> Tunable:
    return shared_tunable(tiny_settings())


@pytest.fixture(scope="module")
def features(tunable: Tunable, word_records: Any) -> list[Feature]:
    return tunable.task.features(word_records(14, 3))


@pytest.fixture(scope="module")
def params(tunable: Tunable, tiny_settings: Make) -> dict[str, Tensor]:
    return shaken(initial_params(tunable, tiny_settings()))


def among(features: list[Feature], poison: Feature) -> list[Feature]:
    return [*features[:5], poison, *features[5:]]


def streams(purpose: str, step: int) -> Any:
    return generator(5, purpose, step)


def train(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], settings: Any
) -> LocalResult:
    """All examples are in each step (rate 1); the noise is the same for the same settings."""
    options = {"sampling_rate": 1.0, "noise_multiplier": 0.8, "streams": streams}
    if settings.model.access == "black-box":
        along = Directions(DirectionsPlan.of(settings), params, round_seed(1, "run", 1))
        model = forward_only(tunable)
        return train_forward_only(model, params, features, settings, directions=along, **options)
    return train_locally(tunable, params, features, settings, **options)


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
@pytest.mark.parametrize("max_tokens", [20, 10_000])
def test_a_clipped_sum_is_that_of_the_others(
    poison: Feature,
    max_tokens: int,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
) -> None:
    """Each of the others keeps its own gradient, whichever micro-batch the failing one fell into."""
    failures = Failures()
    options: Any = {
        "clip_norm": 0.1,
        "scales": dict.fromkeys(params, 1.0),
        "max_tokens": max_tokens,
    }
    expected = clipped_gradient_sum(tunable, params, features, **options)
    got = clipped_gradient_sum(
        tunable, params, among(features, poison), failures=failures, **options
    )
    assert failures.count == 1
    assert (got.count, got.clipped) == (expected.count + 1, expected.clipped)
    assert expected.clipped > 0
    for one, other in zip(got.sums, expected.sums, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


MODES = {
    "example": {},
    "client": {"privacy.unit": "client", "privacy.relation": "replace-one"},
    "perturbed": {"awp.form": "per-example", "awp.gamma": 0.01},
    "adaptive clipping": {"clipping.form": "adaptive"},
    "black box": {"model.access": "black-box"},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_a_round_is_that_of_the_others_with_the_same_noise(
    mode: str,
    poison: Feature,
    tiny_settings: Make,
    params: dict[str, Tensor],
    features: list[Feature],
) -> None:
    settings = tiny_settings(**MODES[mode])
    tunable = shared_tunable(settings)
    expected = train(tunable, params, features, settings)
    got = train(tunable, params, among(features, poison), settings)
    assert got.update.keys() == expected.update.keys()
    assert got.failed > 0
    for name, value in expected.update.items():
        torch.testing.assert_close(got.update[name], value, rtol=1e-3, atol=1e-5)


def test_noise_is_released_where_every_example_fails(
    tunable: Tunable,
    params: dict[str, Tensor],
    tiny_settings: Make,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = tiny_settings(**{"client.local_steps": 1})
    empty = train(tunable, params, [], settings)
    with caplog.at_level("ERROR"):
        got = train(tunable, params, list(POISON.values()), settings)
    assert got.failed == len(POISON)
    assert "the step releases noise alone" in caplog.text
    for name, value in empty.update.items():
        assert value.abs().max() > 0
        torch.testing.assert_close(got.update[name], value)


def test_without_privacy_an_example_that_raises_is_an_error(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    settings = tiny_settings(**{"privacy.mode": "none", "privacy.noise_multiplier": None})
    batch = among(features, POISON["an unknown class"])
    with pytest.raises(IndexError):
        train_locally(
            tunable,
            params,
            batch,
            settings,
            sampling_rate=1.0,
            noise_multiplier=0.0,
            streams=streams,
        )


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_examples_fault(kind: type[BaseException]) -> None:
    def compute(chosen: Any) -> list[Tensor]:
        raise kind

    with pytest.raises(kind):
        example_rows(compute, [Feature([1])], [()], Failures())


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_what_does_not_fit_together_is_computed_one_by_one(error: type[Exception]) -> None:
    def compute(chosen: Any) -> list[Tensor]:
        if len(chosen) > 1:
            raise error("no room")
        return [torch.tensor([float(len(chosen[0]))])]

    failures = Failures()
    (rows,) = example_rows(compute, [Feature([1] * n) for n in (1, 2, 3)], [()], failures)
    assert rows.tolist() == [1.0, 2.0, 3.0]
    assert failures.count == 0


def test_plain_sums_contain_too(
    tunable: Tunable, params: dict[str, Tensor], features: list[Feature]
) -> None:
    expected = gradient_sum(tunable, params, features, max_tokens=1000)
    batch = among(features, POISON["longer than the positions"])
    got = gradient_sum(tunable, params, batch, max_tokens=1000, failures=Failures())
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_an_example_that_raises_is_answered_incorrectly(
    poison: Feature, tunable: Tunable, params: dict[str, Tensor], features: list[Feature]
) -> None:
    failures = Failures()
    expected = correct_answers(tunable, params, features, 100, None)
    assert 0 < expected < len(features)
    assert correct_answers(tunable, params, among(features, poison), 100, failures) == expected
    assert failures.count == 1


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_statistics_and_scores_contain_too(
    poison: Feature, params: dict[str, Tensor], features: list[Feature], tiny_settings: Make
) -> None:
    """The statistic of a failing example is that of a gradient of zero, of norm at most its bound."""
    settings = tiny_settings(
        **{
            "codec.name": "linear",
            "codec.prior_source": "private",
            "codec.rank": 2,
            "layers.form": "private",
            "layers.keep": 1,
            "layers.bound": 0.5,
        }
    )
    tunable, batch = shared_tunable(settings), among(features, poison)
    release = make_statistics_release(settings).release
    released = release(tunable, params, batch, sampling_rate=1.0, streams=streams)
    plain = release(tunable, params, features, sampling_rate=1.0, streams=streams)
    assert released.shape == plain.shape
    assert float((released - plain).norm()) * float(settings.client.batch_size) <= 1 + 1e-6
    with_poison, others = (
        make_score_release(settings).release(
            tunable, params, chosen, [0, 1], sampling_rate=1.0, streams=streams
        )
        for chosen in (batch, features)
    )
    torch.testing.assert_close(with_poison, others, rtol=1e-3, atol=1e-5)


def test_the_row_is_written_and_the_silo_answers(
    tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of no example: the release is made again without data, and the log has the cause."""
    from fedllm.data.silos import load_federation
    from fedllm.silo.silo import SiloWorker
    from fedllm.task_errors import TaskFailed

    settings = tiny_settings()
    silo = load_federation(settings).silos[0]
    ledger, own_log = tmp_path / "ledger.sqlite", tmp_path / "log" / "alpha.jsonl"
    worker = SiloWorker(settings, silo, run="r", ledger=ledger, log=own_log)
    start = initial_params(worker.tunable, settings)
    real = DpSgd.train

    def fails_with_data(mechanism: DpSgd, work: LocalWork) -> LocalResult:
        if work.features:
            raise RuntimeError("patient 7")
        return real(mechanism, work)

    monkeypatch.setattr(DpSgd, "train", fails_with_data)
    reply = worker.train(SiloTask(start, 1, 3))
    assert all(value.abs().max() > 0 for value in reply.update.values())
    assert "patient 7" in own_log.read_text()
    calls = iter([True, False, False])

    def fails_after_the_first_call(*args: Any, **options: Any) -> LocalResult:
        return real(*args, **options) if next(calls) else 1 / 0

    monkeypatch.setattr(DpSgd, "train", fails_after_the_first_call)
    with pytest.raises(TaskFailed, match="its own log has the reason") as raised:
        worker.train(SiloTask(start, 2, 3))
    assert "division" not in str(raised.value)
    assert len(worker.ledger.entries(party=silo.name)) == 2


def test_what_raises_without_data_is_refused_before_the_row(
    tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedllm.data.silos import load_federation
    from fedllm.silo.silo import SiloWorker
    from fedllm.task_errors import TaskFailed

    settings = tiny_settings()
    silo = load_federation(settings).silos[0]
    worker = SiloWorker(settings, silo, run="r", ledger=tmp_path / "ledger.sqlite")
    monkeypatch.setattr(DpSgd, "train", lambda *a, **k: 1 / 0)
    with pytest.raises(TaskFailed, match="its own log has the reason") as raised:
        worker.train(SiloTask(initial_params(worker.tunable, settings), 1, 3))
    assert "division" not in str(raised.value)
    assert worker.ledger.entries() == []


def test_a_log_that_cannot_be_written_costs_nothing(tiny_settings: Make, tmp_path: Path) -> None:
    from fedllm.data.silos import load_federation
    from fedllm.silo.silo import SiloWorker

    settings = tiny_settings()
    silo = load_federation(settings).silos[0]
    (tmp_path / "file").write_text("in the way")
    own_log = tmp_path / "file" / "alpha.jsonl"
    worker = SiloWorker(settings, silo, run="r", ledger=tmp_path / "ledger.sqlite", log=own_log)
    assert worker.train(SiloTask(initial_params(worker.tunable, settings), 1, 3)).update
