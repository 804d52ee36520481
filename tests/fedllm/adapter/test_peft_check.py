"""An adapter is called a PEFT adapter only where PEFT computes with it what the run computed.

If a new release of PEFT or transformers makes PEFT ignore a prefix, the first test fails: cap that release.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from fedllm.adapter.peft import save_peft_adapter
from fedllm.adapter.peft_check import why_peft_differs
from fedllm.models.adapters.plain import PrefixAdapter
from fedllm.models.backbone import Backbone, load_backbone, make_backbone
from fedllm.models.prefix import PREFIX, PrefixSpec, init_random

Checked = Callable[..., str]


@pytest.fixture
def checked(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> Checked:
    """``checked(architecture or backbone, dtype, factor)``: the verdict on a prefix written ``factor`` times."""

    def check(
        model: str | Backbone, dtype: torch.dtype = torch.float32, factor: float = 1.0
    ) -> str:
        if isinstance(model, str):
            model = make_backbone(tiny_model(model, dtype), tiny_tokenizer(), "decoder", model)
        spec = PrefixSpec.for_backbone(model, 4)
        prefix = init_random(spec, 1.0, np.random.default_rng(0))
        save_peft_adapter(tmp_path, prefix * factor, spec, "base", model.n_layers)
        before = set(vars(model.model))
        try:
            adapter = PrefixAdapter(model.model, spec)
            return why_peft_differs(model, adapter, {PREFIX: prefix}, tmp_path)
        finally:
            assert set(vars(model.model)) == before, "nothing of PEFT stays on the frozen model"

    return check


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "mistral"])
def test_the_installed_peft_uses_the_prefix(
    architecture: str, dtype: torch.dtype, checked: Checked
) -> None:
    assert checked(architecture, dtype) == ""


def test_another_prefix_is_noticed(checked: Checked) -> None:
    assert "its logits differ from the run's" in checked("llama", factor=1.1)


def test_a_release_that_generates_without_the_prefix_is_noticed(
    checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers 5.24 with PEFT 0.21: the forward pass is right, generation is the base model's."""

    def ignore(self: Any, **options: Any) -> Any:
        return self.get_base_model().generate(**options)

    monkeypatch.setattr(peft.PeftModelForCausalLM, "generate", ignore)
    assert "the logits of its generated text differ" in checked("llama")


def test_what_peft_cannot_load_is_a_reason(
    checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise TypeError("no such\nargument")

    monkeypatch.setattr(peft.PeftModelForCausalLM, "generate", refuse)
    assert checked("gpt2").endswith("cannot use it: TypeError: no such argument")


def test_a_decoder_whose_positions_differ_in_peft_is_noticed(
    checked: Checked, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """RoBERTa counts positions from the padding id: PEFT's are shifted."""
    from transformers import RobertaConfig, RobertaForCausalLM

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=66, is_decoder=True, pad_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    RobertaForCausalLM(config).save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    backbone = load_backbone(str(tmp_path / "m"), kind="decoder", device="cpu", dtype="float32")
    assert "differ from the run's" in checked(backbone)
