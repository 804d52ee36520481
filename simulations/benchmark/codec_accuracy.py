"""Accuracy at equal epsilon, rounds and silos: uncompressed, noise before encoding, noise in the code.

    FEDLLM_TEST_DATA=../shared/data python -m simulations.benchmark.codec_accuracy \
        [--seeds 0 1 2] [--only uncompressed in-code-588] [--out runs/codec-accuracy] [--set KEY=VALUE]

Client-level DP on SST-2 with 16 silos (`sst2-codec.toml`). Each cell is a whole run with ledger and
report, in this process and without Flower's engine; finished ones are kept, so the command goes on where
it was stopped. The table: accuracy (mean over seeds, and the spread: smallest and largest), its
difference to uncompressed at the same seeds with its standard error, epsilon, bytes up and minutes.

Which text is whose: of the validation file's 1,000 sentences a half (drawn by the seed, the same in
every cell) is what the model is judged by, and the other half, without its labels, the server's public
text, to which the code is fitted. Neither is a silo's.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from fedllm.data.sources import load_file
from fedllm.run_folder import RunFolder
from fedllm.settings_io import load_settings
from privacy.randomness import generator
from simulations.benchmark.cells import evaluations, rounds, run_cell

EXPERIMENT = Path(__file__).with_name("sst2-codec.toml")
LINEAR = ["codec.name=linear", "codec.prior=low-rank", "codec.rank=64"]
"""64 directions of public text; at 588x they are the whole code, at 32x coordinates fill it up."""
BEFORE, IN_CODE = "codec.noise=before-encoding", "codec.noise=in-code"
CELLS = {
    "uncompressed": [],
    "before-encoding-32": [*LINEAR, "codec.ratio=32", BEFORE],
    "before-encoding-588": [*LINEAR, "codec.ratio=588", BEFORE],
    "in-code-32": [*LINEAR, "codec.ratio=32", IN_CODE],
    "in-code-588": [*LINEAR, "codec.ratio=588", IN_CODE],
    "in-code-588-8-bits": [*LINEAR, "codec.ratio=588", IN_CODE, "codec.bits=8"],
    "coordinate-in-code-32": ["codec.name=linear", "codec.prior=coordinate", IN_CODE],
    "random-projection-32": ["codec.name=random-projection", "codec.ratio=32", IN_CODE],
    "non-private": ["privacy.mode=none", "privacy.noise_by=client"],
}
DEFAULT = ("uncompressed", "before-encoding-32", "in-code-32", "in-code-588")


def halves(experiment: Path, folder: Path, seed: int) -> list[str]:
    """Write the two halves of the validation file, drawn by ``seed``; the settings that name them."""
    settings = load_settings(experiment)
    validation = Path(str(settings.data.path)) / str(settings.data.validation)
    records = load_file(validation, encoding=settings.data.encoding).records
    order = generator(seed, "codec-accuracy", "halves").permutation(len(records))
    parts = {"judged": order[: len(order) // 2], "public": order[len(order) // 2 :]}
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, chosen in parts.items():
        paths[name] = (folder / f"{name}-{seed}.jsonl").absolute()
        lines = (json.dumps(records[row]) + "\n" for row in sorted(chosen))
        paths[name].write_text("".join(lines), encoding="utf-8")
    return [
        f"data.validation={paths['judged']}",
        "public.source=files",
        f"public.path={paths['public']}",
    ]


def figures(run: RunFolder) -> dict[str, Any]:
    """What the table tells of a run."""
    judged, turns = evaluations(run), rounds(run)
    report, silos = run.read_json("report.json"), run.read_json("silos.json", {})
    return {
        "accuracies": [r["accuracy"] for r in judged],
        "accuracy": judged[-1]["accuracy"],
        "examples": judged[-1]["examples"],
        "bytes": sum(r["bytes_up"] for r in turns) / sum(r["replied"] for r in turns),
        "noise_multiplier": next(iter(silos.values()))["noise_multiplier"],
        "headline": report["headline"],
        "epsilon": report["guarantee"]["epsilon"],
    }


def table(found: dict[str, dict[int, dict[str, Any]]]) -> str:
    """The table of cell -> seed -> figures."""
    base = found.get("uncompressed", {})
    lines = [
        f"{'':22}{'accuracy':>9}{'least':>8}{'most':>8}{'gain':>8}{'+-':>7}{'epsilon':>9}"
        f"{'bytes':>9}{'times':>7}{'minutes':>9}"
    ]
    for name, cells in found.items():
        values = [c["accuracy"] for c in cells.values()]
        gains = [
            c["accuracy"] - base[seed]["accuracy"] for seed, c in cells.items() if seed in base
        ]
        error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
        gain = statistics.mean(gains) if gains else math.nan
        size = statistics.mean(c["bytes"] for c in cells.values())
        plain = statistics.mean(c["bytes"] for c in base.values()) if base else math.nan
        epsilon = max(float(c["epsilon"]) for c in cells.values())
        minutes = statistics.mean(c["minutes"] for c in cells.values())
        lines.append(
            f"{name:22}{statistics.mean(values):9.3f}{min(values):8.3f}{max(values):8.3f}{gain:+8.3f}"
            f"{error:7.3f}{epsilon:9.3g}{size:9.0f}{plain / size:7.1f}{minutes:9.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the cells, print the table, write ``codec-accuracy.json``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiment", type=Path, default=EXPERIMENT)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/codec-accuracy"))
    parser.add_argument("--only", nargs="+", choices=list(CELLS), default=list(DEFAULT))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for seed in args.seeds:
        texts = halves(args.experiment, args.out / "texts", seed)
        for name in args.only:
            overrides = [*CELLS[name], *texts, f"seed={seed}", *args.overrides]
            folder = args.out / f"{name}-{seed}"
            found.setdefault(name, {})[seed] = run_cell(args.experiment, folder, overrides, figures)
            done = found[name][seed]
            print(
                f"{name}-{seed}: {done['accuracy']:.4f} ({done['minutes']:.1f} minutes)", flush=True
            )
    text = table(found)
    print(f"{args.experiment.stem}, seeds {args.seeds} {' '.join(args.overrides)}\n{text}")
    target = args.out / "codec-accuracy.json"
    target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
