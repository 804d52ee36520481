"""No text tells anybody to install this project by its name: on the public index that is a package of others."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from server.deployment import units

ROOT = Path(__file__).resolve().parents[2]
BY_NAME = re.compile(
    r"(pip3?|pipx|uv)\b[^\n`]*\b(install|add|run)\b[^\n`]*?(?<![\w./-])fedllm(?![\w./-])"
)
KINDS = {".md", ".py", ".toml", ".txt", ".yaml", ".yml", ""}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pip install fedllm", True),
        ("/opt/fedllm/bin/pip install 'fedllm[hub]'", True),
        ("uv pip install -U fedllm==1", True),
        ("pip install -c constraints.txt ./fedllm-0.1.0-py3-none-any.whl", False),
        ("RUN pip install --no-cache-dir /source", False),
        (
            "python3 -m venv /opt/fedllm && /opt/fedllm/bin/pip install ./dist/fedllm-0.1.0.whl",
            False,
        ),
    ],
)
def test_what_is_looked_for(text: str, found: bool) -> None:
    assert bool(BY_NAME.search(text)) == found


def test_no_file_installs_the_project_by_its_name() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [name for name in listed.stdout.splitlines() if Path(name).suffix in KINDS]
    assert len(names) > 300
    told = []
    for name in names:
        if (ROOT / name).is_file() and name != "tests/structure/test_install_by_name.py":
            text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
            told += [f"{name}: {match[0]}" for match in BY_NAME.finditer(text)]
    assert told == []
    assert not BY_NAME.search(units.DOCKERFILE)
