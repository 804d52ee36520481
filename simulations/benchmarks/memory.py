"""Peak memory of one private step, adapter by adapter, against the estimate that training is refused by.

    python -m simulations.benchmarks.memory [--model minilm --model smollm2] [--device cpu] [--json OUT] [--markdown OUT]

One row a model, adapter and shape of the micro-batch: long examples, and many short ones. Each is measured in a process
of its own: model and adapter are there and one short example was computed, then a micro-batch of random tokens is
differentiated, clipped and summed. Counted is the peak above what was held before: on the CPU the process's resident
memory (with an allocator that gives memory back at once), on a GPU what PyTorch allocated.

The estimate is to be above the truth, and below twice of it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from fedllm.data.batches import Feature
from fedllm.models.backbone import load_backbone, resolve_device
from fedllm.settings.experiment import Settings
from fedllm.settings.io import parse_settings
from fedllm.training.batch.footprint import micro_batch_bytes, numbers_of_model
from fedllm.training.gradients import clipped_gradient_sum
from fedllm.training.perturbation import Perturbation, perturbation_of
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from simulations.benchmarks.support import timing, workload

SHAPES = {"minilm": ((64, 64), (256, 8))}
"""Rows and tokens of the micro-batches."""
OTHER_SHAPES = ((16, 64),)
FEWER = (
    "prefix of 8",
    "lora",
    "lora, checkpointing",
    "lora, 4bit",
    "bitfit",
    "last-layers",
    "full",
)
"""Rows of a larger model."""


@dataclass(frozen=True)
class Case:
    """Adapter and model of one row.

    Attributes:
        name: in the table.
        adapter: the section ``[adapter]``; ``top``: in the upper third of the layers.
        model: changes of ``[model]``.
        perturbed: whether each example has a point of its own.
    """

    name: str
    adapter: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    top: bool = False
    perturbed: bool = False


@dataclass(frozen=True)
class Row:
    """One measurement; sizes in bytes."""

    model: str
    case: str
    rows: int
    tokens: int
    peak: int
    counted: str
    estimate: int


LORA = {"form": "lora", "rank": 8}
CASES = (
    Case("prefix of 8", {"form": "prefix"}),
    Case("prefix, own perturbation", {"form": "prefix"}, perturbed=True),
    Case("lora", LORA),
    Case("lora, top third", LORA, top=True),
    Case("lora, top third, reuse", LORA, {"reuse": "memory"}, top=True),
    Case("lora, checkpointing", LORA, {"checkpointing": True}),
    Case("lora, bfloat16", LORA, {"dtype": "bfloat16"}),
    Case("lora, 4bit", LORA, {"quantization": "4bit"}),
    Case("lora, 8bit, checkpointing", LORA, {"quantization": "8bit", "checkpointing": True}),
    Case("lora of rank 64, factors", {"form": "lora", "rank": 64}),
    Case("ffa-lora", {"form": "ffa-lora", "rank": 8}),
    Case("bitfit", {"form": "bitfit"}),
    Case("last-layers", {"form": "last-layers"}),
    Case("full", {"form": "full"}),
    Case("head", {"form": "head"}),
)


def settings_of(source: workload.ModelSource, kind: str, case: Case, layers: int) -> Settings:
    """Return the settings of one case."""
    plain = workload.settings_for(
        source,
        kind,
        private=True,
        batch_size=64,
        local_steps=1,
        max_tokens=4096,
        prefix_length=8,
        adapter=dict(case.adapter),
    ).model_dump(mode="json")
    plain["model"] |= case.model
    if case.top:
        plain["adapter"]["layers"] = list(range(layers - layers // 3, layers))
    if case.perturbed:
        plain["awp"] = {"form": "per-example"}
    return parse_settings(plain)


def measure(name: str, case: Case, rows: int, tokens: int, device: torch.device) -> Row:
    """Return the figures of one row; to be called in a process of its own."""
    source = workload.model_source(name)
    options = {"dtype": "float32"} | {k: v for k, v in case.model.items() if k in _LOADING}
    backbone = load_backbone(source.folder, device=device, **options)  # type: ignore[arg-type]
    settings = settings_of(source, backbone.kind, case, backbone.n_layers)
    whole = make_tunable(settings, backbone)
    tunable, params = whole.part(initial_params(whole, settings), 1)
    params = {name: value.to(device) for name, value in params.items()}
    own = perturbation_of(settings.awp, 1) if settings.awp.form == "per-example" else None
    _step(tunable, own, params, _features(tunable, 1, 8))
    features = _features(tunable, rows, tokens)
    tokens = tunable.task.shapes.bucket_length(tokens)
    numbers = numbers_of_model(
        tunable, 1, rows * tokens, by_example=settings.one_by_one, perturbed=own is not None
    )
    _give_back()
    started = timing.start_peak(device)
    _step(tunable, own, params, features)
    peak = timing.read_peak(started, device)
    held = peak.peak - peak.before
    estimate = micro_batch_bytes(numbers, rows, tokens)
    return Row(name, case.name, rows, tokens, held, peak.kind, estimate)


_LOADING = ("dtype", "quantization")


def _features(tunable: Tunable, rows: int, tokens: int) -> list[Feature]:
    rng = torch.Generator().manual_seed(0)
    size = int(tunable.backbone.model.get_input_embeddings().weight.shape[0])
    ids = torch.randint(10, size, (rows, tokens), generator=rng)
    return [Feature(row, target=place % 2) for place, row in enumerate(ids.tolist())]


def _step(
    tunable: Tunable, own: Perturbation | None, params: dict[str, Any], features: list[Feature]
) -> None:
    tokens = len(features) * tunable.task.shapes.bucket_length(len(features[0]))
    groups = tunable.task.batches(features, tokens)
    assert len(groups) == 1
    clipped_gradient_sum(
        tunable,
        params,
        features,
        clip_norm=0.5,
        scales=dict.fromkeys(params, 1.0),
        max_tokens=tokens,
        perturbation=own,
    )


def _give_back() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except OSError:
        return


def rows_of(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the table's header and its rows."""
    header = ["model", "adapter", "rows x tokens", "peak", "estimate", "estimate / peak"]
    lines = [
        [
            str(row["model"]),
            str(row["case"]),
            f"{row['rows']} x {row['tokens']}",
            f"{row['peak'] / 2**20:.0f} MiB",
            f"{row['estimate'] / 2**20:.0f} MiB",
            f"{row['estimate'] / max(1, row['peak']):.2f}",
        ]
        for row in results
    ]
    return header, lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one row a model, adapter and shape; exit 1 where an estimate is not between once and twice the peak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="minilm, smollm2, a folder or a hub id")
    parser.add_argument("--case", action="append", help="names of rows; default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json")
    parser.add_argument("--markdown", help="write the table to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    device = resolve_device(options.device)
    torch.set_num_threads(1)
    if options.one:
        told = json.loads(options.one)
        rows, tokens = told["shape"]
        timing.child_result(measure(told["model"], Case(**told["case"]), rows, tokens, device))
        return 0
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # for the processes that measure
    results = []
    for name in options.model or ["minilm", "smollm2"]:
        for case in CASES:
            usual = [case.name] if name == "minilm" else FEWER
            if case.name not in (options.case or usual):
                continue
            for shape in SHAPES.get(name, OTHER_SHAPES):
                told = {"model": name, "case": asdict(case), "shape": shape}
                given = ["--one", json.dumps(told), "--device", options.device]
                results.append(timing.run_child("simulations.benchmarks.memory", given))
                print(" | ".join(rows_of(results[-1:])[1][0]), flush=True)
    header, lines = rows_of(results)
    text = timing.table(header, lines)
    print(text)
    if options.json:
        timing.write_json(options.json, {"rows": results, **timing.circumstances(device)})
    if options.markdown:
        with open(options.markdown, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    off = [row for row in results if not row["peak"] <= row["estimate"] <= 2 * row["peak"]]
    return 1 if off else 0


if __name__ == "__main__":
    raise SystemExit(main())
