"""Whatever a server asks, in whatever order: the ledger of a silo with its own config keeps to the budget."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configured_silo import write_silo
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from task_extras import fields_beside

from client.app import app
from fedllm import messages as names
from fedllm.settings.io import SettingsError, to_json
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.accountants import make_accountant
from privacy.events.multiset import is_private
from privacy.guarantee import Adversary, Unit
from privacy.ledger.ledger import Ledger

Make = Callable[..., Any]
EPSILON, DELTA = 6.0, 1e-5

ASKED: dict[str, Any] = {
    "seed": [7, 8],
    "privacy.epsilon": [None, 0.5, 3.0, 1e6],
    "privacy.run_epsilon": [None, 2.0, 1e6],
    "privacy.delta": [1e-9, 1e-5, 0.5],
    "privacy.noise_multiplier": [None, 0.1, 0.7, 1.5],
    "privacy.mode": ["dp", "dp", "dp", "none"],
    "privacy.unit": ["example", "example", "client"],
    "privacy.noise_by": ["client", "client", "server"],
    "privacy.randomness": ["os", "seeded"],
    "privacy.clip": [0.01, 100.0],
    "client.local_steps": [1, 4, 30],
    "client.batch_size": [2, 8, 1000],
    "client.sampling_rate": [None, 0.05, 1.0],
    "server.rounds": [1, 5, 40],
    "evaluation.clients": ["off", "private", "raw"],
    "evaluation.clients_holdout": [0.2],
    "evaluation.clients_noise": [0.3, 5.0],
    "awp.form": ["none", "none", "batch", "per-example"],
    "teacher.kind": ["none", "none", "nonprivate"],
    "layers.form": ["none", "none", "private", "private-top-k", "paper"],
    "layers.keep": [1],
    "layers.noise": [0.1, 2.0],
    "layers.epsilon": [0.1, 5.0],
}
KINDS = ("train", "train", "train", "evaluate", "query.scores", "query.statistics", "query")
TASKS = st.lists(
    st.tuples(
        st.fixed_dictionaries({key: st.sampled_from(values) for key, values in ASKED.items()}),
        st.sampled_from(KINDS),
        st.sampled_from(["one", "two", "three"]),
        st.integers(0, 6),
        st.integers(0, 6),
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path_factory.getbasetemp() / "calibrations"))
    monkeypatch.delenv("FEDLLM_SILO", raising=False)


def made(tiny_settings: Make, changes: dict[str, Any]) -> Any:
    """Settings with as many of the changes as go together; the others are left as they are."""
    kept: dict[str, Any] = {}
    for key, value in changes.items():
        try:
            tiny_settings(**kept, **{key: value})
        except SettingsError:
            continue
        kept[key] = value
    return tiny_settings(**kept)


def released(reply: Message) -> int:
    """Number of releases in an answer: arrays, or counts of an evaluation."""
    content: Any = reply.content
    counts = content.metric_records.get(names.METRICS, {})
    return len(content.array_records) + (names.COUNT in counts)


@pytest.mark.parametrize("most", ["everything", "the usual"])
@settings(
    max_examples=25,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # a counterexample is short as it is
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(tasks=TASKS)
@example(  # a round of a run that plans none
    tasks=[({"privacy.epsilon": None, "privacy.noise_multiplier": 1.5}, "train", "one", 1, 0)]
)
def test_nothing_that_a_server_sends_spends_beyond_the_silos_budget(
    tiny_settings: Make, word_files: Path, most: str, tasks: list[Any]
) -> None:
    """With the usual limits, and with limits that allow all that a finite budget can hold."""
    limits: dict[str, Any] = {"budget.epsilon": EPSILON, "budget.delta": DELTA}
    if most == "everything":
        limits |= {
            "limits.rounds": 1000,
            "limits.local_steps": 1000,
            "limits.sampling_rate": 1.0,
            "limits.noise_multiplier": 0.0,
            "limits.quantities": ["update", "size", "evaluation", "statistics", "layer-scores"],
            "data.holdout": 0.2,
        }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = tiny_settings()
        silo = write_silo(folder, base, word_files / "validation.jsonl", **limits)
        context = Context(1, 5, {"silo-file": str(silo)}, RecordDict(), {})
        params = ArrayRecord(initial_params(shared_tunable(base), base))
        releases = 0
        for changes, kind, run, server_round, planned in tasks:
            settings = made(tiny_settings, changes)
            fields = {
                names.SETTINGS: to_json(settings),
                names.RUN_ID: run,
                names.RUN_FOLDER: str(folder / "elsewhere"),
                names.ROUND: server_round,
                names.PLANNED_ROUNDS: planned,
                **fields_beside(kind, settings),
            }
            records = RecordDict({names.CONFIG: ConfigRecord(fields), names.PARAMS: params})
            reply = app(Message(records, dst_node_id=5, message_type=kind), context)
            releases += released(reply)
        assert not (folder / "elsewhere").exists()
        ledger = folder / "ledger.sqlite"
        if not ledger.exists():
            assert releases == 0
            return
        with Ledger(ledger, read_only=True) as opened:
            rows = opened.entries()
            events = {
                unit: opened.spent(Adversary("server"), party="clinic", unit=unit) for unit in Unit
            }
        # Seeded, a repeated round is the same value: fewer rows than answers, never an answer without.
        keys = {(row.run, row.key) for row in rows}
        assert len(keys) == len(rows)
        assert bool(releases) <= bool(rows)
        assert {row.party for row in rows} <= {"clinic"}
        assert events[Unit.CLIENT] == Counter()
        assert all(is_private(event) for event in events[Unit.EXAMPLE])
        spent = make_accountant("rdp").epsilon(events[Unit.EXAMPLE], DELTA)
        assert spent <= EPSILON
