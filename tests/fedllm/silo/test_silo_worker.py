"""One silo's worker: the ledger's row exists before anything is computed, noise is never reused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fedllm import messages as names
from fedllm.data.silos import Silo, load_federation
from fedllm.silo.evaluation import CountRelease
from fedllm.silo.extensions.base import Answer
from fedllm.silo.process import shared_worker
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training.dp_sgd import DpSgd
from fedllm.training.steps import LocalWork
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.budget import BudgetExceeded
from privacy.events.constructors import discrete_gaussian
from privacy.events.multiset import is_private, multiset
from privacy.ledger.ledger import Ledger, LedgerError

Make = Callable[..., Any]
PRIVATE = {"evaluation.clients": "private", "evaluation.clients_holdout": 0.3}


def silo(settings: Any, name: str = "alpha") -> Silo:
    return next(s for s in load_federation(settings).silos if s.name == name)


def make_worker(settings: Any, folder: Path, name: str = "alpha", run: str = "run-1") -> SiloWorker:
    return SiloWorker(settings, silo(settings, name), run=run, ledger=folder / "ledger.sqlite")


@pytest.fixture
def params(tiny_settings: Make) -> dict[str, Tensor]:
    return initial_params(shared_tunable(tiny_settings()), tiny_settings())


def counts(
    worker: SiloWorker, params: dict[str, Tensor], server_round: int, planned: int
) -> tuple[float, float]:
    """Correct answers and number of examples, as the silo releases them."""
    numbers = worker.answer(SiloTask(params, server_round, planned, kind=names.EVALUATE)).numbers
    return numbers[names.CORRECT], numbers[names.COUNT]


def rows(worker: SiloWorker) -> list[Any]:
    return worker.ledger.entries(party=worker.silo.name)


def test_row_is_on_disk_before_training_begins(
    tiny_settings: Make,
    tmp_path: Path,
    params: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen from another connection at the moment when the first random number is asked for."""
    worker = make_worker(tiny_settings(), tmp_path)
    seen: list[int] = []
    streams = worker.streams

    def watched(*args: Any) -> Any:
        inner = streams(*args)

        def draw(purpose: str, step: int) -> np.random.Generator:
            with Ledger(tmp_path / "ledger.sqlite", read_only=True) as other:
                seen.append(len(other.entries(party="alpha")))
            return inner(purpose, step)

        return draw

    monkeypatch.setattr(worker, "streams", watched)
    worker.train(SiloTask(params, 1, 3))
    assert seen == [1, 1, 1, 1]  # samples and noises of two steps
    worker.train(SiloTask(params, 2, 3))
    assert seen[4:] == [2, 2, 2, 2]


@pytest.mark.parametrize("failure", [LedgerError("disk full"), BudgetExceeded("no", 9.0, 8.0)])
def test_nothing_is_computed_where_the_ledger_refuses(
    failure: Exception,
    tiny_settings: Make,
    tmp_path: Path,
    params: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = make_worker(tiny_settings(**PRIVATE), tmp_path)

    def refuse(*args: Any, **kwargs: Any) -> bool:
        raise failure

    def reached(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("went on without a row in the ledger")

    train, counts = DpSgd.train, CountRelease.release

    def trains(mechanism: DpSgd, work: LocalWork) -> Any:  # a release of no data is made before
        return (reached if work.features else train)(mechanism, work)

    def counts_of(*args: Any) -> Any:
        return (reached if args[3] else counts)(*args)

    monkeypatch.setattr(worker.ledger, "extend", refuse)
    monkeypatch.setattr(DpSgd, "train", trains)
    monkeypatch.setattr(CountRelease, "release", counts_of)
    monkeypatch.setattr(worker.tunable, "evaluate", reached)
    with pytest.raises(type(failure)):
        worker.train(SiloTask(params, 1, 3))
    with pytest.raises(type(failure)):
        worker.answer(SiloTask(params, 1, 3, kind=names.EVALUATE))


def test_ledger_that_cannot_be_written_stops_the_round(
    tiny_settings: Make, tmp_path: Path, params: dict[str, Tensor]
) -> None:
    """A real failure of the file: another process holds it for longer than the writer waits."""
    import sqlite3

    settings = tiny_settings()
    worker = make_worker(settings, tmp_path)
    worker.ledger.close()
    worker.ledger = Ledger(tmp_path / "ledger.sqlite", timeout=0.2)
    lock = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LedgerError, match=r"Cannot (write|read)"):
        worker.train(SiloTask(params, 1, 3))
    lock.execute("ROLLBACK")
    lock.close()
    assert rows(worker) == []
    worker.train(SiloTask(params, 1, 3))
    assert len(rows(worker)) == 1


def test_budget_that_is_spent_leaves_no_row_and_no_update(
    tiny_settings: Make, tmp_path: Path, params: dict[str, Tensor]
) -> None:
    worker = make_worker(tiny_settings(**{"privacy.epsilon": 5.0}), tmp_path)
    done = 0
    try:
        for server_round in range(1, 20):
            worker.train(SiloTask(params, server_round, 20))
            done += 1
    except BudgetExceeded:
        pass  # before the round that would exceed it
    assert 1 <= done < 19
    assert len(rows(worker)) == done


def test_seeded_repetition_gives_the_same_bits_and_no_row(
    tiny_settings: Make, tmp_path: Path, params: dict[str, Tensor]
) -> None:
    first = make_worker(tiny_settings(), tmp_path).train(SiloTask(params, 1, 3))
    again = make_worker(tiny_settings(), tmp_path)
    second = again.train(SiloTask(params, 1, 3))
    assert all(torch.equal(first.update[n], second.update[n]) for n in params)
    assert len(rows(again)) == 1


def test_repetition_with_fresh_noise_costs_a_row(
    tiny_settings: Make, tmp_path: Path, params: dict[str, Tensor]
) -> None:
    worker = make_worker(tiny_settings(**{"privacy.randomness": "os"}), tmp_path)
    first, second = worker.train(SiloTask(params, 1, 3)), worker.train(SiloTask(params, 1, 3))
    assert not torch.equal(first.update["prefix"], second.update["prefix"])
    assert len(rows(worker)) == 2


def noises(
    worker: SiloWorker, params: dict[str, Tensor], server_round: int, noise: float = 1.0
) -> np.ndarray:
    """First numbers of the streams that a round would draw its noise from."""
    streams = worker.streams(server_round, worker.digest(SiloTask(params), noise))
    return np.concatenate([streams("noise", step).standard_normal(4) for step in range(3)])


def test_no_two_silos_rounds_runs_or_values_share_noise(
    tiny_settings: Make, tmp_path: Path, params: dict[str, Tensor], word_records: Any
) -> None:
    settings = tiny_settings()
    moved = {name: value.clone() for name, value in params.items()}
    moved["prefix"].view(-1)[0] = torch.nextafter(moved["prefix"].view(-1)[0], torch.tensor(9.0))
    alpha = make_worker(settings, tmp_path)
    fewer = Silo("alpha", alpha.silo.train.select(range(59), "alpha"), alpha.silo.held_out)
    twin = Silo("twin", alpha.silo.train, alpha.silo.held_out)
    streams = {
        "alpha, round 1": noises(alpha, params, 1),
        "round 2": noises(alpha, params, 2),
        "a silo with the same data": noises(
            SiloWorker(settings, twin, run="run-1", ledger=tmp_path / "l.sqlite"), params, 1
        ),
        "beta": noises(make_worker(settings, tmp_path, "beta"), params, 1),
        "one bit of the parameters": noises(alpha, moved, 1),
        "another clip": noises(
            make_worker(tiny_settings(**{"privacy.clip": 0.4}), tmp_path), params, 1
        ),
        "another seed": noises(make_worker(tiny_settings(seed=8), tmp_path), params, 1),
        "another noise multiplier": noises(alpha, params, 1, noise=1.5),
        "one example fewer": noises(
            SiloWorker(settings, fewer, run="run-1", ledger=tmp_path / "l.sqlite"), params, 1
        ),
    }
    everything = np.concatenate(list(streams.values()))
    assert len(np.unique(everything)) == len(everything)
    workers = [
        SiloWorker(settings, one, run="run-1", ledger=tmp_path / "l.sqlite")
        for one in (alpha.silo, twin)
    ]
    keyed = [worker.streams(1, "one digest")("noise", 0).standard_normal(4) for worker in workers]
    assert not np.array_equal(*keyed), "the silo's name is a label of its own, beside the digest"
    again = noises(make_worker(settings, tmp_path / "..", run="elsewhere"), params, 1)
    assert np.array_equal(again, streams["alpha, round 1"]), "seeded runs must be repeatable"


def test_same_round_on_other_data_is_another_release(
    tiny_settings: Make, tmp_path: Path, params: dict[str, Tensor]
) -> None:
    """The data changed between an interruption and the resume: other noise, and it is counted."""
    settings = tiny_settings(**{"client.sampling_rate": 0.1})
    whole = make_worker(settings, tmp_path)
    first = whole.train(SiloTask(params, 1, 3))
    part = Silo("alpha", whole.silo.train.select(range(59), "alpha"), whole.silo.held_out)
    changed = SiloWorker(settings, part, run="run-1", ledger=tmp_path / "ledger.sqlite")
    second = changed.train(SiloTask(params, 1, 3))
    assert not torch.equal(first.update["prefix"], second.update["prefix"])
    assert len(rows(changed)) == 2


def test_equal_settings_at_another_scale_of_noise_meet_other_noise(
    tiny_settings: Make, tmp_path: Path, params: dict[str, Tensor]
) -> None:
    """Two seeded runs share a ledger: the second finds more noise for the same settings, because it
    counts the first. The same z at two scales would cancel: x = (s2 y1 - s1 y2) / (s2 - s1)."""
    target = {"privacy.noise_multiplier": None, "privacy.epsilon": 8.0, "privacy.run_epsilon": 7.0}
    settings = tiny_settings(**target)
    first = make_worker(settings, tmp_path)
    before = first.train(SiloTask(params, 1, 3))
    second = make_worker(settings, tmp_path, run="run-2")
    after = second.train(SiloTask(params, 1, 3))
    assert after.noise_multiplier > 1.05 * before.noise_multiplier, (
        "the history asks for more noise"
    )
    scale = before.noise_multiplier / after.noise_multiplier
    bare = torch.cat([(before.update[n] - scale * after.update[n]).reshape(-1) for n in params])
    noise = torch.cat([before.update[n].reshape(-1) for n in params])
    assert float(bare.std()) > 0.5 * float(noise.std()), "the noises cancel"
    assert len(rows(second)) == 2


def test_key_holds_no_hash_of_the_data_where_noise_is_secret(
    tiny_settings: Make, tmp_path: Path, params: dict[str, Tensor]
) -> None:
    worker = make_worker(tiny_settings(**{"privacy.randomness": "os"}), tmp_path)
    part = Silo("alpha", worker.silo.train.select(range(9), "alpha"), worker.silo.held_out)
    other = SiloWorker(worker.settings, part, run="run-1", ledger=tmp_path / "ledger.sqlite")
    assert worker.digest(SiloTask(params), 1.0) == other.digest(SiloTask(params), 1.0)


def test_private_evaluation_is_noised_and_recorded(
    tiny_settings: Make, tmp_path: Path, params: dict[str, Tensor]
) -> None:
    """sigma = clients_noise * sqrt(2) on each of the pair, whole numbers, as two events."""
    settings = tiny_settings(
        **PRIVATE,
        **{
            "evaluation.clients_noise": 3.0,
            "privacy.epsilon": None,
            "server.rounds": 200,
            "evaluation.every": 1,
        },
    )
    worker = make_worker(settings, tmp_path)
    held = len(worker.held_out_features)
    assert held > 5
    exact = worker.tunable.evaluate(params, worker.held_out_features, 4096)
    truth = np.array([round(exact["accuracy"] * held), held])
    got = np.array([counts(worker, params, r, 3) for r in range(1, 201)]) - truth
    sample = got.ravel() / (3.0 * 2**0.5)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], sample.size) / sample.size
    assert low < (sample**2).mean() < high
    assert abs(np.corrcoef(got.T)[0, 1]) < 0.4
    recorded = rows(worker)
    assert len(recorded) == 200
    assert {e.purpose for e in recorded} == {"evaluate"}
    assert got.dtype.kind == "i"
    event = multiset(recorded[0].view("server"))
    assert event == multiset(discrete_gaussian(3.0 * 2**0.5, sensitivity=1, count=2))
    assert is_private(recorded[0].view("server"))


def test_raw_evaluation_is_exact_and_recorded_as_no_guarantee(
    tiny_settings: Make, tmp_path: Path, params: dict[str, Tensor]
) -> None:
    settings = tiny_settings(**PRIVATE | {"evaluation.clients": "raw"})
    worker = make_worker(settings, tmp_path)
    correct, count = counts(worker, params, 1, 3)
    assert count == len(worker.held_out_features)
    assert 0 <= correct <= count
    assert not is_private(rows(worker)[0].view("outsider"))
    worker.train(SiloTask(params, 2, 3))  # the budget of what has a guarantee is untouched


def test_no_evaluation_where_the_settings_ask_for_none(
    tiny_settings: Make, tmp_path: Path, params: dict[str, Tensor]
) -> None:
    worker = make_worker(tiny_settings(), tmp_path)
    with pytest.raises(ValueError, match="a request that the settings ask for, got 'evaluate'"):
        worker.answer(SiloTask(params, 1, 3, kind=names.EVALUATE))


@pytest.mark.parametrize(
    ("unit", "noise_by"), [("example", "client"), ("client", "client"), ("client", "server")]
)
def test_training_without_privacy_is_recorded_whoever_would_add_the_noise(
    unit: str, noise_by: str, tiny_settings: Make, tmp_path: Path, params: dict[str, Tensor]
) -> None:
    changes = {"privacy.mode": "none", "privacy.unit": unit, "privacy.noise_by": noise_by}
    worker = make_worker(tiny_settings(**changes), tmp_path)
    worker.train(SiloTask(params, 1, 3))
    (row,) = rows(worker)
    assert not is_private(row.view("outsider"))


def test_noise_by_the_server_leaves_update_and_ledger_bare(
    tiny_settings: Make, tmp_path: Path, params: dict[str, Tensor]
) -> None:
    changes = {"privacy.unit": "client", "privacy.noise_by": "server", "privacy.clip": 0.01}
    worker = make_worker(tiny_settings(**changes), tmp_path)
    update = worker.train(SiloTask(params, 1, 3)).update
    norm = torch.cat([value.flatten() for value in update.values()]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-5)
    assert rows(worker) == []  # the server records, before it adds the noise


def test_what_is_private_goes_to_the_silos_log_alone(
    tiny_settings: Make, tmp_path: Path, params: dict[str, Tensor]
) -> None:
    settings = tiny_settings()
    log = tmp_path / "logs" / "alpha.jsonl"
    worker = SiloWorker(settings, silo(settings), run="r", ledger=tmp_path / "l.sqlite", log=log)
    reply = worker.train(SiloTask(params, 1, 3))
    opened, record = (json.loads(line) for line in log.read_text("utf-8").splitlines())
    assert opened["kind"] == "repeated-records"
    assert record["round"] == 1
    assert {"examples", "clipped", "nonfinite", "median_norm"} < set(record)
    public = {"update", "noise_std", "noise_multiplier", "sampling_rate", "steps", "beside"}
    assert set(vars(reply)) == public
    assert reply.beside == Answer(), "nothing leaves beside the update of a plain run"


def test_workers_and_models_are_shared_within_a_process(
    tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings()
    options = {"run": "r", "ledger": tmp_path / "l.sqlite", "log": None}
    first = shared_worker(settings, silo(settings), **options)
    assert shared_worker(settings, silo(settings), **options) is first
    other = shared_worker(settings, silo(settings, "beta"), **options)
    assert other is not first
    assert other.tunable is first.tunable
    assert shared_worker(settings, silo(settings), **options | {"run": "s"}) is not first


def test_empty_held_out_data_still_release_noise(
    tiny_settings: Make, tmp_path: Path, params: dict[str, Tensor]
) -> None:
    settings = tiny_settings(**PRIVATE, **{"server.rounds": 8, "evaluation.every": 1})
    base = silo(settings)
    empty = Silo("alpha", base.train, base.train.select([], "alpha/holdout"))
    worker = SiloWorker(settings, empty, run="r", ledger=tmp_path / "l.sqlite")
    # One draw of a discrete noise is 0 now and then; eight that all are would be none.
    pairs = [counts(worker, params, server_round, 8) for server_round in range(1, 9)]
    assert any(correct != 0 for correct, _ in pairs)
    assert any(count != 0 for _, count in pairs)
