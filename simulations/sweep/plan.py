"""A sweep's file (TOML): what it compares, and the trials that follow from it.

name = "privacy-flat"
base = "sst2/minilm.toml"   # or a table [base] of settings
baseline = "plain DP"                 # what every arm is compared with
reference = "non-private"             # what the gap is measured to
epsilon = [3.0, 8.0]
seeds = [0, 1, 2]

[settings]                            # over the base's, in every trial
[datasets.sst2]                       # settings of each data set; may be left out
[arms."plain DP"]                     # settings of each arm
[arms."within a layer"]
awp.form = "per-example"
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from fedllm.data.public import evaluation_source
from fedllm.run.folder import RunFolderError, read_removed, read_settings
from fedllm.settings.experiment import Settings
from fedllm.settings.io import SettingsError, apply_overrides, settings_of
from fedllm.settings.section import PositiveFloat, Section

Tree = dict[str, Any]
Changes = dict[str, Any] | tuple[str, ...]
"""A tree of settings, or ``section.key=value`` texts."""
METRICS = {
    "accuracy": True,
    "macro_f1": True,
    "bleu": True,
    "rouge_l": True,
    "micro_f1": True,
    "pearson": True,
    "spearman": True,
    "tag_accuracy": True,
    "entity_f1": True,
    "loss": False,
    "perplexity": False,
    "mse": False,
    "mae": False,
}
"""Metrics; True if larger is better."""
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$"
_FACTORS = {"epsilon": "epsilon = [...]", "seed": "seeds = [...]"}


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"Expected metric among {', '.join(METRICS)}, got {name!r}")
    return name


class SweepFile(Section):
    """The sweep's file as it is written."""

    name: Annotated[str, Field(pattern=_NAME)]
    base: str | Tree
    arms: Annotated[dict[str, Changes], Field(min_length=1)]
    baseline: str | None = None
    reference: str | None = None
    epsilon: tuple[PositiveFloat, ...] | None = None
    seeds: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    settings: Changes = Field(default_factory=dict)
    datasets: dict[str, Changes] = Field(default_factory=dict)
    metric: Annotated[str, AfterValidator(_known_metric)] = "accuracy"
    folder: str | None = None


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        epsilon: None where the arm trains without privacy: then one trial stands for every epsilon.
        settings: what the run is made with; its ``name`` is the trial's.
    """

    arm: str
    dataset: str
    epsilon: float | None
    seed: int
    settings: Settings

    @property
    def title(self) -> str:
        """A readable title: data set, arm, epsilon and seed."""
        epsilon = "no privacy" if self.epsilon is None else f"epsilon {self.epsilon:g}"
        parts = [self.dataset, self.arm, epsilon, f"seed {self.seed}"]
        return ", ".join(filter(None, parts))

    @property
    def key(self) -> str:
        """Name of the run folder, but for its number: readable, and a hash of the settings that are
        not the default (so that a setting that a later version adds makes no new trial)."""
        own = self.settings.model_dump(mode="json", exclude_defaults=True)
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.settings.name}-{digest}"


@dataclass(frozen=True)
class Sweep:
    """A sweep, ready to run.

    Attributes:
        folder: where its runs, logs and results are.
        arms: in the file's order.
        datasets: names, in the file's order; [""] if there is one without a name.
        trials: seed by seed, so that a first comparison is there early.
        only: the arms to run; the results show the others' too, as far as they are there.
    """

    name: str
    source: Path
    folder: Path
    metric: str
    arms: tuple[str, ...]
    datasets: tuple[str, ...]
    epsilons: tuple[float, ...]
    seeds: tuple[int, ...]
    baseline: str | None
    reference: str | None
    trials: tuple[Trial, ...]
    only: tuple[str, ...] = ()

    @property
    def chosen(self) -> tuple[Trial, ...]:
        """The trials to run."""
        return tuple(trial for trial in self.trials if not self.only or trial.arm in self.only)

    @property
    def runs_folder(self) -> Path:
        """Folder of the trials' run folders."""
        return self.folder / "cells"

    def run_path(self, trial: Trial) -> Path:
        """Return the trial's run folder, there or not: the one that was made with the same settings."""
        number = 1
        while True:
            path = self.runs_folder / (trial.key if number == 1 else f"{trial.key}-{number}")
            if not path.exists():
                return path
            try:
                # what it was started with: the run itself may have dropped layers since
                if read_settings(path) == trial.settings and not read_removed(path):
                    return path
            except RunFolderError:
                pass  # damaged: left as it is, and the trial starts again next to it
            number += 1


def load_sweep(path: str | Path, only: Sequence[str] = (), folder: Path | None = None) -> Sweep:
    """Read a sweep's file and check the settings of every trial.

    A relative ``base`` and a relative ``folder`` are taken relative to the file and to the working
    directory; a data path in any part of the file, as in the base's own file.

    Args:
        only: run these arms alone.
        folder: of runs and results, instead of the file's.

    Raises:
        SettingsError: the file, or a trial's settings, are not accepted; the trial is named.
    """
    file = Path(path)
    found = _read(file)
    unknown = [arm for arm in only if arm not in found.arms]
    if unknown:
        raise SettingsError(
            f"Expected --only to name one of the arms {', '.join(found.arms)}; got {unknown[0]!r}"
        )
    base, home = _base(found, file)
    epsilons: tuple[float | None, ...] = found.epsilon or (None,)
    seeds: tuple[int | None, ...] = found.seeds or (None,)
    datasets = found.datasets or {"": {}}
    trials: dict[tuple[str, str], Trial] = {}
    for seed in seeds:
        for epsilon in epsilons:
            for dataset, at_data in datasets.items():
                for arm, in_arm in found.arms.items():
                    tree = copy.deepcopy(base)
                    for changes in (found.settings, at_data, in_arm):
                        _change(tree, changes, str(file))
                    if epsilon is not None:
                        tree.setdefault("privacy", {})["epsilon"] = epsilon
                    if seed is not None:
                        tree["seed"] = seed
                    source = f"{file}, arm {arm!r}" + (f", data set {dataset!r}" if dataset else "")
                    trial = _trial(found.name, arm, dataset, tree, source, home)
                    trials.setdefault((trial.arm, trial.key), trial)
    kept = tuple(trials.values())
    return Sweep(
        name=found.name,
        source=file.resolve(),
        folder=Path(folder or found.folder or f"runs/sweep-{found.name}").expanduser().absolute(),
        metric=found.metric,
        arms=tuple(found.arms),
        datasets=tuple(datasets),
        epsilons=tuple(sorted({c.epsilon for c in kept if c.epsilon is not None})),
        seeds=tuple(sorted({c.seed for c in kept})),
        baseline=found.baseline,
        reference=found.reference,
        trials=kept,
        only=tuple(only),
    )


def _read(file: Path) -> SweepFile:
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"Expected a sweep's TOML file, found no file {file}") from None
    except IsADirectoryError:
        raise SettingsError(f"Expected a sweep's TOML file, got the folder {file}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not valid TOML: {error}") from None
    try:
        found = SweepFile.model_validate(tree)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"][:2])
            if problem["type"] == "extra_forbidden":
                known = ", ".join(SweepFile.model_fields)
                lines.append(f"{file}: Expected a known key, got {key}; known: {known}")
            elif problem["type"] == "missing":
                lines.append(f"{file}: Expected {key} in a sweep's file, got none")
            else:
                got = problem["input"]
                lines.append(f"{file}: Expected {key}: {problem['msg']}; got {got!r}")
        raise SettingsError("\n".join(dict.fromkeys(lines))) from None
    for role in ("baseline", "reference"):
        arm = getattr(found, role)
        if arm is not None and arm not in found.arms:
            raise SettingsError(
                f"{file}: Expected {role} to name one of the arms {', '.join(found.arms)}; got {arm!r}"
            )
    slugs: dict[str, str] = {}
    for arm in (*found.arms, *found.datasets):
        if _slug(arm) in slugs or not _slug(arm):
            raise SettingsError(
                f"{file}: Expected names of arms and data sets that differ in letters and digits, "
                f"got {slugs.get(_slug(arm), '')!r} and {arm!r}"
            )
        slugs[_slug(arm)] = arm
    return found


def _base(found: SweepFile, file: Path) -> tuple[Tree, Path]:
    """Return the base's tree, and the folder that its relative paths start from."""
    if not isinstance(found.base, str):
        return dict(found.base), file.resolve().parent
    path = (file.resolve().parent / Path(found.base).expanduser()).resolve()
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), path.parent
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{file}: Expected base to be an experiment's TOML file: {error}"
        ) from None


def _change(tree: Tree, changes: Changes, source: str) -> None:
    """Put settings over those of ``tree``, in place; keys may be dotted."""
    if not isinstance(changes, Mapping):
        apply_overrides(tree, changes)
        return
    for name, value in changes.items():
        *above, key = name.split(".") if re.fullmatch(r"[\w.-]+", name) else [name]
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        if isinstance(value, Mapping) and isinstance(node.get(key), dict) and key != "labels":
            _change(node[key], dict(value), source)
        elif isinstance(value, Mapping) and not above and key not in node:
            node[key] = {}
            _change(node[key], dict(value), source)
        else:
            node[key] = copy.deepcopy(value)


def _trial(sweep: str, arm: str, dataset: str, tree: Tree, source: str, home: Path) -> Trial:
    parts = [sweep, _slug(dataset), _slug(arm)]
    tree["name"] = "-".join(filter(None, parts))[:50].strip("-.")
    settings = settings_of(tree, source=source, folder=home)
    if evaluation_source(settings.data, settings.public) == "none":
        raise SettingsError(
            f"{source}: Expected data.validation, data.holdout > 0 or public.source (a sweep compares arms on the "
            "server's evaluation examples), got none of them"
        )
    epsilon = settings.privacy.epsilon
    if settings.privacy.mode == "none":
        epsilon = None  # one run for all of them: epsilon changes nothing in it
        privacy = settings.privacy.model_copy(update={"epsilon": None})
        settings = settings.model_copy(update={"privacy": privacy})
    where = "" if epsilon is None else f"-eps{epsilon:g}"
    named = f"{settings.name}{where}-seed{settings.seed}".replace("+", "")[:64]
    if settings.privacy.ledger is not None:
        ledger = str(Path(settings.privacy.ledger).expanduser().absolute())
        privacy = settings.privacy.model_copy(update={"ledger": ledger})
        settings = settings.model_copy(update={"privacy": privacy})
    settings = settings.model_copy(update={"name": named})
    return Trial(arm, dataset, epsilon, settings.seed, settings)


def _slug(name: str) -> str:
    """Return letters, digits and hyphens of a name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()
