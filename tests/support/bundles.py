"""Flower app bundles of the code under test, as it is and altered."""

from __future__ import annotations

import shutil
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

ROOT = Path(__file__).resolve().parents[2]
PROJECT = """\
[project]
name = "fedllm"
version = "0.1.0"
dependencies = []

[tool.flwr.app]
publisher = "fedllm"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
experiment = ""
overrides = ""
run-folder = ""
"""


def make_app(folder: Path, altered: str = "") -> Path:
    """A Flower app's folder with the packages; ``altered`` is put in front of client/app.py."""
    for package in ("client", "fedllm", "privacy", "server"):
        for file in (ROOT / package).rglob("*.py"):
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    (folder / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    if altered:
        file = folder / "client" / "app.py"
        text = file.read_text(encoding="utf-8")
        head, mark, rest = text.partition("from __future__ import annotations\n")
        assert mark
        file.write_text(f"{head}{mark}\n{altered}\n{rest}", encoding="utf-8")
    return folder


def bundle_of(folder: Path) -> bytes:
    """The bytes that `flwr run` ships of an app's folder."""
    return build_fab_from_disk(folder)
