"""The command behind the table of noise on one number: it can miss, and one cell (all: slow)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulations.benchmark.noise_table import EPSILONS, REFERENCE, cell, main, targets


def test_a_cell_and_what_would_be_a_miss() -> None:
    found = cell((1, 1.0, 1e-10), 3.0, mixture=False, cache=None)
    assert found.missed() == []
    off = replace(found, found={**found.found, "staircase": found.found["staircase"] * 1.05})
    assert off.missed() == ["staircase"]
    # A gain where the reference shows none is a miss as well.
    gain = replace(found, found={**found.found, "exponential-power": 0.2})
    assert gain.missed() == ["exponential-power"]
    assert len(list(targets())) == len(REFERENCE) * len(EPSILONS) == 24


@pytest.mark.slow
def test_the_whole_table(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path))
    assert main([]) == 0
