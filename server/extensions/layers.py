"""The choice of the layers that stay in the adapter: before the first round, or after warm-up rounds.

Guarantee: a silo's scores carry its own noise, and their event is in its ledger before
(:mod:`fedllm.flatness.layer_release`). What the server does with them, and with public text, is
post-processing.

Each measurement is in ``layers.json`` before the next begins, and the choice before anything changes its
shape: a run that is resumed reads it there, asks no silo again, and cuts what it restores. With
``layers.after`` > 0 the checkpoint of that round is on disk before the first measurement.

Before any training (``layers.after = 0``) the scores are those at a public point with an ordinary random
head (:func:`fedllm.training.statistics.statistics_point`): with a head of zeros the loss of an encoder
would not depend on the adapter at all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from torch import Tensor

from fedllm import messages as names
from fedllm.data.batches import Feature
from fedllm.data.public import public_set
from fedllm.data.silos import first_by_hash
from fedllm.flatness.layer_choice import (
    CHOICE,
    Choice,
    Step,
    kept_rows,
    mean_scores,
    to_drop,
)
from fedllm.flatness.layer_release import ScoreRelease, make_score_release
from fedllm.flatness.layer_scores import Sharpness, mean_sharpness
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from fedllm.training.statistics import statistics_point
from fedllm.training.tunable import Tunable, initial_params, shared_tunable
from server.aggregation import tensor_bytes
from server.extensions.ask_silos import ask_silos
from server.extensions.base import RoundExtension, ServerRun, Tensors
from server.replies import ReplyRefused, RunStopped

PUBLIC = "public text"
"""Under whose name the server's own scores are written down."""
_CHOSEN = "layers_chosen"
"""Key in a checkpoint's meta: true if it was written after the choice."""


class LayerChoice(RoundExtension):
    """Chooses the layers once ``layers.after`` rounds are over; with 0, before anything is restored.

    Args:
        folder: of the run; it keeps the choice.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._counted = False

    def before_run(self, grid: Grid) -> None:
        """Choose, where no round comes before the choice; see :meth:`before_round`."""
        if self.run.settings.layers.after == 0:
            self.before_round(grid)

    def before_round(self, grid: Grid) -> None:
        """Choose where it is time.

        Raises:
            RunStopped: too many silos failed, none is left, or the scores are no numbers.
            Stopped: the run was asked to stop; what was measured so far is kept.
        """
        run, settings, tunable = self.run, self.run.settings, self.run.tunable
        choice = self.folder.choice()
        due = run.finished_rounds >= settings.layers.after
        if not due or (choice is not None and choice.kept is not None):
            return
        if settings.layers.after == 0 and self.folder.state()["round"]:
            raise RunStopped(f"Expected {CHOICE} in {self.folder.path}: the run has begun with it")
        if run.finished_rounds:
            run.save()  # whatever server.checkpoint_every: a resumed run must not go back behind it
        record = {"kind": "layers", "round": run.finished_rounds, "form": settings.layers.form}
        record["of"] = list(tunable.layers)
        run.emit(record | {"kept": None})
        choice = choose(grid, self.folder, run)
        run.emit(record | {"kept": list(choice.remaining)})
        changed = choice.settings(settings)
        run.use_layers(changed, choice.layers, shared_tunable(changed))
        if run.finished_rounds == 0:
            # The very run that has these layers from the start. Its scores count after restoring.
            run.model.start_from(initial_params(run.tunable, changed))
        else:
            self._count(choice)

    def fit_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cut a state of before the choice."""
        choice = self.folder.choice()
        if choice is None or choice.kept is None:
            return state
        return kept_rows(state, choice.layers, choice.kept)

    def meta(self) -> dict[str, Any]:
        choice = self.folder.choice()
        return {_CHOSEN: choice is not None and choice.kept is not None}

    def load_state(self, state: Tensors, meta: Mapping[str, Any]) -> None:
        self._counted = bool(meta.get(_CHOSEN))  # false: it was written before the choice

    def after_restore(self, grid: Grid) -> None:
        """Count the releases of a choice that the restored view of what was spent does not know."""
        choice = self.folder.choice()
        if choice is not None and choice.kept is not None and not self._counted:
            self._count(choice)

    def _count(self, choice: Choice) -> None:
        """Add the silos' releases to the server's view of what was spent."""
        self._counted = True
        for step in choice.steps:
            for silo, rate in step.sampling_rates.items():
                self.run.spending.add_scores(silo, rate)


def choose(grid: Grid, folder: RunFolder, run: ServerRun) -> Choice:
    """Measure until the choice is made; each measurement is in the run folder before the next begins.

    Raises:
        RunStopped: too many silos failed, none is left, or the scores are no numbers.
        Stopped: the run was asked to stop.
    """
    settings, tunable = run.settings, run.tunable
    choice = folder.choice()
    if choice is None:
        choice = Choice.begin(settings, tunable.layers, run.finished_rounds)
    point = {**run.model.params, **statistics_point(run.trainable, settings.seed)}
    scores = make_score_release(settings)
    features = None if scores.asked else _public_features(settings, tunable)
    while choice.kept is None:
        candidates = choice.remaining
        began = time.monotonic()
        if features is None:
            found = _ask(grid, run, point, candidates, scores)
        else:
            found = _measured(*tunable.part(point), features, candidates, scores.sharpness)
        mean = mean_scores(found["scores"])
        step = Step(
            candidates=candidates,
            mean=tuple(mean),
            dropped=tuple(to_drop(candidates, mean, choice.keep, choice.search)),
            seconds=round(time.monotonic() - began, 3),
            **found,
        )
        choice = choice.with_step(step)
        # From here on this measurement is not made again.
        folder.write_json(CHOICE, choice.model_dump(mode="json"))
    return choice


def _measured(
    tunable: Tunable,
    point: Mapping[str, Tensor],
    features: Sequence[Feature],
    candidates: Sequence[int],
    how: Sharpness,
) -> dict[str, Any]:
    """The scores of the public text."""
    scores = mean_sharpness(tunable, point, features, candidates, how)
    if not bool(torch.isfinite(scores).all()):
        raise RunStopped(f"Expected finite scores of the layers, got {scores.tolist()}")
    found: dict[str, Any] = {"scores": {PUBLIC: tuple(scores.tolist())}, "sampling_rates": {}}
    return found | {"bytes_up": 0, "bytes_down": 0, "noise_std": 0.0}


def _public_features(settings: Settings, tunable: Tunable) -> list[Feature]:
    dataset = public_set(settings)
    chosen = first_by_hash(dataset, settings.layers.examples, settings.task.text, settings.seed)
    return tunable.task.features(chosen.records)


def _ask(
    grid: Grid,
    run: ServerRun,
    point: Mapping[str, Tensor],
    candidates: Sequence[int],
    scores: ScoreRelease,
) -> dict[str, Any]:
    """The scores of the silos that take part, their sampling rates in training, and the traffic."""
    chosen = [name for name in sorted(run.nodes) if run.draws.planned(name)]
    chosen = [name for name in chosen if name not in run.left]
    arrays = run.arrays(point)
    config = ConfigRecord({names.CANDIDATES: list(candidates)})
    tasks = run.tasks(names.ASK_SCORES, chosen, run.finished_rounds, arrays, config)

    def check(released: Tensor) -> None:
        if scores.form == "private-top-k":
            votes = scores.kept(len(candidates))
            if sorted(released.tolist()) != [0.0] * (len(candidates) - votes) + [1.0] * votes:
                raise ReplyRefused(f"Expected {votes} votes of 1, else 0, got {released.tolist()}")

    found = ask_silos(
        grid,
        run,
        chosen,
        tasks,
        record=names.SCORES,
        size=len(candidates),
        noise=scores.noise_std(len(candidates)),
        what="scores of the layers",
        check=check,
    )
    size = tensor_bytes(arrays.to_torch_state_dict())
    each = scores.noise_std(len(candidates))
    return {
        "scores": {name: tuple(released.tolist()) for name, (released, _) in found.items()},
        "sampling_rates": {name: rate for name, (_, rate) in found.items()},
        "noise_std": each / len(found) ** 0.5,
        "bytes_up": 8 * len(candidates) * len(found),
        "bytes_down": size * len(tasks),
    }
