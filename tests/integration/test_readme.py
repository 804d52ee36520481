"""The README's Python runs as it stands, on a small experiment in the place of the one that it names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedllm.settings.io import to_toml

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_readmes_python_runs(tiny_settings: Callable[..., Any], tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    (named,) = re.findall(r'load_settings\("([^"]+)"', code)
    assert (ROOT / named).is_file()
    (tmp_path / named).parent.mkdir(parents=True)
    settings = tiny_settings(**{"server.rounds": 2, "simulation.workers": 2})
    (tmp_path / named).write_text(to_toml(settings), encoding="utf-8")
    (tmp_path / "code").mkdir()
    script = tmp_path / "code" / "example.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines[:4]} == {"alpha", "beta", "delta", "gamma"}
    assert any("epsilon" in line for line in lines[4:])
    assert lines[-1].endswith(" True")
