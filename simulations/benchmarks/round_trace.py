"""Trace one round through the code: count files entered, calls, calls between files, depth.

    python -m simulations.benchmarks.round_trace [--steps 1] [--json OUT]

The round is the second one of plain DP-SGD by example with nothing optional on: the tiny encoder, four silos, in
one process (:mod:`simulations.in_process`), all threads. It begins where the strategy makes the silos' tasks and
ends with the round's record, so it holds neither the server's evaluation nor the checkpoint. A silo's task is what
happens within Flower's ClientApp. A call is one of a named function of the product (generators count each time
that they continue; lambdas and comprehensions do not count); it crosses files where the nearest frame of the product
above it is in another file. Depth is the number of such frames on the stack. Counts vary by a percent with the
batches that are drawn.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from flwr.clientapp import ClientApp

from fedllm.run.folder import RunFolder
from fedllm.settings.io import parse_settings
from simulations.benchmarks.support import tiny
from simulations.in_process import federate

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("privacy", "fedllm", "client", "server")
ROUND = 2
OFF = {
    "codec": r"codec|encoded_release|encoder_phase|downlink|training/encoding|statistics",
    "teacher": r"teacher|duplicate|distillation",
    "zeroth order": r"zeroth_order|forward_only|directions|number_release|endpoint",
    "adaptive clipping": r"adaptive_clip|settings_clipping",
    "layers": r"layer_|layers\.py",
    "perturbation": r"perturbation",
    "LMO": r"lmo|vector_noise|scalar_noise",
    "central noise": r"trusted_noise|central_noise",
}
"""By feature that is off in this round: which files are its own."""
SETTINGS = r"(^|/)settings"
"""The files of the settings."""
EVENTS = re.compile(r"^(DpSgd\._noisy_events|(ClientUpdate|ZerothOrder|NoPrivacy)\.events)$")
"""Methods that build the events of one round of training at one silo; a mechanism's `events` looks them up."""


@dataclass(frozen=True)
class Call:
    """One call: file and function, the file of the product it comes from, frames, which silo's task."""

    file: str
    function: str
    caller: str | None
    depth: int
    task: int | None


@dataclass(frozen=True)
class Figures:
    """Counts over the calls of a round, or of one silo's task."""

    files: int
    calls: int
    across_files: int
    depth: int


class RoundTrace:
    """Records the calls of one round of a run: give it to the run as a callback within :meth:`watching`."""

    def __init__(self, server_round: int = ROUND) -> None:
        self.server_round = server_round
        self.calls: list[Call] = []
        self._finished = 0
        self._active = False
        self._tasks = 0
        self._here = threading.local()
        self._files: dict[CodeType, str | None] = {}

    # -- a callback of the run -------------------------------------------------------------------

    def record(self, record: Mapping[str, Any]) -> None:
        """Take a record of the run: the round's own ends the trace."""
        if record["kind"] == "round":
            self._finished = int(record["round"])
            self._active = False

    def close(self) -> None:
        """Do nothing: nothing is open."""

    # -- the trace -------------------------------------------------------------------------------

    def watch(self, frame: FrameType, event: str, _: Any) -> None:
        """See one call or return, as :func:`sys.setprofile` tells of it."""
        code = frame.f_code
        if event == "return" and code is ClientApp.__call__.__code__:
            self._here.task = None
        if event != "call":
            return
        file = self._file(code)
        if file is not None and code.co_name == "configure_train":
            self._active = self._finished == self.server_round - 1
        if not self._active:
            return
        if code is ClientApp.__call__.__code__:
            self._tasks += 1
            self._here.task = self._tasks
        if file is None or code.co_name.startswith("<"):
            return
        caller, depth = None, 1
        above = frame.f_back
        while above is not None:
            if (place := self._file(above.f_code)) is not None:
                caller = caller or place
                depth += not above.f_code.co_name.startswith("<")
            above = above.f_back
        task = getattr(self._here, "task", None)
        self.calls.append(Call(file, code.co_qualname, caller, depth, task))

    def _file(self, code: CodeType) -> str | None:
        """Return the file of the product that the code is in, from the root; None for any other."""
        if code not in self._files:
            path = Path(code.co_filename)
            ours = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES
            self._files[code] = path.relative_to(ROOT).as_posix() if ours else None
        return self._files[code]


def figures(calls: list[Call]) -> Figures:
    """Count calls, files and depth.

    Raises:
        ValueError: no calls.
    """
    if not calls:
        raise ValueError("Expected calls of a round, got none")
    return Figures(
        files=len({call.file for call in calls}),
        calls=len(calls),
        across_files=sum(call.caller not in (None, call.file) for call in calls),
        depth=max(call.depth for call in calls) - min(call.depth for call in calls) + 1,
    )


def calls_of_features_off(calls: list[Call]) -> dict[str, int]:
    """Return the number of calls into files of each feature of `OFF`; a file counts for the first that claims it."""
    found = dict.fromkeys(OFF, 0)
    for file, count in Counter(call.file for call in calls).items():
        for feature, pattern in OFF.items():
            if re.search(pattern, file):
                found[feature] += count
                break
    return found


def event_builds(calls: list[Call]) -> int:
    """Count how many times the events of one silo's round are built."""
    return sum(bool(EVENTS.search(call.function)) for call in calls)


def trace(folder: Path, steps: int = 1) -> list[Call]:
    """Run the experiment in a folder; the calls of its second round.

    Raises:
        RuntimeError: the run failed.
    """
    model, words = folder / "model", folder / "words"
    model.mkdir(parents=True)
    words.mkdir()
    tiny.save_encoder(model)
    tiny.save_words(words)
    tree = tiny.tree(model, words, **{"client.local_steps": steps, "server.rounds": ROUND})
    run = RunFolder.create(parse_settings(tree), folder / "run")
    traced = RoundTrace()
    before = sys.getprofile()
    threading.setprofile(traced.watch)
    sys.setprofile(traced.watch)
    try:
        status = federate(run, callbacks=(traced,))
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    if status != "finished":
        raise RuntimeError(f"the run ended {status}: {run.state()['message']}")
    return traced.calls


def summary(calls: list[Call]) -> dict[str, Any]:
    """Return all figures, as plain values; those of a silo's task are medians over the silos."""
    tasks = sorted({call.task for call in calls if call.task is not None})
    each = [asdict(figures([call for call in calls if call.task == task])) for task in tasks]
    off = calls_of_features_off(calls)
    return {
        "round": asdict(figures(calls)),
        "task": {name: round(statistics.median(one[name] for one in each)) for name in each[0]},
        "silos": len(tasks),
        "off": {
            "calls": sum(off.values()),
            **{name: count for name, count in off.items() if count},
        },
        "settings": sum(re.search(SETTINGS, call.file) is not None for call in calls),
        "events_built_per_silo": event_builds(calls) / len(tasks),
    }


def main() -> None:
    """Trace, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=1, help="local steps of a silo")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = summary(trace(Path(folder), args.steps))
    for what in ("round", "task"):
        one = found[what]
        print(
            f"{'whole round' if what == 'round' else 'task of one silo':<18}{one['files']:>5} files "
            f"{one['calls']:>7,} calls {one['across_files']:>7,} across files, depth {one['depth']}"
        )
    off = ", ".join(f"{name} {count}" for name, count in found["off"].items() if name != "calls")
    print(f"calls into files of features that are off: {found['off']['calls']} ({off})")
    print(f"calls into files of settings: {found['settings']}")
    print(f"times that a silo's events are built: {found['events_built_per_silo']:g}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
