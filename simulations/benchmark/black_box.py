"""Accuracy through outputs alone: no privacy, Gaussian noise, and the searched noise on single numbers at equal epsilon.

    FEDLLM_TEST_DATA=../shared/data python -m simulations.benchmark.black_box [--seeds 0 1 2] \
        [--only non-private gaussian-3 searched-3] [--endpoint] [--out runs/black-box] [--set KEY=VALUE]

SST-2 with `smollm2`, label words after a prompt (`sst2-black-box.toml`). Each cell is a whole run with ledger and report, in
this process and without Flower's engine; finished ones are kept, so the command goes on where it was stopped.
`gaussian-E`: the differences of a step's directions are clipped and noised as one vector. `searched-E`: each is a number with
the noise that `fedllm noise-search` finds for this run's epsilon, delta, sampling rate and number of numbers (found once, kept
in FEDLLM_CACHE). The table: accuracy at the start and the end (mean over seeds), its spread, the noise's family and its standard
deviation over the clip, epsilon, bytes that a silo sends and receives a round, minutes.

With --endpoint the model is behind llama.cpp's HTTP server on this machine, and what is trained is the mixture of three prompts
and the calibration of their label words. The endpoint is asked once for each prompt.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
from pathlib import Path
from typing import Any

from fedllm.embedded import cache_folder
from fedllm.endpoint import URL_VARIABLE
from fedllm.mechanism import noise_of
from fedllm.run_folder import RunFolder
from fedllm.settings import Settings
from fedllm.settings_io import load_settings
from fedllm.silos import load_federation
from privacy.noise_question import NoiseQuestion
from privacy.noise_search import search_noise
from simulations.benchmark.cells import evaluations, rounds, run_cell
from simulations.completion_server import completion_server

EXPERIMENT = Path(__file__).with_name("sst2-black-box.toml")
CELLS = ("non-private", "gaussian-3", "searched-3", "gaussian-1", "searched-1")
FAMILIES = ("laplace", "staircase", "exponential-power")
PROMPTS = [
    "Review: {text}\nSentiment:",
    "{text}\nThis text is",
    'The sentence "{text}" sounds',
]
BEHIND = [
    "prefix.length=0",
    f"endpoint.prompts={json.dumps(PROMPTS)}",
    "endpoint.top=200",
    "endpoint.timeout=600",
    "data.limit=1200",
    "evaluation.max_examples=400",
    "zeroth_order.smoothing=0.01",
    "privacy.clip=1.0",
    "server.learning_rate=1.0",
]
"""With fewer examples: each costs a request for each prompt."""


def overrides_of(cell: str, base: Settings) -> list[str]:
    """What a cell changes.

    Raises:
        ValueError: no such cell.
    """
    if cell == "non-private":
        return ["privacy.mode=none"]
    kind, _, epsilon = cell.partition("-")
    if kind not in ("gaussian", "searched") or not epsilon:
        raise ValueError(f"Expected a cell such as {', '.join(CELLS)}, got {cell!r}")
    chosen = [f"privacy.epsilon={epsilon}"]
    if kind == "gaussian":
        return [*chosen, "zeroth_order.noise=gaussian"]
    smallest = min(len(silo.train) for silo in load_federation(base).silos)
    numbers = base.server.rounds * base.client.local_steps * base.zeroth_order.directions
    question = NoiseQuestion(
        epsilon=float(epsilon),
        delta=base.privacy.delta,
        steps=numbers,
        sampling_rate=min(1.0, float(base.client.batch_size or 1) / smallest),
    )
    found = search_noise(question, cache_folder() / "noise-search", families=FAMILIES).winner
    text = json.dumps(json.dumps(found.noise.to_dict(), sort_keys=True))
    return [*chosen, "privacy.mechanism=lmo", f"privacy.noise={text}"]


def figures(run: RunFolder) -> dict[str, Any]:
    """What the table tells of a run."""
    settings, judged, turns = run.settings(), evaluations(run), rounds(run)
    noise = noise_of(settings)
    silos = run.read_json("silos.json", {})
    replies = sum(r["replied"] for r in turns)
    return {
        "start": judged[0]["accuracy"],
        "accuracy": judged[-1]["accuracy"],
        "loss": judged[-1]["loss"],
        "examples": judged[-1]["examples"],
        "family": "" if settings.privacy.mode == "none" else noise.family if noise else "gaussian",
        "noise_multiplier": next(iter(silos.values()))["noise_multiplier"],
        "epsilon": run.read_json("report.json")["guarantee"]["epsilon"],
        "bytes_up": sum(r["bytes_up"] for r in turns) / replies,
        "bytes_down": sum(r["bytes_down"] for r in turns) / replies,
    }


def table(found: dict[str, dict[int, dict[str, Any]]]) -> str:
    """The table of cell -> seed -> figures."""
    lines = [
        f"{'':14}{'start':>7}{'accuracy':>10}{'least':>7}{'most':>7}  {'noise':18}{'std':>8}"
        f"{'epsilon':>9}{'up':>6}{'down':>9}{'minutes':>9}"
    ]
    for name, cells in found.items():
        values = [c["accuracy"] for c in cells.values()]
        first = next(iter(cells.values()))
        epsilon = max(float(c["epsilon"]) for c in cells.values())
        std = f"{first['noise_multiplier']:.3f}" if first["family"] else ""
        lines.append(
            f"{name:14}{first['start']:7.3f}{statistics.mean(values):10.3f}{min(values):7.3f}"
            f"{max(values):7.3f}  {first['family']:18}{std:>8}{epsilon:9.3g}{first['bytes_up']:6.0f}"
            f"{first['bytes_down']:9.0f}{statistics.mean(c['minutes'] for c in cells.values()):9.1f}"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Command line."""
    made = argparse.ArgumentParser(
        prog="python -m simulations.benchmark.black_box", description=__doc__
    )
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--experiment", type=Path, default=EXPERIMENT)
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--only", nargs="+", default=list(CELLS), help=" ".join(CELLS))
    made.add_argument("--endpoint", action="store_true", help="through llama.cpp's HTTP server")
    made.add_argument("--out", type=Path, default=Path("runs/black-box"))
    made.add_argument("--set", dest="overrides", action="append", default=[])
    return made


def main(arguments: list[str] | None = None) -> None:
    """Run the cells, print the table, write ``black-box.json``."""
    args = parser().parse_args(arguments)
    found: dict[str, dict[int, dict[str, Any]]] = {}
    with contextlib.ExitStack() as stack:
        common = list(args.overrides)
        if args.endpoint:
            url = stack.enter_context(completion_server())
            # The same settings whatever the port, so that cells share the answers and a run can go on.
            os.environ[URL_VARIABLE] = url
            common = [*BEHIND, "endpoint.url=http://127.0.0.1/v1", *common]
        for seed in args.seeds:
            base = load_settings(args.experiment, [*common, f"seed={seed}"])
            for name in args.only:
                overrides = [*common, f"seed={seed}", *overrides_of(name, base)]
                folder = args.out / f"{'endpoint-' if args.endpoint else ''}{name}-{seed}"
                done = run_cell(args.experiment, folder, overrides, figures)
                found.setdefault(name, {})[seed] = done
                print(
                    f"{name}-{seed}: {done['start']:.4f} -> {done['accuracy']:.4f} "
                    f"({done['minutes']:.1f} minutes)",
                    flush=True,
                )
    args.out.mkdir(parents=True, exist_ok=True)
    where = "through an endpoint, " if args.endpoint else ""
    print(
        f"{args.experiment.stem}, {where}seeds {args.seeds} {' '.join(args.overrides)}\n{table(found)}"
    )
    target = args.out / ("black-box-endpoint.json" if args.endpoint else "black-box.json")
    target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
