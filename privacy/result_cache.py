"""Disk cache for slow computations: one small JSON file per question.

A file holds its question next to the result, so that neither a collision of names nor a file of
another version passes for an answer: whatever is not exactly the question is a miss.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any


def cache_file(folder: Path, kind: str, key: Mapping[str, Any]) -> Path:
    """Return the file of one question: its name holds the question's digest.

    Args:
      folder: The cache's folder.
      kind: What is cached, the first word of the file's name.
      key: The whole question, JSON with sorted keys; versions of what computes the answer included.
    """
    text = json.dumps(key, sort_keys=True)
    return Path(folder) / f"{kind}-{sha256(text.encode()).hexdigest()[:32]}.json"


def read_result(folder: Path | None, kind: str, key: Mapping[str, Any]) -> Any:
    """Return the stored answer to this very question, or None; never an error."""
    if folder is None:
        return None
    try:
        stored = json.loads(cache_file(folder, kind, key).read_text("utf-8"))
        return stored["result"] if stored["key"] == json.loads(json.dumps(key)) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_result(folder: Path | None, kind: str, key: Mapping[str, Any], result: Any) -> None:
    """Store an answer durably; several processes may do so at once (the last rename wins)."""
    if folder is None:
        return
    path = cache_file(folder, kind, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"key": key, "result": result}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
