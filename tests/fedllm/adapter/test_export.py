from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fedllm.adapter.export import ExportError, export_adapter
from fedllm.adapter.peft import AdapterError, load_adapter
from fedllm.adapter.predict import PredictError, Predictor
from fedllm.models.backbone import load_backbone
from fedllm.report import build
from fedllm.run.checkpoints import CheckpointError, save_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.training.tunable import Tunable
from tests.support.tuned_runs import LABELS, TASKS, TEXTS, tuned_run


@pytest.mark.parametrize(
    ("architecture", "task"),
    [("bert", "head"), ("llama", "words"), ("gpt2", "words"), ("llama", "generation")],
)
def test_the_exported_model_answers_as_the_run_does(
    tmp_path: Path, model_folder: Callable[[str], Path], architecture: str, task: str
) -> None:
    run, tunable, params = tuned_run(tmp_path, model_folder(architecture), task)
    exported = export_adapter(run, tmp_path / "out")
    assert exported.peft == (task != "head")
    assert (exported.folder, exported.round) == (tmp_path / "out", 1)
    from_run = Predictor(run.path, backbone=tunable.backbone).predict(TEXTS)
    loaded = Predictor(tmp_path / "out")
    assert loaded.round == 1
    if task == "generation":
        assert loaded.predict(TEXTS) == from_run
        return
    for a, b in zip(loaded.predict(TEXTS), from_run, strict=True):
        assert a["label"] == b["label"]
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-6)
        assert sum(a["probabilities"].values()) == pytest.approx(1)
    # The same classes as the evaluation during training counts.
    labels = [answer["label"] for answer in from_run]
    records = [{"text": t, "label": y} for t, y in zip(TEXTS, labels, strict=True)]
    metrics = tunable.evaluate(params, tunable.task.features(records), 64)
    assert metrics["accuracy"] == 1
    assert len(set(labels)) > 1


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_generated_text_is_what_the_training_loss_prefers(
    tmp_path: Path, model_folder: Callable[[str], Path], architecture: str
) -> None:
    """Greedy tokens must be the likeliest ones by the very computation that training uses."""
    run, tunable, params = tuned_run(tmp_path, model_folder(architecture), "generation")
    predictor = Predictor(run)
    features = tunable.task.features([{"text": text, "answer": ""} for text in TEXTS])
    for text, feature in zip(TEXTS, features, strict=True):
        written = predictor.predict([text], max_new_tokens=4)[0].split()
        for count, word in enumerate(written):
            ids = feature.meta["prompt"] + tunable.backbone.tokenizer.convert_tokens_to_ids(
                written[:count]
            )
            feature.input_ids, feature.target_mask = ids, [0] * len(ids)
            logits = batch_logits(tunable, params, [feature])
            expected = tunable.backbone.tokenizer.convert_ids_to_tokens(int(logits[0, -1].argmax()))
            assert word == expected


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_peft_gives_the_same_logits(
    tmp_path: Path, model_folder: Callable[[str], Path], architecture: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = model_folder(architecture)
    run, tunable, params = tuned_run(tmp_path, folder, "words")
    export_adapter(run, tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(folder)
    model = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    assert model.active_peft_config.base_model_name_or_path == str(folder)
    features = tunable.task.features([{"text": text, "label": "no"} for text in TEXTS])
    ours = [
        batch_logits(tunable, params, [feature])[0][-len(feature) :]  # padded on the left
        for feature in features
    ]
    for feature, expected in zip(features, ours, strict=True):
        with torch.no_grad():
            theirs = model(input_ids=torch.tensor([feature.input_ids])).logits[0]
        assert torch.allclose(theirs, expected, atol=1e-5)
    together = batch_logits(tunable, params, features)
    for row, expected in zip(together, ours, strict=True):  # padded on the left
        assert torch.allclose(row[-len(expected) :], expected, atol=1e-5)


def test_what_peft_computes_otherwise_is_exported_in_the_native_format(
    tmp_path: Path, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a release of transformers whose generation no longer reaches PEFT's prefix."""
    import peft

    def ignore(self: Any, **options: Any) -> Any:
        return self.get_base_model().generate(**options)

    monkeypatch.setattr(peft.PeftModelForCausalLM, "generate", ignore)
    run, _, _ = tuned_run(tmp_path, model_folder("llama"), "words")
    exported = export_adapter(run, tmp_path / "out")
    assert not exported.peft
    assert "the logits of its generated text differ" in exported.why_not_peft
    assert not list((tmp_path / "out").glob("adapter_*"))
    assert load_adapter(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "No PEFT adapter: with PEFT" in card
    assert "library_name: fedllm" in card


def batch_logits(
    tunable: Tunable, params: Mapping[str, torch.Tensor], features: list[Any]
) -> torch.Tensor:
    batch = tunable.task.collate(features)
    with torch.no_grad(), tunable.adapted({k: v[None] for k, v in params.items()}):
        return tunable.backbone.model(**batch.model_inputs(), use_cache=False).logits


def test_the_card_states_the_guarantee_of_the_report(
    tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    run, _, _ = tuned_run(tmp_path, model_folder("llama"), "words")
    export_adapter(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    sentence = build(run)["guarantee"]["sentence"]
    assert sentence.startswith("Guaranteed: epsilon = ")
    assert f"> **{sentence}**" in card
    assert card.startswith("---\nbase_model: ")
    for words in ("Accuracy 75.0%", "Pretraining", "`w8` for yes", "PeftModel", "w5 {text} w6"):
        assert words in card
    _, meta = load_adapter(tmp_path / "out")
    assert meta["guarantee"]["sentence"] == sentence


def test_no_guarantee_is_in_the_card_too(
    tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    run, _, _ = tuned_run(tmp_path, model_folder("bert"), "head", privacy={"mode": "none"})
    export_adapter(run, tmp_path / "out")
    assert "> **NO GUARANTEE: epsilon is infinite." in (tmp_path / "out" / "README.md").read_text()


def test_the_seed_of_the_noise_is_not_exported(
    tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    settings = {"privacy": {"randomness": "seeded"}}
    run, _, _ = tuned_run(tmp_path, model_folder("bert"), "head", **settings)
    export_adapter(run, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert b"918273645" not in path.read_bytes()
    assert (
        "ONLY against those who do not know the seed"
        in (tmp_path / "out" / "README.md").read_text()
    )


def test_a_moving_average_is_what_is_exported(
    tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    run, _, average = tuned_run(tmp_path, model_folder("bert"), "head", server={"averaging": 0.9})
    export_adapter(run, tmp_path / "out")
    params, _ = load_adapter(tmp_path / "out")
    for name, value in average.items():
        assert torch.equal(params[name], value)
    save_checkpoint(run.checkpoints_path, 2, params, {}, {"released": "average"})
    with pytest.raises(CheckpointError, match=r"average\.head\.bias"):
        export_adapter(run, tmp_path / "out")


def test_a_chosen_checkpoint_is_exported(
    tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    run, _, params = tuned_run(tmp_path, model_folder("bert"), "head")
    zeros = {name: torch.zeros_like(value) for name, value in params.items()}
    save_checkpoint(run.checkpoints_path, 2, zeros, {}, {})
    assert export_adapter(run.path, tmp_path / "last").round == 2
    chosen = run.checkpoints_path / "round-00001"
    assert export_adapter(str(chosen), tmp_path / "first").round == 1
    assert torch.equal(load_adapter(tmp_path / "first")[0]["head.bias"], params["head.bias"])


def test_some_layers_only_go_without_peft(
    tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    run, tunable, _ = tuned_run(
        tmp_path, model_folder("llama"), "words", prefix={"layers": [0, -1]}
    )
    exported = export_adapter(run, tmp_path / "out")
    assert not exported.peft
    assert "every layer" in exported.why_not_peft
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    answer = Predictor(tmp_path / "out", backbone=tunable.backbone).predict(TEXTS[:2])
    assert answer == Predictor(run, backbone=tunable.backbone).predict(TEXTS[:2])


def test_places_and_sources_that_do_not_serve(
    tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    run, _, _ = tuned_run(tmp_path, model_folder("bert"), "head")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ExportError, match=r"thesis\.txt"):
        export_adapter(run, tmp_path / "mine")
    export_adapter(run, tmp_path / "out")
    export_adapter(run, tmp_path / "out")  # an earlier export gives way
    adapter = tmp_path / "out" / "adapter.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-4])
    with pytest.raises(AdapterError):
        Predictor(tmp_path / "out")
    with pytest.raises(PredictError, match="run folder, or an exported adapter"):
        Predictor(tmp_path / "mine")
    empty = RunFolder.create(run.settings(), tmp_path / "empty")
    with pytest.raises(ExportError, match="found none that is whole"):
        export_adapter(empty, tmp_path / "out2")
    with pytest.raises(PredictError, match="found none that is whole"):
        Predictor(empty)


def test_another_base_model_is_refused(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    run, _, _ = tuned_run(tmp_path, model_folder("llama"), "words")
    other = load_backbone(str(model_folder("gpt2")), device="cpu")
    with pytest.raises(PredictError, match="Expected parameters of the shapes"):
        Predictor(run, backbone=other)


def test_inputs(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    pairs = {**TASKS["head"], "text": ("first", "second")}
    run, tunable, _ = tuned_run(tmp_path, model_folder("bert"), "head", task=pairs)
    predictor = Predictor(run, backbone=tunable.backbone)
    assert predictor.predict([]) == []
    both = {"first": "w5 w6", "second": "w7", "label": "unheard of", "more": 1}
    assert predictor.predict([both])[0]["label"] in LABELS
    with pytest.raises(PredictError, match="columns first, second"):
        predictor.predict(["w5"])
    with pytest.raises(PredictError, match="'second'"):
        predictor.predict([{"first": "w5"}])


def test_the_card_is_plain_about_files(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    run, _, _ = tuned_run(tmp_path, model_folder("gpt2"), "generation")
    export_adapter(run, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "README.md",
        "adapter.json",
        "adapter.safetensors",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "PREFIX_TUNING"
