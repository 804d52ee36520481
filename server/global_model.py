"""The global model: parameters, their moving average, and the server's optimisers (SGD with momentum, Adam, noise-aware
Adam).

Post-processing of released updates: nothing here touches data. The optimiser's state is a flat mapping of float32
tensors, so that a checkpoint holds it as safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedllm.flatness.layer_choice import kept_rows
from fedllm.settings.experiment import Settings
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
        self.steps = dict.fromkeys(params, 0)
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
        new: dict[str, Tensor] = {}
        own = self.rate(HEAD, server_round)
        other = self.rate("", server_round)
        for name, value in params.items():
            if name not in update:  # not trained in this round
                new[name] = value
                continue
            self.steps[name] += 1
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
            mean = self.first[name] / (1 - beta1 ** self.steps[name])
            square = self.second[name] / (1 - beta2 ** self.steps[name])
            if settings.noise_correction:
                known = self.noise[name] / (1 - beta2 ** self.steps[name])
                square = torch.clamp(square - known, min=known / 10)
            new[name] = value + rate * mean / (square.sqrt() + settings.adam_epsilon)
        return new

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as tensors."""
        state = {f"first.{name}": value for name, value in self.first.items()}
        state |= {f"second.{name}": value for name, value in self.second.items()}
        for name, variance in self.noise.items():
            state[f"noise.{name}"] = torch.tensor(variance, dtype=torch.float64)
            state[f"steps.{name}"] = torch.tensor(self.steps[name])
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state`.

        Raises:
            KeyError: a tensor is missing.
        """
        self.first = {name: state[f"first.{name}"].clone() for name in self.first}
        self.second = {name: state[f"second.{name}"].clone() for name in self.second}
        names = sorted(self.noise)
        if "noise" in state:  # a state of an earlier version: one vector, and one number of steps
            self.noise = dict(zip(names, state["noise"].tolist(), strict=True))
            self.steps = dict.fromkeys(names, int(state["steps"]))
            return
        self.noise = {name: float(state[f"noise.{name}"]) for name in names}
        self.steps = {name: int(state[f"steps.{name}"]) for name in names}

    def keep_layers(self, layers: Sequence[int], kept: Sequence[int]) -> None:
        """Drop what belongs to layers that are left out.

        Args:
            layers: those that the adapter had.
            kept: those that it keeps.
        """
        self.first = kept_rows(self.first, layers, kept)
        self.second = kept_rows(self.second, layers, kept)
        self.noise = {name: self.noise[name] for name in self.first}
        self.steps = {name: self.steps[name] for name in self.first}


def schedule_factor(settings: ServerSettings, server_round: int) -> float:
    """Learning rate of a round over the first one's; 1-based rounds."""
    if settings.schedule == "constant" or settings.rounds == 1:
        return 1.0
    done = (server_round - 1) / (settings.rounds - 1)
    if settings.schedule == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return 1.0 - (1.0 - settings.final_rate) * done


class GlobalModel:
    """Parameters that move once a round.

    Args:
        settings: the experiment's settings.
        params: the parameters before training, float32 on the CPU.

    Attributes:
        params: the last ones.
        average: their moving average.
        optimizer: with its moments.
    """

    def __init__(self, settings: Settings, params: Mapping[str, Tensor]) -> None:
        self.settings = settings
        self.start_from(params)
        self.optimizer = ServerOptimizer(settings.server, self.params)

    @property
    def released(self) -> dict[str, Tensor]:
        """The parameters to evaluate and export: the last ones, or their moving average."""
        return self.average if self.settings.server.averaging > 0 else self.params

    def start_from(self, params: Mapping[str, Tensor]) -> None:
        """Begin with these parameters; to be called before the first round."""
        self.params = {name: params[name].clone() for name in sorted(params)}
        self.average = {name: value.clone() for name, value in self.params.items()}

    def rate(self, server_round: int) -> float:
        """Learning rate of the round, of the first tensor by name."""
        return self.optimizer.rate(min(self.params), server_round)

    def move(
        self,
        update: Mapping[str, Tensor] | None,
        noise_std: Mapping[str, float] | None,
        server_round: int,
    ) -> float:
        """Move the parameters along a mean update; None moves nothing.

        Args:
            noise_std: standard deviation of the noise in each tensor of the update, if known.

        Returns:
            The norm of the update.
        """
        if update is None:
            return 0.0
        self.params = self.optimizer.step(self.params, update, noise_std, server_round)
        return math.sqrt(sum(float(value.double().square().sum()) for value in update.values()))

    def move_average(self) -> None:
        """Let the average follow the parameters, at the end of a round."""
        decay = self.settings.server.averaging
        for name, value in self.params.items():
            self.average[name] = decay * self.average[name] + (1 - decay) * value

    def keep_layers(self, settings: Settings, layers: Sequence[int], kept: Sequence[int]) -> None:
        """Cut each coordinate that belongs to a layer that leaves the adapter.

        Args:
            settings: with the kept layers.
            layers: those of the adapter so far.
            kept: those that go on with it.
        """
        self.settings = settings
        self.params = kept_rows(self.params, layers, kept)
        self.average = kept_rows(self.average, layers, kept)
        self.optimizer.keep_layers(layers, kept)

    def state(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint."""
        state = self.optimizer.state()
        state |= {f"last.{name}": value for name, value in self.params.items()}
        state |= {f"average.{name}": value for name, value in self.average.items()}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state`, from a checkpoint's whole state.

        Raises:
            KeyError: a tensor is missing.
        """
        names = sorted(self.params)
        self.params = {name: state[f"last.{name}"].clone() for name in names}
        self.average = {name: state[f"average.{name}"].clone() for name in names}
        self.optimizer.load_state(state)
