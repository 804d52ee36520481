"""Bytes that a silo sends and gets in a round, by form of the adapter, with and without the linear codec.

    python -m simulations.benchmarks.adapters.round_bytes [--model minilm] [--ratio 8] [--json OUT]

One real round for each row: real client and server code within this process, two silos with a few texts each. Counted
are the tensors of the messages, as the run's record has them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedllm.models.backbone import load_backbone
from fedllm.run.folder import RunFolder
from fedllm.settings.io import parse_settings
from simulations.benchmarks.adapters.accuracy import ARMS, Arm
from simulations.benchmarks.support import workload
from simulations.in_process import federate

SILOS, TEXTS = 2, 40


def round_of(
    source: workload.ModelSource, arm: Arm, layers: int, ratio: int | None
) -> dict[str, Any]:
    """Run one round; return bytes up and down of a silo, or why it is refused.

    Args:
        layers: of the model.
        ratio: numbers of an update for one of its code; None: no codec.
    """
    adapter = arm.adapter(layers)
    chosen = adapter.pop("layers", "all") if arm.form == "prefix" else "all"
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "train.jsonl"
        records, _ = workload.load_texts(TEXTS * SILOS)
        text.write_text("".join(json.dumps(record) + "\n" for record in records))
        tree: dict[str, Any] = {
            "name": "round-bytes",
            "model": {"name": source.folder, "device": "cpu"},
            "adapter": adapter,
            "prefix": {"length": 2, "phrase": workload.PHRASE, "layers": chosen},
            "task": {"labels": workload.LABELS, "max_length": 32},
            "data": {
                "source": "files",
                "path": folder,
                "train": text.name,
                "partition": "iid",
                "silos": SILOS,
            },
            "client": {"batch_size": 8},
            "server": {"rounds": 1},
            "privacy": {"mode": "dp", "noise_multiplier": 1.0},
            "evaluation": {"every": 1000, "max_examples": 4},
        }
        if ratio is not None:
            tree["codec"] = {"name": "linear", "ratio": ratio, "prior": "layerwise"}
        try:
            run = RunFolder.create(parse_settings(tree), Path(folder) / "run")
        except ValueError as error:
            return {"refused": str(error)}
        status = federate(run)
        if status != "finished":
            raise RuntimeError(f"Expected a finished run, got {status}: {run.state()['message']}")
        (record,) = [r for r in run.metrics() if "bytes_up" in r and r.get("round") == 1]
    return {"up": record["bytes_up"] // SILOS, "down": record["bytes_down"] // SILOS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one row a form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="minilm", help="minilm, a folder or a hub id of an encoder"
    )
    parser.add_argument(
        "--ratio", type=int, default=8, help="numbers of an update for one of its code"
    )
    parser.add_argument("--json")
    options = parser.parse_args(arguments)
    source = workload.model_source(options.model)
    layers = load_backbone(source.folder, device="cpu").n_layers
    rows: list[dict[str, Any]] = []
    print(
        f"| adapter | up | down | up, linear codec 1:{options.ratio} | down |\n| --- | --- | --- | --- | --- |"
    )
    for arm in ARMS:
        plain, coded = (round_of(source, arm, layers, ratio) for ratio in (None, options.ratio))
        rows.append({"adapter": arm.label, "plain": plain, "codec": coded})
        cells = [_kib(found, way) for found in (plain, coded) for way in ("up", "down")]
        print(f"| {' | '.join([arm.label, *cells])} |", flush=True)
    for row in rows:
        for what in ("plain", "codec"):
            if "refused" in row[what]:
                print(f"{row['adapter']}, {what}: {row[what]['refused']}")
    if options.json:
        Path(options.json).write_text(json.dumps({"model": source.note, "rows": rows}, indent=1))
    return 0


def _kib(found: dict[str, Any], way: str) -> str:
    return "refused" if "refused" in found else f"{found[way] / 1024:,.0f} KiB"


if __name__ == "__main__":
    sys.exit(main())
