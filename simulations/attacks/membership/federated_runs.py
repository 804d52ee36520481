"""Models to attack, trained by the federation itself: each run includes each text by a coin of its own.

The real server and client code in one process (:mod:`simulations.in_process`): ledger, calibration,
awp, layers, teacher and all, on a few hundred short texts over small silos. What is kept of a run is
the loss of every text under the released model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedllm.adapter.released import released_params
from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from fedllm.settings.io import apply_overrides, parse_settings
from fedllm.training.tunable import make_tunable
from privacy.events.multiset import is_private
from privacy.ledger.ledger import Ledger
from privacy.randomness import generator
from simulations.attacks import auditing
from simulations.attacks.membership.attacks import RATES, losses
from simulations.attacks.scene import MICRO_BATCH, load_distinct
from simulations.benchmarks.support import workload
from simulations.in_process import federate
from simulations.landscape.landscape import Grids

DELTA = 1e-5
_VALIDATION = 32


@dataclass(frozen=True)
class Experiment:
    """Training of the attacked models: the same for all rows except a row's overrides.

    Attributes:
        texts: candidates, half of them canaries (their label is flipped); a run has about half of all.
        sampling_rate: of a step's Poisson batch.
        model: embedded name or folder of an encoder.
    """

    texts: int = 256
    silos: int = 8
    rounds: int = 20
    epsilon: float = 8.0
    sampling_rate: float = 0.5
    learning_rate: float = 0.02
    head_learning_rate: float = 0.1
    prefix_length: int = 4
    model: str = "minilm"
    data: str = "auto"
    seed: int = 0

    def tree(self, folder: Path, run: int) -> dict[str, Any]:
        """Return plain settings of one run on the files in ``folder``."""
        batch = max(1, round(self.texts / 2 / self.silos * self.sampling_rate))
        return {
            "name": "membership",
            "seed": 1000 * self.seed + run,
            "model": {"name": workload.model_source(self.model).folder},
            "prefix": {"length": self.prefix_length, "phrase": workload.PHRASE},
            "task": {"labels": list(workload.LABELS), "max_length": workload.MAX_LENGTH},
            "data": {
                "source": "files",
                "path": str(folder),
                "train": "train.jsonl",
                "validation": "validation.jsonl",
                "partition": "natural",
                "silo_column": "silo",
                "min_size": 1,
            },
            "client": {
                "batch_size": batch,
                "sampling_rate": self.sampling_rate,
                "max_tokens": MICRO_BATCH,
            },
            "server": {
                "rounds": self.rounds,
                "learning_rate": self.learning_rate,
                "head_learning_rate": self.head_learning_rate,
                "checkpoint_every": self.rounds,
                "schedule": "constant",
            },
            "privacy": {"epsilon": self.epsilon, "delta": DELTA, "randomness": "seeded"},
            "evaluation": {"every": self.rounds},
            "output": {"tensorboard": False},
        }


@dataclass(frozen=True)
class Row:
    """One kind of training: a name, and its overridden settings (``section.key=value``)."""

    name: str
    overrides: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Row:
        """Parse ``NAME: section.key=value; section.key=value``.

        Raises:
            ValueError: no name.
        """
        name, sign, rest = text.partition(":")
        if not sign or not name.strip():
            raise ValueError(
                f"Expected --row='NAME: section.key=value; ...' (which may be empty), got --row={text!r}"
            )
        parts = (part.strip() for part in rest.split(";"))
        return cls(name.strip(), tuple(part for part in parts if part))


@dataclass(frozen=True)
class Texts:
    """Candidates in a fixed order, the server's own texts, and where both are from."""

    candidates: list[dict[str, str]]
    validation: list[dict[str, str]]
    origin: str


def load(experiment: Experiment) -> Texts:
    """Return the shortest third of three times as many distinct texts; the first half's labels are flipped.

    The server's own texts are as short as the candidates, and keep their labels.

    Raises:
        DataError: there are too few.
    """
    count = experiment.texts
    records, origin = load_distinct(3 * count + _VALIDATION, experiment.data, experiment.seed)
    short = sorted(records, key=lambda record: len(record["text"].split()))[: count + _VALIDATION]
    order = generator(experiment.seed, "flat-membership-texts").permutation(len(short))
    candidates = [dict(short[i]) for i in order[:count]]
    validation = [dict(short[i]) for i in order[count:]]
    for record in candidates[: count // 2]:
        record["label"] = workload.LABELS[1 - workload.LABELS.index(record["label"])]
    return Texts(candidates, validation, origin)


def coins(experiment: Experiment, runs: int) -> npt.NDArray[np.bool_]:
    """Return (runs, texts): who is in. Run r has the same coins however many runs there are, and in every row."""
    rows = [
        generator(experiment.seed, "flat-membership-coins", run).random(experiment.texts) < 0.5
        for run in range(runs)
    ]
    return np.array(rows)


def settings_of(experiment: Experiment, row: Row, folder: Path, run: int) -> Settings:
    """Return the settings of one run of a row.

    Raises:
        SettingsError: overrides that do not fit; the setting is named.
    """
    tree = experiment.tree(folder, run)
    apply_overrides(tree, row.overrides)
    return parse_settings(tree, f"row {row.name!r}")


def attacked_losses(
    experiment: Experiment,
    row: Row,
    texts: Texts,
    included: npt.NDArray[np.bool_],
    cache: Path,
    advance: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Train the row's runs, and attack each: one after another, those in ``cache`` not again.

    Returns:
        For each run ``losses`` (of all candidates), ``accuracy`` (on the server's texts) and ``proven``
        (see :func:`proven_rates`; None where the ledger holds no guarantee).

    Raises:
        ValueError: a run did not finish.
    """
    store = Grids(cache / f"{_key(experiment, row, texts)}.json", every=1)
    found = []
    for run, chosen in enumerate(included):
        train = partial(_train, experiment, row, texts, chosen, run)
        found.append(store.get(str(run), train))
        advance()
    return found


def _key(experiment: Experiment, row: Row, texts: Texts) -> str:
    plain = [vars(experiment), list(row.overrides), texts.candidates, texts.validation]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode("utf-8")).hexdigest()[:32]


def _train(
    experiment: Experiment, row: Row, texts: Texts, included: npt.NDArray[np.bool_], run: int
) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="fedllm-membership-"))
    try:
        members = [
            {**record, "silo": f"silo-{i % experiment.silos}"}
            for i, record in enumerate(texts.candidates)
            if included[i]
        ]
        _write(folder / "train.jsonl", members)
        _write(folder / "validation.jsonl", texts.validation)
        settings = settings_of(experiment, row, folder, run)
        made = RunFolder.create(settings, folder / "run")
        status = federate(made)
        if status != "finished":
            raise ValueError(
                f"Expected the run {run} of row {row.name!r} to finish, it {status}: "
                f"{made.state()['message']}"
            )
        return {
            "losses": candidate_losses(made, texts.candidates).tolist(),
            "accuracy": _accuracy(made),
            # the silos' coins differ a little from run to run, the mechanism does not
            "proven": proven_rates(made) if run == 0 else None,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def candidate_losses(run: RunFolder, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the loss of each record under the released model of a finished run, (n,) float64.

    Raises:
        ValueError: the run has no checkpoint.
    """
    checkpoint = latest_checkpoint(run.checkpoints_path)
    if checkpoint is None:
        raise ValueError(f"Expected a checkpoint in the run {run.path}, found none that is whole")
    tunable = make_tunable(run.settings_of(checkpoint.params))
    params = {
        name: value.float().to(tunable.backbone.device)
        for name, value in released_params(checkpoint).items()
    }
    return losses(tunable, params, tunable.task.features(records)).numpy()


def proven_rates(run: RunFolder) -> dict[str, Any] | None:
    """Return the ledger's bounds on any attack on one text: AUC, and TPR at each of ``RATES``.

    Of the silo that spent most, by the events that the server sees (the final model tells less), PLD. None
    where an event has no guarantee, or at unit client, where a text is no unit.
    """
    with Ledger(run.ledger_path, read_only=True) as ledger:
        spent = {
            tuple(sorted(ledger.spent("server", party=party).items(), key=repr))
            for party in ledger.parties()
        }
    if not spent or run.settings().privacy.unit != "example":
        return None
    if not all(is_private(event) for events in spent for event, _ in events):
        return None
    areas = [auditing.greatest_area(dict(events)) for events in spent]
    rates = [auditing.greatest_rates(dict(events), np.array(RATES)) for events in spent]
    most = np.max(rates, axis=0)
    return {
        "auc": max(areas),
        "tpr": {str(rate): float(value) for rate, value in zip(RATES, most, strict=True)},
    }


def _accuracy(run: RunFolder) -> float:
    judged = [r for r in run.metrics() if r["kind"] == "evaluation" and r["where"] == "server"]
    return float(judged[-1]["accuracy"])


def _write(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
