"""Adversarial weight perturbation (AWP): where, near the weights, a gradient is taken.

Privacy-Flat (arXiv 2403.04124), level 1: minimise over w the maximum over v of L(w + v), where each
layer's ||v_l|| <= gamma ||w_l||. One ascent step gives v_l = gamma ||w_l|| g_l / ||g_l||; the descent
gradient is taken at w + v and moves w (Wu et al. 2020, "Adversarial weight perturbation"; at one radius
for all layers it is the ascent of sharpness-aware minimisation, Foret et al. 2021).

The forms differ in whose gradient g is, and that decides what is guaranteed at unit ``example``:

* ``per-example``: example i's own gradient at w. Its summand, clip(grad L_i(w + v_i)), is then a
  function of example i and of public values, of norm at most ``clip``: the sum has the sensitivity of
  DP-SGD, and each step is the same event.
* ``batch``: this batch's gradient as it is. One example moves v, and v moves every summand: the sum over B
  examples may move by (2 B - 1) ``clip`` and not by ``clip``. No guarantee at unit ``example``.

At unit ``client`` the whole local training is clipped and noised afterwards, whatever it does inside:
``per-example`` and ``batch`` both keep that guarantee.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedllm.models.adapters.base import group_of
from fedllm.models.prefix import PREFIX
from fedllm.settings.flatness import AwpSettings

_PREFIX_LAYER = 4  # axes of one layer: key or value, heads, positions, head_dim
_MATRIX = 2

UNBOUNDED_ASCENT = (
    "awp.form=batch: the weights are perturbed along the batch's raw gradient, so that one example moves "
    "every other example's gradient too; over B examples the sum may move by (2B - 1) clipping norms, and "
    "the noise is scaled for one"
)
"""Reason why the paper's form of the perturbation gives no guarantee at unit example."""


@dataclass(frozen=True)
class Perturbation:
    """The radius of an adversarial perturbation, layer by layer.

    A layer is one layer of the prefix (keys and values together), all tensors of another adapter in one layer
    together, or, with ``head``, a matrix of the task's own. A head's biases are not perturbed.

    Attributes:
        gamma: norm of a layer's perturbation over the norm of the layer's weights.
        head: whether the matrices of the task's own are perturbed too.
    """

    gamma: float
    head: bool = False

    def at(
        self, params: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The perturbation along ``gradients``: v_l = gamma ||w_l|| g_l / ||g_l||, zero where g_l is.

        Guarantee: row i of the result is a function of row i of ``gradients`` and of ``params``.

        Args:
            params: w by name, in float32.
            gradients: of the same names; of the same shapes, or (B, ...) with one gradient an example.

        Returns:
            The tensors that are perturbed, each of its gradient's shape. Not finite exactly in the layers
            of a gradient that is not.

        Raises:
            ValueError: ``head`` without a matrix to perturb.
        """
        axes = {
            name: _PREFIX_LAYER if name == PREFIX else _MATRIX
            for name, value in params.items()
            if name == PREFIX or (self.head and value.dim() >= _MATRIX and group_of(name) is None)
        }
        if self.head and set(axes) <= {PREFIX}:
            raise ValueError(
                "Expected a task with a head for awp.head=true, got one that trains "
                f"{', '.join(sorted(params))} alone"
            )
        found = {
            name: self._layers(params[name], gradients[name], last) for name, last in axes.items()
        }
        groups: dict[str, list[str]] = {}
        for name in sorted(params):
            group = group_of(name)
            if group is not None:
                groups.setdefault(group, []).append(name)
        for names in groups.values():
            found |= self._group({n: params[n] for n in names}, {n: gradients[n] for n in names})
        return found

    def _layers(self, weights: Tensor, gradients: Tensor, last: int) -> Tensor:
        """One tensor's perturbation; a layer is its ``last`` axes."""
        axes = tuple(range(-last, 0))
        radius = self.gamma * torch.linalg.vector_norm(weights, dim=axes, keepdim=True)
        # Divided by the largest entry first: no square of a float32 overflows or underflows.
        largest = gradients.abs().amax(dim=axes, keepdim=True)
        unit = gradients / torch.where(largest == 0, 1.0, largest)
        norm = torch.linalg.vector_norm(unit, dim=axes, keepdim=True)
        return unit * (radius / torch.where(largest == 0, 1.0, norm))

    def _group(
        self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The perturbation of several tensors that are one layer together."""
        whole = torch.cat([weights[name].reshape(-1) for name in weights])
        rows = [  # (B, size), or (size,) without a batch dimension
            gradients[n].flatten(gradients[n].dim() - weights[n].dim()) for n in weights
        ]
        moved = self._layers(whole, torch.cat(rows, dim=-1), 1)
        pieces = moved.split([value.numel() for value in weights.values()], dim=-1)
        return {
            name: piece.reshape(gradients[name].shape)
            for name, piece in zip(weights, pieces, strict=True)
        }

    def perturbed(
        self, params: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """w + v, for gradients without a batch dimension; what is not perturbed is w."""
        v = self.at(params, gradients)
        return {name: value + v[name] if name in v else value for name, value in params.items()}


def is_perturbed(awp: AwpSettings, server_round: int) -> bool:
    """Return True if a round is one of the first ``awp.rounds``, in which gradients are taken at w + v."""
    return awp.form != "none" and (awp.rounds is None or server_round <= awp.rounds)


def perturbation_of(awp: AwpSettings, server_round: int) -> Perturbation | None:
    """The perturbation of a round; None where there is none."""
    return Perturbation(awp.gamma, awp.head) if is_perturbed(awp, server_round) else None
