"""A federation within this process; see :mod:`simulations.in_process`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedllm.run.folder import RunFolder
from simulations.in_process import federate


@pytest.fixture(scope="session")
def in_process() -> Callable[..., str]:
    """``in_process(run, tamper=None, stop=None, callbacks=())``."""
    return federate


@pytest.fixture
def start_run(tiny_settings: Callable[..., Any], tmp_path: Path) -> Callable[..., RunFolder]:
    """``start_run(name, **changes)``: a new run folder of the small experiment."""

    def make(name: str, **changes: Any) -> RunFolder:
        return RunFolder.create(tiny_settings(**changes), tmp_path / name)

    return make
