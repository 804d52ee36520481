"""The random directions of a run's rounds: announced by a seed, and what comes back rebuilt.

Silos that see a model's outputs alone (``model.access = "black-box"``) send a few numbers. They are checked and
averaged as such, and the mean is expanded along the directions here: post-processing of released values.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedllm.settings.checks.black_box import noises_numbers
from fedllm.settings.experiment import Settings
from fedllm.training.black_box.directions import NUMBERS, Directions, round_seed
from fedllm.training.zeroth_order import clip_numbers


class DirectionsLink:
    """Directions of the round in progress.

    Args:
        settings: of the run.
        run_id: part of the seeds.
    """

    def __init__(self, settings: Settings, run_id: str) -> None:
        self.settings = settings
        self.run_id = run_id
        self._current: Directions | None = None

    @property
    def like(self) -> dict[str, Tensor]:
        """Zeros of the shape of a silo's message."""
        shape = (self.settings.client.local_steps, self.settings.zeroth_order.directions)
        return {NUMBERS: torch.zeros(shape)}

    def announce(self, settings: Settings, params: Mapping[str, Tensor], server_round: int) -> str:
        """The public seed of a round.

        Args:
            settings: as they are sent with the round.
            params: the round's model as the silos receive it.
        """
        self.settings = settings
        seed = round_seed(settings.seed, self.run_id, server_round)
        self._current = Directions(settings, params, seed)
        return seed

    def clip(self, update: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The server's own clipping of a silo's numbers, before its noise; see :func:`clip_numbers`."""
        clip, each = self.settings.privacy.clip, noises_numbers(self.settings)
        return {NUMBERS: clip_numbers(update[NUMBERS], clip, each=each)[0]}

    def expand(self, mean: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The update of the model that the silos' mean numbers stand for.

        Raises:
            ValueError: no round was announced.
        """
        if self._current is None:
            raise ValueError("Expected a round that was announced, got numbers before any")
        return self._current.update(mean[NUMBERS])
