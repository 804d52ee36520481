"""Checkpoints to measure, and held-out examples that none of their runs trained on.

Sharpness reads examples without noise. So by default the examples are held out: those in the server's
evaluation set of *every* run given (a run with another seed may have trained on what this one holds
out). Public text is as good. The silos' own examples can be had for a simulation, and carry a label that
everything made of them repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from fedllm.adapter.released import released_params
from fedllm.data.formats.records import Record, normalise_text
from fedllm.data.holdout import text_hash
from fedllm.data.public import evaluation_set, public_set
from fedllm.data.silos import load_federation
from fedllm.models.backbone import Backbone
from fedllm.run.checkpoints import Checkpoint, latest_checkpoint, load_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from fedllm.training.tunable import Tunable, make_tunable

DataChoice = Literal["evaluation", "public", "silos"]
PRIVATE_LABEL = (
    "measured on the silos' own examples without noise: no guarantee covers these numbers, and they may "
    "be shown only where those examples may"
)


class SubjectError(ValueError):
    """A checkpoint is missing, or runs cannot be compared."""


@dataclass(frozen=True)
class Subject:
    """One checkpoint.

    Attributes:
        label: how tables and figures call it.
        path: folder of its run.
        round: rounds of training behind it.
        settings: of the run; ``prefix.layers`` are those of this checkpoint.
        params: the model that the run releases, float32 on the CPU.
    """

    label: str
    path: Path
    round: int
    settings: Settings
    params: dict[str, Tensor]


@dataclass(frozen=True)
class MeasuredOn:
    """The examples of a measurement.

    Attributes:
        records: in the order of a hash of their text.
        origin: what they are, in words.
        label: None for public or held-out text, else what must stand beside the numbers.
    """

    records: list[Record]
    origin: str
    label: str | None


def load_subjects(
    paths: Sequence[str | Path], *, round: int | None = None, labels: Sequence[str] = ()
) -> list[Subject]:
    """Checkpoints of run folders.

    Args:
        paths: run folders, or folders of single checkpoints (``RUN/checkpoints/round-00010``).
        round: which checkpoint of the run folders; None: the last one that is whole.
        labels: one name for each, in order; empty: the run folders' names.

    Raises:
        SubjectError: no checkpoint there, one name for several, or runs that cannot be compared.
        RunFolderError, CheckpointError: a folder or file is no run, or damaged.
    """
    if labels and len(labels) != len(paths):
        raise SubjectError(f"Expected one label for each of {len(paths)} runs, got {len(labels)}")
    subjects = [_load(Path(path), round) for path in paths]
    if labels:
        names = list(labels)
    else:
        names = [subject.path.name for subject in subjects]
        if len(set(names)) < len(names):
            names = [f"{s.path.name}, round {s.round}" for s in subjects]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SubjectError(f"Expected distinct checkpoints or labels, got {twice[0]!r} twice")
    _check_comparable(subjects)
    return [replace(s, label=name) for name, s in zip(names, subjects, strict=True)]


def _load(path: Path, round: int | None) -> Subject:
    path = path.expanduser().resolve()
    single = path.parent.name == "checkpoints" and path.name.startswith("round-")
    run = RunFolder.open(path.parent.parent if single else path)
    checkpoint: Checkpoint | None
    if single:
        checkpoint = load_checkpoint(path)
    elif round is None:
        checkpoint = latest_checkpoint(run.checkpoints_path)
    else:
        folder = run.checkpoints_path / f"round-{round:05d}"
        checkpoint = load_checkpoint(folder) if folder.is_dir() else None
    if checkpoint is None:
        there = sorted(run.checkpoints_path.glob("round-*"))
        kept = ", ".join(str(int(p.name.removeprefix("round-"))) for p in there if p.suffix == "")
        wanted = "a checkpoint" if round is None else f"a checkpoint of round {round}"
        raise SubjectError(
            f"Expected {wanted} in the run {run.path}, it has "
            f"{'those of the rounds ' + kept if kept else 'none'}"
            + (" (server.keep_checkpoints says how many stay)" if kept else "")
        )
    params = {name: value.float() for name, value in released_params(checkpoint).items()}
    return Subject(run.path.name, run.path, checkpoint.round, run.settings_of(params), params)


def _check_comparable(subjects: Sequence[Subject]) -> None:
    """Same frozen model, same task, same prefix length: else no scale is common to them.

    Raises:
        SubjectError: they differ; setting, runs and values are named.
    """
    first = subjects[0]
    for other in subjects[1:]:
        for section, keys in (
            ("model", ("name", "revision", "gguf_file")),
            ("prefix", ("length",)),
            ("task", tuple(type(first.settings.task).model_fields)),
        ):
            for key in keys:
                a = getattr(getattr(first.settings, section), key)
                b = getattr(getattr(other.settings, section), key)
                if a != b:
                    raise SubjectError(
                        f"Expected runs of one model and task, got {section}.{key}={a!r} in "
                        f"{first.path} and {section}.{key}={b!r} in {other.path}"
                    )


def make_subject_tunable(
    subject: Subject, backbone: Backbone | None = None, device: str | None = None
) -> Tunable:
    """The model of a checkpoint, its backbone in float32 whatever the run's number format was.

    Second derivatives in 16 bits would be rounding.

    Args:
        backbone: the base model where it is in memory already (another subject's).
        device: where to load it; by default as the run's settings say.

    Raises:
        SubjectError: the checkpoint's tensors do not fit the model.
    """
    changes = {"dtype": "float32"} | ({} if device is None else {"device": device})
    model = subject.settings.model.model_copy(update=changes)
    settings = subject.settings.model_copy(update={"model": model})
    tunable = make_tunable(settings, backbone)
    wanted = {name: tuple(value.shape) for name, value in tunable.task.initial_params().items()}
    wanted |= tunable.adapter.shapes()
    got = {name: tuple(value.shape) for name, value in subject.params.items()}
    if got != wanted:
        raise SubjectError(
            f"Expected tensors of the shapes {wanted} in the checkpoint of round {subject.round} of "
            f"{subject.path}, got {got}"
        )
    return tunable


def kept_layers(subject: Subject, tunable: Tunable) -> tuple[int, ...]:
    """Layer numbers that carry a prefix, in the order of the tensor; empty without a prefix."""
    if tunable.spec is None:
        return ()
    return tunable.layers


def held_out_for_all(subjects: Sequence[Subject], choice: DataChoice, count: int) -> MeasuredOn:
    """Up to ``count`` examples to measure all subjects on, the same for each.

    ``evaluation``: texts in the server's evaluation set of every run (all of it, not only
    ``evaluation.max_examples``), which no silo of any of them trains on. ``public``: the text of the
    first run's ``[public]``. ``silos``: examples that every run's silos train on, with a label.

    Raises:
        SubjectError: no such example is common to the runs.
        DataError: data cannot be read.
    """
    columns = subjects[0].settings.task.text

    def key(record: Record) -> tuple[str, ...]:
        return tuple(normalise_text(str(record[column])) for column in columns)

    if choice == "public":
        found = {key(record): record for record in public_set(subjects[0].settings).records}
        origin, label = "public text of the run's [public]", None
    else:
        found = {}
        for number, subject in enumerate(subjects):
            own = {key(record): record for record in _records(subject.settings, choice)}
            found = own if number == 0 else {k: r for k, r in found.items() if k in own}
        if choice == "evaluation":
            origin, label = "the server's evaluation examples, held out from all silos", None
        else:
            origin, label = "the silos' training examples", PRIVATE_LABEL
    if not found:
        raise SubjectError(
            f"Expected examples for data={choice} that all {len(subjects)} runs have in common, found "
            "none: runs that hold out different examples (another seed, no data.validation) can be "
            "compared on public text"
        )
    records = sorted(found.values(), key=lambda r: (text_hash(r, columns, 0), key(r)))
    return MeasuredOn(records[:count], origin, label)


def _records(settings: Settings, choice: DataChoice) -> list[Record]:
    if choice == "silos":
        return [r for silo in load_federation(settings).silos for r in silo.train.records]
    whole = settings.evaluation.model_copy(update={"max_examples": None})
    return evaluation_set(settings.model_copy(update={"evaluation": whole})).records


__all__ = [
    "MeasuredOn",
    "PRIVATE_LABEL",
    "Subject",
    "SubjectError",
    "held_out_for_all",
    "kept_layers",
    "load_subjects",
    "make_subject_tunable",
]
