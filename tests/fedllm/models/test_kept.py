"""What a process keeps is bounded, and who is given up while at work finishes."""

from __future__ import annotations

import gc
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.data.silos import Silo, load_federation
from fedllm.kept import Kept
from fedllm.models import backbone as models
from fedllm.silo import process
from fedllm.silo.process import MOST_RUNS, shared_worker
from fedllm.silo.task import SiloTask
from fedllm.training import tunable
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.ledger.ledger import Ledger

Make = Callable[..., Any]


@given(keys=st.lists(st.integers(0, 9), max_size=60), most=st.integers(1, 5))
def test_the_last_used_ones_are_kept(keys: list[int], most: int) -> None:
    kept, made = Kept[int, object](most), 0
    for place, key in enumerate(keys):
        before = key in kept
        recent = list(dict.fromkeys(reversed(keys[:place])))[:most]
        assert before == (key in recent)

        def make() -> object:
            nonlocal made
            made += 1
            return object()

        value = kept.get(key, make)
        assert kept.holds(value)
        assert len(kept) <= most
    assert made >= len(set(keys))


def test_a_value_that_is_touched_counts_as_used() -> None:
    kept = Kept[str, list[int]](2)
    first = kept.get("a", list)
    kept.get("b", list)
    assert kept.touch(first)
    assert not kept.touch([]), "an equal value is another one"
    kept.get("c", list)
    assert "a" in kept
    assert "b" not in kept


def test_one_thread_makes_a_value() -> None:
    kept, made = Kept[str, int](2), []

    def make() -> int:
        time.sleep(0.05)
        made.append(1)
        return 7

    threads = [threading.Thread(target=lambda: kept.get("a", make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def silo(settings: Any) -> Silo:
    return load_federation(settings).silos[0]


def worker(settings: Any, run: str, ledger: Path) -> Any:
    return shared_worker(settings, silo(settings), run=run, ledger=ledger, log=None)


def test_a_silo_has_so_many_runs_and_goes_on_with_one_that_was_given_up(
    tiny_settings: Make, tmp_path: Path
) -> None:
    """Its noise and its plan are in the ledger: as if it had been kept."""
    settings, path = tiny_settings(), tmp_path / "ledger.sqlite"
    first = worker(settings, "first", path)
    start = initial_params(shared_tunable(settings), settings)
    first.train(SiloTask(start, 1, 3))
    multiplier = first.account(3).noise_multiplier
    for number in range(MOST_RUNS):
        worker(settings, f"run-{number}", path)
    again = worker(settings, "first", path)
    assert again is not first
    again.train(SiloTask(start, 2, 3))
    assert again.account(3).noise_multiplier == multiplier
    first.train(SiloTask(start, 3, 3))  # who still has the old one can go on with it
    assert [row.round for row in again.ledger.entries(party="alpha") if row.purpose == "train"] == [
        1,
        2,
        3,
    ]
    kept = process._workers[("alpha", str(path), process.os.getpid())]
    assert len(kept) == MOST_RUNS


def test_a_ledger_is_closed_with_its_last_run(tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings()
    paths = [tmp_path / f"{name}.sqlite" for name in "ab"]
    opened = [worker(settings, "run", path).ledger for path in paths]
    assert opened[0] is not opened[1]
    assert worker(settings, "other", paths[0]).ledger is opened[0]
    at_work = worker(settings, "run", paths[0])
    del opened
    process._workers.pop(("alpha", str(paths[0]), process.os.getpid()))
    gc.collect()
    key = process._file_key(paths[0])
    assert process._ledgers.get(key) is at_work.ledger, "a task at work has it open"
    assert at_work.ledger.entries() == []
    del at_work
    gc.collect()
    assert process._ledgers.get(key) is None
    with Ledger(paths[0], read_only=True) as ledger:
        assert ledger.entries() == []


def test_two_models_are_kept_and_nothing_of_a_third(
    tiny_settings: Make, encoder_folder: Path, tmp_path: Path
) -> None:
    places = [tmp_path / f"model-{number}" for number in range(4)]
    for place in places:
        shutil.copytree(encoder_folder, place)
    ledger = tmp_path / "ledger.sqlite"
    tunable._shared._values.clear()  # of other tests in this process
    for place in places:
        settings = tiny_settings(**{"model.name": str(place)})
        worker(settings, f"run-{place.name}", ledger)
    assert len(models._shared) == models.MOST_MODELS
    names = {made.backbone.name for made in tunable._shared._values.values()}
    assert names == {str(place) for place in places[-models.MOST_MODELS :]}
    kept = process._workers[("alpha", str(ledger), process.os.getpid())]
    assert {made.tunable.backbone.name for made in kept._values.values()} == names


@pytest.fixture
def other_models(encoder_folder: Path, tmp_path: Path) -> list[str]:
    """As many more models as a process keeps."""
    places = [tmp_path / f"other-{number}" for number in range(models.MOST_MODELS)]
    for place in places:
        shutil.copytree(encoder_folder, place)
    return [str(place) for place in places]


def test_what_had_a_model_that_was_given_up_is_made_anew(
    tiny_settings: Make, other_models: list[str], tmp_path: Path
) -> None:
    settings, path = tiny_settings(), tmp_path / "ledger.sqlite"
    before, made = shared_tunable(settings), worker(settings, "run", path)
    for name in other_models:
        models.shared_backbone(name)
    again = worker(settings, "run", path)
    assert again is not made
    assert again.tunable is shared_tunable(settings) is not before
    assert models._shared.holds(again.tunable.backbone)
    worker(settings, "other", path)
    kept = process._workers[("alpha", str(path), process.os.getpid())]
    assert len(kept) == 2


@pytest.mark.parametrize("use", ["tunable", "worker"])
def test_a_model_in_use_is_not_the_first_to_go(
    use: str, tiny_settings: Make, other_models: list[str], tmp_path: Path
) -> None:
    settings, path = tiny_settings(), tmp_path / "ledger.sqlite"
    backbone = worker(settings, "run", path).tunable.backbone
    for name in other_models:
        models.shared_backbone(name)
        if use == "tunable":
            assert shared_tunable(settings).backbone is backbone
        else:
            assert worker(settings, "run", path).tunable.backbone is backbone
    assert models._shared.holds(backbone)


@pytest.mark.parametrize("most", [1, 3])
def test_shapes_of_a_task_are_bounded(
    most: int, tiny_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunable._shared, "most", most)
    for length in range(1, 6):
        shared_tunable(tiny_settings(**{"prefix.length": length}))
    assert len(tunable._shared) == most
