"""Start LoRA's first factor in the principal directions of the layers' inputs on public text.

Guarantee: made of the model and of public text alone, before the first round; no silo is asked.
"""

from __future__ import annotations

from flwr.serverapp import Grid

from fedllm.data.public import public_set
from fedllm.models.adapters.lora import LoraAdapter
from fedllm.models.adapters.principal import principal_factors
from server.extensions.base import RoundExtension
from server.replies import RunStopped


class PrincipalStart(RoundExtension):
    """Replaces the random first factor of each change; a checkpoint that is restored afterwards replaces it again."""

    def before_run(self, grid: Grid) -> None:
        run = self.run
        adapter, task = run.tunable.adapter, run.tunable.without_reuse().task
        assert isinstance(adapter, LoraAdapter)
        features = task.features(public_set(run.settings, labelled=False).records)
        groups = task.batches(features, run.settings.client.max_tokens)
        batches = (task.collate([features[i] for i in group]) for group in groups)
        try:
            found = principal_factors(adapter, batches, task.run)
        except ValueError as error:
            raise RunStopped(f"No first factors: {error}") from None
        run.model.start_from(run.model.params | found)
