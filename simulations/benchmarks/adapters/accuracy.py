"""Accuracy without privacy by form of the adapter, trained centrally: the yardstick of all private figures.

    python -m simulations.benchmarks.adapters.accuracy --out reference.jsonl [--task sst2 --task mnli] [--model minilm]
        [--form lora ...] [--examples 20000] [--passes 1] [--seeds 3] [--choose 4000]

The learning rate of each arm is chosen on training examples: a seed that is not judged trains on `--choose` of them
once for each rate of the form's grid, and other training examples judge. Then each seed trains once and the validation
set judges. Every finished arm is a line of the file; the command goes on where an earlier one stopped.
The data are looked for in FEDLLM_TEST_DATA, else in ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedllm.models.backbone import Backbone, load_backbone
from fedllm.training.tunable import initial_params, make_tunable
from simulations.benchmarks.adapters.central import Schedule, train
from simulations.benchmarks.adapters.tasks import TASKS, Record, ReferenceTask
from simulations.benchmarks.support import workload

TUNING_SEED = 1000
HELD_OUT = 1000
"""Training examples that judge the learning rates."""
GRIDS = {
    "head": (1e-2, 3e-2, 1e-1),
    "prefix": (1e-2, 3e-2, 1e-1),
    "lora": (1e-3, 3e-3, 1e-2),
    "ffa-lora": (1e-3, 3e-3, 1e-2),
    "bitfit": (1e-3, 3e-3, 1e-2),
    "last-layers": (1e-4, 3e-4, 1e-3),
    "full": (1e-4, 3e-4, 1e-3),
}
OF_LAYERS = ("prefix", "lora", "ffa-lora", "bitfit", "last-layers")


@dataclass(frozen=True)
class Arm:
    """A form of adapter in some layers.

    Attributes:
        form: as in ``adapter.form``.
        share: of the layers, from the top.
        rank: of LoRA.
    """

    form: str
    share: float = 1.0
    rank: int = 8

    def adapter(self, layers: int) -> dict[str, Any]:
        """The section ``[adapter]`` for a model of this many layers."""
        found: dict[str, Any] = {"form": self.form}
        if "lora" in self.form:
            found |= {"rank": self.rank, "alpha": 2.0 * self.rank}
        if self.form in OF_LAYERS and (self.share < 1 or self.form == "last-layers"):
            found["layers"] = list(range(layers - max(1, round(self.share * layers)), layers))
        return found

    @property
    def label(self) -> str:
        """Name in the table."""
        if self.form not in OF_LAYERS:
            return self.form
        where = "all layers" if self.share == 1 else f"top {self.share:.2g} of the layers"
        return (
            f"{self.form}, rank {self.rank}, {where}"
            if "lora" in self.form
            else f"{self.form}, {where}"
        )


ARMS = (
    Arm("head"),
    Arm("prefix", 0.5),
    Arm("lora", 1 / 3),
    Arm("lora"),
    Arm("ffa-lora", 1 / 3),
    Arm("bitfit"),
    Arm("last-layers", 1 / 3),
    Arm("full"),
)


class Bench:
    """A model on a task: trains arms and judges them."""

    def __init__(self, task: ReferenceTask, model: str, options: argparse.Namespace) -> None:
        self.task, self.options = task, options
        self.source = workload.model_source(model)
        self.backbone: Backbone = load_backbone(self.source.folder, device=options.device)
        records = task.read("train")
        random.Random(0).shuffle(records)
        self.held_out, self.pool = records[:HELD_OUT], records[HELD_OUT:]
        judged = task.read("validation")
        self.judged = judged[: options.judged] if options.judged else judged

    def run(
        self, arm: Arm, rate: float, seed: int, train_on: Sequence[Record], judge: Sequence[Record]
    ) -> dict[str, float]:
        """Train once; return the metrics on ``judge`` and the CPU seconds."""
        options = self.options
        settings = self.task.settings(
            self.source.folder, self.backbone.kind == "decoder", arm.adapter(self.backbone.n_layers)
        ).model_copy(update={"seed": seed})
        tunable = make_tunable(settings, self.backbone)
        params = initial_params(tunable, settings)
        features = tunable.task.features(train_on)
        schedule = Schedule(options.passes, options.batch, rate, options.max_tokens)

        def say(step: int, steps: int) -> None:
            if step % 25 == 0 or step == steps:
                print(
                    f"\r  {arm.label}: rate {rate:g}, seed {seed}: step {step} of {steps}  ",
                    end="",
                    file=sys.stderr,
                )

        found, seconds = train(tunable, params, features, schedule, seed, say)
        seen = tunable.task.features(judge)
        metrics = tunable.evaluate(found, seen, options.max_tokens)
        if not self.task.labels and options.write:
            metrics |= tunable.writing_metrics(found, seen[: options.write], 64)
        metrics.pop("examples", None)  # the row names those that are trained on
        return metrics | {"seconds": seconds}

    def choose(self, arm: Arm) -> dict[str, float]:
        """Loss on held-out training examples by learning rate."""
        chosen = self.pool[: self.options.choose]
        return {
            f"{rate:g}": self.run(arm, rate, TUNING_SEED, chosen, self.held_out)["loss"]
            for rate in GRIDS[arm.form]
        }

    def examples(self, seed: int) -> list[Record]:
        """The training examples of a seed."""
        records = list(self.pool)
        random.Random(seed).shuffle(records)
        return records[: self.options.examples]


def measure(task: str, model: str, options: argparse.Namespace, done: list[dict[str, Any]]) -> None:
    """Run all arms of a model on a task that ``done`` lacks; each finished seed is a line of the file."""
    bench: Bench | None = None
    for arm in ARMS:
        if options.form and arm.form not in options.form:
            continue
        key = {
            "task": task,
            "model": model,
            "arm": arm.label,
            "examples": options.examples,
            "passes": options.passes,
            "batch": options.batch,
        }
        found = [row for row in done if key.items() <= row.items()]
        missing = [seed for seed in range(options.seeds) if seed not in {r["seed"] for r in found}]
        if not missing:
            continue
        bench = bench or Bench(TASKS[task], model, options)
        losses = found[0]["losses"] if found else bench.choose(arm)
        rate = min(losses, key=lambda each: losses[each])
        for seed in missing:
            metrics = bench.run(arm, float(rate), seed, bench.examples(seed), bench.judged)
            row = key | {"seed": seed, "rate": float(rate), "losses": losses}
            row |= {"trained": len(bench.examples(seed))} | metrics
            done.append(row)
            with Path(options.out).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table: a row for each model, task and arm."""
    lines = [
        "| model | task | adapter | examples seen | rate | seeds | accuracy, % (perplexity, BLEU) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        name = (row["model"], row["task"], row["arm"], row["examples"], row["passes"])
        groups.setdefault(name, []).append(row)
    for (model, task, arm, _, passes), found in groups.items():
        seen = round(passes * found[0]["trained"])
        shown = (
            _spread([100 * row["accuracy"] for row in found])
            if "accuracy" in found[0]
            else (
                f"{_spread([row['perplexity'] for row in found])}"
                + (f", {_spread([row['bleu'] for row in found])}" if "bleu" in found[0] else "")
            )
        )
        lines.append(
            f"| {model} | {task} | {arm} | {seen:,} | {found[0]['rate']:g} | {len(found)} | {shown} |"
        )
    return lines


def _spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ± {statistics.stdev(values):.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then print the table of the whole file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", required=True, help="JSON Lines file of finished arms; made, or continued"
    )
    parser.add_argument("--task", action="append", choices=sorted(TASKS))
    parser.add_argument("--model", action="append", help="minilm, smollm2, a folder or a hub id")
    parser.add_argument("--form", action="append", choices=sorted(GRIDS))
    parser.add_argument("--examples", type=int, help="training examples of a seed; default: all")
    parser.add_argument("--passes", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--choose", type=int, default=2000, help="examples that a rate is chosen with"
    )
    parser.add_argument("--judged", type=int, help="validation examples; default: all")
    parser.add_argument("--write", type=int, default=0, help="texts written and scored by BLEU")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = Path(options.out)
    done = []
    if path.is_file():
        done = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    try:
        for model in options.model or ["minilm"]:
            for task in options.task or ["sst2", "qnli", "mnli"]:
                measure(task, model, options, done)
    except KeyboardInterrupt:
        print("\nstopped; finished arms are kept", file=sys.stderr)
    print("\n".join(table(done)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
