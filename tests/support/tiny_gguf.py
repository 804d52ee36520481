"""A tiny decoder as llama.cpp reads it: GGUF with float32 weights and a vocabulary of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def save_gguf(path: Path, model: PreTrainedModel) -> None:
    """Write a Llama or Qwen model of transformers for llama.cpp."""
    import gguf

    config: Any = model.config
    name = {"mistral": "llama"}.get(config.model_type, config.model_type)
    writer: Any = gguf.GGUFWriter(str(path), name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(size)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(
        ["<unk>", "<s>", "</s>"] + [f"▁w{i}" for i in range(3, config.vocab_size)]
    )
    writer.add_token_scores([0.0] * config.vocab_size)
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * (config.vocab_size - 3)])
    arch = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for key, value in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        part = key.split(".")[-2]
        if name == "llama" and part in heads:
            value = _pairs(value, heads[part])
        target = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert target is not None, key
        writer.add_tensor(target, value.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _pairs(rows: Tensor, heads: int) -> Tensor:
    """As llama.cpp's converter: entry i of a head's first half is followed by that of its second half."""
    found = torch.empty_like(rows)
    size = rows.shape[0] // heads
    for row in range(rows.shape[0]):
        head, place = divmod(row, size)
        half, index = divmod(place, size // 2)
        found[head * size + 2 * index + half] = rows[row]
    return found
