"""Timing helpers of the benchmarks."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from simulations.benchmarks.support import timing

CPU = torch.device("cpu")


def test_spread_gives_median_and_quartiles() -> None:
    found = timing.spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.median, found.low, found.high, found.count) == (3.0, 2.0, 4.0, 5)
    with pytest.raises(ValueError, match="at least one measurement"):
        timing.spread([])


def test_a_paired_ratio_is_blind_to_a_common_slowdown() -> None:
    found = timing.paired_ratio([1.1, 11.0, 110.0], [1.0, 10.0, 100.0])
    assert found.median == pytest.approx(1.1)
    assert found.high - found.low == pytest.approx(0.0)
    with pytest.raises(ValueError, match="as many measurements on both sides, got 1 and 2"):
        timing.paired_ratio([1.0], [1.0, 2.0])


def test_variants_take_turns_and_the_order_alternates() -> None:
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = timing.interleave(variants, 3, device=CPU, warmup=1)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(value.wall) for name, value in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_sleeping_takes_wall_time_but_no_cpu_time() -> None:
    done = timing.timed(lambda: time.sleep(0.2), CPU)
    assert done.wall >= 0.2
    assert done.cpu < 0.1


@pytest.mark.skipif(sys.platform != "linux", reason="resident peak memory is reset through /proc")
def test_peak_memory_sees_what_was_freed_again_and_not_what_was_before() -> None:
    # In a process of its own: what other tests free meanwhile would hide the block.
    size = 64 * 2**20
    script = (
        "import torch\n"
        "from simulations.benchmarks.support import timing\n"
        "cpu = torch.device('cpu')\n"
        f"large = torch.ones(4 * {size}, dtype=torch.uint8)\n"
        "del large\n"
        "started = timing.start_peak(cpu)\n"
        f"block = torch.ones({size}, dtype=torch.uint8)\n"
        "del block\n"
        "found = timing.read_peak(started, cpu)\n"
        "print(started[1], found.peak - found.before)\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    kind, grown = out.stdout.split()
    if kind != "rss":
        pytest.skip("the kernel does not let a process reset its peak memory")
    assert 0.9 * size < int(grown) < 2 * size


def test_a_failing_child_is_reported_with_its_last_words() -> None:
    with pytest.raises(RuntimeError, match="unrecognized arguments: --nonsense"):
        timing.run_child("simulations.benchmarks.step_cost", ["--nonsense"])


def test_verdicts_name_the_goal() -> None:
    assert timing.verdict(1.04, 1.05, at_most=True) == "goal <= 1.05: met"
    assert timing.verdict(2.9, 3.0, at_most=False) == "goal >= 3: NOT met"
