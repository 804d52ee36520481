"""Write a LoRA adapter for llama.cpp (GGUF), to load next to the base model's own GGUF file.

llama.cpp turns the rows of Llama's query and key maps into another order, because it rotates neighbouring pairs
(0, 1), (2, 3), ... where transformers rotates the two halves of a head. The factor B of these maps has the same rows, so
it is put into the same order; A has inputs as columns and stays.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedllm.adapter.peft import AdapterError
from fedllm.files.durable import fsync_folder
from fedllm.models.adapters.base import Adapter
from fedllm.models.adapters.lora import A, B, LoraAdapter, factor_name
from fedllm.models.backbone import Backbone

GGUF_WEIGHTS = "adapter.gguf"


@dataclass(frozen=True)
class Family:
    """An architecture in llama.cpp's files.

    Attributes:
        name: GGUF's ``general.architecture``.
        pairs: whether rows of query and key are in the order of neighbouring pairs.
    """

    name: str
    pairs: bool


# by transformers' model_type; each was compared with llama.cpp's own outputs
FAMILIES = {
    "llama": Family("llama", pairs=True),
    "mistral": Family("llama", pairs=True),
    "qwen2": Family("qwen2", pairs=False),
    "qwen3": Family("qwen3", pairs=False),
}


def save_gguf_lora(
    folder: str | Path, adapter: Adapter, params: Mapping[str, Tensor], backbone: Backbone
) -> Path:
    """Write ``adapter.gguf`` and return its path; factors in float32.

    Raises:
        AdapterError: no LoRA, or a model or a linear map that GGUF's names do not cover here.
    """
    family, tensors = gguf_tensors(adapter, params, backbone)
    assert isinstance(adapter, LoraAdapter)
    import gguf

    target = Path(folder) / GGUF_WEIGHTS
    descriptor, partial = tempfile.mkstemp(dir=folder, prefix=f".{GGUF_WEIGHTS}-", suffix=".tmp")
    os.close(descriptor)
    try:
        writer: Any = gguf.GGUFWriter(partial, family.name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.alpha)
        for name, value in tensors.items():
            writer.add_tensor(name, value.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.chmod(partial, 0o644)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    fsync_folder(target.parent)
    return target


def gguf_tensors(
    adapter: Adapter, params: Mapping[str, Tensor], backbone: Backbone
) -> tuple[Family, dict[str, Tensor]]:
    """Return the architecture as llama.cpp names it, and the factors by GGUF's names, float32 on the CPU.

    Raises:
        AdapterError: see :func:`save_gguf_lora`.
    """
    import gguf

    if not isinstance(adapter, LoraAdapter):
        raise AdapterError(
            f"Expected LoRA for a GGUF adapter (llama.cpp knows no other form), got adapter.form={adapter.form}"
        )
    config = backbone.model.config
    family = FAMILIES.get(config.model_type)
    if family is None or backbone.kind != "decoder":
        raise AdapterError(
            f"Expected a decoder of the kinds {', '.join(FAMILIES)} for a GGUF adapter, got "
            f"model.name={backbone.name!r} ({config.model_type}, {backbone.kind})"
        )
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[family.name], backbone.n_layers)
    heads = {
        "attn_q": int(config.num_attention_heads),
        "attn_k": int(config.num_key_value_heads),
    }
    found: dict[str, Tensor] = {}
    for target in adapter.targets:
        name = names.get_name(target.module)
        if name is None:
            raise AdapterError(
                f"Expected linear maps that GGUF has a name for, got {target.module}"
            )
        a, b = (params[factor_name(target, part)].detach().float().cpu() for part in (A, B))
        count = heads.get(name.rpartition(".")[2])
        if family.pairs and count is not None:
            b = neighbouring_pairs(b, count)
        found[f"{name}.weight.lora_a"] = a.contiguous()
        found[f"{name}.weight.lora_b"] = b.contiguous()
    return family, found


def neighbouring_pairs(rows: Tensor, heads: int) -> Tensor:
    """Reorder a map's outputs: of each head, the first half and the second half alternate."""
    size = rows.shape[0] // heads
    halves = rows.reshape(heads, 2, size // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)
