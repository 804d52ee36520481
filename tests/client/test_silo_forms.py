"""A silo config names the form of its data; experiments of another form, or with their own template, are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configured_silo import BUDGET, LIMITS

from client.config import SiloConfigError, load_silo
from client.limits import check_limits
from client.node import configured_silo
from fedllm.budget.local_policy import LimitRefused
from fedllm.silo.opened import open_silo_data
from fedllm.training.tunable import shared_tunable
from simulations.cli.deploy.silo.examine import _data
from tests.support import task_files
from tests.support.task_files import TEMPLATE

Make = Callable[..., Any]
FORMS = {"multilabel": "labels", "regression": "number", "tokens": "tags", "chat": "messages"}
COLUMNS: dict[str, dict[str, Any]] = {
    "multilabel": {"text": ["note"], "target": "codes", "labels": ["high", "long", "even"]},
    "regression": {"text": ["note"], "target": "age"},
    "tokens": {"text": ["note"], "target": "marks", "labels": ["O", "B-high", "I-high"]},
    "chat": {"text": ["talk"]},
}


def silo_of(kind: str, folder: Path, **data: Any) -> Path:
    """A silo config with data under names of its own, and those data."""
    import tomli_w

    own = COLUMNS[kind]
    names = [*own["text"], *([own["target"]] if "target" in own else [])]
    records = [task_files.in_form(kind, record) for record in task_files.make_records(20, 5)]
    rows = [
        dict(zip(names, [v for k, v in record.items() if k != "organisation"], strict=True))
        for record in records
    ]
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tree = {
        "name": "clinic",
        "data": {"path": str(path), "form": FORMS[kind], **own, **data},
        "budget": dict(BUDGET),
        "limits": LIMITS | {"models": ["*"]},
        "model": {"device": "cpu"},
    }
    file = folder / "silo.toml"
    file.write_text(tomli_w.dumps(tree), encoding="utf-8")
    return file


@pytest.fixture
def settings_of(tiny_settings: Make, decoder_folder: Path) -> Make:
    def make(kind: str, **changes: Any) -> Any:
        own = {"task.kind": kind, **task_files.SETTINGS[kind]}
        if kind == "chat":
            own["model.name"] = str(decoder_folder)
        return tiny_settings(**own | changes)

    return make


@pytest.mark.parametrize("kind", FORMS)
def test_data_of_each_form_are_read_by_the_silos_own_names(
    kind: str, settings_of: Make, tmp_path: Path
) -> None:
    silo = load_silo(silo_of(kind, tmp_path, template=True))
    settings = settings_of(kind)
    check_limits(silo, settings)
    found = configured_silo(silo, settings)
    task = shared_tunable(settings).task
    opened = open_silo_data(found, "refuse", task)
    records = [task_files.in_form(kind, record) for record in task_files.make_records(20, 5)]
    assert opened.train == task.features(records)
    good, text = _data(silo)
    assert good
    assert "20 examples" in text


def test_labels_are_read_as_the_silo_writes_them(settings_of: Make, tmp_path: Path) -> None:
    file = silo_of("multilabel", tmp_path, separator=";")
    rows = [{"note": "w5", "codes": "even;high"}, {"note": "w6", "codes": ""}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = configured_silo(load_silo(file), settings_of("multilabel", **{"task.separator": ","}))
    assert [r["labels"] for r in found.train.records] == [["high", "even"], []]


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("asked", ["classification", *FORMS])
def test_a_task_of_another_form_is_refused_before_any_data_is_read(
    kind: str, asked: str, settings_of: Make, tiny_settings: Make, tmp_path: Path
) -> None:
    silo = load_silo(silo_of(kind, tmp_path, path=str(tmp_path / "absent.jsonl"), template=True))
    settings = tiny_settings() if asked == "classification" else settings_of(asked)
    if asked == kind:
        check_limits(silo, settings)
        return
    with pytest.raises(LimitRefused, match=f"data.form={FORMS[kind]}.*got task.kind={asked}"):
        check_limits(silo, settings)


def test_a_servers_template_is_refused_unless_the_silo_says_otherwise(
    settings_of: Make, tmp_path: Path
) -> None:
    file = silo_of("chat", tmp_path)
    with pytest.raises(LimitRefused, match=r"Expected no task.template .*data.template=false"):
        check_limits(load_silo(file), settings_of("chat", **{"task.template": TEMPLATE}))
    check_limits(load_silo(file), settings_of("chat", **{"task.template": None}))
    with pytest.raises(LimitRefused, match=r"task.max_prompt <= 512"):
        check_limits(
            load_silo(file), settings_of("chat", **{"task.template": None, "task.max_prompt": 600})
        )


def test_every_label_of_the_silo_must_be_known(settings_of: Make, tmp_path: Path) -> None:
    silo = load_silo(silo_of("tokens", tmp_path))
    with pytest.raises(LimitRefused, match=r"data.labels.*I-high"):
        check_limits(silo, settings_of("tokens", **{"task.labels": ["O", "B-high"]}))


@pytest.mark.parametrize(
    ("kind", "data", "named"),
    [
        ("multilabel", {"labels": []}, "data.labels for data.form=labels"),
        ("regression", {"labels": ["a"]}, "no data.labels for data.form=number"),
        ("chat", {"target": "other"}, "the same in data.target, for data.form=messages"),
        ("chat", {"text": ["a", "b"]}, "one column in data.text"),
    ],
)
def test_a_silo_config_that_does_not_fit_its_form_is_refused(
    kind: str, data: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(SiloConfigError, match=named):
        load_silo(silo_of(kind, tmp_path, **data))
