"""Figure 2: what the federation costs: a warm round of 32 silos x 4 local steps on Flower's engine,
against the same private gradient steps in bare loops without Flower, messages, ledger or checkpoints.

    python -m simulations.benchmarks.round_cost [--silos 32] [--steps 4] [--rounds 5] [--json OUT]

Both sides use as many processes with one thread each as the machine has cores. The bare side deals
the silos over plain processes beforehand and is timed from a common start to the last one's end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedllm.data.silos import load_federation
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from fedllm.settings.io import from_json, parse_settings, to_json
from fedllm.silo.process import use_threads
from fedllm.training.mechanism import make_mechanism
from fedllm.training.steps import LocalWork
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.randomness import generator

GOAL = 1.15


def experiment(silos: int, steps: int, rounds: int, batch: int, model: str) -> Settings:
    """Return the measured experiment: embedded tweets, dealt at random over ``silos``."""
    return parse_settings(
        {
            "name": "federation-tax",
            "model": {"name": model},
            "task": {"labels": ["negative", "neutral", "positive"]},
            "data": {
                "source": "tweets",
                "partition": "iid",
                "silos": silos,
                "min_size": 1,
                "holdout": 0.1,
            },
            "client": {"local_steps": steps, "batch_size": batch, "learning_rate": 0.01},
            "server": {"rounds": rounds, "optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0},
            "privacy": {"noise_multiplier": 1.0, "epsilon": 50.0, "randomness": "seeded"},
            "evaluation": {"every": 1000, "max_examples": 32},
            "output": {"tensorboard": False},
        }
    )


def bare_worker(text: str, places: Sequence[int], rounds: int, barrier: Any, out: Any) -> None:
    """Run the local steps of some silos, once for each round, between common starts."""
    settings = from_json(text)
    use_threads(settings.simulation.threads)
    tunable = shared_tunable(settings)
    params = initial_params(tunable, settings)
    silos = [load_federation(settings).silos[i] for i in places]
    features = [tunable.task.features(silo.train.records) for silo in silos]
    times = []
    for turn in range(rounds):
        barrier.wait()
        began = time.perf_counter()
        for silo, examples in zip(silos, features, strict=True):
            mechanism = make_mechanism(
                settings,
                sampling_rate=float(settings.client.batch_size or 1) / len(examples),
                noise_multiplier=1.0,
            )
            streams = partial(generator, 0, silo.name, turn)
            mechanism.train(LocalWork(tunable, params, examples, streams))
        times.append(time.perf_counter() - began)
    out.put(times)


def bare_rounds(settings: Settings, workers: int, rounds: int) -> list[float]:
    """Return the seconds of each round of the bare loops: the slowest process counts."""
    context = multiprocessing.get_context("spawn")
    barrier, out = context.Barrier(workers), context.Queue()
    count = settings.data.silos or 1
    processes = [
        context.Process(
            target=bare_worker,
            args=(to_json(settings), list(range(w, count, workers)), rounds, barrier, out),
        )
        for w in range(workers)
    ]
    for process in processes:
        process.start()
    results = [out.get() for _ in processes]
    for process in processes:
        process.join()
    return [max(times) for times in zip(*results, strict=True)]


def federated_rounds(settings: Settings) -> list[float]:
    """Return the seconds of each training round on the real engine, from the first message to the new model."""
    from simulations.runner import simulate

    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(settings, Path(folder) / "run")
        status = simulate(run)
        if status != "finished":
            raise RuntimeError(f"the run ended {status}: {run.state()['message']}")
        return [float(r["seconds"]) for r in run.metrics() if r["kind"] == "round"]


def main() -> None:
    """Measure, print, and optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--silos", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="the first two warm up")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings = experiment(args.silos, args.steps, args.rounds, args.batch, args.model)
    workers = len(os.sched_getaffinity(0))
    before = bare_rounds(settings, workers, args.rounds)[1:]
    federated = federated_rounds(settings)[2:]
    after = bare_rounds(settings, workers, args.rounds)[1:]
    bare = statistics.median(before + after)
    result = {
        "silos": args.silos,
        "local_steps": args.steps,
        "batch_size": args.batch,
        "workers": workers,
        "federated_seconds": federated,
        "bare_seconds": before + after,
        "ratio": statistics.median(federated) / bare,
        "ratio_range": [min(federated) / max(before + after), max(federated) / min(before + after)],
        "goal": GOAL,
    }
    print(
        f"warm round of {args.silos} silos x {args.steps} local steps, {workers} workers\n"
        f"  on Flower's engine  median {statistics.median(federated):.3f} s  {federated}\n"
        f"  bare loops          median {bare:.3f} s  (before {before}, after {after})\n"
        f"  ratio {result['ratio']:.3f} (goal <= {GOAL})"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
