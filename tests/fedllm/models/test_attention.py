"""Prefix attention against independent computations, for each architecture."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    Gemma2Config,
    GptOssConfig,
    MambaConfig,
    T5Config,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fedllm.data.batches import Batch, Feature, collate
from fedllm.models.attention import ATTENTION_NAME, geometry, install, prefix_scope

P = 5
LENGTHS = (7, 3, 1, 9)
ARCHITECTURES = ("bert", "roberta", "llama", "qwen2", "gpt2")
DECODERS = ("llama", "qwen2", "gpt2")


@pytest.fixture
def installed(tiny_model: Callable) -> Callable:
    def make(architecture: str, **options: object) -> nn.Module:
        model = tiny_model(architecture, **options)
        install(model)
        return model

    return make


def _features(seed: int = 1) -> list[Feature]:
    draw = torch.Generator().manual_seed(seed)
    return [Feature(torch.randint(4, 60, (n,), generator=draw).tolist()) for n in LENGTHS]


def _prefix(model: nn.Module, batch: int, layers: int = 3, seed: int = 2) -> Tensor:
    shape = geometry(model)
    draw = torch.Generator().manual_seed(seed)
    size = (batch, layers, 2, shape.kv_heads, P, shape.head_dim)
    return torch.randn(size, generator=draw, dtype=torch.float64).to(model.dtype)


def _collate(model: nn.Module, features: list[Feature], side: str = "right", **options) -> Batch:
    decoder = geometry(model).causal
    # BERT counts positions from the left edge, so left padding needs explicit ones
    bert_left = model.config.model_type == "bert" and side == "left"
    offset = P if decoder else 0 if bert_left else None
    return collate(features, 1, side, position_offset=offset, **options)


def _losses(model: nn.Module, batch: Batch) -> Tensor:
    """One loss per example: next-token loss for decoders, a mean over real tokens for encoders."""
    output = model(**batch.model_inputs())[0]
    mask = batch.attention_mask.to(output.dtype)
    if not geometry(model).causal:
        return (output.tanh().mean(-1) * mask).sum(1) / mask.sum(1) + output.square().mean(
            (1, 2)
        ) * 0
    counted = mask[:, 1:] * mask[:, :-1]
    nll = functional.cross_entropy(
        output[:, :-1].transpose(1, 2), batch.input_ids[:, 1:], reduction="none"
    )
    return (nll * counted).sum(1) + output.logsumexp(-1).mul(mask).sum(1)


def _close(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layers", [(0, 1, 2), (1,), (0, 2)])
def test_expanded_gradient_is_each_examples_own(installed, architecture, side, layers):
    model = installed(architecture)
    features = _features()
    prefix = _prefix(model, 1, len(layers))
    leaf = prefix.expand(len(features), *prefix.shape[1:]).clone().requires_grad_()
    with prefix_scope(model, leaf, layers):
        losses = _losses(model, _collate(model, features, side))
        (together,) = torch.autograd.grad(losses.sum(), leaf)
    for row, feature in enumerate(features):
        alone = prefix.clone().requires_grad_()
        with prefix_scope(model, alone, layers):
            loss = _losses(model, _collate(model, [feature]))
            (gradient,) = torch.autograd.grad(loss.sum(), alone)
        assert gradient.abs().max() > 1e-4
        assert abs(float((losses[row] - loss).detach())) < 1e-9
        assert _close(together[row], gradient[0]) < 1e-9


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_example_may_have_its_own_prefix(installed, architecture):
    model = installed(architecture)
    features, prefix = _features(), _prefix(model, 4)
    with prefix_scope(model, prefix, (0, 1, 2)):
        together = _losses(model, _collate(model, features))
    for row, feature in enumerate(features):
        with prefix_scope(model, prefix[row : row + 1], (0, 1, 2)):
            alone = _losses(model, _collate(model, [feature]))
        assert abs(float(together[row] - alone)) < 1e-9


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_dependence_on_batch_mates_or_padding(installed, architecture, side):
    model = installed(architecture)
    features, prefix = _features(), _prefix(model, 1)
    with prefix_scope(model, prefix, (0, 1, 2)):
        alone = _losses(model, _collate(model, features[:1]))
        padded = _losses(model, _collate(model, features[:1], side, length=20))
        mates = _losses(model, _collate(model, features, side))
        other = _losses(model, _collate(model, features[:1] + _features(9)[1:], side))
    for value in (padded, mates, other):
        assert abs(float(value[0] - alone[0])) < 1e-9


def test_a_non_finite_batch_mate_stays_alone(installed):
    model = installed("llama")
    leaf = _prefix(model, 4)
    leaf[2] = float("nan")
    leaf.requires_grad_()
    with prefix_scope(model, leaf, (0, 1, 2)):
        losses = _losses(model, _collate(model, _features(), "left"))
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    finite = gradient.flatten(1).isfinite().all(1)
    assert finite.tolist() == [True, True, False, True]


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("masked", [True, False])
def test_decoder_equals_the_librarys_own_cache(installed, tiny_model, architecture, masked):
    """Reference: stock SDPA with the prefix sitting in a KV cache."""
    model, stock = installed(architecture), tiny_model(architecture)
    assert stock.config._attn_implementation == "sdpa"
    prefix = _prefix(model, 2)
    cache = DynamicCache()
    for layer in range(3):
        cache.update(prefix[:, layer, 0], prefix[:, layer, 1], layer)
    features = [Feature(f.input_ids[:3]) for f in _features() if len(f) >= 3][:2]
    batch = _collate(model, features)
    mask = functional.pad(batch.attention_mask, (P, 0), value=1) if masked else None
    expected = stock(
        batch.input_ids,
        attention_mask=mask,
        position_ids=batch.position_ids,
        past_key_values=cache,
    ).logits
    with prefix_scope(model, prefix, (0, 1, 2)):
        ours = model(
            batch.input_ids,
            attention_mask=batch.attention_mask if masked else None,
            position_ids=batch.position_ids,
        ).logits
    assert _close(ours, expected) < 1e-12


@pytest.fixture
def naive_attention() -> dict[int, Tensor]:
    """What one would write first: prepend, widen a mask if there is one, leave is_causal alone."""
    current: dict[int, Tensor] = {}

    def forward(module, query, key, value, attention_mask, **kwargs):
        pair = current[module.layer_idx]
        key, value = torch.cat([pair[:, 0], key], 2), torch.cat([pair[:, 1], value], 2)
        if attention_mask is not None:
            attention_mask = functional.pad(attention_mask, (P, 0), value=True)
        query_padded = functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(query.shape[1] // key.shape[1], 1),
            value.repeat_interleave(query.shape[1] // key.shape[1], 1),
            attn_mask=attention_mask,
            is_causal=attention_mask is None,
        )
        return query_padded.transpose(1, 2), None

    AttentionInterface.register("naive_prefix", forward)
    AttentionMaskInterface.register("naive_prefix", sdpa_mask)
    return current


@pytest.mark.parametrize("architecture", DECODERS)
def test_the_is_causal_trap(installed, tiny_model, naive_attention, architecture):
    """Without padding the library passes no mask. SDPA's is_causal would then hide most of the
    prefix and, silently, all of the tokens; the naive function shows it, ours does not."""
    model, naive = installed(architecture), tiny_model(architecture)
    naive.set_attn_implementation("naive_prefix")
    prefix = _prefix(model, 1)
    naive_attention.update({i: prefix[:, i] for i in range(3)})
    ids = torch.tensor([_features()[0].input_ids])
    inputs = {"attention_mask": torch.ones_like(ids), "position_ids": torch.arange(P, P + 7)[None]}
    # one example more, with padding, forces the explicit mask: the reference
    padded = _collate(model, [_features()[0], _features()[1]])
    with prefix_scope(model, prefix, (0, 1, 2)):
        reference = model(**padded.model_inputs()).logits[:1]
        ours = model(ids, **inputs).logits
        changed = model(ids.index_fill(1, torch.tensor([0]), 5), **inputs).logits
    trapped = naive(ids, **inputs).logits
    assert _close(ours, reference) < 1e-9
    assert _close(trapped, reference) > 0.05
    assert _close(changed[:, -1], ours[:, -1]) > 1e-3  # late tokens see early ones
    flipped = ids.index_fill(1, torch.tensor([6]), 5)
    with prefix_scope(model, prefix, (0, 1, 2)):
        future = model(flipped, **inputs).logits
    assert torch.equal(future[:, :6], ours[:, :6])  # early tokens do not see late ones


@pytest.mark.parametrize("mask_kind", ["none", "bool", "additive"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_function_against_plain_softmax(installed, architecture, mask_kind):
    model = installed(architecture)
    shape, causal = geometry(model), geometry(model).causal
    module = next(
        m for m in model.modules() if getattr(m, "layer_idx", None) == 1 and hasattr(m, "scaling")
    )
    draw = torch.Generator().manual_seed(3)
    n, d = 6, shape.head_dim
    query = torch.randn(2, 4, n, d, generator=draw, dtype=torch.float64)
    key, value = torch.randn(2, 2, shape.kv_heads, n, d, generator=draw, dtype=torch.float64)
    prefix = _prefix(model, 2, 1)
    visible = torch.ones(2, 1, n, n, dtype=torch.bool)
    if causal:
        visible = visible.tril()
    if mask_kind != "none":
        visible = visible & (torch.arange(n) < torch.tensor([[4], [6]]))[:, None, None]
    additive = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -1e300)
    mask = {"none": None, "bool": visible, "additive": additive}[mask_kind]
    with prefix_scope(model, prefix, [1]):
        ours, _ = ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME](
            module, query, key, value, mask, scaling=0.3
        )
    keys = torch.cat([prefix[:, 0, 0], key], 2).repeat_interleave(4 // shape.kv_heads, 1)
    values = torch.cat([prefix[:, 0, 1], value], 2).repeat_interleave(4 // shape.kv_heads, 1)
    scores = query @ keys.transpose(2, 3) * 0.3
    scores = scores.masked_fill(~functional.pad(visible, (P, 0), value=True), -torch.inf)
    assert _close(ours.transpose(1, 2), scores.softmax(-1) @ values) < 1e-12


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_a_prefix_nothing_changes(installed, tiny_model, architecture):
    stock, model = tiny_model(architecture), installed(architecture)
    batch = _collate(model, _features())
    expected = stock(**batch.model_inputs())[0]
    assert torch.equal(model(**batch.model_inputs())[0], expected)
    for nothing in (_prefix(model, 4, 0), _prefix(model, 4)[:, :0]):
        with prefix_scope(model, nothing, ()):
            assert torch.equal(model(**batch.model_inputs())[0], expected)
    with prefix_scope(model, _prefix(model, 4)[..., :0, :], (0, 1, 2)):
        assert torch.equal(model(**batch.model_inputs())[0], expected)


def test_layers_outside_the_subset_have_no_prefix(installed):
    """A prefix in the last layer alone leaves every earlier hidden state as it was."""
    model = installed("bert")
    batch = _collate(model, _features())
    plain = model(**batch.model_inputs(), output_hidden_states=True).hidden_states
    with prefix_scope(model, _prefix(model, 1, 1), [2]):
        with_prefix = model(**batch.model_inputs(), output_hidden_states=True).hidden_states
    assert all(torch.equal(a, b) for a, b in zip(plain[:3], with_prefix[:3], strict=True))
    assert _close(with_prefix[3], plain[3]) > 1e-3


def test_order_of_layers_is_the_tensors_order(installed):
    model, batch = installed("llama"), _collate(installed("llama"), _features())
    prefix = _prefix(model, 1, 2)
    with prefix_scope(model, prefix, [0, 2]):
        expected = _losses(model, batch)
    with prefix_scope(model, prefix.flip(1), [2, 0]):
        assert torch.equal(_losses(model, batch), expected)


def test_scopes_nest_and_restore(installed):
    model = installed("gpt2")
    batch = _collate(model, _features())
    outer, inner = _prefix(model, 1), _prefix(model, 1, seed=8)
    plain = _losses(model, batch)
    with prefix_scope(model, outer, (0, 1, 2)):
        first = _losses(model, batch)
        with prefix_scope(model, inner, (0, 1, 2)):
            second = _losses(model, batch)
        again = _losses(model, batch)
        with pytest.raises(KeyError), prefix_scope(model, inner, (0, 1, 2)):
            raise KeyError
        after_error = _losses(model, batch)
    assert torch.equal(first, again)
    assert torch.equal(first, after_error)
    assert not torch.equal(first, second)
    assert torch.equal(_losses(model, batch), plain)


def _run_in_threads(jobs: list[Callable[[], Tensor]], times: int = 15) -> list[list[Tensor]]:
    barrier = threading.Barrier(len(jobs))
    results: list[list[Tensor]] = [[] for _ in jobs]

    def work(index: int) -> None:
        for _ in range(times):
            barrier.wait(timeout=30)
            results[index].append(jobs[index]())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("same_model", [False, True])
def test_threads_do_not_mix(installed, same_model):
    first = installed("llama")
    models = [first, first if same_model else installed("llama", seed=1)]
    batch = _collate(first, _features())
    inside = threading.Barrier(2)

    def job(index: int, meet: bool) -> Tensor:
        model, prefix = models[index], _prefix(models[index], 1, seed=20 + index)
        with prefix_scope(model, prefix, (0, 1, 2)):
            if meet:
                inside.wait(timeout=30)  # both scopes are open now
            return _losses(model, batch)

    expected = [job(0, False), job(1, False)]
    results = _run_in_threads([lambda: job(0, True), lambda: job(1, True)])
    for index in (0, 1):
        assert len(results[index]) == 15
        assert all(torch.equal(r, expected[index]) for r in results[index])
    assert not torch.equal(*expected)


def test_other_threads_see_no_prefix(installed):
    model = installed("bert")
    batch = _collate(model, _features())
    plain = _losses(model, batch)
    with prefix_scope(model, _prefix(model, 1), (0, 1, 2)):
        (result,) = _run_in_threads([lambda: _losses(model, batch)], 1)
    assert torch.equal(result[0], plain)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copied_model_has_its_own_scope(installed, copied):
    model = installed("llama")
    batch, prefix = _collate(model, _features()), _prefix(model, 1)
    with prefix_scope(model, prefix, (0, 1, 2)):
        expected = _losses(model, batch)
        twin = copied(model)
        plain = _losses(twin, batch)
    assert torch.equal(plain, _losses(model, batch))
    with prefix_scope(twin, prefix, (0, 1, 2)):
        assert torch.equal(_losses(twin, batch), expected)


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_bfloat16_gradients_are_finite_and_close(installed, architecture):
    exact, model = installed(architecture), installed(architecture, dtype=torch.bfloat16)
    model.load_state_dict(exact.state_dict())
    features = _features()
    gradients = []
    for each in (exact, model):
        leaf = _prefix(exact, 4).float().requires_grad_()
        with prefix_scope(each, leaf, (0, 1, 2)):
            losses = _losses(each, _collate(each, features, "left"))
            gradients.append(torch.autograd.grad(losses.float().sum(), leaf)[0].flatten(1))
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    assert functional.cosine_similarity(*gradients, dim=1).min() > 0.98


def test_left_padding_leaves_no_nan_in_layers_without_prefix(installed):
    """There, a padded query sees nothing at all."""
    model = installed("llama")
    leaf = _prefix(model, 4, 1).requires_grad_()
    with prefix_scope(model, leaf, [2]):
        losses = _losses(model, _collate(model, _features(), "left"))
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    assert gradient.isfinite().all()


def test_sliding_window_within_and_beyond(installed, tiny_model):
    model, prefix = installed("mistral"), None
    prefix = _prefix(model, 1)
    full = tiny_model("mistral")
    full.config.sliding_window = None
    for module in full.modules():
        if hasattr(module, "sliding_window"):
            module.sliding_window = None
    install(full)
    short = _collate(model, [Feature(list(range(4, 11)))])
    with prefix_scope(model, prefix, (0, 1, 2)), prefix_scope(full, prefix, (0, 1, 2)):
        assert _close(_losses(model, short), _losses(full, short)) < 1e-12
        with pytest.raises(ValueError, match=r"sliding window of 12, got 5 \+ 8"):
            _losses(model, _collate(model, [Feature(list(range(4, 12)))]))


def test_unsupported_models_are_refused_by_name_and_left_as_they_were():
    small = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    gemma = AutoModelForCausalLM.from_config(Gemma2Config(**small))
    before = gemma.config._attn_implementation
    with pytest.raises(ValueError, match="softcap in layer 0"):
        install(gemma)
    assert gemma.config._attn_implementation == before
    assert gemma(torch.zeros(1, 3, dtype=torch.long)).logits.isfinite().all()
    sinks = AutoModelForCausalLM.from_config(
        GptOssConfig(**small, num_local_experts=2, num_experts_per_tok=1)
    )
    with pytest.raises(ValueError, match="s_aux"):
        install(sinks)
    encoder_decoder = AutoModel.from_config(T5Config(vocab_size=40, d_model=16, num_layers=1))
    with pytest.raises(ValueError, match="encoder-decoder T5Model"):
        install(encoder_decoder)
    mamba = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4)
    )
    with pytest.raises(ValueError, match="attention interface"):
        install(mamba)


def test_install_again_keeps_open_scopes(installed):
    model = installed("bert")
    batch = _collate(model, _features())
    with prefix_scope(model, _prefix(model, 1), (0, 1, 2)):
        expected = _losses(model, batch)
        install(model)
        assert torch.equal(_losses(model, batch), expected)


def test_wrong_arguments_are_named(installed, tiny_model):
    model = installed("llama")
    good = _prefix(model, 1)
    with pytest.raises(
        ValueError, match=r"Expected prefix_per_example of shape \(B, 2, 2, 2, P, 8\)"
    ):
        prefix_scope(model, good, (0, 1)).__enter__()
    with pytest.raises(
        ValueError, match=r"distinct layers between 0 and 2, got layers=\[0, 0, 3\]"
    ):
        prefix_scope(model, good, (0, 0, 3)).__enter__()
    with pytest.raises(ValueError, match=r"fedllm\.models\.attention\.install"):
        prefix_scope(tiny_model("llama"), good, (0, 1, 2)).__enter__()
    with (
        prefix_scope(model, _prefix(model, 3), (0, 1, 2)),
        pytest.raises(ValueError, match=r"for 4 examples .* got prefix batch=3"),
    ):
        _losses(model, _collate(model, _features()))


def test_stock_sdpa_is_called_for_grouped_heads(installed):
    """The library's function is the one that runs (no own attention arithmetic)."""
    model = installed("llama")
    module = model.model.layers[0].self_attn
    q, k = torch.randn(1, 4, 3, 8).double(), torch.randn(1, 2, 3, 8).double()
    ours = ALL_ATTENTION_FUNCTIONS[ATTENTION_NAME](module, q, k, k, None)[0]
    assert torch.equal(ours, sdpa_attention_forward(module, q, k, k, None)[0])
