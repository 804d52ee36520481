"""Stop a run whose model has no finite losses before training, with nothing spent."""

from __future__ import annotations

from fedllm.data.public import evaluation_set
from fedllm.models.embedded import ModelError
from fedllm.settings.experiment import Settings
from fedllm.training.batch.rehearsal import rehearse, require_finite_losses
from fedllm.training.tunable import Tunable, initial_params
from server.replies import RunStopped


def require_finite_start(tunable: Tunable, settings: Settings) -> None:
    """Refuse a model that gives no finite losses at the initial parameters, on public text of the server's own.

    Raises:
        RunStopped: it gives none; nothing was asked of the silos.
    """
    try:
        params = initial_params(tunable, settings)
        rehearse(tunable, params, gradients=settings.model.access != "black-box")
        features = tunable.task.features(evaluation_set(settings).records)  # maybe none
        require_finite_losses(tunable, params, features, settings.client.max_tokens)
    except ModelError as error:
        raise RunStopped(str(error)) from None
