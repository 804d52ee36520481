"""Compute a head's input for each text once, while the prefix stays at its initial value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from fedllm.budget.release_id import settings_digest
from fedllm.data.batches import Feature
from fedllm.data.silos import load_federation
from fedllm.files import durable
from fedllm.models.embedded import cache_folder
from fedllm.settings.experiment import Settings
from fedllm.tasks.base import expand_params
from fedllm.training.tunable import Tunable, initial_params, shared_tunable

WEIGHT, BIAS = "head.weight", "head.bias"


def head_features(settings: Settings) -> dict[str, Tensor]:
    """Features [n, h] and classes [n] of each silo ("x.NAME", "y.NAME") and of the evaluation ("x", "y"); from the
    cache where they are there."""
    file = cache_folder() / f"head-features-{settings_digest(settings)[:16]}.safetensors"
    if not file.is_file():
        tunable, federation = shared_tunable(settings), load_federation(settings)
        sets = {f".{silo.name}": silo.train.records for silo in federation.silos}
        found: dict[str, Tensor] = {}
        for name, records in {**sets, "": federation.evaluation.records}.items():
            examples = tunable.task.features(records)
            found[f"x{name}"] = pooled(tunable, settings, examples)
            found[f"y{name}"] = torch.tensor([int(e.target) for e in examples])  # type: ignore[arg-type]
        file.parent.mkdir(parents=True, exist_ok=True)
        durable.write_bytes(file, save(found))
    return load_file(file)


@torch.no_grad()
def pooled(tunable: Tunable, settings: Settings, examples: Sequence[Feature]) -> Tensor:
    """Return the head's input for each example, [n, h]: the answers of a head that is the identity."""
    width = tunable.backbone.hidden_size
    params = initial_params(tunable, settings)
    params |= {WEIGHT: torch.eye(width), BIAS: torch.zeros(width)}
    one = expand_params(params, 1)
    rows = torch.zeros(len(examples), width)
    for group in tunable.task.batches(examples, settings.client.max_tokens):
        batch = tunable.task.collate([examples[i] for i in group])
        with tunable.adapted(one):
            scores = tunable.task.logits(one, batch)  # type: ignore[attr-defined]
        rows[torch.tensor(group)] = scores[: len(group)]
    return rows
