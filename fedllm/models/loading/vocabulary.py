"""Padding token, vocabulary rows and positions of a model that was just loaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from fedllm.data.shapes import ROW_MULTIPLE
from fedllm.models.model_error import ModelError


def fix_vocabulary_rows(layer: torch.nn.Module) -> None:
    """Let the vocabulary layer see a contiguous matrix with a multiple of ``ROW_MULTIPLE`` rows.

    Contiguous: ``logits_to_keep`` passes a strided slice, for which torch takes a batched product that, in
    bfloat16 on the CPU, copies the whole vocabulary matrix per example. A multiple: so that an example's
    logits do not depend on the number of examples (see :mod:`fedllm.data.shapes`).
    """
    layer.register_forward_pre_hook(_even_rows)
    layer.register_forward_hook(_own_rows)


def _even_rows(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> Any:
    hidden = args[0]
    flat = hidden.reshape(-1, hidden.shape[-1])
    missing = -flat.shape[0] % ROW_MULTIPLE
    if missing:
        flat = torch.nn.functional.pad(flat, (0, 0, 0, missing))
    flat = flat.contiguous()
    flat.own_shape = hidden.shape[:-1]  # type: ignore[attr-defined]  # for _own_rows, which gets this tensor
    return (flat, *args[1:])


def _own_rows(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> Any:
    own: torch.Size = args[0].own_shape  # type: ignore[attr-defined]
    return output[: own.numel()].reshape(*own, output.shape[-1])


def set_pad_token(name: str, tokenizer: Any, model: PreTrainedModel) -> None:
    """Set a pad token: padding is masked, so any existing token serves; no embedding is resized.

    A padding token that the model has no embedding for is replaced.
    """
    size = int(model.get_input_embeddings().weight.shape[0])
    ids = {"pad": tokenizer.pad_token_id, "eos": tokenizer.eos_token_id}
    ids |= {"unk": tokenizer.unk_token_id, "bos": tokenizer.bos_token_id}
    found = next((token for token, id_ in ids.items() if id_ is not None and id_ < size), None)
    if found is None:
        raise ModelError(
            f"Expected a pad, eos, unk or bos token among the {size} embeddings, got none in model={name!r} "
            f"(token ids: {ids})"
        )
    if found != "pad":
        tokenizer.pad_token = getattr(tokenizer, f"{found}_token")
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def max_positions(model: PreTrainedModel) -> int | None:
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if found is None:
        return None
    for name, module in model.named_modules():
        start = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and start is not None:
            return int(found) - start - 1  # positions start after the padding's
    return int(found)
