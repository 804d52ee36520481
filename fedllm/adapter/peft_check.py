"""Check that PEFT computes the same with an exported prefix as the run did.

PEFT and transformers are two projects: an argument that one renames can make the other generate as if the
prefix were not there, without a word. So an adapter is called a PEFT adapter only after PEFT has loaded it and has given
the run's own logits, in a forward pass and at each step of a generated continuation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import position_ids
from fedllm.models.attention import prefix_scope
from fedllm.models.backbone import Backbone
from fedllm.models.prefix import PrefixSpec

_TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps."
_PROMPT, _NEW = 12, 4
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}  # share of the largest logit
_ROUNDED = 0.05  # in bfloat16 and float16


@torch.no_grad()
def why_peft_differs(
    backbone: Backbone, spec: PrefixSpec, prefix: Tensor, folder: str | Path
) -> str:
    """Return why the PEFT adapter in ``folder`` is not this prefix to PEFT; empty where it is.

    PEFT is given the frozen model that is in memory, so that no second copy is needed.
    """
    import peft
    import transformers

    who = f"PEFT {peft.__version__} with transformers {transformers.__version__}"
    ids = _prompt(backbone, spec)
    if ids.shape[1] < 2:
        return "the model's positions leave no room for a text to compare PEFT's logits on"
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model: Any = backbone.model
    had = set(vars(model))
    try:
        adapted: Any = peft.PeftModel.from_pretrained(model, str(folder)).eval()
        forward = adapted(**inputs).logits.double()
        made = adapted.generate(
            **inputs,
            max_new_tokens=_NEW,
            do_sample=False,
            pad_token_id=backbone.pad_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        return f"{who} cannot use it: {type(error).__name__}: {text}"
    finally:
        for name in set(vars(model)) - had:  # PEFT leaves its hooks on the model
            vars(model).pop(name)
    written = made.sequences.to(ids.device)
    if written.shape[1] <= ids.shape[1]:
        return f"{who} generates nothing with it"
    steps = torch.stack(list(made.logits), dim=1).double()
    ours = _logits(backbone, spec, prefix, written[:, :-1])
    for what, theirs, expected in (
        ("its logits", forward, ours[:, : ids.shape[1]]),
        ("the logits of its generated text", steps, ours[:, ids.shape[1] - 1 :]),
    ):
        scale = float(expected.abs().max())
        off = float((theirs.to(expected.device) - expected).abs().max())
        if not off <= _TOLERANCE.get(backbone.dtype, _ROUNDED) * scale:
            return f"with {who} {what} differ from the run's by {off / scale:.2g} of the largest"
    return ""


def _prompt(backbone: Backbone, spec: PrefixSpec) -> Tensor:
    """Return the ids of a short text, (1, T), that leaves room for prefix and continuation."""
    room = _PROMPT
    config = backbone.model.config.get_text_config()
    for limit in (backbone.max_positions, getattr(config, "sliding_window", None)):
        if limit is not None:
            room = min(room, int(limit) - spec.length - _NEW)
    ids = list(backbone.tokenizer(_TEXT)["input_ids"])
    if len(ids) < 2:  # a tokenizer of other texts
        ids = [1 + i % (config.vocab_size - 1) for i in range(_PROMPT)]
    ids = ids[: max(0, room)]
    return torch.tensor([ids], device=backbone.device, dtype=torch.long)


def _logits(backbone: Backbone, spec: PrefixSpec, prefix: Tensor, ids: Tensor) -> Tensor:
    mask = torch.ones_like(ids)
    with prefix_scope(backbone.model, prefix.to(backbone.device)[None], spec.layers):
        found: Any = backbone.model(
            input_ids=ids, attention_mask=mask, position_ids=position_ids(mask, spec.length)
        )
    return torch.as_tensor(found.logits).double()
