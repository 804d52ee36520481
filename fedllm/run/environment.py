"""Record versions, hardware and source revision of a run. Never fails."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from fedllm import __version__

PACKAGES = (
    "fedllm",
    "torch",
    "transformers",
    "flwr",
    "ray",
    "peft",
    "dp-accounting",
    "numpy",
    "scipy",
    "safetensors",
)


def describe() -> dict[str, Any]:
    """Return the environment as plain values; what cannot be found out is None.

    Keys: ``python``, ``platform``, ``cpu``, ``cores``, ``memory_bytes``, ``gpus`` (list of names),
    ``packages`` (name to version, None where not installed), ``git`` (``revision`` and ``dirty``, or
    None where the source is no checkout).
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _or_none(_cpu),
        "cores": _or_none(_cores),
        "memory_bytes": _or_none(lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "gpus": _or_none(_gpus) or [],
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _or_none(git_revision),
    }


def git_revision(folder: Path | None = None) -> dict[str, Any] | None:
    """Return the revision of the checkout that holds this source, and if tracked files differ from it.

    None where the source is not under git (an installed package, also one inside a checkout's
    untracked environment folder).
    """
    folder = Path(__file__).resolve().parents[1] if folder is None else folder

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        revision = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"revision": revision, "dirty": bool(changed)}


def _or_none(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except Exception:  # a description must not stop a run
        return None


def _version(package: str) -> str | None:
    if package == "fedllm":
        return __version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str | None:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip().lower() in ("model name", "hardware", "cpu model"):
                return value.strip()
    return platform.processor() or platform.machine() or None


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _gpus() -> list[str]:
    import torch

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if sys.platform == "darwin" and torch.backends.mps.is_available():
        return ["Apple GPU (mps)"]
    return []
