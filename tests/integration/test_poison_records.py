"""A record changes no reply's status and no reply's form, whatever the record is.

The real ClientApp at a silo with its own config, as it is deployed, and in a simulation. Each case trains,
evaluates and asks for statistics with the record and without it, at rate 1: it is in every step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from configured_silo import write_silo
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from client.app import app
from client.node import open_silo
from client.task_fields import TaskFields
from fedllm import messages as names
from fedllm.data.batches import Feature
from fedllm.models.embedded import ModelError
from fedllm.settings.io import SettingsError, to_json
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.ledger.ledger import Ledger
from simulations.benchmarks.support.tiny import make_records

Make = Callable[..., Any]
RATE = 1.0
GOOD = [{key: row[key] for key in ("text", "label")} for row in make_records(20, 3)]
TASKS = ("query", "train", "train", "evaluate")
Form = list[tuple[Any, ...]]


@pytest.fixture(autouse=True)
def identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def make_settings(tiny_settings: Make, **changes: Any) -> Any:
    options = {
        "data.sizes": "private",
        "client.sampling_rate": RATE,
        "evaluation.clients": "private",
        "evaluation.clients_holdout": 0.3,
        "privacy.randomness": "os",
        "privacy.spare_rounds": 20,
    }
    return tiny_settings(**options | changes)


def silo_with(folder: Path, settings: Any, records: list[Any], rule: str = "drop") -> Path:
    folder.mkdir(parents=True)
    data = folder / "records.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return write_silo(
        folder,
        settings,
        data,
        **{
            "data.holdout": 0.3,
            "data.bad_rows": rule,
            "limits.rounds": 20,
            "limits.sampling_rate": 1.0,
            "limits.quantities": ["update", "evaluation"],
        },
    )


def ask(kind: str, settings: Any, silo: Path, server_round: int, node: Any = None) -> RecordDict:
    fields = {
        names.SETTINGS: to_json(settings),
        names.RUN_ID: "run",
        names.RUN_FOLDER: str(silo.parent),
        names.ROUND: server_round,
        names.PLANNED_ROUNDS: 3,
    }
    if kind == "query":
        fields = {names.SETTINGS: fields[names.SETTINGS]}
    records: dict[str, Any] = {names.CONFIG: ConfigRecord(fields)}
    if kind != "query":
        params = initial_params(shared_tunable(settings), settings)
        records[names.PARAMS] = ArrayRecord(params)
    message = Message(RecordDict(records), dst_node_id=5, message_type=kind)
    config = node or {"silo-file": str(silo)}
    context = Context(run_id=1, node_id=5, node_config=config, state=RecordDict(), run_config={})
    return app(message, context).content


def form(content: RecordDict) -> tuple[Any, ...]:
    """All that a reply shows but the values of what carries noise."""
    info = tuple(sorted((k, v) for k, v in content.config_records[names.INFO].items()))
    metrics = {
        (key, type(value).__name__)
        for record in content.metric_records.values()
        for key, value in record.items()
    }
    public = {
        key: value
        for record in content.metric_records.values()
        for key, value in record.items()
        if key not in (names.CORRECT, names.COUNT)
    }
    arrays = {
        (name, key, tuple(array.shape), array.dtype, len(array.data))
        for name, record in content.array_records.items()
        for key, array in record.items()
    }
    finite = all(
        bool(torch.isfinite(value).all())
        for record in content.array_records.values()
        for value in record.to_torch_state_dict().values()
    )
    return info, sorted(metrics), sorted(public.items()), sorted(arrays), finite


def forms(settings: Any, silo: Path) -> Form:
    return [form(ask(kind, settings, silo, place)) for place, kind in enumerate(TASKS)]


def rows(silo: Path) -> int:
    with Ledger(silo.parent / "ledger.sqlite", read_only=True) as ledger:
        return len(ledger.entries())


@pytest.fixture(scope="module")
def settings(tiny_settings: Make) -> Any:
    return make_settings(tiny_settings)


@pytest.fixture(scope="module")
def expected(settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Form:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    silo = silo_with(tmp_path_factory.mktemp("good") / "silo", settings, GOOD)
    found = forms(settings, silo)
    assert [dict(each[0])[names.STATUS] for each in found] == ["ok"] * len(TASKS)
    assert rows(silo) == 3
    return found


TEXTS = (
    st.text(max_size=40)
    | st.text(st.characters(categories=["Cs", "Cc", "Cf", "Lo", "So", "Zs"]), max_size=20)
    | st.integers(1, 400).map(lambda n: "w7 " * n)
    | st.integers(1, 3000).map(lambda n: "w" * n)
    | st.sampled_from(
        ["half \ud83d", "\udfff", "\x00", "[PAD] [PAD]", "[CLS]", "\u202e\ufeff", " "]
    )
)
OTHERS = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.lists(st.just("w5"), max_size=3)
    | st.dictionaries(st.just("w5"), st.none(), max_size=1)
)
RECORDS = st.fixed_dictionaries(
    {
        "text": TEXTS | OTHERS,
        "label": st.sampled_from(["low", "high", "Low", " low", "\ud800", "", "HIV-positive"])
        | OTHERS,
    }
)


@given(record=RECORDS)
@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_record_changes_no_status_and_no_form(
    record: dict[str, Any],
    settings: Any,
    expected: Form,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    silo = silo_with(tmp_path_factory.mktemp("poison") / "silo", settings, [*GOOD, record])
    assert forms(settings, silo) == expected
    assert rows(silo) == 3


FAILING = {
    "a token outside the embedding": Feature([2, 10_000, 5], target=0),
    "longer than the positions": Feature([2] + [5] * 200, target=1),
    "no token": Feature([], target=0),
    "no target": Feature([2, 5, 6]),
    "an unknown class": Feature([2, 5, 6], target=9),
}


@pytest.mark.parametrize("feature", FAILING.values(), ids=FAILING)
def test_an_example_that_got_past_the_door_changes_no_form_either(
    feature: Feature, settings: Any, expected: Form, tmp_path: Path
) -> None:
    """As if validation had missed it: it raises in each step, in training and in evaluation."""
    silo = silo_with(tmp_path / "silo", settings, GOOD)
    fields = TaskFields(settings, run_id="run", run_folder=str(silo.parent), planned_rounds=3)
    context = Context(
        run_id=1, node_id=5, node_config={"silo-file": str(silo)}, state=RecordDict(), run_config={}
    )
    worker = open_silo(fields, context)
    opened = worker.open()
    opened.train.append(feature)
    opened.held_out.append(feature)
    assert forms(settings, silo) == expected
    log = (silo.parent / "rounds.jsonl").read_text(encoding="utf-8")
    (first, *_) = [row for row in map(json.loads, log.splitlines()) if "round" in row]
    assert first["failed"] == 2, "two local steps"


@pytest.mark.parametrize("bad", [{"text": None}, {"text": "\ud83d"}, {"label": "HIV-positive"}])
def test_a_bad_row_that_is_refused_is_refused_at_once_by_a_constant(
    bad: dict[str, Any], settings: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before any row, by each task alike, and the silo's log has the place."""
    record = {"text": "w5", "label": "low"} | bad
    silo = silo_with(tmp_path / "silo", settings, [*GOOD, record], rule="refuse")
    replies = [ask(kind, settings, silo, place) for place, kind in enumerate(TASKS)]
    for content in replies:
        info = content.config_records[names.INFO]
        assert info[names.STATUS] == names.LEFT
        assert (
            info[names.REASON] == "this silo takes no part in the run; its own log has the reason"
        )
        assert not content.array_records
    assert "1 of 21 records" in caplog.text
    assert not (silo.parent / "ledger.sqlite").exists() or rows(silo) == 0


@pytest.mark.parametrize("silo_config", [True, False], ids=["silo config", "simulation"])
def test_no_text_of_an_exception_leaves_after_spending(
    silo_config: bool,
    tiny_settings: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever its type: a reply says the same for all."""
    from fedllm.models.endpoint import EndpointError
    from fedllm.training.dp_sgd import DpSgd
    from privacy.budget import BudgetExceeded

    settings = make_settings(tiny_settings)
    silo = silo_with(tmp_path / "silo", settings, GOOD)
    node: Any = {"silo-file": str(silo)} if silo_config else {"partition-id": 0}
    told = set()
    kinds = (RuntimeError, ValueError, KeyError, EndpointError, ModelError, SettingsError)
    for place, kind in enumerate((*kinds, lambda text: BudgetExceeded(text, 1.0, 1.0))):

        def fail(*args: Any, raised: Any = kind, **options: Any) -> Any:
            raise raised("the text of patient 7")

        monkeypatch.setattr(DpSgd, "train", fail)
        content = ask("train", settings, silo, 1 + place % 3, node)
        info = content.config_records[names.INFO]
        told.add((info[names.STATUS], info[names.REASON]))
    assert told == {("failed", "the task failed at the silo; its own log has the reason")}
    assert "patient 7" in caplog.text


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, KeyError])
def test_no_text_of_an_unexpected_exception_leaves_before_spending_either(
    kind: type[Exception], tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedllm.silo import silo_in_run

    settings = make_settings(tiny_settings)
    silo = silo_with(tmp_path / "silo", settings, GOOD)

    def fail(*args: Any, **options: Any) -> Any:
        raise kind("the text of patient 7")

    monkeypatch.setattr(silo_in_run, "release_key", fail)
    info = ask("train", settings, silo, 1).config_records[names.INFO]
    assert info[names.REASON] == "the task failed at the silo; its own log has the reason"
    assert rows(silo) == 0
