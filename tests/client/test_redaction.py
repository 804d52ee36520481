"""What a silo's answer says of its machine: no path, whatever went wrong; the silo's own log has it all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configured_silo import write_silo
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from client.app import app
from client.redaction import REDACTED, redact_paths
from fedllm import messages as names
from fedllm.settings.io import to_json
from fedllm.training.tunable import initial_params, shared_tunable

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    monkeypatch.delenv("FEDLLM_SILO", raising=False)


def reason(settings: Any, silo: Path) -> str:
    """Why the silo did not train."""
    config = {
        names.SETTINGS: to_json(settings),
        names.RUN_ID: "run",
        names.RUN_FOLDER: "/not/here",
        names.ROUND: 1,
        names.PLANNED_ROUNDS: 3,
    }
    params = ArrayRecord(initial_params(shared_tunable(settings), settings))
    content = RecordDict({names.CONFIG: ConfigRecord(config), names.PARAMS: params})
    context = Context(
        run_id=1, node_id=5, node_config={"silo-file": str(silo)}, state=RecordDict(), run_config={}
    )
    message = Message(content, dst_node_id=5, message_type="train")
    info: Any = app(message, context).content[names.INFO]
    assert info[names.STATUS] in (names.FAILED, names.LEFT)
    return str(info[names.REASON])


@pytest.mark.parametrize("folder", ["wards", "Ward of Dr Smith"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ledger": "wards.sqlite"}, "Expected a ledger, got a file that is not SQLite: (path)"),
        ({"ledger": "wards.sqlite/x"}, "the task failed at the silo; its own log has the reason"),
        ({"model.path": "weights"}, "(path)"),
        (
            {"data.path": "patients.jsonl"},
            "this silo takes no part in the run; its own log has the reason",
        ),
    ],
    ids=["ledger", "folder", "model", "data"],
)
def test_no_path_of_the_silos_machine_leaves(
    folder: str,
    changes: dict[str, Any],
    said: str,
    tiny_settings: Make,
    word_files: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    home = tmp_path / folder
    silo = write_silo(home, tiny_settings(), word_files / "validation.jsonl", **changes)
    (home / "wards.sqlite").write_text("no ledger, this", encoding="utf-8")
    with caplog.at_level(logging.ERROR):
        told = reason(tiny_settings(), silo)
    assert said in told
    assert str(tmp_path) not in told
    for part in (folder, "wards", "Smith", "patients", "weights/"):
        assert part not in told
    assert str(home) in caplog.text, "the silo's own log has it"


def test_a_simulation_says_where_its_files_are(tmp_path: Path) -> None:
    """Of one machine, there is nobody to hide it from."""
    config = ConfigRecord({names.SETTINGS: "{not JSON at /srv/x"})
    context = Context(run_id=1, node_id=5, node_config={}, state=RecordDict(), run_config={})
    message = Message(RecordDict({names.CONFIG: config}), dst_node_id=5, message_type="query")
    info: Any = app(message, context).content[names.INFO]
    assert REDACTED not in info[names.REASON]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Cannot write /srv/a/ledger.sqlite: disk is full", "Cannot write (path): disk is full"),
        ("No such file: '/srv/x', ~/y (at /data/z)", "No such file: '(path)', (path) (at (path))"),
        ("file:///srv/x?mode=ro and key=/a/b", "file://(path) and key=(path)"),
        ("see https://host/x/y", "see https://host/x/y"),
        ("3/4 of epsilon <= 2 and/or rounds", "3/4 of epsilon <= 2 and/or rounds"),
        ("limits.models=minilm, google/gemma", "limits.models=minilm, google/gemma"),
    ],
)
def test_what_is_a_path(text: str, left: str) -> None:
    assert redact_paths(text) == left


@given(st.text(max_size=30), st.text(max_size=30), st.sampled_from(["", "'", '"', " ", "=", "("]))
def test_the_silos_own_places_never_leave(before: str, after: str, quote: str) -> None:
    folder = Path("/srv/Ward 7/of Dr Smith")
    tree = "name = 's'\ndata.path = 'd.csv'\nbudget = {epsilon = 1.0, delta = 1e-5}\n"
    own = _silo(folder, tree)
    for place in (own.ledger, own.data.path, str(folder)):
        told = redact_paths(f"{before}{quote}{place}{after}", own)
        assert str(folder) not in told


def _silo(folder: Path, tree: str) -> Any:
    from client.config import _parsed

    return _parsed(tree, "silo.toml", folder)
