"""An evaluation by the server that fails costs its figures, and never a round that is paid for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from whole_runs import same_bits

from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.training.tunable import Tunable
from privacy.ledger.ledger import Ledger
from server.evaluation import ServerEvaluator

Start = Callable[..., RunFolder]
Federate = Callable[..., str]


class Records:
    """Keeps what a run records."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def record(self, record: Mapping[str, Any]) -> None:
        self.found.append(dict(record))

    def close(self) -> None:
        pass

    def warnings(self) -> list[str]:
        return [str(r["message"]) for r in self.found if r["kind"] == "warning"]


def rows(run: RunFolder) -> int:
    with Ledger(run.ledger_path, read_only=True) as ledger:
        return len(ledger.entries())


def evaluated(run: RunFolder) -> list[int]:
    return [m["round"] for m in run.metrics() if m["kind"] == "evaluation"]


def test_generation_that_fails_in_the_last_evaluation_is_a_missing_figure(
    start_run: Start, in_process: Federate, decoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "model.name": str(decoder_folder),
        "task.kind": "generation",
        "task.target": "answer",
        "task.labels": None,
        "server.rounds": 2,
        "evaluation.generate": 2,
        "evaluation.max_new_tokens": 4,
    }

    def failing(*args: Any) -> dict[str, float]:
        raise torch.OutOfMemoryError("the cache does not fit")

    run, seen = start_run("run", **changes), Records()
    monkeypatch.setattr(Tunable, "writing_metrics", failing)
    assert in_process(run, callbacks=[seen]) == "finished"
    assert run.state()["round"] == 2
    assert any("evaluation of round 2 failed" in text for text in seen.warnings())
    assert evaluated(run) == [0]
    assert (run.path / "report.json").exists()
    assert run.adapter_path.exists()
    paid = rows(run)
    assert in_process(run) == "finished"
    assert rows(run) == paid, "resuming does not pay again"


def test_the_rounds_after_a_failed_evaluation_are_those_of_a_run_without_it(
    start_run: Start, in_process: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start_run("whole", **{"server.rounds": 3, "evaluation.every": 1})
    assert in_process(whole) == "finished"
    evaluate, seen = ServerEvaluator.evaluate, Records()

    def failing(self: Any, server_round: int) -> None:
        if server_round in (1, 3):
            raise RuntimeError("out of memory")
        evaluate(self, server_round)

    run = start_run("run", **{"server.rounds": 3, "evaluation.every": 1})
    monkeypatch.setattr(ServerEvaluator, "evaluate", failing)
    assert in_process(run, callbacks=[seen]) == "finished"
    assert evaluated(run) == [0, 2]
    assert sum("RuntimeError: out of memory" in text for text in seen.warnings()) == 2
    expected, found = (latest_checkpoint(r.checkpoints_path) for r in (whole, run))
    assert expected is not None
    assert found is not None
    assert same_bits(expected.state, found.state)
    monkeypatch.undo()
    paid = rows(run)
    assert in_process(run) == "finished"
    assert evaluated(run) == [0, 2, 3], "a resume fills in the last figure from the checkpoint"
    assert rows(run) == paid


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_request_to_end_passes_and_the_round_is_saved_before_its_evaluation(
    start_run: Start,
    in_process: Federate,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    evaluate = ServerEvaluator.evaluate

    def ended(self: Any, server_round: int) -> None:
        if server_round == 2:
            raise error
        evaluate(self, server_round)

    run = start_run("run", **{"server.rounds": 2, "evaluation.every": 1})
    monkeypatch.setattr(ServerEvaluator, "evaluate", ended)
    with pytest.raises(error):
        in_process(run)
    saved = latest_checkpoint(run.checkpoints_path)
    assert saved is not None
    assert saved.round == run.state()["round"] == 2
    monkeypatch.undo()
    paid = rows(run)
    assert in_process(run) == "finished"
    assert rows(run) == paid
    assert evaluated(run) == [0, 1, 2]
