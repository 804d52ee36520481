"""``fedllm`` called as a user calls it, and what dp_accounting itself says of the same mechanism."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from click.testing import Result
from dp_accounting import dp_event as dp
from dp_accounting import rdp
from dp_accounting.pld import PLDAccountant
from scipy.optimize import brentq
from scipy.stats import norm
from typer.testing import CliRunner

from simulations.cli.main import app

DELTA = 1e-5
REFERENCE = {"sample-rate": 256 / 60000, "steps": 1000, "delta": DELTA}
FIXED = ("pld", "rdp", "gdp_clt", "gdp_dominating")


def call(*words: object, **options: object) -> Result:
    """Run ``fedllm``: options by their names, without two dashes."""
    flags = [f"--{name}={value}" for name, value in options.items()]
    return CliRunner().invoke(app, [*map(str, words), *flags], env={"COLUMNS": "100"})


def call_json(*words: object, status: int = 0, **options: object) -> Any:
    result = call(*words, "--json", **options)
    assert (result.exit_code, result.stderr) == (status, "")
    return json.loads(result.stdout, parse_constant=pytest.fail)


def direct(events: Mapping[dp.DpEvent, int], kind: str = "pld") -> float:
    """Epsilon by dp_accounting itself."""
    accountant = PLDAccountant() if kind == "pld" else rdp.RdpAccountant()
    for event, count in events.items():
        accountant.compose(event, count)
    return accountant.get_epsilon(DELTA)


def sampled(rate: float, noise: float) -> dp.DpEvent:
    return dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise))


def gdp_epsilon(mu: float) -> float:
    """Dong, Roth and Su 2022, corollary 2.13."""

    def excess(e: float) -> float:
        return norm.cdf(-e / mu + mu / 2) - math.exp(e) * norm.cdf(-e / mu - mu / 2) - DELTA

    return brentq(excess, 0, 50, xtol=1e-12)


def printed_cells(output: str) -> dict[str, str]:
    """The rows of a table of two columns."""
    cells = {}
    for line in output.splitlines():
        if line.startswith("│"):
            name, value = (cell.strip() for cell in line.strip("│").split("│"))
            cells[name] = value
    return cells
