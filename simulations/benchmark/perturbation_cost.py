"""What adversarial weight perturbation costs in one local step, against the same DP step without it.

    python -m simulations.benchmark.perturbation_cost [--model minilm --model smollm2] [--json OUT]

One step of unit "example" on a fixed batch (sampling rate 1), by form of the perturbation, measured in turn
in one process. Forms with two passes over the batch should cost about twice a plain step, ``previous``
about as much as one. Ratios are of measurements taken next to each other; those of CPU time are hardly
moved by other programs on the machine.

Beside the time of a step: ``previous`` sends the last mean update along with the parameters, which doubles
the bytes to the silos in the perturbed rounds; no form changes the bytes from them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from fedllm.local_training import train_locally
from fedllm.models import load_backbone, resolve_device
from fedllm.settings import Settings
from fedllm.tunable import initial_params, make_tunable
from privacy.randomness import generator
from simulations.benchmark import timing, workload
from simulations.benchmark.dp_tax import sizes
from simulations.benchmark.step_command import begin, each_model, step_parser

PLAIN = "none"
FORMS = ("per-example", "previous", "private-ascent", "batch")


def calls(model: str, options: argparse.Namespace) -> tuple[dict[str, Callable[[], Any]], str]:
    """One local step by form, on the same batch and micro-batches; and what the batch is made of."""
    device = resolve_device(options.device)
    source = workload.model_source(model)
    batch, tokens = sizes(model, device)
    batch, tokens = options.batch or batch, options.max_tokens or tokens
    records, origin = workload.load_texts(batch, options.data)
    backbone = load_backbone(source.folder, device=device)
    base = workload.settings_for(
        source,
        backbone.kind,
        private=True,
        batch_size=batch,
        local_steps=1,
        max_tokens=tokens,
        prefix_length=options.prefix_length,
        device=str(device),
    )
    tunable = make_tunable(base, backbone)
    features = tunable.task.features(records)
    params = {n: v.to(device) for n, v in initial_params(tunable, base).items()}
    # Any direction costs as much.
    previous = {name: torch.ones_like(value) for name, value in params.items()}
    made: dict[str, Callable[[], Any]] = {}
    for form in (PLAIN, *FORMS):
        settings = Settings.model_validate(base.model_dump() | {"awp": {"form": form}})
        made[form] = partial(
            train_locally,
            tunable,
            params,
            features,
            settings,
            sampling_rate=1.0,
            noise_multiplier=1.0,
            streams=lambda purpose, step: generator(0, purpose, step),
            previous=previous if form == "previous" else None,
        )
    note = f"{source.note}, {origin}: {batch} examples a step, micro-batches of {tokens} tokens"
    return made, f"{note}, prefix length {options.prefix_length}, {device.type}"


def measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each form and its ratios to the plain step, as plain values."""
    steps, note = calls(model, options)
    device = resolve_device(options.device)
    seconds = timing.interleave(steps, options.repeats, device=device)
    found: dict[str, Any] = {"what": note, "forms": {}}
    for name, taken in seconds.items():
        plain = seconds[PLAIN]
        found["forms"][name] = {
            "seconds": asdict(timing.spread(taken.wall)),
            "ratio": asdict(timing.paired_ratio(taken.wall, plain.wall)),
            "cpu_ratio": asdict(timing.paired_ratio(taken.cpu, plain.cpu))
            if device.type == "cpu"
            else None,
        }
    return found


def report(result: dict[str, Any]) -> str:
    """The figures of one model as text."""
    header = ["form", "median ms", "time ratio", "quartiles", "CPU time ratio", "quartiles"]
    rows = []
    for name, form in result["forms"].items():
        row = [name, f"{form['seconds']['median'] * 1e3:.1f}"]
        for ratio in (form["ratio"], form["cpu_ratio"]):
            if ratio is None:
                row += ["", ""]
                continue
            row += [f"{ratio['median']:.3f}", f"{ratio['low']:.3f} - {ratio['high']:.3f}"]
        rows.append(row)
    return f"{result['what']}\n{timing.table(header, rows)}"


def parser() -> argparse.ArgumentParser:
    """Command line."""
    return step_parser("perturbation_cost", __doc__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = parser().parse_args(arguments)
    each_model(options, begin(options), measure, report)


if __name__ == "__main__":
    main()
