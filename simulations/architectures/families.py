"""Families of models, each with the configuration of a tiny random one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from fedllm.models.loading.source import LOADERS
from fedllm.models.parts.text_model import Kind

WORDS = 120
_SIZE: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 24}
_SIZE |= {"num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.4}
_IDS: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
_BASE = _SIZE | _IDS | {"max_position_embeddings": 128}
_GROUPED = _BASE | {"num_key_value_heads": 2}
_HEADS = _GROUPED | {"head_dim": 4}
_WINDOWS = {"sliding_window": 110, "layer_types": ["sliding_attention", "full_attention"]}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_conv_kernel_dim": 3,
    "layer_types": ["linear_attention", "full_attention"],
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_STATE = {"state_size": 4, "conv_kernel": 3, "time_step_rank": 4, "expand": 2}
_SMALL_GPT = _IDS | {"vocab_size": WORDS, "n_embd": 16, "n_layer": 2, "n_head": 4}


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: as people call it.
        model_type: as in the model's ``config.json``.
        kind: which part of it is a language model.
        config: of a tiny one.
    """

    name: str
    model_type: str
    kind: Kind
    config: dict[str, Any] = field(hash=False)

    @property
    def known(self) -> bool:
        """True if the installed transformers has it."""
        return self.model_type in CONFIG_MAPPING_NAMES


def _encoder(name: str, model_type: str, config: dict[str, Any]) -> Family:
    return Family(name, model_type, "encoder", config)


def _decoder(name: str, model_type: str, config: dict[str, Any]) -> Family:
    return Family(name, model_type, "decoder", config)


_DEBERTA = _BASE | {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "max_relative_positions": 16,
}
FAMILIES: tuple[Family, ...] = (
    _encoder("BERT", "bert", _BASE),
    _encoder("RoBERTa", "roberta", _BASE),
    _encoder("XLM-R", "xlm-roberta", _BASE),
    _encoder(
        "DeBERTa v2",
        "deberta-v2",
        _DEBERTA | {"conv_kernel_size": 3, "conv_act": "gelu", "position_biased_input": False},
    ),
    _encoder(
        "DeBERTa v3",
        "deberta-v2",
        _DEBERTA
        | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False},
    ),
    _encoder(
        "DistilBERT",
        "distilbert",
        _IDS
        | {"vocab_size": WORDS, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4}
        | {"max_position_embeddings": 128, "initializer_range": 0.4},
    ),
    _encoder("ALBERT", "albert", _BASE | {"embedding_size": 8, "num_hidden_layers": 3}),
    _encoder("MPNet", "mpnet", _BASE | {"relative_attention_num_buckets": 32}),
    _encoder("ELECTRA", "electra", _BASE | {"embedding_size": 8}),
    _encoder(
        "ModernBERT",
        "modernbert",
        _BASE
        | {"local_attention": 8, "layer_types": ["full_attention", "sliding_attention"]}
        | {"cls_token_id": 2, "sep_token_id": 3},
    ),
    _encoder("EuroBERT", "eurobert", _GROUPED),
    _encoder("Nomic BERT", "nomic_bert", _BASE),
    _decoder("Llama", "llama", _GROUPED),
    _decoder("Mistral", "mistral", _GROUPED | {"sliding_window": 110}),
    _decoder("Qwen2", "qwen2", _GROUPED),
    _decoder("Qwen3", "qwen3", _HEADS),
    _decoder("Qwen3-MoE", "qwen3_moe", _HEADS | _EXPERTS),
    _decoder(
        "Qwen3-Next",
        "qwen3_next",
        _HEADS | _LINEAR | _EXPERTS | {"shared_expert_intermediate_size": 8},
    ),
    _decoder("Qwen3.5", "qwen3_5_text", _HEADS | _LINEAR),
    _decoder("Gemma 1", "gemma", _HEADS),
    _decoder("Gemma 2", "gemma2", _HEADS | _WINDOWS | {"query_pre_attn_scalar": 4}),
    _decoder("Gemma 3", "gemma3_text", _HEADS | _WINDOWS | {"query_pre_attn_scalar": 4}),
    _decoder(
        "Gemma 4",
        "gemma4_text",
        _HEADS
        | _WINDOWS
        | {"global_head_dim": 8, "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 0}
        | {"vocab_size_per_layer_input": WORDS},
    ),
    _decoder("Phi", "phi", _BASE),
    _decoder("Phi-3", "phi3", _GROUPED),
    _decoder("GPT-2", "gpt2", _SMALL_GPT | {"n_positions": 128, "initializer_range": 0.4}),
    _decoder("GPT-NeoX", "gpt_neox", _BASE),
    _decoder(
        "gpt-oss", "gpt_oss", _HEADS | _WINDOWS | {"num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    _decoder(
        "OPT",
        "opt",
        _BASE | {"ffn_dim": 24, "word_embed_proj_dim": 16, "init_std": 0.4},
    ),
    _decoder("BLOOM", "bloom", _SMALL_GPT | {"hidden_size": 16, "initializer_range": 0.4}),
    _decoder("Falcon", "falcon", _BASE | {"alibi": False, "new_decoder_architecture": False}),
    _decoder("Falcon (ALiBi)", "falcon", _BASE | {"alibi": True}),
    _decoder("DeepSeek-V2", "deepseek_v2", _BASE | _LATENT),
    _decoder("DeepSeek-V3", "deepseek_v3", _BASE | _LATENT),
    _decoder("Mixtral", "mixtral", _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    _decoder("Granite", "granite", _GROUPED),
    _decoder("OLMo", "olmo", _GROUPED),
    _decoder("OLMo 2", "olmo2", _GROUPED),
    _decoder("SmolLM3", "smollm3", _GROUPED),
    _decoder(
        "LFM2", "lfm2", _GROUPED | {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}
    ),
    _decoder("Mamba", "mamba", _BASE | _STATE),
    _decoder(
        "Mamba-2",
        "mamba2",
        _BASE | _STATE | {"num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    ),
    _decoder("Falcon-Mamba", "falcon_mamba", _BASE | _STATE),
    _decoder(
        "Jamba",
        "jamba",
        _GROUPED
        | {"mamba_d_state": 4, "mamba_d_conv": 3, "mamba_dt_rank": 4, "num_experts": 4}
        | {"num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False},
    ),
)


_T5 = {
    "vocab_size": WORDS,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "initializer_factor": 1.0,
    "pad_token_id": 1,
    "eos_token_id": 3,
    "decoder_start_token_id": 1,
}
_BART = _IDS | {
    "vocab_size": WORDS,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 128,
    "decoder_start_token_id": 3,
    "forced_eos_token_id": None,
    "init_std": 0.2,
}
FAMILIES += (
    Family("T5", "t5", "encoder-decoder", _T5),
    Family(
        "Flan-T5",
        "t5",
        "encoder-decoder",
        _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    Family("BART", "bart", "encoder-decoder", _BART),
)


def tiny_model(family: Family, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of the family, the same each time."""
    torch.manual_seed(0)
    model: PreTrainedModel = LOADERS[family.kind].from_config(
        AutoConfig.for_model(family.model_type, **family.config)
    )
    return model.to(dtype)
