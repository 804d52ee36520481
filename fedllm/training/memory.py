"""Check before training that it fits a device.

The estimate is of what automatic differentiation keeps for one micro-batch, from shapes alone. Counted
in what PyTorch saves (BERT-like encoders of 6 and Llama-like decoders of 30 layers, scaled-dot-product
attention), a token keeps about 6.3 hidden vectors and one feed-forward vector a layer, three where the
feed-forward part is gated; the estimate takes 7, and 2 or 3, and a fifth on top for what lives only
during the backward pass. It is meant to be above the truth, and below twice of it.
"""

from __future__ import annotations

import torch

from fedllm.models.memory import RESERVE, DeviceMemoryError, dtype_word, free_bytes, gibibytes
from fedllm.settings.experiment import Settings
from fedllm.training.tunable import Tunable, trained_size

_HIDDEN, _PLAIN, _GATED, _TRANSIENT = 7, 2, 3, 1.2
_SHORTEST = 4
"""Tokens of a short example: with them, the number of examples in a micro-batch is largest."""


def training_bytes(settings: Settings, tunable: Tunable) -> int:
    """Estimate of what one micro-batch of training takes beside the weights.

    See the module for where the factors come from. With a perturbation that differentiates twice the
    gradients of the first pass stay.
    """
    backbone, client = tunable.backbone, settings.client
    config = backbone.model.config.get_text_config()
    item = torch.empty((), dtype=backbone.dtype).element_size()
    hidden = backbone.hidden_size
    wide = int(
        getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    )
    gated = any("gate" in module for module, _ in backbone.model.named_modules())
    per_token = _HIDDEN * hidden + (_GATED if gated else _PLAIN) * wide
    task = settings.task
    longest = task.max_length + (task.prompt_length if task.facts.writes else 0)
    tokens = max(client.max_tokens, longest)
    kept = tokens * backbone.n_layers * per_token * item
    vocabulary = int(getattr(config, "vocab_size", 0))
    # Scores of the vocabulary in the model's format and, for the loss, in float32 with two copies.
    of_scores = vocabulary * (2 * item + 12)
    examples = min(max(1, tokens // _SHORTEST), 2 * int(client.batch_size or 1))
    if task.facts.writes:
        kept += tokens * of_scores
    elif backbone.kind == "decoder":
        kept += examples * of_scores
    trained = trained_size(tunable)
    copies = 4 if settings.awp.form == "none" else 6  # copy, gradient, clipped, cast
    return int(_TRANSIENT * kept) + examples * trained * 4 * copies


def require_room_for_training(settings: Settings, tunable: Tunable) -> None:
    """Refuse to train where one micro-batch does not fit.

    Raises:
        DeviceMemoryError: it does not.
    """
    device = tunable.backbone.device
    needed, free = training_bytes(settings, tunable), free_bytes(device)
    if needed + RESERVE > free:
        raise DeviceMemoryError(
            f"Expected {gibibytes(needed + RESERVE)} free on {device} to train with client.max_tokens="
            f"{settings.client.max_tokens} in {dtype_word(tunable.backbone.dtype)} (an estimate), got "
            f"{gibibytes(free)}: lower client.max_tokens (or limits.max_tokens of the silo config), use a "
            "shorter model.dtype, another device, or end what else runs there"
        )
