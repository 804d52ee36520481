"""Accuracy under poison, for each aggregation: the tables of docs/results/poison.md.

    python -m simulations.benchmarks.poison [--seeds 3] [--json OUT]

`tweets.toml` without a prefix (the head alone is trained, see `federation.py`), the tweets dealt by a hash to 8 silos,
epsilon = 3 for each tweet, 30 rounds; all other settings are the experiment's own, none was chosen here. Each cell is
the mean accuracy on the held-out tweets over the seeds. `mean, no law` has `server.max_update_norm` alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedllm.budget.schedule import sampling_rate
from fedllm.models.embedded import cache_folder
from fedllm.settings.io import load_settings
from privacy.calibration import calibrate_noise_multiplier
from simulations.benchmarks.poison.attacks import ATTACKS, HONEST, Hostile
from simulations.benchmarks.poison.federation import train
from simulations.benchmarks.poison.head_features import head_features
from simulations.benchmarks.support import timing

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "tweets.toml"
SILOS = 8
CHANGES = [
    "prefix.length=0",
    "data.partition=hash",
    f"data.silos={SILOS}",
    "evaluation.max_examples=none",
]
RULES = ("mean", "median", "trimmed-mean", "norm-clipped-mean")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all cells; print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hostile", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", metavar="OUT")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    base = load_settings(EXPERIMENT, [*CHANGES, *options.changes])
    data = head_features(base)
    silos = sorted(name[2:] for name in data if name.startswith("x."))
    rates = {name: sampling_rate(base, len(data[f"x.{name}"])) for name in silos}
    noise = {
        name: calibrate_noise_multiplier(
            epsilon=float(base.privacy.epsilon or 0),
            delta=base.privacy.delta,
            sampling_rate=rate,
            steps=base.server.rounds,
            cache_dir=cache_folder() / "calibration",
        ).noise_multiplier
        for name, rate in rates.items()
    }
    prepared = time.monotonic() - began
    columns: list[tuple[str, str, bool]] = [("mean, no law", "mean", False)]
    columns += [(rule, rule, True) for rule in RULES]
    rows: list[tuple[str, int]] = [(HONEST, 0)]
    rows += [(attack, count) for attack in ATTACKS for count in options.hostile]
    found: list[dict[str, Any]] = []
    for attack, count in rows:
        for title, rule, law in columns:
            server = base.server.model_copy(update={"aggregation": rule})
            settings = base.model_copy(update={"server": server})
            # Spread over the silos, so that neither the largest nor the smallest are chosen.
            bad = {
                silos[(2 + 3 * i) % len(silos)]: _hostile(attack, settings) for i in range(count)
            }
            outcomes = [
                train(data, settings, noise, bad, law=law, seed=seed)
                for seed in range(options.seeds)
            ]
            accuracies = [outcome.accuracy for outcome in outcomes]
            found.append(
                {
                    "attack": attack,
                    "hostile": count,
                    "aggregation": title,
                    "accuracy": accuracies,
                    "honest_refused": sum(o.honest_refused for o in outcomes),
                    "hostile_refused": sum(o.hostile_refused for o in outcomes),
                }
            )
        print(f"{attack}, {count}: {time.monotonic() - began:.0f} s", flush=True)
    shown = [
        [f"{attack} ({count})" if count else attack]
        + [
            f"{statistics.mean(cell['accuracy']):.3f}"
            for title, _, _ in columns
            for cell in found
            if (cell["attack"], cell["hostile"], cell["aggregation"]) == (attack, count, title)
        ]
        for attack, count in rows
    ]
    print(timing.table(["attack (silos)", *(title for title, _, _ in columns)], shown))
    spread = max(statistics.pstdev(cell["accuracy"]) for cell in found)
    replies = base.server.rounds * len(silos) * options.seeds
    judged = [cell for cell in found if "no law" not in cell["aggregation"]]
    honest = sum(replies * (len(silos) - cell["hostile"]) // len(silos) for cell in judged)
    print(
        f"{len(data['x'])} held-out tweets, {options.seeds} seeds, largest deviation between seeds {spread:.3f}; "
        f"always naming the largest class scores {largest_share(data['y']):.3f}; "
        f"noise multipliers {min(noise.values()):.2f} to {max(noise.values()):.2f}; refused by the law: "
        f"{sum(cell['honest_refused'] for cell in judged)} of {honest} honest updates; "
        f"{prepared:.0f} s for features and noise, {time.monotonic() - began:.0f} s in all"
    )
    for attack, count in rows[1:]:
        cells = [c for c in judged if (c["attack"], c["hostile"]) == (attack, count)]
        total = sum(cell["hostile_refused"] for cell in cells)
        print(
            f"{attack} ({count}): {total} of {len(cells) * replies * count // len(silos)} refused"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def largest_share(classes: Tensor) -> float:
    """Return the accuracy of always naming the largest of the classes [n]."""
    return float(torch.bincount(classes.long()).max()) / len(classes)


def _hostile(attack: str, settings: Any) -> Hostile:
    return Hostile(attack, settings.server.max_noise_ratio)


if __name__ == "__main__":
    main()
