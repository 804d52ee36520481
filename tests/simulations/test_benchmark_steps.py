"""The benchmarks run, and the baseline does the same work as our step."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from fedllm.models.backbone import load_backbone
from fedllm.models.prefix import PREFIX
from fedllm.training.gradients import clipped_gradient_sum
from fedllm.training.tunable import make_tunable
from simulations.benchmarks import baseline as assembly
from simulations.benchmarks import step_cost as dp_tax
from simulations.benchmarks import throughput
from simulations.benchmarks.support import timing, workload

absent = assembly.missing()
needs_assembly = pytest.mark.skipif(absent is not None, reason=f"not installed: {absent}")
CLIP = 0.5


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Callable[..., Any]) -> Callable[[str], str]:
    """``folder(architecture)``: a saved tiny model with a tokenizer for random texts."""

    def save(architecture: str) -> str:
        path = tmp_path / architecture
        tiny_model(architecture, dtype=torch.float32).save_pretrained(path)
        workload.stand_in_tokenizer(encoder=architecture == "bert", words=50).save_pretrained(path)
        return str(path)

    return save


@needs_assembly
@pytest.mark.parametrize("max_tokens", [1000, 24])
def test_opacus_and_our_step_move_the_prefix_alike(
    folder: Callable[[str], str], max_tokens: int
) -> None:
    """Same clipped sum, up to Opacus' 1e-6 in the norm; several micro-batches change nothing."""
    source = workload.ModelSource(folder("llama"), "tiny")
    settings = workload.settings_for(
        source,
        "decoder",
        private=True,
        batch_size=6,
        local_steps=1,
        max_tokens=max_tokens,
        prefix_length=3,
        device="cpu",
    )
    tunable = make_tunable(settings, load_backbone(source.folder, device="cpu"))
    assert tunable.spec is not None
    # without padding, under which PEFT counts positions in another way
    texts = [
        {"text": f"w{i} w{i + 7} w{40 - i} w9", "label": workload.LABELS[i % 2]} for i in range(6)
    ]
    features = tunable.task.features(texts)
    assert {tunable.task.shapes.bucket_length(len(f)) - len(f) for f in features} == {0}
    prefix = torch.randn(tunable.spec.shape, generator=torch.Generator().manual_seed(0))
    ours = clipped_gradient_sum(
        tunable,
        {PREFIX: prefix},
        features,
        clip_norm=CLIP,
        scales={PREFIX: 1.0},
        max_tokens=max_tokens,
    )
    assert 0 < ours.clipped < 6

    choice = assembly.Choice(
        folder=source.folder,
        kind="decoder",
        prefix_length=3,
        max_length=20,
        batch_size=6,
        local_steps=1,
        clip=CLIP,
        noise_multiplier=0.0,
        learning_rate=1.0,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    model = assembly.load_model(choice)
    (weight,) = assembly.trainable(model)
    flat = prefix.permute(3, 0, 1, 2, 4).reshape(3, -1)
    with torch.no_grad():
        weight.copy_(flat)
    words = assembly.word_ids(choice, tunable.backbone.tokenizer)
    assembly.opacus_step(choice, model, words, tunable, features, max_tokens)()
    moved = (flat - weight.detach()) * 6
    expected = ours.sums[0].permute(3, 0, 1, 2, 4).reshape(3, -1)
    assert torch.linalg.norm(moved - expected) < 1e-3 * torch.linalg.norm(expected)


@needs_assembly
@pytest.mark.parametrize(
    ("architecture", "form", "goal"),
    [
        ("bert", "prefix", 1.1),
        ("llama", "prefix", 1.1),
        ("bert", "lora", 1.1),
        ("llama", "ffa-lora", 1.1),
        ("bert", "bitfit", 1.1),
        ("llama", "last-layers", 1.1),
        ("bert", "full", 1.6),
    ],
)
def test_dp_tax_measures_all_four_steps(
    folder: Callable[[str], str],
    architecture: str,
    form: str,
    goal: float,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "tax.json"
    arguments = ["--model", folder(architecture), "--data", "random", "--device", "cpu"]
    arguments += ["--adapter", form, "--rank", "2"]
    dp_tax.main([*arguments, "--batch", "6", "--repeats", "2", "--no-memory", "--json", str(out)])
    (result,) = json.loads(out.read_text())["models"]
    assert set(result["seconds"]) == {"plain", "private", "peft", "opacus"}
    for name in result["seconds"]:
        assert len(result["seconds"][name]["wall"]) == 2
    assert result["time_ratios"]["private/plain"]["median"] > 0
    assert f"goal <= {goal:g}" in capsys.readouterr().out


@pytest.mark.parametrize("variant", ["noise", "perturbation", "teacher", "black-box"])
def test_dp_tax_measures_the_other_variants(
    folder: Callable[[str], str],
    variant: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "tax.json"
    arguments = ["--variant", variant, "--model", folder("bert"), "--data", "random"]
    arguments += ["--device", "cpu", "--batch", "4", "--repeats", "2", "--no-memory"]
    dp_tax.main([*arguments, "--json", str(out)])
    (result,) = json.loads(out.read_text())["models"]
    pairs = ["/".join(pair) for pair in dp_tax.VARIANTS[variant].pairs]
    assert set(result["cpu_time_ratios"]) == set(result["time_ratios"]) == set(pairs)
    assert all(ratio["median"] > 0 for ratio in result["time_ratios"].values())
    assert {len(taken["wall"]) for taken in result["seconds"].values()} == {2}
    text = capsys.readouterr().out
    assert all(f"time   {pair}" in text for pair in pairs)
    assert ("goal <= 0.1" in text) == (variant == "noise")
    if variant == "teacher":  # a pull without text does not touch the model
        ratios = result["cpu_time_ratios"]
        closeness, distillation = (ratios[f"{n}/private"] for n in ("closeness", "distillation"))
        assert closeness["median"] < distillation["median"]


def test_a_call_of_several_steps_counts_as_so_many(
    folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        dp_tax.VARIANTS, "teacher", dp_tax.Variant(pairs=(("training step", "private"),))
    )
    taken = timing.Seconds([8.0], [4.0])
    monkeypatch.setattr(
        timing, "interleave", lambda calls, *_, **__: {n: deepcopy(taken) for n in calls}
    )
    options = ["--variant", "teacher", "--model", folder("bert"), "--data", "random"]
    parsed = dp_tax.parser().parse_args([*options, "--device", "cpu", "--batch", "4"])
    found = dp_tax.measure(folder("bert"), parsed)
    assert found["seconds"]["training step"] == {"wall": [2.0], "cpu": [1.0]}
    assert found["time_ratios"]["training step/private"]["median"] == 0.25


@pytest.mark.slow
def test_dp_tax_measures_the_memory_of_a_step_through_outputs(
    folder: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--variant", "black-box", "--model", folder("llama"), "--data", "random"]
    dp_tax.main([*arguments, "--device", "cpu", "--batch", "6", "--repeats", "1"])
    text = capsys.readouterr().out
    assert "memory black-box/private" in text
    assert "goal <= 0.4" in text


@needs_assembly
@pytest.mark.slow
def test_dp_tax_measures_memory_in_processes_of_their_own(
    folder: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", folder("llama"), "--data", "random", "--device", "cpu"]
    dp_tax.main([*arguments, "--batch", "6", "--repeats", "1"])
    assert "memory private/plain" in capsys.readouterr().out


@needs_assembly
@pytest.mark.parametrize("architecture", ["bert", pytest.param("llama", marks=pytest.mark.slow)])
def test_throughput_measures_both_sides(
    folder: Callable[[str], str],
    architecture: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "throughput.json"
    arguments = ["--model", folder(architecture), "--data", "random", "--device", "cpu"]
    arguments += ["--clients", "2", "--examples", "24", "--batch", "12", "--local-steps", "3"]
    arguments += ["--max-length", "56"]
    throughput.main([*arguments, "--json", str(out)])
    (result,) = json.loads(out.read_text())["models"]
    ours, fixed, longest = (
        result["sides"][name] for name in [throughput.OURS, *throughput.PADDINGS]
    )
    for side in (ours, fixed, longest):
        assert len(side["train"]) == len(side["examples"]) == 2
        assert all(0 < count <= 3 * 24 for count in side["examples"])
    # padding: to max_length all examples have 56 tokens; sorted by length the least is left over
    assert fixed["padded_tokens"] == [56 * count for count in fixed["examples"]]
    assert sum(longest["padded_tokens"]) < sum(fixed["padded_tokens"])
    assert len(ours["load"]) == 1
    assert len(fixed["load"]) == 2
    assert "goal >= 3" in capsys.readouterr().out


@needs_assembly
def test_the_assembly_returns_an_adapter_that_it_trained_and_takes_one(
    folder: Callable[[str], str],
) -> None:
    choice = assembly.Choice(
        folder=folder("llama"),
        kind="decoder",
        prefix_length=3,
        max_length=20,
        batch_size=4,
        local_steps=1,
        clip=CLIP,
        noise_multiplier=0.0,
        learning_rate=1e-6,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    records = workload.random_texts(8)
    torch.manual_seed(0)
    start = {"prompt_embeddings": torch.full((3, 3 * 2 * 2 * 8), 0.25)}
    done = assembly.train_client(choice, records, "max_length", start)
    (after,) = done.adapter.values()
    assert torch.allclose(after, start["prompt_embeddings"], atol=1e-5)
    assert not torch.equal(after, start["prompt_embeddings"])


def test_texts_are_reproducible_and_errors_name_the_setting() -> None:
    first, origin = workload.load_texts(20, "random", seed=3)
    again, _ = workload.load_texts(20, "random", seed=3)
    assert first == again
    assert "random words" in origin
    assert {record["label"] for record in first} == set(workload.LABELS)
    with pytest.raises(ValueError, match="got data='imdb'"):
        workload.load_texts(1, "imdb")
