"""Run small seeded experiments and print digests of what they leave behind: `python -m tests.seeded [NAME ...]`.

For a change of the code that is to change no number: write the digests before it, compare after it, on the same
machine (roundings differ between processors, so none are kept here):

    git switch --detach BEFORE && python -m tests.seeded --write /tmp/before.json
    git switch --detach AFTER  && python -m tests.seeded --compare /tmp/before.json

For a commit that lacks this folder, put it there. `--rows` prints the reduced rows that a digest is of.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .experiments import EXPERIMENTS
from .measure import measure, prepare
from .product import ROOT


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 if an experiment differs or fails, 2 for a bad command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.seeded",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments (default: all)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the digests to FILE")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="compare with FILE")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--rows", action="store_true", help="print the ledger's reduced rows too")
    parser.add_argument(
        "--keep-fingerprints",
        action="store_true",
        help="draw noise by the fingerprints of settings and versions, as a run does: any setting "
        "that is added or removed then differs",
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in EXPERIMENTS]
    if unknown:
        parser.error(f"Expected names out of {', '.join(EXPERIMENTS)}; got {', '.join(unknown)}")
    chosen = list(dict.fromkeys(options.names)) or list(EXPERIMENTS)
    if options.list:
        print("\n".join(chosen))
        return 0
    earlier = {} if options.compare is None else _read(options.compare)
    found, failed = _measured(chosen, options)
    print(json.dumps(found, indent=1, sort_keys=True))
    if options.write is not None:
        options.write.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "utf-8")
    different = [] if options.compare is None else differences(earlier, found, options.names)
    for line in [*failed, *different]:
        print(line, file=sys.stderr)
    if options.compare is not None and not failed and not different:
        print(f"{len(found)} experiments, no difference", file=sys.stderr)
    return 1 if failed or different else 0


def _measured(
    chosen: list[str], options: argparse.Namespace
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The digests by experiment, and a line for each that failed."""
    found: dict[str, dict[str, Any]] = {}
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for experiment in chosen:
            began = time.monotonic()
            try:
                one = measure(
                    experiment,
                    dict(EXPERIMENTS[experiment]),
                    folder,
                    keep_fingerprints=options.keep_fingerprints,
                )
            except Exception as error:
                failed.append(f"{experiment}: failed: {error}")
                continue
            if not options.rows:
                del one["rows"]
            found[experiment] = one
            print(f"{experiment}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    return found, failed


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], names: list[str] | None = None
) -> list[str]:
    """A line for each experiment that differs, or is on one side alone; ``names``: these only."""
    lines = []
    for name in names or sorted({*before, *after}):
        if name not in before or name not in after:
            lines.append(f"{name}: only {'after' if name in after else 'before'}")
            continue
        parts = [p for p in ("parameters", "ledger") if before[name][p] != after[name][p]]
        if parts:
            lines.append(f"{name}: different {' and '.join(parts)}")
    return lines


def _read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"Expected a JSON object in {path}, got {type(found).__name__}")
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sys.exit(main())
