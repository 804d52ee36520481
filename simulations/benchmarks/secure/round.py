"""CPU seconds and bytes of a round with secure sums, next to the same round whose silos add their own noise.

    python -m simulations.benchmarks.secure.round [--silos 8] [--rounds 6] [--model minilm] [--json OUT]

One process answers all messages, so that nothing but the work is in the seconds: all silos' training, masks and shares, and the
server's part. CPU seconds, so that a machine which does other things as well gives the same numbers. Messages cross as protobuf's bytes. The first round warms up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedllm.run.folder import RunFolder
from fedllm.settings.io import parse_settings
from simulations.benchmarks.round_cost import experiment
from simulations.in_process import federate

WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "noise by the silos": {},
    "sum, nobody missing (t=0)": {"privacy": {"noise_by": "sum"}},
    "sum, one may be missing (t=1)": {"privacy": {"noise_by": "sum"}, "secure": {"drop_outs": 1}},
    "sum of 32 bits (t=1)": {
        "privacy": {"noise_by": "sum"},
        "secure": {"drop_outs": 1, "bits": 32},
    },
}
"""Settings of each way, by section."""


def changed(tree: dict[str, Any], sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return plain settings with other values in some sections."""
    return tree | {name: tree[name] | values for name, values in sections.items()}


class Clock:
    """A run's observer: the CPU seconds of this process when each round has ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def record(self, record: Mapping[str, Any]) -> None:
        """Note the end of a round."""
        if record["kind"] == "round":
            self.ends.append(time.process_time())

    def close(self) -> None:
        """Nothing is open."""


def measured(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the median CPU seconds of a warm round, their range, and the bytes that all silos send in it."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(parse_settings(tree), Path(folder) / "run")
        status = federate(run, callbacks=[clock])
        if status != "finished":
            raise RuntimeError(f"the run ended {status}: {run.state()['message']}")
        (*_, last) = [record for record in run.metrics() if record["kind"] == "round"]
    seconds = [later - earlier for earlier, later in itertools.pairwise(clock.ends)]
    return {
        "seconds": statistics.median(seconds),
        "range": [min(seconds), max(seconds)],
        "bytes_up": int(last["bytes_up"]),
    }


def main() -> None:
    """Measure, print, and optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--silos", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6, help="the first one warms up")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings = experiment(args.silos, 1, args.rounds, args.batch, args.model)
    base = settings.model_dump(mode="json")
    found = {name: measured(changed(base, sections)) for name, sections in WAYS.items()}
    plain = found["noise by the silos"]["seconds"]
    print(
        f"a warm round of {args.silos} silos, 1 local step, batches of {args.batch}, {args.model}"
    )
    for name, row in found.items():
        low, high = row["range"]
        print(
            f"  {name:32s} {row['seconds']:.3f} s ({low:.3f} to {high:.3f}; x {row['seconds'] / plain:.2f}), "
            f"{row['bytes_up'] / 2**20:.2f} MiB from the silos"
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
