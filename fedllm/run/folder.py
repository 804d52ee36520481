"""The run folder: everything that one run leaves behind, and how each file is written.

Files: ``settings.toml`` (resolved), ``state.json``, ``metrics.jsonl``, ``silos.json``,
``environment.json``, ``ledger.sqlite``, ``tensorboard/``, ``checkpoints/``, ``adapter/``,
``report.html``, ``report.json``, with a choice of layers ``layers.json``, with a codec
``codec.safetensors`` and ``codec.json``, with a teacher trained on public text ``teacher.safetensors``
and ``teacher.json``, and ``silo-logs/``: NAME.jsonl. What is in the
folder is public, or was released with a guarantee, or without one, that the ledger knows of; the
exceptions are the silo logs of a simulation, each private to its silo and read by nothing here, the keyed
digests of its data among them (:mod:`fedllm.run.data_digests`), and what
was measured on demand: ``membership.json`` (an attack, made of the silos' texts) and ``landscape/``
(which says on whose text).
"""

from __future__ import annotations

import json
import os
import threading
import tomllib
import uuid
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedllm.files.durable import json_bytes, plain, write_bytes, write_text
from fedllm.flatness.layer_choice import CHOICE, Choice, read_choice
from fedllm.settings.experiment import Settings
from fedllm.settings.io import SettingsError, parse_recorded, parse_settings, to_toml
from fedllm.settings.removed import removed_of

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS = "settings.toml"
STATE = "state.json"
METRICS = "metrics.jsonl"
LEDGER = "ledger.sqlite"
NUMBERS = "numbers.json"
"""File of a run of an earlier version: the noise that it chose for the scalar estimates of a black-box step."""
SCHEDULE = "schedule.json"
"""The silos that the run was begun with, and who is drawn in which round."""
STATUSES = ("created", "running", "interrupted", "finished", "stopped", "failed")
_FORMAT = 1
_NON_FINITE = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
_TEXT_KEYS = {"silo", "reason", "message", "kind", "where", "time"}


class RunFolderError(ValueError):
    """A folder is no run folder, is not free for a new run, or a file in it is damaged."""


class RunFolder:
    """One run's folder. Make it with :meth:`create` or :meth:`open`.

    One process writes (threads may share the object); any number may read meanwhile.
    """

    def __init__(self, path: Path, run_id: str, settings: Settings) -> None:
        self.path = path
        self.run_id = run_id
        self._settings = settings
        self._lock = threading.RLock()
        self._tail_checked = False

    # Making and finding

    @classmethod
    def create(cls, settings: Settings, path: str | Path | None = None) -> RunFolder:
        """Make the folder of a new run and write its settings.

        Args:
            settings: the resolved settings; a relative ``privacy.ledger`` becomes absolute.
            path: the folder; by default ``NAME-YYYYmmdd-HHMMSS`` below ``output.folder``, with a
                number after it where that name is taken.

        Raises:
            RunFolderError: ``path`` is a file, or a folder that is not empty.
        """
        settings = _with_absolute_ledger(settings)
        text = to_toml(settings)
        if parse_settings(tomllib.loads(text), SETTINGS) != settings:
            raise RunFolderError(f"The settings of {settings.name} cannot be written as TOML")
        folder = _claim_default(settings) if path is None else _claim(Path(path))
        run_id = f"{settings.name}-{uuid.uuid4().hex[:16]}"
        for name in ("checkpoints", "tensorboard"):
            (folder / name).mkdir()
        write_text(folder / SETTINGS, text)
        run = cls(folder, run_id, settings)
        state = {"format": _FORMAT, "run_id": run_id, "created": _now(), "updated": _now()}
        state |= {"status": "created", "round": 0, "rounds": settings.server.rounds, "message": ""}
        write_bytes(folder / STATE, json_bytes(state))
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open the folder of a run that was started before. Changes nothing in it.

        Raises:
            RunFolderError: it is no run folder, or its settings or state cannot be read.
        """
        folder = Path(path).expanduser().resolve()
        if not folder.is_dir():
            raise RunFolderError(f"Expected a run folder, found no folder {folder}")
        missing = [name for name in (SETTINGS, STATE) if not (folder / name).is_file()]
        if missing:
            raise RunFolderError(f"Expected a run folder, found no {missing[0]} in {folder}")
        state = read_json_file(folder / STATE)
        if state.get("format") != _FORMAT or not isinstance(state.get("run_id"), str):
            raise RunFolderError(
                f"Expected format {_FORMAT} and a run_id in {folder / STATE}, got "
                f"format={state.get('format')!r}, run_id={state.get('run_id')!r}"
            )
        settings = read_settings(folder)
        return cls(folder, state["run_id"], settings)

    # Parts

    def settings(self) -> Settings:
        """Return the run's current settings: the initial ones and, once layers were chosen (``layers.json``), only
        these layers under ``prefix.layers``.

        Raises:
            RunFolderError: ``layers.json`` is damaged.
        """
        choice = self.choice()
        return self._settings if choice is None else choice.settings(self._settings)

    def require_current(self) -> None:
        """Refuse to resume a run of an earlier version whose mechanism is no longer here.

        Raises:
            RunFolderError: its settings name what was removed.
        """
        if removed := read_removed(self.path):
            named = ", ".join(f"{key}={value}" for key, value in removed.items())
            raise RunFolderError(
                f"Expected a run that this version can resume,  {self.path} was started with {named}, "
                "which was removed; report, verify, export and predict still read it"
            )

    def settings_of(self, params: Mapping[str, Tensor]) -> Settings:
        """Return the settings of a checkpoint with these parameters: one of before the choice of layers has the
        prefix that the run was started with."""
        choice = self.choice()
        return self._settings if choice is None else choice.settings_of(self._settings, params)

    def choice(self) -> Choice | None:
        """Return the choice of layers, finished or not; None if none was begun.

        Raises:
            RunFolderError: ``layers.json`` is damaged.
        """
        if self._settings.layers.form == "none":
            return None
        try:
            return read_choice(self.path)
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.path / CHOICE} is damaged: {error}") from None

    @property
    def ledger_path(self) -> Path:
        """The privacy ledger: ``privacy.ledger`` where several runs share one, else in here."""
        return ledger_of(self._settings, self.path)

    @property
    def checkpoints_path(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def tensorboard_path(self) -> Path:
        """Folder of the TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def adapter_path(self) -> Path:
        """Folder of the last model, as an adapter."""
        return self.path / "adapter"

    def silo_log_path(self, silo: str) -> Path:
        """Return a silo's own log in a simulation; private to it. Characters unfit for a name become _."""
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in silo).strip(".") or "_"
        return self.path / "silo-logs" / f"{safe}.jsonl"

    # State

    def state(self) -> dict[str, Any]:
        """Return the contents of ``state.json``: run_id, status, round, rounds, message, created, updated, ...

        Raises:
            RunFolderError: the file is missing or damaged.
        """
        state: dict[str, Any] = read_json_file(self.path / STATE)
        return state

    def set_state(self, **updates: Any) -> dict[str, Any]:
        """Change entries of the state and return it whole; on disk when this returns.

        Raises:
            RunFolderError: an unknown status, or an attempt to change what identifies the run.
        """
        if updates.get("status", "created") not in STATUSES:
            raise RunFolderError(
                f"Expected status to be one of {', '.join(STATUSES)}, got {updates['status']!r}"
            )
        fixed = {"run_id", "format", "created"} & set(updates)
        if fixed:
            raise RunFolderError(f"Expected updates of the state, got the fixed {sorted(fixed)}")
        with self._lock:
            state = self.state() | updates | {"updated": _now()}
            write_bytes(self.path / STATE, json_bytes(state))
        return state

    # Metrics

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one record as a JSON line, in one write; add ``time`` if it is not given.

        Raises:
            RunFolderError: no ``kind``, no whole ``round`` >= 0, or a value that JSON cannot hold.
        """
        kind, round_ = record.get("kind"), record.get("round")
        if not isinstance(kind, str) or not kind:
            raise RunFolderError(f"Expected kind in a metrics record, got kind={kind!r}")
        if isinstance(round_, bool) or not isinstance(round_, int) or round_ < 0:
            raise RunFolderError(f"Expected a whole round >= 0 in a record, got round={round_!r}")
        try:
            line = json.dumps(
                plain({"time": _now(), **record}), allow_nan=False, ensure_ascii=False
            )
        except TypeError as error:
            raise RunFolderError(f"Expected plain values in a metrics record: {error}") from None
        with self._lock:
            if not self._tail_checked:
                _drop_torn_line(self.path / METRICS)
                self._tail_checked = True
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            handle = os.open(self.path / METRICS, flags, 0o644)
            try:
                _write_all(handle, (line + "\n").encode("utf-8"))
            finally:
                os.close(handle)

    def metrics(self) -> list[dict[str, Any]]:
        """Return all records in order. A line that a crash cut short is left out; other damage warns."""
        records, problems = self.read_metrics()
        for problem in problems:
            warnings.warn(f"{self.path / METRICS}: {problem}", stacklevel=2)
        return records

    def read_metrics(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the records that can be read, and one sentence about each line that cannot."""
        return read_metrics_file(self.path / METRICS)

    def truncate_metrics(self, after_round: int) -> int:
        """Drop the records of rounds above ``after_round`` (before a resume repeats them).

        Returns:
            Number of records dropped.
        """
        with self._lock:
            records = self.metrics()
            kept = [record for record in records if record["round"] <= after_round]
            lines = (json.dumps(plain(r), allow_nan=False, ensure_ascii=False) for r in kept)
            if (self.path / METRICS).exists():
                write_text(self.path / METRICS, "".join(line + "\n" for line in lines))
        return len(records) - len(kept)

    # Other files

    def write_json(self, name: str, value: Any) -> Path:
        """Write ``name`` (``silos.json``, ``environment.json``, ...) as JSON, whole or not at all."""
        path = self._file(name)
        write_bytes(path, json_bytes(value))
        return path

    def read_json(self, name: str, default: Any = None) -> Any:
        """Read a JSON file of the folder; ``default`` if there is none.

        Raises:
            RunFolderError: it is damaged.
        """
        path = self._file(name)
        return read_json_file(path) if path.is_file() else default

    def _file(self, name: str) -> Path:
        if not name or Path(name).name != name or name.startswith("."):
            raise RunFolderError(f"Expected a plain file name, got name={name!r}")
        return self.path / name


def read_metrics_file(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records of a metrics file that can be read, and one sentence about each line that cannot.

    A line that a crash cut short is left out; no file is no record.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], []
    records: list[dict[str, Any]] = []
    problems: list[str] = []
    *lines, torn = data.split(b"\n")
    del torn  # empty, or a line whose end never reached the disk
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            round_ = record["round"]
            if not isinstance(record["kind"], str) or type(round_) is not int:
                raise ValueError("no kind or round")
        except (ValueError, TypeError, KeyError) as error:
            problems.append(f"line {number} is damaged and left out ({error})")
        else:
            records.append(_with_floats(record))
    return records, problems


def read_json_file(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        RunFolderError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"Expected JSON in {path}: {error}") from None


def read_settings(folder: Path) -> Settings:
    """Return the settings of a run folder.

    Raises:
        RunFolderError: they are missing or damaged.
    """
    if not (folder / SETTINGS).is_file():
        raise RunFolderError(f"Expected a run folder, found no {SETTINGS} in {folder}")
    try:
        tree = tomllib.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        return parse_recorded(_with_chosen_numbers(tree, folder), source=str(folder / SETTINGS))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, SettingsError) as error:
        raise RunFolderError(f"The settings of the run {folder} are damaged: {error}") from None


def read_removed(folder: Path) -> dict[str, Any]:
    """Return the settings of a run that this version has no longer, by dotted key; none where they cannot be read."""
    try:
        return removed_of(tomllib.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return {}


def _with_chosen_numbers(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings with the noise that a run of an earlier version chose for single numbers, where it did:
    those of the run that names it in ``privacy.noise``, whose releases are the same.

    Raises:
        RunFolderError: ``numbers.json`` is damaged.
    """
    path = folder / NUMBERS
    order, privacy = tree.get("zeroth_order"), tree.get("privacy")
    if not isinstance(order, dict) or not isinstance(privacy, dict) or not path.is_file():
        return tree
    if order.get("noise") != "searched":
        return tree
    told = read_json_file(path)
    try:
        noise, clip = told["noise"], float(told["clip"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged: {error!r}") from None
    if noise is None:  # one vector
        return tree
    text = json.dumps(noise, sort_keys=True)
    return {**tree, "privacy": {**privacy, "mechanism": "lmo", "noise": text, "clip": clip}}


def ledger_of(settings: Settings, folder: Path) -> Path:
    """Return the privacy ledger of a run: ``privacy.ledger`` where several share one, else in its folder."""
    shared = settings.privacy.ledger
    return _expand(shared) if shared else folder / LEDGER


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _expand(path: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(path))).absolute()


def _with_absolute_ledger(settings: Settings) -> Settings:
    if settings.privacy.ledger is None:
        return settings
    ledger = str(_expand(settings.privacy.ledger))
    return settings.model_copy(
        update={"privacy": settings.privacy.model_copy(update={"ledger": ledger})}
    )


def _claim_default(settings: Settings) -> Path:
    parent = _expand(settings.output.folder)
    parent.mkdir(parents=True, exist_ok=True)
    stem = f"{settings.name}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while True:
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir()  # fails where another run has just taken the name
            return folder
        except FileExistsError:
            number += 1


def _claim(path: Path) -> Path:
    folder = path.expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"Expected a folder for the run, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise RunFolderError(f"Expected an empty or new folder for the run, got {folder}")
    return folder


def _with_floats(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _with_floats(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_floats(item, key) for item in value]
    if isinstance(value, str) and key not in _TEXT_KEYS:
        return _NON_FINITE.get(value, value)
    return value


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _drop_torn_line(path: Path) -> None:
    """Cut off what follows the last newline: the beginning of a record that a crash interrupted."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
