"""The command line of benchmarks that time one training step of several models."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from fedllm.models import resolve_device
from simulations.benchmark import timing

MODELS = ("minilm", "smollm2")


def step_parser(module: str, text: str | None) -> argparse.ArgumentParser:
    """What all of them can be told."""
    made = argparse.ArgumentParser(
        prog=f"python -m simulations.benchmark.{module}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--model", action="append", help="minilm, smollm2, a folder, a hub id")
    made.add_argument("--repeats", type=int, default=9)
    made.add_argument("--batch", type=int, help="examples a step")
    made.add_argument("--max-tokens", type=int, help="tokens of a micro-batch")
    made.add_argument("--prefix-length", type=int, default=8)
    made.add_argument("--data", default="auto", help="auto, sst2, tweets or random")
    made.add_argument("--device", default="auto")
    made.add_argument("--threads", type=int, default=1, help="CPU threads")
    made.add_argument("--json", metavar="OUT", help="write all measurements to this file")
    return made


def begin(options: argparse.Namespace) -> dict[str, Any]:
    """Set the number of threads, and print and return what a reader needs to know of the machine."""
    torch.set_num_threads(options.threads)
    around = timing.circumstances(resolve_device(options.device))
    print(", ".join(f"{name} {value}" for name, value in around.items()))
    return around


def each_model(
    options: argparse.Namespace,
    around: dict[str, Any],
    measure: Callable[[str, argparse.Namespace], dict[str, Any]],
    report: Callable[[dict[str, Any]], str],
    **more: Any,
) -> None:
    """Measure each model, print its report, and write all to ``--json``, with ``more`` beside."""
    results = []
    for model in options.model or MODELS:
        results.append(measure(model, options))
        print("\n" + report(results[-1]), flush=True)
    if options.json:
        timing.write_json(options.json, {"circumstances": around, **more, "models": results})
