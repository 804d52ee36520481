"""Try settings of one experiment without Flower: the same silos, steps, noise and optimiser in one process.

    FEDLLM_TEST_DATA=../shared/data python -m simulations.benchmark.try_settings \
        simulations/benchmark/sst2-minilm.toml --try "server.learning_rate=1e-2" \
        --try "prefix.length=0" --try "privacy.mode=none; prefix.length=8" [--json OUT]

Each `--try` is one cell: settings that replace the file's. Cells print as they finish. For choosing
defaults only: nothing is recorded in a ledger, so use it on public data.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from fedllm.embedded import cache_folder
from fedllm.local_training import train_locally
from fedllm.process import use_threads
from fedllm.settings import Settings
from fedllm.settings_io import load_settings
from fedllm.silo_account import sampling_rate
from fedllm.silos import evaluation_set, load_federation
from fedllm.tunable import initial_params, make_tunable
from privacy.calibration import calibrate_noise_multiplier
from privacy.randomness import generator
from server.aggregation import Contribution, mean_update
from server.optimizers import ServerOptimizer


def noise_for(settings: Settings, rate: float) -> float:
    """Noise multiplier of a silo with this sampling rate (unit example), 0 where there is no privacy."""
    privacy = settings.privacy
    if privacy.mode == "none":
        return 0.0
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    return calibrate_noise_multiplier(
        epsilon=float(privacy.epsilon or 0),
        delta=privacy.delta,
        sampling_rate=rate,
        steps=settings.server.rounds * settings.client.local_steps,
        cache_dir=cache_folder() / "calibration",
    ).noise_multiplier


def cell(settings: Settings) -> list[dict[str, float]]:
    """Train, and return the server's evaluations (round, loss, accuracy, ...)."""
    federation = load_federation(settings)
    tunable = make_tunable(settings)
    features = {s.name: tunable.task.features(s.train.records) for s in federation.silos}
    judged = tunable.task.features(evaluation_set(settings).records)
    rates = {name: sampling_rate(settings, len(rows)) for name, rows in features.items()}
    noise = {name: noise_for(settings, rate) for name, rate in rates.items()}
    params = initial_params(tunable, settings)
    optimizer = ServerOptimizer(settings.server, params)
    found = []
    for turn in range(1, settings.server.rounds + 1):
        replies = []
        for name, rows in features.items():
            result = train_locally(
                tunable,
                params,
                rows,
                settings,
                sampling_rate=rates[name],
                noise_multiplier=noise[name],
                streams=lambda use, step, n=name, t=turn: generator(settings.seed, n, t, use, step),
            )
            replies.append(Contribution(name, result.update, result.noise_std))
        update, std = mean_update(replies, params, len(replies))
        params = optimizer.step(params, update, std, turn)
        if turn % settings.evaluation.every == 0 or turn == settings.server.rounds:
            metrics = tunable.evaluate(params, judged, settings.client.max_tokens)
            found.append({"round": float(turn), **metrics})
    return found


def main() -> None:
    """Run the cells in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--try", dest="cells", action="append", default=[], metavar="SETTINGS")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    use_threads(args.threads)
    results: list[dict[str, Any]] = []
    for text in args.cells or [""]:
        began = time.monotonic()
        overrides = [part.strip() for part in text.split(";") if part.strip()]
        found = cell(load_settings(args.experiment, overrides))
        line = "  ".join(
            f"{int(f['round'])}: {f.get('accuracy', f.get('perplexity', f['loss'])):.4f}"
            for f in found
        )
        print(
            f"{text or '(as in the file)':70} {line}  [{time.monotonic() - began:.0f} s]",
            flush=True,
        )
        results.append({"settings": text, "evaluations": found})
        if args.json:
            args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
