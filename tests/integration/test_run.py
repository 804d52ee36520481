"""Whole runs with the real client and server code, joined within this process."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from whole_runs import SILOS, config, final, loop, poison, rounds, same_bits, spent, tell, without

from fedllm import messages as names
from fedllm.budget.schedule import participation
from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.events.multiset import is_private
from privacy.ledger.ledger import Ledger
from server.robust.update_law import UpdateLaw

Start = Callable[..., RunFolder]
Federate = Callable[..., str]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"server.fraction": 0.5, "server.rounds": 5, "server.optimizer": "sgd"},
        {"client.optimizer": "adam", "client.learning_rate": 0.01},
        {"privacy.mode": "none"},
        {"privacy.unit": "client"},
        {"server.sampling": "poisson", "server.fraction": 0.3, "server.rounds": 6},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())) or "default",
)
def test_federation_equals_a_loop_over_the_silos(
    changes: dict[str, Any], start_run: Start, in_process: Federate, tmp_path: Any
) -> None:
    run = start_run("federated", **changes)
    assert in_process(run) == "finished"
    params = final(run)
    assert same_bits(params, loop(run, tmp_path))
    start = initial_params(shared_tunable(run.settings()), run.settings())
    assert not same_bits(params, start)
    assert (run.path / "report.html").stat().st_size > 1000
    assert run.read_json("report.json")
    assert any(run.adapter_path.iterdir())
    asked = sum(map(len, participation(run.settings(), SILOS)))
    assert sum(spent(run)["server"].values()) == asked


def interruption(kind: str, server_round: int, silo: str | None = None) -> Any:
    """Stop while waiting for the replies of a round: the silos (or one) have worked, and what they
    released does not arrive."""
    stop = threading.Event()

    def tamper(task: Message, reply: Message) -> Message | None:
        if (task.metadata.message_type, config(task).get(names.ROUND)) != (kind, server_round):
            return reply
        stop.set()
        return None if silo in (None, reply.content[names.INFO][names.SILO]) else reply

    return stop, tamper


def test_interrupted_run_goes_on_to_the_same_end(start_run: Start, in_process: Federate) -> None:
    """Stopped within rounds 3, 4 (while the silos evaluate) and 6, with a checkpoint every other
    round: the same bits, optimiser, ledger rows and metrics as without interruption."""
    changes = {
        "server.rounds": 6,
        "server.checkpoint_every": 2,
        "server.fraction": 0.75,
        "server.averaging": 0.5,
        "evaluation.every": 2,
        "evaluation.clients": "private",
        "evaluation.clients_holdout": 0.2,
    }
    whole = start_run("whole", **changes)
    assert in_process(whole) == "finished"
    parts = start_run("parts", **changes)

    for kind, server_round, round_kept in (("train", 3, 2), ("evaluate", 4, 2), ("train", 6, 5)):
        stop, tamper = interruption(kind, server_round, "beta" if server_round == 3 else None)
        assert in_process(parts, tamper, stop) == "interrupted"
        assert parts.state()["status"] == "interrupted"
        assert parts.state()["round"] == round_kept
        parts = RunFolder.open(parts.path)
    assert in_process(parts) == "finished"
    assert same_bits(final(whole), final(parts))
    first, second = (latest_checkpoint(r.checkpoints_path) for r in (whole, parts))
    assert first is not None
    assert second is not None
    assert same_bits(first.state, second.state)
    assert spent(whole) == spent(parts)
    changing = {"time", "seconds"}
    metrics = [
        [{k: v for k, v in m.items() if k not in changing} for m in run.metrics()]
        for run in (whole, parts)
    ]
    assert metrics[0] == metrics[1]


def test_interrupted_before_the_first_round_and_resumed(
    start_run: Start, in_process: Federate
) -> None:
    whole, parts = start_run("whole"), start_run("parts")
    assert in_process(whole) == "finished"
    stop = threading.Event()
    stop.set()
    assert in_process(parts, None, stop) == "interrupted"
    assert parts.state()["round"] == 0
    stop, tamper = interruption("train", 1)
    assert in_process(RunFolder.open(parts.path), tamper, stop) == "interrupted"
    assert parts.state()["round"] == 0
    assert not (parts.path / "report.html").exists()
    assert in_process(RunFolder.open(parts.path)) == "finished"
    assert same_bits(final(whole), final(parts))
    assert spent(whole) == spent(parts)


def test_a_repeated_round_with_fresh_noise_is_counted_twice(
    start_run: Start, in_process: Federate
) -> None:
    """It takes the place of the last round that was planned: the plan was fixed, and is not exceeded."""
    run = start_run("run", **{"privacy.randomness": "os"})
    stop, tamper = interruption("train", 2)
    assert in_process(run, tamper, stop) == "interrupted"
    assert in_process(RunFolder.open(run.path)) in ("finished", "stopped")
    with Ledger(run.ledger_path, read_only=True) as ledger:
        per_round = Counter((e.party, e.round) for e in ledger.entries())
    assert per_round == {(s, r): r for s in SILOS for r in (1, 2)}


def test_budget_ends_the_run_with_a_model_and_a_report(
    start_run: Start, in_process: Federate
) -> None:
    """Noise by hand and a small epsilon: small silos sample at a higher rate and leave first."""
    changes = {"privacy.epsilon": 4.0, "privacy.noise_multiplier": 1.5, "client.local_steps": 1}
    run = start_run("run", **changes, **{"server.rounds": 200})
    assert in_process(run) == "stopped"
    state = run.state()
    assert 1 < state["round"] < 150
    assert "min_clients" in state["message"]
    left = {item["silo"]: r["round"] for r in rounds(run) for item in r["left"]}
    assert sorted(left) == SILOS
    assert left["delta"] < left["gamma"] < left["beta"] < left["alpha"]
    with Ledger(run.ledger_path, read_only=True) as ledger:
        counts = Counter(e.party for e in ledger.entries())
    assert counts == {silo: server_round - 1 for silo, server_round in left.items()}
    from privacy.accountants import make_accountant

    with Ledger(run.ledger_path, read_only=True) as ledger:
        for silo in SILOS:
            epsilon = make_accountant("rdp").epsilon(ledger.spent("server", party=silo), 1e-5)
            assert 3.0 < epsilon <= 4.0
            told = [r for r in run.metrics() if r["kind"] == "silo" and r["silo"] == silo]
            assert told[-1]["round"] == state["round"], "the last table has no gap"
            assert told[-1]["epsilon"] == pytest.approx(epsilon)
    assert (run.path / "report.html").exists()
    assert any(run.adapter_path.iterdir())
    assert in_process(RunFolder.open(run.path)) == "stopped", "a resume spends nothing more"
    with Ledger(run.ledger_path, read_only=True) as ledger:
        assert Counter(e.party for e in ledger.entries()) == counts


@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
def test_client_level_with_noise_by_the_server(
    sampling: str, start_run: Start, in_process: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own clip holds without the law of norms, which refuses what is fifty times too long before."""
    monkeypatch.setattr(UpdateLaw, "check", lambda law, accepted: (accepted, {}))
    changes = {
        "privacy.unit": "client",
        "privacy.noise_by": "server",
        "privacy.clip": 0.05,
        "privacy.epsilon": None,
        "server.sampling": sampling,
        "server.fraction": 0.5,
        "server.rounds": 6,
    }
    run = start_run("run", **changes)
    sent: list[float] = []

    def tamper(task: Message, reply: Message) -> Message | None:
        if task.metadata.message_type == "train":
            update = reply.content[names.UPDATE].to_torch_state_dict()
            sent.append(float(torch.cat([v.flatten() for v in update.values()]).norm()))
            # A silo that does not clip: the server does.
            return poison(reply, lambda u: {n: v * 50 for n, v in u.items()})
        return reply

    assert in_process(run, tamper) == "finished"
    assert sent
    assert max(sent) <= 0.05 * (1 + 1e-6), "silos clip and add no noise of std 0.04 an entry"
    with Ledger(run.ledger_path, read_only=True) as ledger:
        entries = ledger.entries()
    schedule = run.read_json("schedule.json")["rounds"]
    counted = Counter((e.party, e.round) for e in entries)
    if sampling == "poisson":
        assert counted == {(s, r): 1 for s in SILOS for r in range(1, 7)}
        assert "PoissonSampled" in str(entries[0].view("outsider"))
    else:
        assert counted == {(s, r): 1 for r, row in enumerate(schedule, 1) for s in row}
    assert all(is_private(e.view("outsider")) for e in entries)
    assert not any(is_private(e.view("server")) for e in entries)
    assert {e.unit.value for e in entries} == {"client"}
    for record in rounds(run):
        # Noise of 0.8 * 0.05 over the expected 2 silos in each of 162 entries, plus at most 2 clips.
        assert 0.1 < record["update_norm"] < 0.02 * 162**0.5 * 1.4 + 0.1
    again = start_run("again", **changes)
    assert in_process(again, tamper) == "finished"
    assert same_bits(final(run), final(again))


def test_client_level_with_noise_by_the_clients(start_run: Start, in_process: Federate) -> None:
    changes = {"privacy.unit": "client", "privacy.clip": 0.01, "privacy.epsilon": None}
    run = start_run("run", **changes)
    norms: list[float] = []

    def tamper(task: Message, reply: Message) -> Message:
        if task.metadata.message_type == "train":
            update = reply.content[names.UPDATE].to_torch_state_dict()
            norms.append(float(torch.cat([v.flatten() for v in update.values()]).norm()))
        return reply

    assert in_process(run, tamper) == "finished"
    expected = 0.8 * 0.01 * 162**0.5
    assert all(0.7 * expected < norm < 1.5 * expected for norm in norms)
    with Ledger(run.ledger_path, read_only=True) as ledger:
        assert len(ledger.entries()) == 12
        assert all(is_private(e.view("server")) for e in ledger.entries())


@pytest.mark.parametrize("how", ["private", "raw"])
def test_evaluation_by_the_silos(how: str, start_run: Start, in_process: Federate) -> None:
    changes = {
        "evaluation.clients": how,
        "evaluation.clients_holdout": 0.3,
        "evaluation.clients_noise": 1.0,  # a noisy number of 16 examples is not below zero
        "evaluation.every": 2,
        "privacy.epsilon": 100.0,
    }
    run = start_run("run", **changes)

    def tamper(task: Message, reply: Message) -> Message | None:
        if task.metadata.message_type == "evaluate" and config(task)[names.ROUND] == 3:
            silo = reply.content[names.INFO][names.SILO]
            if silo == "alpha":
                return tell(reply, names.CORRECT, float("nan"))
            if silo == "beta":
                return without(reply, names.METRICS)
        return reply

    assert in_process(run, tamper) == "finished"
    shown = [m for m in run.metrics() if m["kind"] == "evaluation" and m["where"] == "silos"]
    assert [m["round"] for m in shown] == [2, 3]
    assert [m["silos"] for m in shown] == [4, 2], "unusable numbers are left out"
    assert all(0 <= m["accuracy"] <= 1 for m in shown)
    with Ledger(run.ledger_path, read_only=True) as ledger:
        evaluations = [e for e in ledger.entries() if e.purpose == "evaluate"]
    assert Counter(e.round for e in evaluations) == {2: 4, 3: 4}
    assert all(is_private(e.view("server")) == (how == "private") for e in evaluations)
    epsilons = [m["epsilon"] for m in run.metrics() if m["kind"] == "silo"]
    assert epsilons
    assert all(np.isfinite(epsilons)) == (how == "private")


def test_generation_by_a_decoder(
    start_run: Start, in_process: Federate, decoder_folder: Any, tmp_path: Any
) -> None:
    changes = {
        "model.name": str(decoder_folder),
        "task.kind": "generation",
        "task.target": "answer",
        "task.labels": None,
        "task.prompt": "w7 {text} w8",
        "server.rounds": 2,
        "evaluation.generate": 3,
        "evaluation.max_new_tokens": 4,
    }
    run = start_run("run", **changes)
    assert in_process(run) == "finished"
    assert same_bits(final(run), loop(run, tmp_path))
    last = [m for m in run.metrics() if m["kind"] == "evaluation"][-1]
    assert last["perplexity"] > 1
    assert {"bleu", "rouge_l"} < set(last)
