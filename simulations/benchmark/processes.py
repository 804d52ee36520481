"""The processes that belong to a part of a deployment on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def processes_of(folder: Path, program: str = "") -> list[int]:
    """Ids of the processes whose command or environment names a folder (or something in it), oldest first.

    Args:
        program: only those whose command has this text.
    """
    names = (f"{folder}/".encode(), f"{folder}\0".encode())
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            known = command + b"\0" + (entry / "environ").read_bytes() + b"\0"
        except OSError:
            continue
        if any(name in known for name in names) and program.encode() in command and command:
            found.append(int(entry.name))
    return sorted(pid for pid in found if pid != os.getpid())
