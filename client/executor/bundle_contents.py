"""Check a code bundle: source files and settings of our packages, nothing else.

Python runs more than `*.py`: compiled files instead of a module or in `__pycache__`, extension modules, which
even go before a module's source. An operator who reads the source of a bundle would not see them. So there are none
in a bundle that is unpacked here, no matter who approved it.
"""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import PurePosixPath

PACKAGES = ("client", "fedllm", "privacy", "server", "simulations")
PROJECT = "pyproject.toml"
MANIFEST = ".info/CONTENT"
_KINDS = (".py", ".toml")
_MOST_FILES = 5_000
_MOST_BYTES = 64 << 20


class BundleError(ValueError):
    """A bundle that is no zip file, or holds something that none may hold."""


def read_bundle(bundle: bytes) -> dict[str, bytes]:
    """Return the files of a bundle by their names; nothing is written or run.

    Raises:
      BundleError: It is no Flower app bundle, is larger than code is, or holds another kind of file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if len(entries) > _MOST_FILES or size > _MOST_BYTES:
                raise BundleError(
                    f"Expected a bundle of at most {_MOST_FILES} files and {_MOST_BYTES} bytes, got "
                    f"{len(entries)} files and {size} bytes"
                )
            files: dict[str, bytes] = {}
            for entry in entries:
                reason = "it is there twice" if entry.filename in files else _why_not(entry)
                if reason:
                    raise BundleError(
                        f"Expected source files of {', '.join(PACKAGES)} alone in a bundle, got "
                        f"{entry.filename!r}: {reason}"
                    )
                files[entry.filename] = archive.read(entry)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise BundleError(f"Expected a Flower app bundle, got something else: {error}") from None
    if PROJECT not in files:
        raise BundleError(f"Expected a Flower app bundle, got something else: no {PROJECT}")
    return files


def _why_not(entry: zipfile.ZipInfo) -> str | None:
    """Return why an entry may not be in a bundle, or None if it may."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "it is no plain file"
    name = entry.filename
    if name in (PROJECT, MANIFEST):
        return None
    path = PurePosixPath(name)
    if "\\" in name or path.as_posix() != name or path.is_absolute() or ".." in path.parts:
        return "its path is not plain"
    if len(path.parts) < 2 or path.parts[0] not in PACKAGES:
        return "it is in none of these packages"
    if path.suffix not in _KINDS:
        return f"only {' and '.join(_KINDS)} files may be there"
    return None
