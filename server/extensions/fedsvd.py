"""FedSVD: after each round the server writes every change B A anew, with orthonormal rows of A.

Guarantee: post-processing of released tensors.

Method: :func:`fedllm.models.adapters.lora.refactored`. The optimiser's moments of B are written in the new basis too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedllm.models.adapters.lora import A, B, LoraAdapter, factor_name, refactored
from server.aggregation import Contribution, MeanUpdate
from server.extensions.base import RoundExtension


class FedSvd(RoundExtension):
    """Rewrites the factors of LoRA after each round."""

    def after_move(
        self,
        params: dict[str, Tensor],
        mean: MeanUpdate,
        counted: Sequence[Contribution],
        server_round: int,
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the same model with new factors. The metric: how far the bases were turned, 0 to 1."""
        adapter = self.run.tunable.adapter
        if not isinstance(adapter, LoraAdapter) or mean.update is None:
            return params, {}
        found = refactored(adapter, params)
        turned = []
        for target in adapter.targets:
            first, second = factor_name(target, A), factor_name(target, B)
            # B A = B' A' with orthonormal rows of A' gives B' = B (A A'^T).
            turn = params[first].double() @ found[first].double().T
            self._turn_moments(second, turn)
            rank = turn.shape[0]
            turned.append(1.0 - float(turn.diagonal().square().sum()) / rank)
        return found, {"basis_turned": max(0.0, sum(turned) / len(turned))}

    def _turn_moments(self, name: str, turn: Tensor) -> None:
        """Write the moments of a tensor in the new basis: the first exactly, the second as if the entries of a row
        were uncorrelated."""
        optimizer = self.run.model.optimizer
        optimizer.first[name] = (optimizer.first[name].double() @ turn).float()
        second = optimizer.second[name].double() @ turn.square()
        optimizer.second[name] = torch.clamp(second, min=0).float()
