"""Write a LoRA adapter in PEFT's format: what ``peft.PeftModel.from_pretrained`` and serving engines load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from fedllm.adapter.peft import PEFT_CONFIG, PEFT_WEIGHTS, made_folder, pretty_json, write_durably
from fedllm.adapter.quiet_peft import quiet_peft
from fedllm.models.adapters.lora import A, B, LoraAdapter, factor_name
from fedllm.models.parts.text_model import Kind

_TASK: dict[Kind, str] = {"decoder": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION"}


def save_peft_lora(
    folder: str | Path,
    adapter: LoraAdapter,
    params: Mapping[str, Tensor],
    backbone_name: str,
    kind: Kind,
    *,
    revision: str | None = None,
) -> None:
    """Write the factors as a PEFT ``LORA`` adapter, in float32.

    ``target_modules`` has the whole path of each linear map, so that no map of the same name in another layer is meant.

    Args:
        params: the adapter's tensors; others are ignored.
        backbone_name: what PEFT takes as the base model's name or path.
        kind: a decoder's adapter is one of AutoModelForCausalLM, an encoder's one of AutoModel.
    """
    with quiet_peft():
        from peft import LoraConfig

    modules = dict(adapter.model.named_modules())
    alpha: Any = int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha
    config = LoraConfig(
        task_type=_TASK[kind],
        base_model_name_or_path=backbone_name,
        revision=revision,
        inference_mode=True,
        r=adapter.rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=[target.module for target in adapter.targets],
        fan_in_fan_out=any(isinstance(modules[t.module], Conv1D) for t in adapter.targets),
    ).to_dict()
    tensors = {}
    for target in adapter.targets:
        for factor in (A, B):
            key = f"base_model.model.{target.module}.lora_{factor}.weight"
            value = params[factor_name(target, factor)]
            tensors[key] = value.detach().float().cpu().contiguous()
    folder = made_folder(folder)
    write_durably(folder / PEFT_WEIGHTS, save(tensors, {"format": "pt"}))
    write_durably(folder / PEFT_CONFIG, pretty_json(config))
