"""A silo config for the tiny experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w

from fedllm.settings.experiment import Settings
from simulations.benchmarks.support.tiny import LABELS

BUDGET = {"epsilon": 60.0, "delta": 1e-5, "accountant": "rdp"}
LIMITS: dict[str, Any] = {
    "rounds": 5,
    "local_steps": 4,
    "sampling_rate": 0.5,
    "noise_multiplier": 0.5,
    "randomness": ["os", "seeded"],
    "quantities": ["update", "size"],
}


def write_silo(folder: Path, settings: Settings | None, data: Path, **changes: Any) -> Path:
    """``silo.toml`` in the folder, which is made; ``changes`` as ``{"section.key": value}``. Without settings:
    for the classes of the tiny data, and any model that a change names."""
    labels = LABELS if settings is None else settings.task.labels or ()
    models = ["*"] if settings is None else [settings.model.name]
    tree: dict[str, Any] = {
        "name": "clinic",
        "data": {"path": str(data), "labels": list(labels)},
        "budget": dict(BUDGET),
        "limits": LIMITS | {"models": models},
        "model": {"device": "cpu"},
    }
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        (tree[section] if section else tree)[key] = value
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "silo.toml"
    path.write_text(tomli_w.dumps(tree), encoding="utf-8")
    return path
