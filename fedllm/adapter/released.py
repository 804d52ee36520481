"""Read the model to export from a run or a checkpoint: tensors, settings and report."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedllm.report.build import build
from fedllm.run.checkpoints import Checkpoint, CheckpointError, latest_checkpoint, load_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings

_AVERAGE = "average."


class ExportError(ValueError):
    """There is nothing to export, or the place for it is taken."""


@dataclass(frozen=True)
class Released:
    """The model of a checkpoint, with what its export says of it.

    Attributes:
        run, checkpoint: where it is from.
        params: its tensors.
        settings: of the run, with the layers that these tensors have.
        report: the run's report.
    """

    run: RunFolder
    checkpoint: Checkpoint
    params: dict[str, Tensor]
    settings: Settings
    report: Mapping[str, Any]

    @property
    def plain(self) -> Settings:
        """The settings with the base model's plain weights on one device: an adapter of a quantised model is exported
        for those."""
        changes = {"quantization": "none", "device_map": "none"}
        model = self.settings.model.model_copy(update=changes)
        return self.settings.model_copy(update={"model": model})

    @classmethod
    def find(cls, source: RunFolder | str | Path) -> Released:
        """Read a run's last checkpoint, or the one that is named.

        Raises:
            ExportError: no checkpoint is whole.
            RunFolderError, CheckpointError: ``source`` is neither, or damaged.
        """
        run, checkpoint = _locate(source)
        params = released_params(checkpoint)
        return cls(run, checkpoint, params, run.settings_of(params), build(run))


def released_params(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the parameters to use: the moving average where the run keeps one, else the last ones."""
    if checkpoint.meta.get("released") != "average":
        return checkpoint.params
    missing = [name for name in checkpoint.params if _AVERAGE + name not in checkpoint.state]
    if missing:
        raise CheckpointError(
            f"Expected {_AVERAGE}{missing[0]} in the state of the checkpoint {checkpoint.path}, "
            "whose model is a moving average"
        )
    return {name: checkpoint.state[_AVERAGE + name] for name in checkpoint.params}


def _locate(source: RunFolder | str | Path) -> tuple[RunFolder, Checkpoint]:
    if not isinstance(source, RunFolder):
        path = Path(source).expanduser().resolve()
        if path.parent.name == "checkpoints":
            checkpoint = load_checkpoint(path)
            return RunFolder.open(path.parent.parent), checkpoint
        source = RunFolder.open(path)
    found = latest_checkpoint(source.checkpoints_path)
    if found is None:
        raise ExportError(
            f"Expected a checkpoint to export, found none that is whole in {source.path}"
        )
    return source, found


def require_own(folder: Path, files: Collection[str]) -> None:
    """Refuse a folder with files of others.

    Raises:
        ExportError: it is a file, or has another file than these.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ExportError(f"Expected a folder to export to, got the file {folder}")
    others = sorted(path.name for path in folder.iterdir() if path.name not in files)
    if others:
        raise ExportError(
            f"Expected a new or empty folder to export to, or an earlier export, got {folder} with "
            f"{others[0]}"
        )
