"""Figure 4: accuracy on SST-2 validation, 8 IID silos: non-private, epsilon = 8, 3, 1.

    FEDLLM_TEST_DATA=../shared/data python -m simulations.benchmark.accuracy \
        simulations/benchmark/sst2-minilm.toml [--seeds 0 1] [--out runs/accuracy]

Each cell is a real run (`fedllm run`); finished ones are kept, so the command goes on where it was
stopped. The table says the share of the non-private accuracy that each epsilon keeps.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SETTINGS = {
    "non-private": ["privacy.mode=none"],
    "epsilon=8": ["privacy.epsilon=8"],
    "epsilon=3": ["privacy.epsilon=3"],
    "epsilon=1": ["privacy.epsilon=1"],
}


def cell(experiment: Path, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Accuracy at the last round of one run; runs it (or goes on with it) where it is not finished.

    Raises:
        RuntimeError: the run failed.
    """
    state = folder / "state.json"
    status = json.loads(state.read_text())["status"] if state.exists() else None
    if status not in ("finished", "stopped"):
        command = [sys.executable, "-m", "simulations.cli"]
        if status is not None and any((folder / "checkpoints").iterdir()):
            command += ["resume", str(folder)]
        else:
            shutil.rmtree(folder, ignore_errors=True)
            command += ["run", str(experiment), "--run", str(folder)]
            for override in overrides:
                command += ["--set", override]
        subprocess.run(command, check=True, stdout=sys.stderr)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    judged = [r for r in records if r["kind"] == "evaluation" and r["where"] == "server"]
    report = json.loads((folder / "report.json").read_text())
    return {
        "start": judged[0]["accuracy"],
        "accuracy": judged[-1]["accuracy"],
        "examples": judged[-1]["examples"],
        "headline": report["headline"],
    }


def main() -> None:
    """Run the cells, print the table, write ``accuracy-NAME.json``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for name in args.only:
        for seed in args.seeds:
            folder = args.out / f"{args.experiment.stem}-{name}-{seed}"
            overrides = [*SETTINGS[name], f"seed={seed}", *args.overrides]
            found.setdefault(name, []).append(cell(args.experiment, folder, overrides))
    best = (
        statistics.mean(c["accuracy"] for c in found.get("non-private", []))
        if ("non-private" in found)
        else math.nan
    )
    print(f"{args.experiment.stem}, seeds {args.seeds}")
    print(f"{'':14}{'start':>8}{'accuracy':>10}{'+-':>8}{'of non-private':>16}")
    for name, cells in found.items():
        mean = statistics.mean(c["accuracy"] for c in cells)
        error = math.sqrt(mean * (1 - mean) / cells[0]["examples"])
        start = cells[0]["start"]
        print(f"{name:14}{start:8.3f}{mean:10.3f}{error:8.3f}{mean / best:16.1%}")
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / f"accuracy-{args.experiment.stem}.json"
    target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"(+-: standard error from the number of evaluation examples)\n{target}")


if __name__ == "__main__":
    main()
