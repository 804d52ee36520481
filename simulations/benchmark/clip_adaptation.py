"""A badly chosen clipping norm, fixed and adaptive, on the embedded tweets at example level.

    python -m simulations.benchmark.clip_adaptation [--clips 0.01 20] [--seeds 0] [--rounds 16] [--epsilon 3]

Each cell is a real run with ledger and report, in this process; the noise is calibrated to the same epsilon. The
table says what the last model gets right on the server's examples, and the clipping norm of the first and the
last round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from fedllm.run_folder import RunFolder
from fedllm.settings_io import parse_settings
from simulations.in_process import federate

BASE: dict[str, Any] = {
    "name": "clip-adaptation",
    "model": {"name": "minilm", "dtype": "float32", "device": "cpu"},
    "prefix": {"length": 4, "layers": [-2, -1]},
    "data": {"source": "tweets", "limit": 1500, "partition": "iid", "silos": 3},
    "client": {"batch_size": 32},
    "server": {"learning_rate": 4e-3, "head_learning_rate": 0.05},
    "output": {"tensorboard": False},
}


def run_cell(
    folder: Path, *, form: str, clip: float, seed: int, rounds: int, epsilon: float, rate: float
) -> dict[str, Any]:
    """One run: accuracy of its last model, and clipping norms.

    Raises:
        RuntimeError: it did not finish.
    """
    tree = json.loads(json.dumps(BASE))
    tree["seed"] = seed
    tree["server"]["rounds"] = rounds
    tree["evaluation"] = {"every": rounds}
    tree["privacy"] = {"epsilon": epsilon, "clip": clip}
    tree["clipping"] = {"form": form, "learning_rate": rate}
    run = RunFolder.create(parse_settings(tree), folder / f"{form}-{clip:g}-{seed}")
    began = time.perf_counter()
    status = federate(run)
    if status != "finished":
        raise RuntimeError(f"{run.path}: {status}: {run.state()['message']}")
    report = json.loads((run.path / "report.json").read_text())
    norms = [row["clip"] for row in report["training"]["clipping"]]
    return {
        "form": form,
        "clip": clip,
        "seed": seed,
        "accuracy": report["training"]["final"]["server"]["accuracy"],
        "last": norms[-1] if norms else clip,
        "epsilon": report["guarantee"]["epsilon"],
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Run the cells and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clips", type=float, nargs="+", default=[0.01, 20.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--rate", type=float, default=1.0, help="clipping.learning_rate")
    parser.add_argument("--out", type=Path, default=None, help="keep the runs here")
    args = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        print(f"{'clip':>8} {'form':10}{'accuracy':>10}{'last clip':>12}{'epsilon':>10}{'s':>6}")
        for clip in args.clips:
            for form in ("fixed", "adaptive"):
                cells = [
                    run_cell(
                        folder,
                        form=form,
                        clip=clip,
                        seed=seed,
                        rounds=args.rounds,
                        epsilon=args.epsilon,
                        rate=args.rate,
                    )
                    for seed in args.seeds
                ]
                found += cells
                accuracy = statistics.mean(c["accuracy"] for c in cells)
                print(
                    f"{clip:8g} {form:10}{accuracy:10.3f}{cells[-1]['last']:12.4g}"
                    f"{max(c['epsilon'] for c in cells):10.3f}{cells[-1]['seconds']:6.0f}",
                    flush=True,
                )
    if args.out is not None:
        text = json.dumps(found, indent=2) + "\n"
        (args.out / "clip-adaptation.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
