"""Teachers in whole runs: what moves the model, what the ledger holds, what a resumed run repeats."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from torch import Tensor

from fedllm import messages as names
from fedllm.checkpoints import latest_checkpoint, load_checkpoint
from fedllm.run_folder import RunFolder
from fedllm.silo_worker import shared_tunable
from fedllm.tunable import initial_params
from privacy.ledger import Ledger
from server.aggregation import Contribution, mean_update
from server.optimizers import ServerOptimizer

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
EMA = {"teacher.kind": "ema", "teacher.strength": 0.3, "teacher.decay": 0.7, "teacher.steps": 2}


@pytest.fixture
def public_text(tmp_path: Path, word_records: Callable[..., Any]) -> dict[str, Any]:
    """Settings of a public file of 30 examples."""
    path = tmp_path / "public.jsonl"
    rows = word_records(30, seed=500)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"public.source": "files", "public.path": str(path), "teacher.batch_size": 8}


def recorded_updates() -> tuple[dict[int, list[Contribution]], Callable[..., Message]]:
    """Each round's updates as they arrive, and what collects them."""
    found: dict[int, list[Contribution]] = {}

    def tamper(task: Message, reply: Message) -> Message:
        if task.metadata.message_type == "train":
            content: Any = reply.content
            server_round = int(task.content.config_records[names.CONFIG][names.ROUND])  # type: ignore[arg-type]
            update = content[names.UPDATE].to_torch_state_dict()
            silo = str(content[names.INFO][names.SILO])
            found.setdefault(server_round, []).append(Contribution(silo, update, None))
        return reply

    return found, tamper


def same_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return sorted(first) == sorted(second) and all(torch.equal(first[n], second[n]) for n in first)


def events(run: RunFolder) -> Counter[Any]:
    """What the ledger holds, without what names the run and the release."""
    with Ledger(run.ledger_path, read_only=True) as ledger:
        return Counter(
            (e.party, str(e.unit), e.purpose, e.round, str(sorted(e.views.items())), str(e.details))
            for e in ledger.entries()
        )


def test_ema_is_the_hand_computed_recursion_over_a_run(
    start_run: Start, in_process: Federate
) -> None:
    """From each checkpoint and the updates of the next round: the mean, the server's step, the pull
    in closed form towards the average of the models before, then the average's own step."""
    run = start_run(
        "run",
        **EMA,
        **{
            "teacher.start": 1,
            "server.rounds": 4,
            "server.keep_checkpoints": 4,
            "server.optimizer": "sgd",
            "server.momentum": 0.0,
            "server.averaging": 0.5,
        },
    )
    updates, tamper = recorded_updates()
    assert in_process(run, tamper) == "finished"
    settings = run.settings()
    model = initial_params(shared_tunable(settings), settings)
    teacher = {name: value.double() for name, value in model.items()}
    average = dict(teacher)
    optimizer = ServerOptimizer(settings.server, model)
    for t in range(1, 5):
        mean, _ = mean_update(updates[t], model, len(updates[t]))
        stepped = optimizer.step(model, mean, None, t)
        factor = 1.0 if t == 1 else (1 - 0.3) ** 2
        saved = load_checkpoint(run.checkpoints_path / f"round-{t:05d}").state
        for name, value in stepped.items():
            pulled = teacher[name] + factor * (value.double() - teacher[name])
            teacher[name] = 0.7 * teacher[name] + 0.3 * pulled
            average[name] = 0.5 * average[name] + 0.5 * pulled
            for prefix, expected in (("last", pulled), ("teacher", teacher[name])):
                assert torch.allclose(
                    saved[f"{prefix}.{name}"].double(), expected, rtol=0, atol=1e-6
                ), (t, prefix, name)
            # server.averaging goes on beside it, over the pulled models.
            assert torch.allclose(saved[f"average.{name}"].double(), average[name], atol=1e-6)
        model = {name: saved[f"last.{name}"] for name in model}
        told = next(m for m in run.metrics() if m["kind"] == "round" and m["round"] == t)
        assert ("teacher_distance" in told) == (t > 1)
        assert told["teacher_seconds"] >= 0


def test_ema_leaves_the_ledger_as_it_is_without(start_run: Start, in_process: Federate) -> None:
    plain, pulled = start_run("plain"), start_run("pulled", **EMA)
    assert in_process(plain) == in_process(pulled) == "finished"
    assert events(plain) == events(pulled)
    assert sum(events(pulled).values()) == 12
    first, second = (latest_checkpoint(r.checkpoints_path) for r in (plain, pulled))
    assert first is not None
    assert second is not None
    assert not same_bits(first.params, second.params)


@pytest.mark.parametrize("distillation", [0.0, 2.0])
def test_resumed_run_has_the_same_bits(
    distillation: float, start_run: Start, in_process: Federate, public_text: dict[str, Any]
) -> None:
    """Interrupted in rounds 3 and 4, with a checkpoint every other round."""
    changes = EMA | public_text | {"server.rounds": 5, "server.checkpoint_every": 2}
    changes["teacher.distillation"] = distillation
    whole, parts = start_run("whole", **changes), start_run("parts", **changes)
    assert in_process(whole) == "finished"
    for server_round in (3, 4):
        stop = threading.Event()

        def tamper(
            task: Message,
            reply: Message,
            at: int = server_round,
            halt: threading.Event = stop,
        ) -> Message | None:
            content: Any = task.content
            if (task.metadata.message_type, content[names.CONFIG].get(names.ROUND)) != (
                "train",
                at,
            ):
                return reply
            halt.set()
            return None

        assert in_process(RunFolder.open(parts.path), tamper, stop) == "interrupted"
    assert in_process(RunFolder.open(parts.path)) == "finished"
    first, second = (latest_checkpoint(r.checkpoints_path) for r in (whole, parts))
    assert first is not None
    assert second is not None
    assert first.round == second.round == 5
    assert same_bits(first.state, second.state)
    assert any(name.startswith("teacher.") for name in first.state)
    told = [m for m in whole.metrics() if m["kind"] == "round"]
    assert all(("teacher_divergence" in m) == (distillation > 0) for m in told)


def test_distillation_without_usable_text_is_told_before_training(
    start_run: Start, in_process: Federate, tmp_path: Path
) -> None:
    changes = {"public.source": "files", "public.path": str(tmp_path / "absent.jsonl")}
    run = start_run("run", **EMA, **changes, **{"teacher.distillation": 1.0})
    assert in_process(run) == "failed"
    assert "No teacher" in run.state()["message"]
    assert "absent.jsonl" in run.state()["message"]
    assert not run.ledger_path.exists() or not events(run)
