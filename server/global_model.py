"""The global model: parameters, their moving average, and the server's optimiser.

Post-processing of released updates: nothing here touches data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from fedllm.flatness.layer_choice import kept_rows
from fedllm.settings.experiment import Settings
from server.optimizers import ServerOptimizer


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
        """Cut each coordinate that belongs to a layer without a prefix.

        Args:
            settings: with the kept layers.
            layers: those that carry a prefix so far.
            kept: those that go on with it.
        """
        self.settings = settings
        self.params = kept_rows(self.params, layers, kept)
        self.average = kept_rows(self.average, layers, kept)
        self.optimizer.first = kept_rows(self.optimizer.first, layers, kept)
        self.optimizer.second = kept_rows(self.optimizer.second, layers, kept)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint's state."""
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
