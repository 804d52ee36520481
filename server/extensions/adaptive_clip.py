"""Adaptive clipping: the round's norm goes out with the tasks, and moves by the silos' noisy shares.

Guarantee: post-processing of noisy counts (:mod:`fedllm.training.adaptive_clip`): each silo's own, or the server's
(:mod:`server.extensions.central_noise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flwr.app import MessageType
from torch import Tensor

from fedllm import messages as names
from fedllm.training.adaptive_clip import next_clip
from server.aggregation import Contribution, MeanUpdate
from server.extensions.base import Asking, Extras, RoundExtension
from server.replies.training import TrainingForm


class AdaptiveClip(RoundExtension):
    """Moves ``run.clip`` after each round.

    Args:
        quantile, learning_rate: of ``[clipping]``.
        told: whether each silo tells its own share; else another extension finds the share of all.
    """

    def __init__(self, *, quantile: float, learning_rate: float, told: bool = True) -> None:
        self.told = told
        self.quantile, self.learning_rate = quantile, learning_rate

    def task_extras(self, asking: Asking, silo: str) -> Extras:
        train = asking.kind == MessageType.TRAIN
        return Extras(fields={names.CLIP: self.run.clip} if train else {})

    def reply_form(self, form: TrainingForm) -> TrainingForm:
        return replace(form, shares=(*form.shares, names.BELOW)) if self.told else form

    def after_move(
        self,
        params: dict[str, Tensor],
        mean: MeanUpdate,
        counted: Sequence[Contribution],
        server_round: int,
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Move the clipping norm; the metrics are the round's norm and share."""
        shares = mean.shares.get(names.BELOW, ())
        self.run.clip, metrics = next_clip(
            self.run.clip, shares, quantile=self.quantile, learning_rate=self.learning_rate
        )
        return params, metrics
