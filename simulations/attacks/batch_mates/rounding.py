"""Measure remaining rounding: the change of an example's clipped gradient with its batch mates.

    python -m simulations.attacks.batch_mates.rounding [--model minilm ...] [--dtype float32 ...] [--batches 100] [--json OUT]

For batch after batch, at parameters within the silo's limits (plain ones, and huge ones of up to 8,000 times the
initial norm), examples' gradients are computed alone and among others, and clipped. Reported is the largest norm of
the difference in clipping norms, and how many gradients were not the same bits. A step's sensitivity is one clipping
norm plus the sum of these differences over all other examples.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.models.backbone import load_backbone
from fedllm.settings.experiment import Settings
from fedllm.training.gradients import per_example_gradients
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from simulations.attacks.batch_mates import attack as batch_mates
from simulations.attacks.batch_mates.architectures import ARCHITECTURES, tiny_tunable
from simulations.benchmarks.support import workload

COMPARED = 4
"""Examples of each batch that are computed alone too."""


@dataclass(frozen=True)
class Rounding:
    """The measurement for one model.

    Attributes:
        differ: gradients that were not the same bits.
        clipping_norms: largest norm of a difference after clipping.
    """

    model: str
    dtype: str
    threads: int
    batches: int
    compared: int
    differ: int
    clipping_norms: float


def clipped_rows(
    tunable: Tunable, params: Mapping[str, Tensor], features: Sequence[Feature], max_tokens: int
) -> list[Tensor]:
    """Return each example's gradient over the clipping norm, clipped to norm 1, in the silo's own micro-batches."""
    rows = [torch.empty(0)] * len(features)
    for group in tunable.task.batches(features, max_tokens):
        batch = tunable.task.collate([features[i] for i in group])
        found = per_example_gradients(tunable, params, batch)
        flat = torch.cat([found[name].flatten(1) for name in sorted(found)], dim=1).double()
        flat = torch.where(flat.isfinite().all(1, keepdim=True), flat, 0.0) / batch_mates.CLIP
        flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=1.0)
        for place, row in zip(group, flat, strict=True):
            rows[place] = row.cpu()
    return rows


def real_tunable(name: str, dtype: str) -> tuple[Settings, Tunable]:
    """Return an embedded model (or a folder) with a prefix, to classify texts of two classes."""
    source = workload.model_source(name)
    backbone = load_backbone(source.folder, device="cpu", dtype=dtype)
    settings = workload.settings_for(
        source,
        backbone.kind,
        private=True,
        batch_size=16,
        local_steps=1,
        max_tokens=batch_mates.MAX_TOKENS,
        prefix_length=4,
        device="cpu",
    )
    return settings, make_tunable(settings, backbone)


def measure(model: str, dtype: str, batches: int) -> Rounding:
    """Compare gradients alone and among others in ``batches`` batches."""
    draw = random.Random(f"{model} {dtype}")
    tiny = model in ARCHITECTURES
    settings, tunable = (
        tiny_tunable(model, getattr(torch, dtype)) if tiny else real_tunable(model, dtype)
    )
    start = initial_params(tunable, settings)
    pool = [] if tiny else workload.load_texts(2000)[0]
    worst, differ, compared = 0.0, 0, 0
    for number in range(batches):
        _, params = batch_mates.hostile_params(start, draw, number % 2, False)
        records = batch_mates.any_records(draw) if tiny else draw.sample(pool, 16)
        features = tunable.task.features(records)
        among = clipped_rows(tunable, params, features, batch_mates.MAX_TOKENS)
        for place in draw.sample(range(len(features)), min(COMPARED, len(features))):
            alone = clipped_rows(tunable, params, [features[place]], batch_mates.MAX_TOKENS)[0]
            compared += 1
            differ += not torch.equal(alone, among[place])
            worst = max(worst, float((alone - among[place]).norm()))
    return Rounding(model, dtype, torch.get_num_threads(), batches, compared, differ, worst)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each model and print a line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", help="minilm, smollm2, or a tiny architecture")
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16"))
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    found = []
    for model in options.model or ("minilm", "bert", "llama", "gpt2"):
        for dtype in options.dtype or ("float32", "bfloat16"):
            row = measure(model, dtype, options.batches)
            found.append(asdict(row))
            print(
                f"{row.model:10s} {row.dtype:9s} {row.threads} threads, {row.batches} batches: {row.differ} of "
                f"{row.compared} gradients differ, at most {row.clipping_norms:.3g} clipping norms",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
