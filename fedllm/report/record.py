"""Read a run's files for its report; describe missing parts in words."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedllm.report.extract.store import INDEX, ExtractsFound, read_extracts
from fedllm.report.ledger_reading import read_ledger
from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import (
    LEDGER,
    METRICS,
    SETTINGS,
    STATE,
    RunFolder,
    RunFolderError,
    ledger_of,
    read_json_file,
    read_metrics_file,
    read_removed,
    read_settings,
)
from fedllm.settings.experiment import Settings
from privacy.ledger.ledger import LedgerEntry, VerifyReport

_SIGNS = (SETTINGS, STATE, METRICS, LEDGER, "silos.json", "checkpoints")
"""One of these makes a folder a run folder, however damaged."""


@dataclass
class RunRecord:
    """A run as it was found on disk.

    Attributes:
        run_id: None where neither the state nor the ledger tells it.
        settings: None where they cannot be read.
        state: as in ``state.json``; status "unknown" where that cannot be read.
        problems: one sentence for each file that is missing or damaged.
        notes: what is unfinished without being damaged; settings of an earlier version.
        removed: the settings of the run that this version has no longer, by dotted key.
        entries, verification, ledger_problem: as of :func:`~fedllm.report.ledger_reading.read_ledger`.
        extracts: of a deployed run, whose ledgers are with the silos; then there is no ledger here, and the rows are
            those that the silos sent.
        complete: names of the silos of which all rows are here; None for all.
    """

    path: Path
    run_id: str | None
    settings: Settings | None
    state: dict[str, Any]
    ledger_path: Path
    metrics: list[dict[str, Any]] = field(default_factory=list)
    metrics_whole: bool = True
    silos: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] | None = None
    entries: list[LedgerEntry] = field(default_factory=list)
    verification: VerifyReport | None = None
    ledger_problem: str | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    removed: dict[str, Any] = field(default_factory=dict)
    extracts: ExtractsFound | None = None
    complete: set[str] | None = None

    def whole(self, silo: str) -> bool:
        """Return True if all rows about a silo are here."""
        return self.complete is None or silo in self.complete

    @property
    def name(self) -> str:
        """The experiment's name, or the folder's where the settings are lost."""
        return self.settings.name if self.settings is not None else self.path.name

    @property
    def own(self) -> list[LedgerEntry]:
        """The ledger's rows of this run."""
        return [entry for entry in self.entries if entry.run == self.run_id]


def read_run(source: RunFolder | str | Path) -> RunRecord:
    """Read a run folder, however much of it is missing or damaged. Changes nothing in it.

    Raises:
        RunFolderError: it is no folder, or holds no file of a run.
    """
    path = source.path if isinstance(source, RunFolder) else Path(source).expanduser().resolve()
    if not path.is_dir():
        raise RunFolderError(f"Expected a run folder, found no folder {path}")
    if not any((path / name).exists() for name in _SIGNS):
        raise RunFolderError(f"Expected a run folder, found none of {', '.join(_SIGNS)} in {path}")
    problems: list[str] = []
    settings = _settings(path, problems)
    state = _state(path, problems)
    ledger = path / LEDGER if settings is None else ledger_of(settings, path)
    run = RunRecord(path, state.get("run_id"), settings, state, ledger, problems=problems)
    # The ledger last: it is written before anything else, and so never behind what was read before.
    _read_metrics(run)
    run.silos = _mapping(run, "silos.json") or {}
    run.environment = _mapping(run, "environment.json")
    run.extracts = read_extracts(path, run.run_id)
    if run.extracts is None:
        run.entries, run.verification, run.ledger_problem = read_ledger(ledger)
    elif run.extracts.problem:
        problems.append(f"{INDEX} is missing or damaged: {run.extracts.problem}")
    _identify(run)
    if run.ledger_problem and not (_unbegun(run) and run.verification is None):
        problems.append(f"{_ledger_name(run)}: {run.ledger_problem}")
    elif run.verification is not None and not run.verification.ok:
        found = "; ".join(run.verification.problems[:3])
        problems.append(f"{_ledger_name(run)} fails its verification: {found}")
    problems += _checkpoint_problems(run)
    run.removed = read_removed(path)
    run.notes = [*unfinished(run), *_of_earlier(run.removed)]
    return run


def _settings(path: Path, problems: list[str]) -> Settings | None:
    if not (path / SETTINGS).is_file():
        problems.append(
            f"{SETTINGS} is missing: the intended mechanism is unknown; unit, relation "
            "and delta are taken from the ledger"
        )
        return None
    try:
        return read_settings(path)
    except RunFolderError as error:
        problems.append(f"{SETTINGS} is damaged: {error}")
        return None


def _state(path: Path, problems: list[str]) -> dict[str, Any]:
    unknown: dict[str, Any] = {"run_id": None, "status": "unknown", "round": 0, "rounds": None}
    unknown |= {"message": "", "created": None, "updated": None}
    if not (path / STATE).is_file():
        problems.append(f"{STATE} is missing: how far the run came is taken from the other files")
        return unknown
    try:
        state = read_json_file(path / STATE)
    except RunFolderError as error:
        problems.append(f"{STATE} is damaged: {error}")
        return unknown
    if not isinstance(state, dict) or not isinstance(state.get("run_id"), str):
        problems.append(f"{STATE} is damaged: it holds no run_id")
        return unknown
    if not isinstance(state.get("round"), int) or not isinstance(state.get("status"), str):
        problems.append(f"{STATE} is damaged: it holds no round or no status")
        return unknown | {"run_id": state["run_id"]}
    return unknown | state


def _read_metrics(run: RunRecord) -> None:
    if not (run.path / METRICS).is_file():
        if not _unbegun(run):
            run.metrics_whole = False
            run.problems.append(
                f"{METRICS} is missing: the replies of each round and the model's quality are "
                "unknown"
            )
        return
    try:
        run.metrics, damaged = read_metrics_file(run.path / METRICS)
    except OSError as error:
        run.metrics, damaged = [], [f"it cannot be read ({error})"]
    run.metrics_whole = not damaged
    if len(damaged) > 5:
        damaged = [*damaged[:5], f"and {len(damaged) - 5} more"]
    run.problems += [f"{METRICS}: {problem}" for problem in damaged]


def _mapping(run: RunRecord, name: str) -> dict[str, Any] | None:
    if not (run.path / name).is_file():
        if not _unbegun(run):
            run.problems.append(f"{name} is missing")
        return None
    try:
        value = read_json_file(run.path / name)
    except RunFolderError as error:
        run.problems.append(f"{name} is damaged: {error}")
        return None
    if not isinstance(value, dict):
        run.problems.append(f"{name} is damaged: expected a JSON object")
        return None
    return value


def _identify(run: RunRecord) -> None:
    """Take the run's id and progress from the ledger and the metrics where the state is lost."""
    if run.run_id is None:
        names = {entry.run for entry in run.entries}
        if len(names) == 1:
            run.run_id = run.state["run_id"] = names.pop()
    if run.state["status"] == "unknown":
        finished = [r["round"] for r in run.metrics if r["kind"] == "round"]
        run.state["round"] = max(finished, default=0)
        ends = [r for r in run.metrics if r["kind"] == "end"]
        if ends and isinstance(ends[-1].get("status"), str):
            run.state["status"] = ends[-1]["status"]
    if run.state["rounds"] is None and run.settings is not None:
        run.state["rounds"] = run.settings.server.rounds


def _unbegun(run: RunRecord) -> bool:
    """Return True if the run wrote no more yet than its settings and state."""
    return run.state["status"] == "created" and not run.state["round"] and not run.entries


def _ledger_name(run: RunRecord) -> str:
    return run.ledger_path.name


def _checkpoint_problems(run: RunRecord) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = latest_checkpoint(run.path / "checkpoints")
    problems = [str(item.message) for item in caught]
    if found is None and run.state["round"] > 0:
        problems.append("no checkpoint is whole: the model is lost")
    return problems


def unfinished(run: RunRecord) -> list[str]:
    """Say what of a run did not come to its end, in sentences."""
    status, reached, rounds = run.state["status"], run.state["round"], run.state["rounds"]
    of = f"{reached} of {rounds} rounds" if rounds is not None else f"{reached} rounds"
    notes = []
    if status == "created":
        notes.append("The run has not begun, or began and has not yet written so.")
    elif status == "running":
        notes.append(
            f"The run is under way with {of} finished, or was killed: its state, last written at "
            f"{run.state['updated']}, says that it is running. The report holds for what the ledger "
            "records now; what is spent later is not in it."
        )
    elif status == "interrupted":
        notes.append(
            f"The run was interrupted after {of}. It may be resumed, and then spends more."
        )
    elif status == "failed":
        notes.append(f"The run failed after {of}. It may be resumed, and then spends more.")
    elif status == "stopped":
        notes.append(f"The run was stopped after {of}.")
    beyond = sorted({entry.round for entry in run.own if entry.round > reached})
    if beyond and run.metrics_whole:
        notes.append(
            f"Round {_listed(beyond)} is in the ledger and was not finished. What it may have released "
            "is counted in every epsilon."
        )
    return notes


def _of_earlier(removed: dict[str, Any]) -> list[str]:
    if not removed:
        return []
    named = ", ".join(f"{key} = {value}" for key, value in removed.items())
    return [
        f"The run was made by an earlier version with {named}, which this version has no longer: the "
        "report's settings are without it, its figures are of the events that the ledger holds."
    ]


def _listed(rounds: Sequence[int]) -> str:
    if len(rounds) > 3:
        return f"{rounds[0]} to {rounds[-1]}"
    return ", ".join(map(str, rounds))
