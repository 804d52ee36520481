"""Timing and memory of alternatives that are to be compared: interleaved, with their spread."""

from __future__ import annotations

import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

_RESULT = "benchmark-result "


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements, in the measurements' own unit."""

    median: float
    low: float
    high: float
    count: int


@dataclass
class Seconds:
    """Wall-clock seconds of repeated calls, and the seconds of CPU time of this process in them.

    CPU time is hardly moved by other programs on a shared machine; it says nothing of a GPU.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class PeakMemory:
    """Largest memory in use between :func:`start_peak` and :func:`read_peak`, in bytes.

    Attributes:
        before: in use at the start (the loaded model included).
        peak: largest in use since then.
        kind: "device" (``torch.cuda.max_memory_allocated``), "rss" (the kernel's high-water mark of
            resident memory, reset at the start) or "rss-whole-process" (the same where the kernel
            does not allow the reset: loading is then included in ``peak``).
    """

    before: int
    peak: int
    kind: str


def spread(values: Sequence[float]) -> Spread:
    """Return the median and quartiles. Raises ValueError for no values."""
    if not values:
        raise ValueError("Expected at least one measurement, got none")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high, len(values))


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Spread of the ratios of measurements that were taken next to each other.

    Pairing cancels slow drifts of a shared machine, which a ratio of two medians does not.

    Raises:
        ValueError: numbers of measurements that differ, or none.
    """
    if len(numerator) != len(denominator):
        raise ValueError(
            f"Expected as many measurements on both sides, got {len(numerator)} and "
            f"{len(denominator)}"
        )
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def interleave(
    variants: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    device: torch.device,
    warmup: int = 1,
) -> dict[str, Seconds]:
    """Return the seconds of each call, the variants in turn: A B C, C B A, A B C, ...

    Args:
        variants: what to call, by name.
        repeats: measured calls of each.
        device: waited for before the clock is read.
        warmup: calls of each before the first measurement.

    Raises:
        ValueError: repeats < 1.
    """
    if repeats < 1:
        raise ValueError(f"Expected repeats >= 1, got repeats={repeats}")
    for _ in range(warmup):
        for call in variants.values():
            call()
    seconds = {name: Seconds() for name in variants}
    order = list(variants)
    for repeat in range(repeats):
        for name in order if repeat % 2 == 0 else reversed(order):
            done = timed(variants[name], device)
            seconds[name].wall.append(done.wall)
            seconds[name].cpu.append(done.cpu)
    return seconds


@dataclass(frozen=True)
class Timed:
    """Seconds of one call (see :class:`Seconds`) and what it returned."""

    wall: float
    cpu: float
    result: Any


def timed(call: Callable[[], Any], device: torch.device) -> Timed:
    """Return the time a call including the device's queue; garbage is collected before, outside the measurement."""
    gc.collect()
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    synchronize(device)
    return Timed(time.perf_counter() - wall, time.process_time() - cpu, result)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def start_peak(device: torch.device) -> tuple[int, str]:
    """Begin to watch the peak memory; the result is for :func:`read_peak`."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device), "device"
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark (man 5 proc)
        return _status("VmRSS"), "rss"
    except (OSError, KeyError):
        return _whole_process_peak(), "rss-whole-process"


def read_peak(started: tuple[int, str], device: torch.device) -> PeakMemory:
    """Return the peak memory since :func:`start_peak`."""
    before, kind = started
    if kind == "device":
        return PeakMemory(before, torch.cuda.max_memory_allocated(device), kind)
    return PeakMemory(before, _status("VmHWM") if kind == "rss" else _whole_process_peak(), kind)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise KeyError(key)


def _whole_process_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_child(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``python -m module arguments`` and return what it gave to :func:`child_result`.

    Raises:
        RuntimeError: the child failed; its last lines are in the message.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parents[3],
    )
    for line in done.stdout.splitlines():
        if line.startswith(_RESULT):
            result: dict[str, Any] = json.loads(line[len(_RESULT) :])
            return result
    tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
    raise RuntimeError(f"{module} {' '.join(arguments)} ended with {done.returncode}:\n{tail}")


def child_result(value: Any) -> None:
    """Pass a dataclass to the parent of :func:`run_child`."""
    print(_RESULT + json.dumps(asdict(value)), flush=True)


def circumstances(device: torch.device) -> dict[str, Any]:
    """Describe the machine for a reader of the figures."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else (float("nan"),)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": gpu or device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_before": round(load[0], 2),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a plain-text table, the first column left-aligned, the others right-aligned."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    drawn = []
    for line in lines:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        drawn.append("  ".join(cells).rstrip())
    drawn.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(drawn)


def verdict(value: float, goal: float, *, at_most: bool) -> str:
    """Return the goal, and whether the value meets it."""
    met = value <= goal if at_most else value >= goal
    return f"goal {'<=' if at_most else '>='} {goal:g}: {'met' if met else 'NOT met'}"


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a benchmark's results, readable."""
    Path(path).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
