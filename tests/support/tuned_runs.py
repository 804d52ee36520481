"""A run with a ledger and a checkpoint away from its start, without training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedllm.run.checkpoints import save_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.settings.io import parse_settings
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from privacy.events.constructors import dp_sgd
from privacy.guarantee import Unit
from privacy.ledger.ledger import Ledger, LedgerEntry

TEXTS = [" ".join(f"w{4 + (3 * i + j * j) % 50}" for j in range(1 + i % 7)) for i in range(12)]
LABELS = ("no", "yes", "so-so")
TASKS: dict[str, dict[str, Any]] = {
    "head": {"kind": "classification", "labels": LABELS, "max_length": 20},
    "words": {
        "kind": "classification",
        "labels": LABELS,
        "label_words": ("w7", "w8", "w9"),
        "prompt": "w5 {text} w6",
        "max_length": 20,
    },
    "generation": {
        "kind": "generation",
        "target": "answer",
        "prompt": "w5 {text}",
        "max_length": 20,
    },
}


def tuned_run(
    tmp_path: Path, model: Path, kind: str, /, spread: float = 1.0, **sections: Mapping[str, Any]
) -> tuple[RunFolder, Tunable, dict[str, torch.Tensor]]:
    """A run of one round with parameters away from their start, its ledger and its checkpoint.

    Args:
        spread: standard deviation of the parameters' distance from their start.
    """
    tree: dict[str, Any] = {
        "name": "tiny",
        "seed": 918273645,
        "model": {"name": str(model), "device": "cpu"},
        "prefix": {"length": 3, "init": "random", "init_std": 0.5},
        "task": TASKS[kind],
        "server": {"rounds": 1},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    settings = parse_settings(tree)
    run = RunFolder.create(settings, tmp_path / "run")
    tunable = make_tunable(settings)
    start = initial_params(tunable, settings)
    rng = torch.Generator().manual_seed(1)
    params = {name: v + spread * torch.randn(v.shape, generator=rng) for name, v in start.items()}
    event = dp_sgd(0.1, 2.0, 1)
    with Ledger(run.ledger_path) as ledger:
        views = {"server": event, "outsider": event}
        entry = LedgerEntry(run.run_id, "A", Unit.EXAMPLE, "train", 1, "train/1", views)
        ledger.append(entry)
    averaged = {f"average.{name}": start[name] for name in start}
    averaging = settings.server.averaging > 0
    meta = {"released": "average" if averaging else "params"}
    save_checkpoint(run.checkpoints_path, 1, params, averaged, meta)
    run.append_metrics({"kind": "round", "round": 1, "seconds": 1.0, "replied": 1})
    record = {"kind": "evaluation", "round": 1, "where": "server", "loss": 0.5, "accuracy": 0.75}
    run.append_metrics(record)
    run.set_state(round=1, status="finished")
    return run, tunable, start if averaging else params
