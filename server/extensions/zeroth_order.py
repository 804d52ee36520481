"""The random directions of a run's rounds: announced by a seed, and what comes back rebuilt.

Silos that see a model's outputs alone (``model.access = "black-box"``) send a few numbers. They are checked and
averaged as such, and the mean is expanded along the directions here: post-processing of released values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from flwr.app import MessageType
from torch import Tensor

from fedllm import messages as names
from fedllm.codec.downlink import decode_params
from fedllm.training.black_box.directions import NUMBERS, Directions, DirectionsPlan, round_seed
from fedllm.training.zeroth_order import clip_numbers
from server.aggregation import MeanUpdate
from server.extensions.base import Asking, Extras, RoundExtension, Tensors
from server.replies.arrays import spec_of
from server.replies.training import TrainingForm


class ScalarEstimates(RoundExtension):
    """Announces the directions of a round, and expands the silos' numbers along them.

    Args:
        plan: of the directions.
        steps: local steps of a round.
        clip: clipping norm of a silo's numbers.
        alone: whether each number has noise of its own; else they are one vector.
    """

    def __init__(self, plan: DirectionsPlan, *, steps: int, clip: float, alone: bool) -> None:
        self.plan, self.steps = plan, steps
        self.norm, self.alone = clip, alone
        self._current: Directions | None = None
        self._seed = ""

    def prepare_tasks(self, asking: Asking) -> None:
        """Draw the directions of a round, at the model as the silos receive it."""
        self._seed = ""
        if asking.kind == MessageType.TRAIN and asking.arrays is not None:
            settings = self.run.settings
            sent = decode_params(asking.arrays.to_torch_state_dict(), settings.codec.downlink)
            _, sent = self.run.tunable.part(sent, asking.server_round)
            self._seed = round_seed(settings.seed, self.run.run_id, asking.server_round)
            self._current = Directions(self.plan, sent, self._seed)

    def task_extras(self, asking: Asking, silo: str) -> Extras:
        train = asking.kind == MessageType.TRAIN
        return Extras(fields={names.DIRECTIONS: self._seed} if train else {})

    def reply_form(self, form: TrainingForm) -> TrainingForm:
        # Noise on single numbers is of a family of its own, whose multiplier has another range.
        smallest = 0.0 if self.alone else form.smallest_noise
        return replace(form, update=spec_of(self._like), smallest_noise=smallest)

    def update_like(self, like: Tensors) -> Tensors:
        return self._like

    def clip(self, update: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The server's own clipping of a silo's numbers, before its noise; see :func:`clip_numbers`."""
        return {NUMBERS: clip_numbers(update[NUMBERS], self.norm, each=self.alone)[0]}

    def expand(self, mean: MeanUpdate) -> MeanUpdate:
        """The update of the model that the silos' mean numbers stand for.

        Raises:
            ValueError: no round was announced.
        """
        if mean.update is None:
            return mean
        if self._current is None:
            raise ValueError("Expected a round that was announced, got numbers before any")
        return replace(mean, update=self._current.update(mean.update[NUMBERS]), noise_std=None)

    @property
    def _like(self) -> dict[str, Tensor]:
        """Zeros of the shape of a silo's message."""
        return {NUMBERS: torch.zeros(self.steps, self.plan.count)}
