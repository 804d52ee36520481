"""LoRA and BitFit on every family of architectures: each row is the gradient of one example, whatever its batch mates."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import AutoConfig, AutoModel
from transformers.pytorch_utils import Conv1D

from fedllm.data.batches import Feature, position_ids
from fedllm.models.adapters.bitfit import BitfitAdapter, shift_name
from fedllm.models.adapters.lora import LoraAdapter, factor_name
from fedllm.models.adapters.targets import find_targets
from fedllm.models.attention import padding_scope
from fedllm.models.backbone import make_backbone
from fedllm.models.grouping import padding_is_inert, rows_are_the_same_bits, sees_examples_apart
from fedllm.models.model_error import ModelError
from fedllm.models.parts.model_inputs import takes_positions
from fedllm.settings.io import parse_settings
from fedllm.tasks.base import expand_params
from fedllm.tasks.encoder_classification import FEATURE_NORM
from fedllm.training.batch.independence import require_independence
from fedllm.training.batch.rehearsal import rehearse
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from simulations.architectures.families import FAMILIES, tiny_model
from simulations.architectures.trial import (
    at_random,
    features_of,
    flat,
    gradients,
    tiny_backbone,
    tiny_tunable,
)
from simulations.attacks.batch_mates.architectures import (
    random_records,
    tiny_settings,
    tiny_tokenizer,
)

BY_NAME = {family.name: family for family in FAMILIES if family.known}
PADDED = [name for name in BY_NAME if tiny_backbone(BY_NAME[name]).grouping == "padded"]
ALLOWED = {"Qwen3-Next": 5e-5}  # its norms divide by small numbers
WITHOUT_BITFIT = {"OLMo"}
"""Has neither biases nor scales."""


def changed_weights(tunable: Tunable, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's own weights with the adapter added, differentiable by ``params``: written without the adapter's code."""
    adapter, whole = tunable.adapter, {**params, **tunable.fixed}
    own = dict(tunable.backbone.model.named_parameters())
    modules = dict(tunable.backbone.model.named_modules())
    found: dict[str, Tensor] = {}
    if isinstance(adapter, LoraAdapter):
        for target in adapter.targets:
            weight = own[f"{target.module}.weight"]
            a, b = (whole[factor_name(target, factor)] for factor in "AB")
            change = adapter.alpha / adapter.rank * b @ a
            by_input = isinstance(modules[target.module], Conv1D)
            found[f"{target.module}.weight"] = weight + (change.T if by_input else change)
    assert isinstance(adapter, LoraAdapter | BitfitAdapter)
    for shift in getattr(adapter, "shifts", ()):
        for part in shift.parts:
            name = f"{shift.module}.{'bias' if part == 'bias' else 'weight'}"
            found[name] = own[name] + whole[shift_name(shift, part)]
    return found


def expected_gradient(
    plain: Any, tunable: Tunable, params: dict[str, Tensor], feature: Feature
) -> Tensor:
    """Of the example alone and without padding, by ordinary autograd through the library's unchanged model."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    ids, weights = torch.tensor([feature.input_ids]), changed_weights(tunable, leaves)
    if tunable.backbone.kind == "encoder-decoder":
        prompt = len(feature.meta["prompt"])
        inputs = {"input_ids": ids[:, :prompt], "labels": ids[:, prompt:]}
        loss = functional_call(plain, weights, (), inputs).loss  # the library's own
        grads = torch.autograd.grad(loss, [leaves[name] for name in sorted(leaves)])
        return torch.cat([grad.flatten() for grad in grads])
    out = functional_call(plain, weights, (ids,))
    if feature.target is not None:
        pooled = out.last_hidden_state.mean(1)
        pooled = FEATURE_NORM * pooled / pooled.norm()
        scores = pooled @ leaves["head.weight"].T + leaves["head.bias"]
        loss = torch.nn.functional.cross_entropy(scores, torch.tensor([feature.target]))
    else:
        assert feature.target_mask is not None
        counted = torch.tensor(feature.target_mask[1:]).bool()
        loss = torch.nn.functional.cross_entropy(out.logits[0, :-1][counted], ids[0, 1:][counted])
    grads = torch.autograd.grad(loss, [leaves[name] for name in sorted(leaves)])
    return torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("form", ["lora", "bitfit"])
@pytest.mark.parametrize("name", BY_NAME)
def test_a_row_is_the_gradient_of_one_example_alone(name: str, form: str) -> None:
    family = BY_NAME[name]
    if form == "bitfit" and name in WITHOUT_BITFIT:
        with pytest.raises(ValueError, match="model without any"):
            tiny_tunable(family, form)
        return
    settings, tunable = tiny_tunable(family, form)
    tunable, params = at_random(tunable, settings)
    plain = tiny_model(family).eval()
    if family.name == "Gemma 2":  # torch's own attention leaves the soft cap out
        plain.set_attn_implementation("eager")
    features = features_of(tunable)
    among = gradients(tunable, params, features)
    for feature, row in zip(features, among, strict=True):
        expected = expected_gradient(plain, tunable, params, feature)
        off = float((flat(row) - expected).norm() / expected.norm())
        assert off < ALLOWED.get(name, 1e-5), off
    (alone,) = gradients(tunable, params, features[1:2])
    assert torch.equal(flat(alone), flat(among[1]))
    others = tunable.task.features(random_records([3, 5, 5, 6, 5, 5, 5], 9))
    elsewhere = gradients(tunable, params, [*others, features[1]])
    assert torch.equal(flat(elsewhere[-1]), flat(among[1]))


@pytest.mark.parametrize("name", PADDED)
def test_what_stands_at_padding_reaches_nothing(name: str) -> None:
    """On both sides where positions are given: NaN changes no token's result, and other tokens change no gradient."""
    family = BY_NAME[name]
    model: Any = tiny_backbone(family).model
    ids = torch.arange(20, 26)[None]
    with torch.no_grad():
        whole = model(input_ids=ids)[0]
    for left, right in ((0, 3), (3, 0), (2, 2)):
        if left and not takes_positions(model):
            continue
        if left and family.kind == "encoder":
            continue  # encoders count positions themselves, from the first slot
        rows = torch.nn.functional.pad(ids, (left, right), value=7)
        mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))
        inputs = {"input_ids": rows, "attention_mask": mask}
        if family.kind == "decoder":
            inputs["position_ids"] = position_ids(mask, 0)
        handle = model.get_input_embeddings().register_forward_hook(
            lambda _m, _a, out, mask=mask: out.masked_fill(mask[..., None] == 0, float("nan"))
        )
        try:
            with torch.no_grad(), padding_scope(model, mask):
                found = model(**inputs)[0][:, left : left + ids.shape[1]]
        finally:
            handle.remove()
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
    settings, tunable = tiny_tunable(family, "lora")
    tunable, params = at_random(tunable, settings)
    features = features_of(tunable)[:1]
    own = gradients(tunable, params, features)[0]
    task = tunable.task = copy.copy(tunable.task)
    collated = task.collate

    def garbage(chosen: Any) -> Any:
        batch = collated(chosen)
        assert (batch.attention_mask == 0).any()
        batch.input_ids[batch.attention_mask == 0] = 77
        return batch

    task.collate = garbage  # type: ignore[method-assign]
    assert torch.equal(flat(gradients(tunable, params, features)[0]), flat(own))


@pytest.mark.parametrize("name", sorted(set(BY_NAME) - set(PADDED)))
def test_a_model_that_mixes_padding_in_gets_none(name: str) -> None:
    _, tunable = tiny_tunable(BY_NAME[name], "lora")
    task, grouping = tunable.task, tunable.backbone.grouping
    features = features_of(tunable)
    groups = task.batches(features, 512)
    assert sorted(i for group in groups for i in group) == list(range(len(features)))
    assert max(map(len, groups)) == (1 if grouping == "alone" else 3)
    for group in groups:
        batch = task.collate([features[i] for i in group])
        assert bool(batch.attention_mask.all())
        assert len(batch.input_ids) == (1 if grouping == "alone" else 4)
    with pytest.raises(ValueError, match="in a micro-batch of this model, which would mix them"):
        task.collate(features[:2])


def test_how_examples_are_grouped() -> None:
    groups = {name: tiny_backbone(BY_NAME[name]).grouping for name in BY_NAME}
    assert {groups[n] for n in ("BERT", "ALBERT", "Llama", "Gemma 3", "OPT")} == {"padded"}
    assert {groups[n] for n in ("MPNet", "BLOOM", "LFM2", "Mamba")} == {"one-length"}
    assert {groups[n] for n in ("Mixtral", "Jamba", "DeepSeek-V3", "DeBERTa v3")} == {"alone"}


def test_the_measurements_tell_models_apart() -> None:
    lfm2 = tiny_backbone(
        BY_NAME["LFM2"]
    ).model  # has prefix attention; its convolution reads padding
    assert not padding_is_inert(lfm2, "decoder")
    assert padding_is_inert(tiny_backbone(BY_NAME["Llama"]).model, "decoder")
    assert not sees_examples_apart(tiny_backbone(BY_NAME["DeBERTa v3"]).model)
    assert sees_examples_apart(tiny_backbone(BY_NAME["DistilBERT"]).model)
    bloom: Any = copy.deepcopy(tiny_backbone(BY_NAME["BLOOM"]).model)
    assert rows_are_the_same_bits(bloom)
    bloom.transformer.h[0].mlp.register_forward_hook(
        lambda _m, _a, out: out + 1e-6 * out.mean() if isinstance(out, Tensor) else None
    )
    assert not rows_are_the_same_bits(bloom)


def test_a_prefix_is_refused_with_its_reason() -> None:
    for name, reason in (
        ("Gemma 2", "softcap"),
        ("gpt-oss", "s_aux"),
        ("DeBERTa v3", "computes its own"),
        ("DeepSeek-V3", "same key/value heads"),
    ):
        with pytest.raises(
            ModelError, match=rf"adapter\.form=prefix, got model='{name}'.*{reason}"
        ):
            tiny_tunable(BY_NAME[name], "prefix")


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_an_encoder_decoder_writes_what_whole_passes_give(name: str) -> None:
    settings, tunable = tiny_tunable(BY_NAME[name], "lora")
    _, params = at_random(tunable, settings)
    (feature,) = tunable.task.features([{"text": "w20 w31 w45", "label": "w50 w51"}])
    tokenizer: Any = tunable.backbone.tokenizer
    assert tokenizer.decode(feature.meta["prompt"]) == "w20 w31 w45 [SEP]"
    model: Any = tunable.backbone.model
    assert isinstance(tunable.adapter, LoraAdapter)
    modules = {target.module for target in tunable.adapter.targets}
    for part in ("encoder", "decoder"):
        assert any(part in module.split(".") for module in modules)
    (text,) = tunable.write(params, [feature.meta["prompt"]], 4)
    prompt, ids = torch.tensor([feature.meta["prompt"]]), [model.config.decoder_start_token_id]
    for _ in range(4):
        with torch.no_grad(), tunable.adapted(expand_params(params, 1)):
            found = model(input_ids=prompt, decoder_input_ids=torch.tensor([ids])).logits
        ids.append(int(found[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    assert text == str(tokenizer.decode(ids[1:], skip_special_tokens=True)).strip()
    metrics = tunable.evaluate(params, [feature], 512)
    assert metrics["loss"] > 0
    assert metrics["examples"] == 1


def test_an_encoder_decoder_is_loaded_for_generation(tmp_path: Path) -> None:
    family = BY_NAME["T5"]
    tiny_model(family).save_pretrained(tmp_path)
    tiny_tokenizer(family.kind).save_pretrained(tmp_path)
    _, known = tiny_tunable(family, "lora")
    settings = tiny_settings(known.backbone, "generation", "lora", model={"name": str(tmp_path)})
    tunable = make_tunable(settings)  # as a silo loads it
    assert tunable.backbone.kind == "encoder-decoder"
    require_independence(tunable, initial_params(tunable, settings))
    rehearse(tunable, initial_params(tunable, settings), gradients=True)
    features = features_of(tunable)
    _, params = at_random(tunable, settings)
    for mine, other in zip(
        gradients(tunable, params, features), gradients(known, params, features), strict=True
    ):
        assert torch.equal(flat(mine), flat(other))


def test_an_encoder_decoder_generates_alone() -> None:
    settings, tunable = tiny_tunable(BY_NAME["T5"], "lora")
    tree = settings.model_dump(mode="json")
    tree["task"] |= {"kind": "classification", "labels": ["a", "b"]}
    with pytest.raises(ValueError, match=r"task\.kind=generation for the encoder-decoder model"):
        make_tunable(parse_settings(tree), tunable.backbone)
    for form in ("full", "last-layers", "prefix"):
        with pytest.raises(ModelError, match="encoder-decoder"):
            tiny_tunable(BY_NAME["T5"], form)


def test_modules_that_a_model_does_not_use_are_no_targets() -> None:
    """Mamba reads the matrix of its step sizes by itself: LoRA on it would change nothing."""
    model = tiny_backbone(BY_NAME["Mamba"]).model
    names = {
        target.module.rpartition(".")[2] for target in find_targets(model, "all-linear", "all")
    }
    assert names == {"in_proj", "x_proj", "out_proj"}
    with pytest.raises(
        ValueError, match=r"adapter\.targets .*'backbone\.layers\.0\.mixer\.dt_proj'"
    ):
        find_targets(model, ["dt_proj"], "all")


def test_a_causal_model_is_no_encoder_and_an_encoder_no_decoder() -> None:
    mamba, mpnet = (tiny_model(BY_NAME[name]) for name in ("Mamba", "MPNet"))
    with pytest.raises(ModelError, match="both directions in an encoder, got causal"):
        make_backbone(mamba, tiny_tokenizer("encoder"), "encoder", "x")
    with pytest.raises(ModelError, match="causal attention in a decoder, got none"):
        make_backbone(mpnet, tiny_tokenizer("decoder"), "decoder", "x")


def test_a_model_that_computes_nothing_says_so() -> None:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = AutoConfig.for_model("canine", **shape, num_attention_heads=4)
    model = AutoModel.from_config(config)
    with pytest.raises(ModelError, match=r"model='x' \(CanineModel\) to compute a text of 12 tok"):
        make_backbone(model, tiny_tokenizer("encoder"), "encoder", "x")


def test_steps_of_a_fixed_shape_need_padding() -> None:
    settings, tunable = tiny_tunable(BY_NAME["Mamba"], "lora")
    tree = settings.model_dump(mode="json")
    tree["client"]["max_batch"] = 256
    tree["privacy"]["accountant"] = "pld"
    with pytest.raises(ValueError, match=r"no client\.max_batch for model\.name='Mamba'"):
        make_tunable(parse_settings(tree), tunable.backbone)


@pytest.mark.parametrize("name", ["Mamba", "BLOOM", "Gemma 2", "Jamba"])
def test_they_write(name: str) -> None:
    """Greedy text by the model's own cache is what whole passes give."""
    settings, tunable = tiny_tunable(BY_NAME[name], "lora")
    _, params = at_random(tunable, settings)
    prompt = [20, 31, 45]
    (text,) = tunable.write(params, [prompt], 4)
    ids = list(prompt)
    for _ in range(4):
        with torch.no_grad(), tunable.adapted(expand_params(params, 1)):
            logits = tunable.backbone.model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] == tunable.backbone.tokenizer.eos_token_id:
            break
    tokenizer: Any = tunable.backbone.tokenizer
    assert text == str(tokenizer.decode(ids[3:], skip_special_tokens=True)).strip()
