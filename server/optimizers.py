"""The server's optimisers on the mean update: SGD with momentum, Adam, noise-aware Adam.

All are post-processing of released values. State is a flat mapping of float32 tensors, so that a
checkpoint holds it as safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedllm.settings.server import ServerSettings

HEAD = "head."


class ServerOptimizer:
    """Moves the parameters along the mean update (FedOpt, Reddi et al. 2021).

    ``sgd``: ``v <- momentum v + u``, ``w <- w + lr v``. ``adam``: bias-corrected Adam with ``u`` for the
    negative gradient. With ``noise_correction`` the known variance of the privacy noise is subtracted
    from the second moment (DP-AdamBC, Tang et al. 2023, arXiv 2312.14334), never to less than a tenth
    of that variance: so noise does not pass for curvature, and a coordinate that holds nothing but
    noise takes no step longer than three times Adam's own.
    """

    def __init__(self, settings: ServerSettings, params: Mapping[str, Tensor]) -> None:
        self.settings = settings
        self.steps = 0
        self.first = {name: torch.zeros_like(value) for name, value in params.items()}
        self.second = {name: torch.zeros_like(value) for name, value in params.items()}
        self.noise = dict.fromkeys(params, 0.0)

    def rate(self, name: str, server_round: int) -> float:
        """Learning rate of a tensor in a round (1-based)."""
        settings = self.settings
        base = settings.learning_rate
        if name.startswith(HEAD) and settings.head_learning_rate is not None:
            base = settings.head_learning_rate
        return base * schedule_factor(settings, server_round)

    def step(
        self,
        params: Mapping[str, Tensor],
        update: Mapping[str, Tensor],
        noise_std: Mapping[str, float] | None,
        server_round: int,
    ) -> dict[str, Tensor]:
        """New parameters; the state moves along.

        Args:
            noise_std: standard deviation of the privacy noise in each entry of ``update``, if known.
        """
        settings = self.settings
        self.steps += 1
        new: dict[str, Tensor] = {}
        own = self.rate(HEAD, server_round)
        other = self.rate("", server_round)
        for name, value in params.items():
            rate = own if name.startswith(HEAD) else other
            if settings.optimizer == "sgd":
                self.first[name] = settings.momentum * self.first[name] + update[name]
                new[name] = value + rate * self.first[name]
                continue
            beta1, beta2 = settings.momentum, settings.beta2
            self.first[name] = beta1 * self.first[name] + (1 - beta1) * update[name]
            self.second[name] = beta2 * self.second[name] + (1 - beta2) * update[name] ** 2
            variance = 0.0 if noise_std is None else noise_std[name] ** 2
            self.noise[name] = beta2 * self.noise[name] + (1 - beta2) * variance
            mean = self.first[name] / (1 - beta1**self.steps)
            square = self.second[name] / (1 - beta2**self.steps)
            if settings.noise_correction:
                known = self.noise[name] / (1 - beta2**self.steps)
                square = torch.clamp(square - known, min=known / 10)
            new[name] = value + rate * mean / (square.sqrt() + settings.adam_epsilon)
        return new

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as tensors."""
        state = {f"first.{name}": value for name, value in self.first.items()}
        state |= {f"second.{name}": value for name, value in self.second.items()}
        names = sorted(self.noise)
        state["noise"] = torch.tensor([self.noise[name] for name in names], dtype=torch.float64)
        state["steps"] = torch.tensor(self.steps)
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state`.

        Raises:
            KeyError: a tensor is missing.
        """
        self.first = {name: state[f"first.{name}"].clone() for name in self.first}
        self.second = {name: state[f"second.{name}"].clone() for name in self.second}
        self.noise = dict(zip(sorted(self.noise), state["noise"].tolist(), strict=True))
        self.steps = int(state["steps"])


def schedule_factor(settings: ServerSettings, server_round: int) -> float:
    """Learning rate of a round over the first one's; 1-based rounds."""
    if settings.schedule == "constant" or settings.rounds == 1:
        return 1.0
    done = (server_round - 1) / (settings.rounds - 1)
    if settings.schedule == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return 1.0 - (1.0 - settings.final_rate) * done
