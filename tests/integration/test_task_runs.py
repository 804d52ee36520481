"""Whole runs of each kind of task: real client and server code within this process, then predict and report."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner
from whole_runs import final, rows

from fedllm.adapter.export import export_adapter
from fedllm.adapter.predict import PredictError, Predictor
from fedllm.budget.account import EVALUATE, TRAIN
from fedllm.budget.schedule import sampling_rate
from fedllm.data.public import evaluation_set
from fedllm.data.silos import load_federation
from fedllm.run.folder import RunFolder
from fedllm.training.mechanism import make_mechanism
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.events.multiset import multiset
from simulations.cli.main import app
from tests.support import task_files

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
METRICS = {
    "multilabel": {"accuracy", "micro_f1", "macro_f1"},
    "regression": {"mse", "mae"},
    "tokens": {"tag_accuracy", "entity_precision", "entity_recall", "entity_f1"},
    "chat": {"perplexity", "bleu", "rouge_l"},
}
TITLES = {
    "multilabel": "Micro-F1",
    "regression": "Mean absolute error",
    "tokens": "Entity F1",
    "chat": "Perplexity",
}


@pytest.fixture
def start(start_run: Start, decoder_folder: Path, tmp_path: Path) -> Callable[..., RunFolder]:
    def make(kind: str, **changes: Any) -> RunFolder:
        own = task_files.changes(kind, task_files.save(kind, tmp_path / "data"), decoder_folder)
        usual = {"server.rounds": 2, "evaluation.generate": 2, "evaluation.max_new_tokens": 4}
        return start_run("run", **own | usual | changes)

    return make


def call(*words: object, **options: Any) -> str:
    result = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "160"}, **options)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("kind", METRICS)
def test_a_run_of_this_kind(kind: str, start: Any, in_process: Federate, tmp_path: Path) -> None:
    """It ends, moves the model, costs what its mechanism says; the report has its numbers, and the model answers."""
    run = start(kind)
    assert in_process(run) == "finished", run.state()["message"]
    settings = run.settings()
    tunable = shared_tunable(settings)
    params, begun = final(run), initial_params(tunable, settings)
    assert all(bool(value.isfinite().all()) for value in params.values())
    assert any(not torch.equal(value, begun[name]) for name, value in params.items())
    for silo in load_federation(settings).silos:
        rate = sampling_rate(settings, len(silo.train))
        noise = settings.privacy.noise_multiplier
        mechanism = make_mechanism(settings, sampling_rate=rate, noise_multiplier=noise)
        spent = [r for r in rows(run, TRAIN) if r.party == silo.name]
        assert [Counter(multiset(row.views["server"])) for row in spent] == [
            Counter(mechanism.events(number)) for number in (1, 2)
        ]
    last = [m for m in run.metrics() if m["kind"] == "evaluation" and m["where"] == "server"][-1]
    assert METRICS[kind] <= set(last)
    records = evaluation_set(settings).records
    again = tunable.evaluate(params, tunable.task.features(records), 512)
    assert again["loss"] == pytest.approx(last["loss"], rel=1e-4)
    page = (run.path / "report.html").read_text("utf-8")
    assert TITLES[kind] in page
    report = json.loads((run.path / "report.json").read_text("utf-8"))
    assert METRICS[kind] <= set(report["training"]["final"]["server"])
    predictor = Predictor(run)
    answers = predictor.predict(records[:3])
    check_answers(kind, answers, settings)
    if kind != "tokens":
        assert predictor.predict(["w4 w5"]), "a text alone"
    export_adapter(run, tmp_path / "out")
    exported_answers = Predictor(tmp_path / "out").predict(records[:3], max_new_tokens=4)
    assert near(exported_answers, answers)
    lines = call(
        "predict", run.path, "--file", settings.data.path + "/validation.jsonl"
    ).splitlines()
    assert len(lines) == 40
    written = call(
        "predict", run.path, "--file", settings.data.path + "/validation.jsonl", "--json"
    )
    assert near(json.loads(written)[:3], answers)


def near(first: list[Any], second: list[Any]) -> bool:
    """Return True if answers are equal to rounding, which memory's alignment changes."""
    return len(first) == len(second) and all(
        a == pytest.approx(b, rel=1e-4)
        if isinstance(b, float)
        else a == b
        or (
            a["labels"] == b["labels"]
            and a["probabilities"] == pytest.approx(b["probabilities"], rel=1e-4)
        )
        for a, b in zip(first, second, strict=True)
    )


def check_answers(kind: str, answers: list[Any], settings: Any) -> None:
    assert len(answers) == 3
    for answer in answers:
        if kind == "multilabel":
            assert (
                set(answer["labels"]) <= set(answer["probabilities"]) == set(settings.task.labels)
            )
        elif kind == "regression":
            assert 0 <= answer <= 60
        elif kind == "tokens":
            assert len(answer["words"]) == len(answer["tags"])
            assert set(answer["tags"]) <= set(settings.task.labels)
        else:
            assert isinstance(answer, str)


PARTS: dict[str, dict[str, Any]] = {
    "client": {"privacy.unit": "client"},
    "black-box": {"model.access": "black-box"},
    "perturbed": {"awp.form": "per-example"},
    "lora": {"adapter.form": "lora", "adapter.rank": 2},
    "head": {"adapter.form": "head"},
    "last-layers": {"adapter.form": "last-layers"},
    "full": {"adapter.form": "full", "model.checkpointing": True},
    "reuse": {"adapter.form": "lora", "adapter.layers": [-1], "model.reuse": "memory"},
    "fixed-shape": {"client.max_batch": 24, "privacy.accountant": "pld"},
    "codec": {"codec.name": "linear", "codec.ratio": 4},
    "ema": {"teacher.kind": "ema"},
    "layers": {"layers.form": "private", "layers.examples": 16, "layers.keep": 1},
}
QUICK = {("chat", "fixed-shape")}


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        pytest.param(kind, part, marks=() if (kind, part) in QUICK else pytest.mark.slow)
        for kind in METRICS
        for part in PARTS
        if (kind, part) != ("chat", "head")  # it has none
    ],
)
def test_a_run_with_an_optional_part(
    kind: str, part: str, start: Any, in_process: Federate
) -> None:
    run = start(kind, **PARTS[part])
    assert in_process(run) == "finished", run.state()["message"]
    assert len(rows(run, TRAIN)) == 8


SOME_SLOW = [
    "tokens",
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("multilabel", "regression", "chat")),
]


@pytest.mark.parametrize("kind", [SOME_SLOW[0], SOME_SLOW[1], SOME_SLOW[3]])
def test_a_teacher_is_distilled_from_on_public_records(
    kind: str, start: Any, in_process: Federate, tmp_path: Path
) -> None:
    public = tmp_path / "public.jsonl"
    records = [r | {"text": r["text"] + " w9"} for r in task_files.make_records(20, 1234)]
    text = "".join(json.dumps(task_files.in_form(kind, record)) + "\n" for record in records)
    public.write_text(text, encoding="utf-8")
    run = start(
        kind,
        **{
            "teacher.kind": "public",
            "teacher.public_steps": 2,
            "teacher.distillation": 0.5,
            "public.source": "files",
            "public.path": str(public),
            "server.rounds": 1,
        },
    )
    assert in_process(run) == "finished", run.state()["message"]


@pytest.mark.parametrize("kind", SOME_SLOW[:3])
def test_the_card_of_a_head_has_code_that_answers(
    kind: str, start: Any, in_process: Federate, tmp_path: Path
) -> None:
    """The code of the card is run as it stands, and must give the run's answers."""
    run = start(kind, **{"server.rounds": 1, "adapter.form": "lora", "adapter.rank": 2})
    assert in_process(run) == "finished", run.state()["message"]
    export_adapter(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    code = next(b for b in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "PeftModel" in b)
    words = ["w9", "w40", "w41 w42"]
    code = code.replace("FOLDER", str(tmp_path / "out")).replace('["a", "text"]', repr(words))
    names: dict[str, Any] = {}
    exec(code.replace('["a text"]', '["w9 w40"]'), names)
    if kind == "tokens":
        (expected,) = Predictor(run).predict([{"tokens": words}])
        assert names["answers"] == expected["tags"]
        return
    (expected,) = Predictor(run).predict(["w9 w40"])
    (answer,) = names["answers"]
    assert answer == (
        expected["labels"] if kind == "multilabel" else pytest.approx(expected, rel=1e-4)
    )


def test_silos_count_examples_with_exactly_the_right_labels(
    start: Any, in_process: Federate
) -> None:
    run = start("multilabel", **{"evaluation.clients": "raw", "evaluation.clients_holdout": 0.3})
    assert in_process(run) == "finished", run.state()["message"]
    assert sorted({row.party for row in rows(run, EVALUATE)}) == ["alpha", "beta", "delta", "gamma"]
    told = [m for m in run.metrics() if m["kind"] == "evaluation" and m["where"] != "server"]
    assert 0 <= told[-1]["accuracy"] <= 1


def test_a_conversation_line_by_line(start: Any, in_process: Federate) -> None:
    run = start("chat", **{"server.rounds": 1})
    assert in_process(run) == "finished", run.state()["message"]
    predictor = Predictor(run)
    first = predictor.predict(["w9 w10"])[0]
    messages = [
        {"role": "user", "content": "w9 w10"},
        {"role": "assistant", "content": first or "..."},
        {"role": "user", "content": "w11"},
    ]
    second = predictor.predict([{"messages": messages}])[0]
    assert call("predict", run.path, "--chat", input="w9 w10\n\nw11\n") == f"{first}\n{second}\n"
    assert call("predict", run.path, "w9 w10") == f"{first}\n"
    with pytest.raises(PredictError, match="a message to answer"):
        predictor.predict([{"messages": messages[1:2]}])
    failed = CliRunner().invoke(app, ["predict", str(run.path)])
    assert failed.exit_code == 2


@pytest.mark.slow
def test_only_a_model_that_chats_does(start: Any, in_process: Federate) -> None:
    run = start("regression", **{"server.rounds": 1})
    assert in_process(run) == "finished", run.state()["message"]
    failed = CliRunner().invoke(app, ["predict", str(run.path), "--chat"])
    assert failed.exit_code == 2
    assert "task.kind=chat for --chat, got task.kind=regression" in failed.output
