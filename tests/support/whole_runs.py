"""What tests of whole runs look at, and the same training without a federation; replies changed on their way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from fedllm import messages as names
from fedllm.budget.schedule import participation
from fedllm.data.silos import load_federation
from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.ledger.ledger import Ledger, LedgerEntry
from server.aggregation import Contribution, mean_update
from server.global_model import ServerOptimizer

SILOS = ["alpha", "beta", "delta", "gamma"]


def final(run: RunFolder) -> dict[str, Tensor]:
    checkpoint = latest_checkpoint(run.checkpoints_path)
    assert checkpoint is not None
    assert checkpoint.round == run.state()["round"]
    return checkpoint.params


def same_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return sorted(first) == sorted(second) and all(torch.equal(first[n], second[n]) for n in first)


def spent(run: RunFolder) -> dict[str, Counter[Any]]:
    with Ledger(run.ledger_path, read_only=True) as ledger:
        return {
            adversary: Counter(
                (e.party, e.purpose, e.round, e.key, str(e.view(adversary)))
                for e in ledger.entries()
            )
            for adversary in ("server", "outsider")
        }


def rows(run: RunFolder, purpose: str = "") -> list[LedgerEntry]:
    """The rows of the run's ledger; of one purpose, where it is given."""
    with Ledger(run.ledger_path, read_only=True) as ledger:
        return [row for row in ledger.entries() if purpose in ("", row.purpose)]


def rounds(run: RunFolder) -> list[dict[str, Any]]:
    return [m for m in run.metrics() if m["kind"] == "round"]


def loop(run: RunFolder, folder: Any, absent: Mapping[int, set[str]] | None = None) -> Any:
    """The same training as a plain loop over the silos: no messages, no strategy, no engine."""
    settings = run.settings()
    torch.set_num_threads(1)
    params = initial_params(shared_tunable(settings), settings)
    workers = {
        silo.name: SiloWorker(settings, silo, run="loop", ledger=folder / "loop.sqlite")
        for silo in load_federation(settings).silos
    }
    optimizer = ServerOptimizer(settings.server, params)
    schedule = participation(settings, list(workers))
    for server_round, chosen in enumerate(schedule, start=1):
        replies = []
        for name in chosen:
            planned = sum(name in row for row in schedule)
            reply = workers[name].train(SiloTask(params, server_round, planned))
            if name not in (absent or {}).get(server_round, set()):
                replies.append(Contribution(name, reply.update, reply.noise_std))
        if replies:
            update, std = mean_update(replies, params, len(replies))
            params = optimizer.step(params, update, std, server_round)
    return params


def run_by_command(experiment: Path, folder: Path) -> RunFolder:
    """The finished run folder of ``fedllm run`` in a process of its own, on Flower's engine."""
    done = subprocess.run(
        [sys.executable, "-m", "simulations.cli.main", "run", experiment, "--run", folder],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"FEDLLM_CACHE": str(folder.with_name("cache"))},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return RunFolder.open(folder)


def config(task: Message) -> Any:
    return task.content[names.CONFIG]


def poison(reply: Message, change: Callable[[dict[str, Tensor]], Any]) -> Message:
    update = reply.content[names.UPDATE].to_torch_state_dict()
    reply.content[names.UPDATE] = ArrayRecord(change(dict(update)))
    return reply


def without(reply: Message, record: str) -> Message:
    del reply.content[record]
    return reply


def tell(reply: Message, name: str, value: float) -> Message:
    reply.content[names.METRICS][name] = value
    return reply
