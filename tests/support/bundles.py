"""Flower app bundles of the code under test, as it is and altered."""

from __future__ import annotations

from pathlib import Path

from server.deployment import app_bundle


def make_app(folder: Path, altered: str = "") -> Path:
    """The app that a deployment ships; ``altered`` is put in front of client/app.py."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    app_bundle.make_app(folder)
    if altered:
        file = folder / "client" / "app.py"
        text = file.read_text(encoding="utf-8")
        head, mark, rest = text.partition("from __future__ import annotations\n")
        assert mark
        file.write_text(f"{head}{mark}\n{altered}\n{rest}", encoding="utf-8")
    return folder


def bundle_of(folder: Path) -> bytes:
    """The bytes that `flwr run` ships of an app's folder."""
    return app_bundle.bundle(folder)
