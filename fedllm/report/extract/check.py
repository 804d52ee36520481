"""Verify the extracts of a deployed run: signatures, registered keys, and that the report states what they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedllm.files.durable import plain
from fedllm.report.checks import Check
from fedllm.report.extract.keys import EXTRACT, KeyProblem, NodeKey, load_node_key
from fedllm.report.extract.memory import Kept, read_kept
from fedllm.report.extract.statement import Extract, ExtractError, parse
from fedllm.report.extract.store import FOLDER, Expected, path_of, read_index, read_signed
from fedllm.report.ledger_reading import read_ledger

Keys = Mapping[str, Sequence[NodeKey]]
_SAME_PARTS = ("guarantee", "silos", "vouching")


@dataclass
class Trusted:
    """Keys and heads that a verifier trusts.

    Attributes:
        keys: silo to the node keys that are, or were, registered for it; None takes those in the run folder.
        kept: what the deployment's server last had of each silo, whichever run.
        ledger: one silo's own ledger.
    """

    keys: Keys | None = None
    kept: Mapping[str, Kept] = field(default_factory=dict)
    ledger: Path | None = None


def deployment_of(run: Path) -> Path | None:
    """Return the deployment's folder that a run folder lies in (``DEPLOYMENT/runs/NAME``); None elsewhere."""
    place = run.resolve().parent.parent
    return place if (place / "deployment.toml").is_file() and (place / "nodes").is_dir() else None


def read_keys(places: Sequence[Path]) -> dict[str, list[NodeKey]]:
    """Read registered node keys: of a deployment's folder, a folder of ``NAME.pub``, or such a file.

    Raises:
        KeyProblem: there is none, or one cannot be read.
    """
    found: dict[str, list[NodeKey]] = {}
    for place in places:
        folder = place / "nodes" if (place / "nodes").is_dir() else place
        files = sorted(folder.glob("*.pub")) if folder.is_dir() else [place]
        if not files:
            raise KeyProblem(
                f"Expected node keys (NAME.pub) in {place} or {place / 'nodes'}, found none"
            )
        for file in files:
            found.setdefault(file.stem, []).append(load_node_key(file))
    return found


def trusted_of(deployment: Path | None, places: Sequence[Path]) -> Trusted:
    """Return the trusted keys: the given ones, or those of the deployment folder.

    Raises:
        KeyProblem: a key cannot be read.
    """
    own = [] if deployment is None else [deployment]
    keys = read_keys(places or own) if places or own else None
    folders = [place for place in (*places, *own) if place.is_dir()]
    kept: dict[str, Kept] = {}
    for folder in folders:
        kept |= read_kept(folder / FOLDER)
    return Trusted(keys, kept)


def check_extracts(
    folder: Path,
    report: Mapping[str, Any],
    trusted: Trusted,
    build: Callable[[Path], dict[str, Any]],
) -> tuple[list[Check], list[str]]:
    """Verify all extracts that a report names.

    Args:
        report: ``report.json`` of a deployed run.
        build: makes the report's content again.

    Returns:
        A check for each silo, for what the report states of all of them, and for the ledger if one is given; notes.
    """
    checks, notes = [], []
    try:
        index = read_index(folder)
    except ExtractError as error:
        return [Check("extracts", False, f"NO EXTRACTS: {error}.")], []
    run = report["run"]["run_id"]
    if trusted.keys is None:
        notes.append(
            "The node keys are those in the run folder, as its server wrote them: whether they are the silos' is not "
            "checked. Give the registered keys (--node-keys) to check that."
        )
    for row in report["vouching"]:
        name = row["silo"]
        try:
            text = _check(folder, row, run, _keys(index, name, trusted), trusted.kept.get(name))
            checks.append(Check(f"extract of {name}", True, text))
        except ExtractError as error:
            checks.append(Check(f"extract of {name}", False, str(error)))
    checks.append(_check_report(folder, report, build))
    if trusted.ledger is not None:
        checks.append(_check_ledger(trusted.ledger, report, run))
    return checks, notes


def _keys(index: Mapping[str, Expected], name: str, trusted: Trusted) -> Sequence[NodeKey]:
    if trusted.keys is not None:
        return trusted.keys.get(name, ())
    expected = index.get(name)
    return [] if expected is None or expected.key is None else [expected.key]


def _check(
    folder: Path, row: Mapping[str, Any], run: str, keys: Sequence[NodeKey], kept: Kept | None
) -> str:
    """Return the verified statements about one silo's extract, in words.

    Raises:
        ExtractError: what does not.
    """
    name = row["silo"]
    if not row["vouches"]:
        return f"{name} does not vouch ({row['why']}); the report states nothing for it."
    path = path_of(folder / FOLDER, name)
    if not path.exists():
        raise ExtractError(f"MISSING EXTRACT: {path.name} is not there.")
    try:
        signed = read_signed(path)
    except ExtractError as error:
        raise ExtractError(f"ALTERED EXTRACT: {error}.") from None
    if not keys:
        raise ExtractError(f"UNKNOWN KEY: no node key is registered for {name}.")
    able = [key for key in keys if key.verifies(EXTRACT, signed.text, signed.signature)]
    if not able:
        registered = ", ".join(key.fingerprint for key in keys)
        raise ExtractError(
            f"FORGED EXTRACT: {path.name} was altered, or is not signed with the key of {name} ({registered})."
        )
    extract = parse(Extract, signed.text)
    if extract.silo != name:
        raise ExtractError(f"SWAPPED EXTRACT: {path.name} is of the silo {extract.silo!r}.")
    if extract.run != run:
        raise ExtractError(f"SWAPPED EXTRACT: {path.name} is of the run {extract.run!r}.")
    rows = extract.ledger.rows
    if (row["rows"], row["hash"], row["made"]) != (rows, extract.ledger.hash, extract.made):
        raise ExtractError(
            f"ANOTHER EXTRACT: {path.name} is of row {rows} ({extract.made}), the report was made from that of row "
            f"{row['rows']} ({row['made']})."
        )
    if kept is not None and kept.run == run and kept.head.ledger.rows > rows:
        raise ExtractError(
            f"OLDER EXTRACT: {name} vouched for {kept.head.ledger.rows} rows in this run, the report is of {rows}."
        )
    return f"{name} vouches for {rows} rows of its ledger, signed with {able[0].fingerprint} at {extract.made}."


def _check_report(
    folder: Path, report: Mapping[str, Any], build: Callable[[Path], dict[str, Any]]
) -> Check:
    again = plain(build(folder))
    other = [part for part in _SAME_PARTS if again[part] != report.get(part)]
    if not other:
        return Check("extracts", True, "The report matches the extracts.")
    by = "" if again["made_by"] == report.get("made_by") else f" by {report.get('made_by')}"
    return Check(
        "extracts",
        False,
        f"OTHER EXTRACTS: {', '.join(other)} of the report{by} does not match the extracts here.",
    )


def _check_ledger(path: Path, report: Mapping[str, Any], run: str) -> Check:
    """Return True if a silo's own ledger continues from the head that the silo vouched for, without rows of this run
    since."""
    entries, found, problem = read_ledger(path)
    if found is None or problem or not found.ok:
        listed = "; ".join(
            [*(found.problems[:3] if found else ()), *([problem] if problem else ())]
        )
        return Check("ledger", False, f"ALTERED LEDGER: {path.name}: {listed}.")
    parties = {entry.party for entry in entries}
    rows = [row for row in report["vouching"] if row["silo"] in parties and row["vouches"]]
    if len(rows) != 1:
        return Check("ledger", False, f"ANOTHER LEDGER: {path.name} is of no silo that vouches.")
    row = rows[0]
    _, kept, _ = read_ledger(path, (row["rows"], row["hash"]))
    if kept is None or not kept.ok:
        text = f"ALTERED LEDGER: {path.name} does not hold the row {row['rows']} that {row['silo']} vouched for."
        return Check("ledger", False, text)
    later = [e for e in entries if e.run == run and (e.id or 0) > row["rows"]]
    if later:
        return Check(
            "ledger",
            False,
            f"OLDER EXTRACT: {path.name} has {len(later)} rows of this run after the row {row['rows']} that was "
            "vouched for.",
        )
    text = f"The ledger of {row['silo']} holds the {row['rows']} rows that it vouched for."
    return Check("ledger", True, text)


def signed_extracts(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the signed content about the extracts: each one's digest and head, or null for a silo that does not
    vouch."""
    kept = ("sha256", "rows", "hash", "key")
    return {
        row["silo"]: {name: row[name] for name in kept} if row["vouches"] else None
        for row in report["vouching"]
    }


def check_signed(folder: Path, signed: Mapping[str, Any]) -> list[Check]:
    """Return True if the files of the extracts are still those that were signed."""
    checks = []
    for name, item in signed.items():
        if item is None:
            continue
        path = path_of(folder / FOLDER, name)
        digest = sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        if digest != item["sha256"]:
            text = f"ALTERED EXTRACT: {path.name} is not the file that was signed."
            checks.append(Check(f"signed extract of {name}", False, text))
    if not checks:
        checks.append(
            Check("signed extracts", True, "The extracts are the files that were signed.")
        )
    return checks
