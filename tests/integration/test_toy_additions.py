"""A mechanism, a codec, a task and a teacher from outside the package, each registered and used in a whole run."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import MessageType
from toy_parts import BRIER, EPSILON, EVERY_OTHER, ONE_BIT, STEP, ZEROS, Brier, EveryOther
from whole_runs import final, rounds

from fedllm import messages as names
from fedllm.budget.account import EVALUATE, TRAIN
from fedllm.budget.schedule import sampling_rate
from fedllm.codec import CodecFacts, Layout, register_codec
from fedllm.data.public import evaluation_set
from fedllm.data.silos import load_federation
from fedllm.flatness.teacher import register_teacher
from fedllm.run.folder import RunFolder
from fedllm.settings.io import SettingsError
from fedllm.silo.codec_needs import CodecRefused, check_codec_needs
from fedllm.tasks import register_task
from fedllm.training.mechanism import make_mechanism, register_mechanism
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.events.constructors import pure_dp
from privacy.events.multiset import multiset
from privacy.ledger.ledger import Ledger
from server.robust.limit_warnings import limit_warnings

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
Make = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
NAMES = ["alpha", "beta", "delta", "gamma"]


@pytest.fixture
def added() -> Iterator[Callable[..., None]]:
    """``added(register, kind)`` adds a part until the end of the test."""
    forget: list[Callable[[], None]] = []
    yield lambda register, kind: forget.append(register(kind))
    for each in forget:
        each()


def trainings(run: RunFolder) -> dict[tuple[str, int], Counter[Any]]:
    """Events of training in the ledger against the server, by silo and round."""
    with Ledger(run.ledger_path, read_only=True) as ledger:
        rows = [row for row in ledger.entries() if row.purpose == TRAIN]
    return {(row.party, row.round): multiset(row.views["server"]) for row in rows}


def sampled_gaussians(run: RunFolder) -> dict[tuple[str, int], Counter[Any]]:
    """What one round of DP-SGD costs each silo, by silo and round."""
    settings = run.settings()
    noise = settings.privacy.noise_multiplier
    found = {}
    for silo in load_federation(settings).silos:
        rate = sampling_rate(settings, len(silo.train))
        mechanism = make_mechanism(settings, sampling_rate=rate, noise_multiplier=noise)
        found[silo.name, 1] = multiset(mechanism.events(1))
    return found


def test_a_mechanism(added: Any, tiny_settings: Make, in_process: Federate, tmp_path: Path) -> None:
    added(register_mechanism, ONE_BIT)
    changes = {"name": "one-bit", "server.rounds": 2, "privacy.accountant": "pld"}
    run = RunFolder.create(tiny_settings(**changes), tmp_path / "run")
    sent: list[dict[str, Any]] = []

    def look(task: Any, reply: Any) -> Any:
        if task.metadata.message_type == MessageType.TRAIN:
            sent.append(reply.content[names.UPDATE].to_torch_state_dict())
        return reply

    assert in_process(run, look) == "finished"
    expected = {(name, r): Counter({pure_dp(EPSILON): 1}) for name in NAMES for r in (1, 2)}
    assert trainings(run) == expected
    assert len(sent) == 8
    for update in sent:  # a whole step of random numbers, not a clipped sum with noise
        flat = torch.cat([value.flatten() for value in update.values()])
        assert 0.8 < float(flat.std()) / STEP < 1.2
    assert [record["replied"] for record in rounds(run)] == [4, 4]
    (told,) = limit_warnings(run.settings(), dict.fromkeys(NAMES, 30))
    assert "its mechanism is one of another package" in told
    report = json.loads((run.path / "report.json").read_text("utf-8"))
    assert report["guarantee"]["epsilon"] == pytest.approx(2 * EPSILON, rel=1e-3)


def test_a_codec(added: Any, start_run: Start, in_process: Federate) -> None:
    added(register_codec, EVERY_OTHER)
    changes = {"codec.name": "every-other", "server.rounds": 1, "server.optimizer": "sgd"}
    run = start_run("run", **changes)
    start = initial_params(shared_tunable(run.settings()), run.settings())
    layout = Layout.of(start)
    length = (layout.dimension + 1) // 2
    shapes: list[Any] = []

    def look(task: Any, reply: Any) -> Any:
        if task.metadata.message_type == MessageType.TRAIN:
            code = reply.content[names.UPDATE].to_torch_state_dict()
            shapes.append({name: tuple(value.shape) for name, value in code.items()})
        return reply

    assert in_process(run, look) == "finished"
    assert shapes == [{"code": (length,)}] * 4
    assert trainings(run) == sampled_gaussians(run)
    moved = layout.flatten({name: final(run)[name] - start[name] for name in start})
    assert moved[::2].all()
    assert not moved[1::2].any()


def test_a_silo_refuses_another_state_of_a_codec_from_outside(
    added: Any, tiny_settings: Make
) -> None:
    added(register_codec, EVERY_OTHER)
    settings = tiny_settings(**{"codec.name": "every-other"}).codec
    _, meta = EveryOther(9).state()
    check_codec_needs(meta, {}, settings, 9)
    for wrong, forms in (
        (meta | {"dimension": 10}, {}),
        (meta | {"more": 1}, {}),
        (meta, {"more": ((3,), "<f4")}),
        (meta | {"name": "none"}, {}),
    ):
        with pytest.raises(CodecRefused):
            check_codec_needs(wrong, forms, settings, 9)


def test_a_task(added: Any, start_run: Start, in_process: Federate) -> None:
    added(register_task, BRIER)
    run = start_run(
        "run",
        **{
            "task.kind": "brier",
            "server.rounds": 1,
            "evaluation.clients": "private",
            "evaluation.clients_holdout": 0.2,
        },
    )
    assert in_process(run) == "finished"
    settings = run.settings()
    tunable = shared_tunable(settings)
    assert isinstance(tunable.task, Brier)
    judged = [m for m in run.metrics() if m["kind"] == "evaluation" and m["where"] == "server"]
    told = judged[-1]
    features = tunable.task.features(evaluation_set(settings).records)
    assert told["brier"] == pytest.approx(tunable.evaluate(final(run), features, 4096)["brier"])
    assert 0 < told["brier"] < 2
    assert trainings(run) == sampled_gaussians(run)
    with Ledger(run.ledger_path, read_only=True) as ledger:
        asked = [row.party for row in ledger.entries() if row.purpose == EVALUATE]
    assert sorted(asked) == NAMES


def test_the_loss_of_a_task_is_what_is_differentiated(added: Any, tiny_settings: Make) -> None:
    """At equal shares of two classes the squared error's gradient is half that of the logarithmic loss."""
    added(register_task, BRIER)
    found = []
    for kind in ("brier", "classification"):
        settings = tiny_settings(**{"task.kind": kind})
        tunable = shared_tunable(settings)
        params = initial_params(tunable, settings)
        batch = tunable.task.collate(tunable.task.features(evaluation_set(settings).records[:1]))
        leaves = {n: v[None].clone().requires_grad_(True) for n, v in params.items()}
        loss = tunable.losses(leaves, batch).sum()
        found.append((loss.item(), torch.autograd.grad(loss, leaves["head.bias"])[0]))
    classes = found[0][1].numel()
    assert found[0][0] == pytest.approx((1 - 1 / classes) ** 2 + (classes - 1) / classes**2)
    assert found[1][0] == pytest.approx(math.log(classes))
    assert torch.allclose(found[0][1] * classes / 2, found[1][1], atol=1e-6)


def test_a_teacher(added: Any, start_run: Start, in_process: Federate) -> None:
    added(register_teacher, ZEROS)
    taught = start_run("taught", **{"server.rounds": 1, "teacher.kind": "zeros"})
    assert in_process(taught) == "finished"
    section = taught.settings().teacher
    kept = 1 - section.learning_rate * section.strength
    assert kept < 1
    (record,) = rounds(taught)
    squares = sum(float(value.double().square().sum()) for value in final(taught).values())
    assert math.sqrt(squares) == pytest.approx(kept * record["teacher_distance"], rel=1e-5)
    assert trainings(taught) == sampled_gaussians(taught)
    report = json.loads((taught.path / "report.json").read_text("utf-8"))
    assert report["teacher"]["kind"] == "zeros"
    assert report["teacher"]["guarantee"] is True
    assert "as long as it reads nothing else" in report["teacher"]["sentence"]
    assert "Its weights are zero." in report["teacher"]["sentence"]


@pytest.mark.parametrize(
    ("setting", "known", "add"),
    [
        ("task.kind", "classification, generation", partial(register_task, BRIER)),
        ("codec.name", "none, fp16, int8", partial(register_codec, EVERY_OTHER)),
        ("teacher.kind", "none, ema, public, nonprivate", partial(register_teacher, ZEROS)),
    ],
)
def test_an_unknown_kind_is_one_error_that_names_the_known_ones(
    setting: str, known: str, add: Any, tiny_settings: Make
) -> None:
    kinds = {"task.kind": "brier", "codec.name": "every-other", "teacher.kind": "zeros"}
    with pytest.raises(SettingsError) as refused:
        tiny_settings(**{setting: kinds[setting]})
    assert len(str(refused.value).splitlines()) == 1
    assert f"Expected {setting} among {known}" in str(refused.value)
    assert repr(kinds[setting]) in str(refused.value)
    forget = add()
    try:
        tiny_settings(**{setting: kinds[setting]})
        with pytest.raises(ValueError, match="Expected a new name"):
            add()
        with pytest.raises(SettingsError, match=f"known|{kinds[setting]}"):
            tiny_settings(**{setting: "another"})
    finally:
        forget()
    with pytest.raises(SettingsError):
        tiny_settings(**{setting: kinds[setting]})


def test_facts_of_a_kind_refuse_what_does_not_go_with_it(added: Any, tiny_settings: Make) -> None:
    added(register_task, BRIER)
    with pytest.raises(
        SettingsError, match=r"task.labels with at least 2 classes for task.kind=brier"
    ):
        tiny_settings(**{"task.kind": "brier", "task.labels": None})
    added(register_codec, replace(EVERY_OTHER, facts=CodecFacts()))
    with pytest.raises(SettingsError, match=r"codec.noise=in-code with codec.name=every-other"):
        tiny_settings(**{"codec.name": "every-other", "codec.noise": "in-code"})


SECTIONS = ("A mechanism", "A codec", "A task", "A teacher")


def test_the_guide_shows_these_parts() -> None:
    """Each block of code of the guide's sections is in toy_parts.py, with the imports that it shows."""
    guide = (ROOT / "docs" / "guides" / "extend.md").read_text("utf-8")
    source = (ROOT / "tests" / "support" / "toy_parts.py").read_text("utf-8")
    imported = imports(source)
    for title in SECTIONS:
        (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", guide, re.S | re.M)
        blocks = re.findall(r"```python\n(.*?)```", section, re.S)
        assert blocks, title
        for block in blocks:
            assert imports(block) <= imported, title
            body = re.sub(r"^(from|import) .*\n", "", block, flags=re.M).strip()
            assert body in source, block


def imports(source: str) -> set[tuple[str, str]]:
    return {
        (str(node.module), alias.name)
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    } | {
        ("", alias.name)
        for node in ast.parse(source).body
        if isinstance(node, ast.Import)
        for alias in node.names
    }
