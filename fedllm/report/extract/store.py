"""Extracts in a run folder: ``extracts.json`` says whose are expected under which key, ``extracts/`` holds them.

The server writes these files; anyone who reads them verifies each signature again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedllm.files.durable import json_bytes, write_bytes
from fedllm.report.extract.keys import EXTRACT, KeyProblem, NodeKey, node_key_of
from fedllm.report.extract.statement import LONGEST, Extract, ExtractError, parse

INDEX = "extracts.json"
FOLDER = "extracts"
FORMAT = "fedllm-ledger-extracts"
_SIGNED = "fedllm-signed-extract"
_PLAIN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")


@dataclass(frozen=True)
class Signed:
    """A text and the signature that was made of it (hexadecimal)."""

    text: str
    signature: str


@dataclass(frozen=True)
class Expected:
    """The server's knowledge about one silo's extract.

    Attributes:
        key: the node key that was registered for the silo; None if there was none.
        final: whether the silo answered when the run had ended, with the extract that is kept.
        told: what the silo told of its releases with its updates: (event as JSON, number); None before the end.
        problem: why the silo's extract cannot be relied on; empty where it can.
    """

    key: NodeKey | None = None
    final: bool = False
    told: tuple[tuple[str, int], ...] | None = None
    problem: str = ""

    def to_plain(self) -> dict[str, Any]:
        """Return the values for the index."""
        told = None if self.told is None else [list(pair) for pair in self.told]
        key = None if self.key is None else self.key.line
        return {"key": key, "final": self.final, "told": told, "problem": self.problem}


@dataclass(frozen=True)
class Found:
    """One silo's extract as found on disk.

    Attributes:
        expected: see there.
        extract: None if there is none that can be relied on; ``problem`` then says why.
        digest: SHA-256 of its file; None if there is no file.
        problem: empty where the silo vouches.
    """

    silo: str
    expected: Expected
    extract: Extract | None = None
    digest: str | None = None
    problem: str = ""


@dataclass
class ExtractsFound:
    """All extracts of a run folder.

    Attributes:
        silos: by name, sorted.
        problem: why the index cannot be read; then no silo is known.
    """

    silos: dict[str, Found] = field(default_factory=dict)
    problem: str = ""


def path_of(folder: Path, silo: str) -> Path:
    """Return the file of a silo's extract in a folder: by the silo's name, or by its hash where that is no plain file
    name."""
    plain = _PLAIN.match(silo) is not None
    name = silo if plain else "~" + sha256(silo.encode("utf-8", "surrogatepass")).hexdigest()
    return folder / f"{name}.json"


def write_signed(path: Path, signed: Signed) -> None:
    """Write a signed text; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json_bytes({"format": _SIGNED, **vars(signed)}))


def read_signed(path: Path) -> Signed:
    """Read a signed text. Nothing is verified.

    Raises:
        ExtractError: there is none, or it is damaged.
    """
    try:
        if path.stat().st_size > 4 * LONGEST:
            raise ExtractError(f"Expected at most {4 * LONGEST} bytes in {path.name}")
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != _SIGNED:
            raise ValueError(f"format {found['format']!r}")
        text, signature = found["text"], found["signature"]
        if not isinstance(text, str) or not isinstance(signature, str):
            raise ValueError("text or signature is no text")
    except ExtractError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExtractError(f"Expected a signed extract in {path.name}: {error}") from None
    return Signed(text, signature)


def write_index(folder: Path, silos: Mapping[str, Expected]) -> None:
    """Write ``extracts.json``; whole or not at all."""
    plain = {name: expected.to_plain() for name, expected in silos.items()}
    write_bytes(folder / INDEX, json_bytes({"format": FORMAT, "version": 1, "silos": plain}))


def read_index(folder: Path) -> dict[str, Expected]:
    """Read ``extracts.json``.

    Raises:
        ExtractError: it is missing or damaged.
    """
    try:
        found = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if (found["format"], found["version"]) != (FORMAT, 1):
            raise ValueError(f"format {found['format']!r}, version {found['version']!r}")
        return {str(name): _expected(item) for name, item in found["silos"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ExtractError(f"Expected an index of extracts in {INDEX}: {error!r}") from None


def read_extracts(folder: Path, run: str | None) -> ExtractsFound | None:
    """Read and verify the extracts of a run folder; None for a run that has none (simulation).

    Args:
        run: id of the run that they must be about; None if that is lost.
    """
    if not (folder / INDEX).exists():
        return None
    try:
        expected = read_index(folder)
    except ExtractError as error:
        return ExtractsFound(problem=str(error))
    return ExtractsFound(
        {name: read_extract(folder, name, expected[name], run) for name in sorted(expected)}
    )


def read_extract(folder: Path, silo: str, expected: Expected, run: str | None) -> Found:
    """Read and verify one silo's extract."""
    found = Found(silo, expected)
    path = path_of(folder / FOLDER, silo)
    if not path.exists():
        why = expected.problem or "it sent no extract of its ledger"
        return replace(found, problem=why)
    try:
        found = replace(found, digest=sha256(path.read_bytes()).hexdigest())
        if expected.key is None:
            raise ExtractError("no node key is registered for it")
        extract = verified(read_signed(path), silo, expected.key, run)
        if expected.problem:
            raise ExtractError(expected.problem)
    except (ExtractError, OSError) as error:
        return replace(found, problem=str(error))
    return replace(found, extract=extract)


def verified(signed: Signed, silo: str, key: NodeKey, run: str | None) -> Extract:
    """Verify a signed extract, and only then read it.

    Args:
        silo, key: whose it must be.
        run: the run that it must be about; None for any.

    Raises:
        ExtractError: another key or text was signed, or it is of another silo or run.
    """
    if not key.verifies(EXTRACT, signed.text, signed.signature):
        raise ExtractError(
            f"its extract is not signed with its registered node key {key.fingerprint}"
        )
    extract = parse(Extract, signed.text)
    if extract.silo != silo:
        raise ExtractError(f"its extract is of another silo, {extract.silo!r}")
    if run is not None and extract.run != run:
        raise ExtractError(f"its extract is of another run, {extract.run!r}")
    return extract


def _expected(item: Any) -> Expected:
    told = item["told"]
    pairs = None if told is None else tuple((str(event), int(count)) for event, count in told)
    key = None
    if item["key"] is not None:
        try:
            key = node_key_of(str(item["key"]))
        except KeyProblem as error:
            raise ValueError(str(error)) from None
    if not isinstance(item["problem"], str) or not isinstance(item["final"], bool):
        raise ValueError("a silo's problem is no text, or final is neither true nor false")
    return Expected(key, item["final"], pairs, item["problem"])
