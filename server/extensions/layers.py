"""The choice of the layers that keep their prefix: before the first round, or after warm-up rounds.

Guarantee: a silo's scores carry its own noise, and their event is in its ledger before
(:mod:`fedllm.flatness.layer_release`). What the server does with them, and with public text, is
post-processing.

Each measurement is in ``layers.json`` before the next begins, and the choice before anything changes its
shape: a run that is resumed reads it there, asks no silo again, and cuts what it restores. With
``layers.after`` > 0 the checkpoint of that round is on disk before the first measurement.

Before any training (``layers.after = 0``) the scores are those at a public point with an ordinary random
head (:func:`fedllm.training.statistics.statistics_point`): with a head of zeros the loss of an encoder
would not depend on the prefix at all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
    kept_in_a_step,
    mean_scores,
    to_drop,
)
from fedllm.flatness.layer_release import score_noise_std
from fedllm.flatness.layer_scores import mean_sharpness
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from fedllm.training.statistics import statistics_point
from fedllm.training.tunable import Tunable, initial_params, shared_tunable
from server.aggregation import tensor_bytes
from server.extensions.ask_silos import ask_silos
from server.replies import ReplyRefused, RunStopped
from server.strategy import PrefixStrategy

PUBLIC = "public text"
"""Under whose name the server's own scores are written down."""


class LayerPhase:
    """Chooses the layers once ``layers.after`` rounds are over; with 0, before anything is restored.

    Args:
        run: the run's folder.
        strategy: its settings, parameters and optimiser change with the choice.
        tunable: the model as it was started with.
        stop: set by another thread to interrupt.
        save: writes a checkpoint.
    """

    def __init__(
        self,
        run: RunFolder,
        strategy: PrefixStrategy,
        tunable: Tunable,
        stop: threading.Event,
        save: Callable[[], None],
    ) -> None:
        self.run = run
        self.strategy = strategy
        self.tunable = tunable
        self.stop = stop
        self.save = save

    def before_round(self, grid: Grid) -> Tunable:
        """The model to train and judge in the round that is about to begin; chooses where it is time.

        Raises:
            RunStopped: too many silos failed, none is left, or the scores are no numbers.
            Stopped: ``stop`` was set; what was measured so far is kept.
        """
        strategy, settings = self.strategy, self.strategy.settings
        choice = self.run.choice()
        due = strategy.finished_rounds >= settings.layers.after
        over = choice is not None and choice.kept is not None
        if settings.layers.form == "none" or over or not due:
            return self.tunable
        if settings.layers.after == 0 and self.run.state()["round"]:
            raise RunStopped(f"Expected {CHOICE} in {self.run.path}: the run has begun with it")
        if strategy.finished_rounds:
            self.save()  # whatever server.checkpoint_every: a resumed run must not go back behind it
        assert self.tunable.spec is not None  # settings_with_releases has looked
        record = {"kind": "layers", "round": strategy.finished_rounds, "form": settings.layers.form}
        record["of"] = list(self.tunable.spec.layers)
        strategy.emit(record | {"kept": None})
        choice = choose(grid, self.run, strategy, self.tunable, self.stop)
        strategy.emit(record | {"kept": list(choice.remaining)})
        changed = choice.settings(settings)
        self.tunable = shared_tunable(changed)
        strategy.use_layers(changed, choice.layers, self.tunable)
        if strategy.finished_rounds == 0:
            # The very run that has these prefix.layers from the start. Restoring counts the scores.
            strategy.model.start_from(initial_params(self.tunable, changed))
        else:
            count_scores(strategy, choice)
        return self.tunable


def count_scores(strategy: PrefixStrategy, choice: Choice) -> None:
    """Add the silos' releases to the server's view of what was spent."""
    for step in choice.steps:
        for silo, rate in step.sampling_rates.items():
            strategy.spending.add_scores(silo, rate)


def choose(
    grid: Grid,
    run: RunFolder,
    strategy: PrefixStrategy,
    tunable: Tunable,
    stop: threading.Event,
) -> Choice:
    """The finished choice; goes on where a search was interrupted.

    Raises:
        RunStopped, Stopped: as :meth:`LayerPhase.before_round`.
    """
    settings = strategy.settings
    choice = run.choice()
    if choice is None:
        assert tunable.spec is not None  # settings_with_releases has looked
        choice = Choice.begin(settings, tunable.spec.layers, strategy.finished_rounds)
    point = statistics_point(strategy.model.params, settings.seed)
    features = None if settings.layers.asks_silos else _public_features(settings, tunable)
    while choice.kept is None:
        candidates = choice.remaining
        began = time.monotonic()
        if features is None:
            found = _ask(grid, strategy, point, candidates, stop)
        else:
            found = _measured(tunable, point, features, candidates, settings)
        mean = mean_scores(found["scores"])
        step = Step(
            candidates=candidates,
            mean=tuple(mean),
            dropped=tuple(to_drop(candidates, mean, settings)),
            seconds=round(time.monotonic() - began, 3),
            **found,
        )
        choice = choice.with_step(step)
        # From here on this measurement is not made again.
        run.write_json(CHOICE, choice.model_dump(mode="json"))
    return choice


def _measured(
    tunable: Tunable,
    point: Mapping[str, Tensor],
    features: Sequence[Feature],
    candidates: Sequence[int],
    settings: Settings,
) -> dict[str, Any]:
    """The scores of the public text."""
    scores = mean_sharpness(tunable, point, features, candidates, settings)
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
    strategy: PrefixStrategy,
    point: Mapping[str, Tensor],
    candidates: Sequence[int],
    stop: threading.Event,
) -> dict[str, Any]:
    """The scores of the silos that take part, their sampling rates in training, and the traffic."""
    settings = strategy.settings
    chosen = [name for name in sorted(strategy.nodes) if strategy.draws.planned(name)]
    chosen = [name for name in chosen if name not in strategy.left]
    arrays = strategy.arrays(point)
    config = ConfigRecord({names.CANDIDATES: list(candidates)})
    tasks = strategy.tasks(names.ASK_SCORES, chosen, strategy.finished_rounds, arrays, config)

    def check(released: Tensor) -> None:
        if settings.layers.form == "private-top-k":
            votes = kept_in_a_step(len(candidates), settings)
            if sorted(released.tolist()) != [0.0] * (len(candidates) - votes) + [1.0] * votes:
                raise ReplyRefused(f"Expected {votes} votes of 1, else 0, got {released.tolist()}")

    found = ask_silos(
        grid,
        strategy,
        chosen,
        tasks,
        record=names.SCORES,
        size=len(candidates),
        noise=score_noise_std(settings, len(candidates)),
        what="scores of the layers",
        stop=stop,
        check=check,
    )
    size = tensor_bytes(arrays.to_torch_state_dict())
    each = score_noise_std(settings, len(candidates))
    return {
        "scores": {name: tuple(released.tolist()) for name, (released, _) in found.items()},
        "sampling_rates": {name: rate for name, (_, rate) in found.items()},
        "noise_std": each / len(found) ** 0.5,
        "bytes_up": 8 * len(candidates) * len(found),
        "bytes_down": size * len(tasks),
    }
