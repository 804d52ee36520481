"""Each silo's own targets, and the budgets of a run and of a ledger, in whole runs."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from fedllm import messages as names
from fedllm.data.silos import load_federation
from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.accountants import make_accountant
from privacy.events.constructors import dp_sgd
from privacy.ledger.ledger import Ledger
from server.aggregation import Contribution, mean_update
from server.global_model import ServerOptimizer

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
SILOS = ["alpha", "beta", "delta", "gamma"]
CALIBRATED = {"privacy.noise_multiplier": None, "privacy.epsilon": 4.0}
BY_HAND = {"privacy.noise_multiplier": 1.0, "privacy.epsilon": 6.0, "client.local_steps": 1}
OWN = {
    "alpha": {"epsilon": 1.5, "delta": 1e-6, "batch_size": 4},
    "gamma": {"epsilon": 6.0, "sampling_rate": 0.2},
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "calibrations"
    monkeypatch.setenv("FEDLLM_CACHE", str(folder))


def rows(ledger: Path, run: str | None = None) -> Counter[str]:
    with Ledger(ledger, read_only=True) as opened:
        return Counter(e.party for e in opened.entries(run=run))


def epsilons(ledger: Path, delta: float = 1e-5) -> dict[str, float]:
    with Ledger(ledger, read_only=True) as opened:
        return {
            party: float(make_accountant("rdp").epsilon(opened.spent("server", party=party), delta))
            for party in opened.parties()
        }


def lefts(run: RunFolder) -> dict[str, str]:
    records = [m for m in run.metrics() if m["kind"] == "round"]
    return {item["silo"]: item["reason"] for r in records for item in r["left"]}


def test_each_silo_keeps_to_its_own_target_also_after_a_resume(
    start_run: Start, in_process: Federate
) -> None:
    changes = CALIBRATED | {"privacy.silos": OWN, "evaluation.every": 1}
    whole = start_run("whole", **changes)
    assert in_process(whole) == "finished"
    expected = {  # epsilon, delta, rate
        "alpha": (1.5, 1e-6, 4 / 60),
        "beta": (4.0, 1e-5, 8 / 45),
        "gamma": (6.0, 1e-5, 0.2),
        "delta": (4.0, 1e-5, 8 / 24),
    }
    told = {m["silo"]: m for m in whole.metrics() if m["kind"] == "silo"}
    for silo, (epsilon, delta, rate) in expected.items():
        found = epsilons(whole.ledger_path, delta)[silo]
        assert epsilon * 0.998 <= found <= epsilon
        assert told[silo]["epsilon"] == pytest.approx(found, rel=1e-9)
        assert (told[silo]["target_epsilon"], told[silo]["delta"]) == (epsilon, delta)
        public = whole.read_json("silos.json")[silo]
        assert public["sampling_rate"] == pytest.approx(rate)
        assert (public["target_epsilon"], public["target_run_epsilon"]) == (epsilon, None)

    parts = start_run("parts", **changes)
    arrived = []

    def crash(task: Message, reply: Message) -> Message | None:
        arrived.append(task)
        if len(arrived) > 4 + 6:  # queries, round 1, half of round 2
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        in_process(parts, crash)
    assert parts.state()["round"] == 1
    assert in_process(RunFolder.open(parts.path)) == "finished"
    with (
        Ledger(whole.ledger_path, read_only=True) as first,
        Ledger(parts.ledger_path, read_only=True) as second,
    ):
        for silo in SILOS:
            assert first.spent("server", party=silo) == second.spent("server", party=silo)
    ends = [latest_checkpoint(run.checkpoints_path) for run in (whole, parts)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert all(torch.equal(ends[0].params[n], ends[1].params[n]) for n in ends[0].params)


def test_mean_and_noise_correction_use_what_each_silo_has(
    start_run: Start, in_process: Federate, tmp_path: Path
) -> None:
    """Own divisors and own noise: equal weights of the silos' means, and Adam's correction by the
    mean's true variance. The same as a plain loop; other noise in the correction is another model."""
    changes = CALIBRATED | {"privacy.silos": OWN, "server.noise_correction": True}
    run = start_run("run", **changes)
    assert in_process(run) == "finished"
    settings = run.settings()
    silos = load_federation(settings).silos
    torch.set_num_threads(1)

    def loop(equal_noise: bool) -> dict[str, Any]:
        workers = {
            silo.name: SiloWorker(
                settings, silo, run="loop", ledger=tmp_path / f"{equal_noise}.sqlite"
            )
            for silo in silos
        }
        params = initial_params(shared_tunable(settings), settings)
        optimizer = ServerOptimizer(settings.server, params)
        for server_round in (1, 2, 3):
            replies = []
            for name, worker in workers.items():
                reply = worker.train(SiloTask(params, server_round, 3))
                assert reply.noise_std is not None
                divisor = {"alpha": 4}.get(name, 8)
                std = reply.noise_multiplier * 0.5 / divisor * 0.1 * 2**0.5
                assert reply.noise_std == pytest.approx(dict.fromkeys(params, std))
                told = dict.fromkeys(params, 0.1) if equal_noise else reply.noise_std
                replies.append(Contribution(name, reply.update, told))
            update, noise = mean_update(replies, params, 4)
            params = optimizer.step(params, update, noise, server_round)
        return params

    end = latest_checkpoint(run.checkpoints_path)
    assert end is not None
    own, equal = loop(False), loop(True)
    assert all(torch.equal(end.params[name], own[name]) for name in own)
    assert not all(torch.equal(end.params[name], equal[name]) for name in equal)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"privacy.silos": {"alpa": {"epsilon": 1.0}}},
            ["privacy.silos", "alpha, beta, delta, gamma", "'alpa'", "did you mean 'alpha'?"],
        ),
        ({"privacy.colluding": [1, 4]}, ["privacy.colluding", "below 4", "got 4"]),
        (
            {
                "privacy.noise_multiplier": None,
                "privacy.silos": {"beta": {"epsilon": 0.01}},
                "evaluation.clients": "private",
                "evaluation.clients_holdout": 0.3,
            },
            ["privacy.epsilon", "beta", "evaluation.clients_noise"],
        ),
    ],
    ids=["unknown silo", "too many colluders", "evaluations above the target"],
)
def test_settings_that_do_not_fit_the_silos_stop_the_run_before_it_spends(
    changes: dict[str, Any], said: list[str], start_run: Start, in_process: Federate
) -> None:
    run = start_run("run", **changes)
    asked: list[str] = []

    def count(task: Message, reply: Message) -> Message:
        asked.append(task.metadata.message_type)
        return reply

    assert in_process(run, count) == "failed"
    assert set(asked) == {"query"}
    for part in said:
        assert part in run.state()["message"]


def test_message_to_a_silo_holds_its_own_values_alone(
    start_run: Start, in_process: Federate
) -> None:
    run = start_run("run", **CALIBRATED, **{"privacy.silos": OWN, "server.rounds": 1})
    seen: dict[str, str] = {}

    def look(task: Message, reply: Message) -> Message:
        if task.metadata.message_type == "train":
            silo = str(reply.content[names.INFO][names.SILO])
            seen[silo] = str(task.content[names.CONFIG][names.SETTINGS])
        return reply

    assert in_process(run, look) == "finished"
    assert sorted(seen) == SILOS
    for silo, text in seen.items():
        assert '"silos":{}' in text
        assert f'"epsilon":{OWN.get(silo, {}).get("epsilon", 4.0)}' in text


def test_one_silo_with_a_small_budget_leaves_and_the_others_go_on(
    start_run: Start, in_process: Federate
) -> None:
    own = {"privacy.silos": {"alpha": {"epsilon": 3.0}}, "server.rounds": 4}
    run = start_run("run", **BY_HAND | own)
    assert in_process(run) == "finished"
    assert list(lefts(run)) == ["alpha"]
    assert "privacy.epsilon (all runs on the ledger)" in lefts(run)["alpha"]
    assert "epsilon=3" in lefts(run)["alpha"]
    counts = rows(run.ledger_path)
    assert 0 < counts["alpha"] < 4
    assert counts["beta"] == counts["gamma"] == counts["delta"] == 4
    assert 0 < epsilons(run.ledger_path)["alpha"] <= 3.0
    strict = start_run("strict", **BY_HAND | own | {"server.min_clients": 4})
    assert in_process(strict) == "stopped"
    assert rows(strict.ledger_path)["alpha"] == counts["alpha"]
    assert strict.state()["round"] == counts["alpha"] + 1, "the round in which alpha left"
    assert "3 silos can still take part" in strict.state()["message"]


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(CALIBRATED, marks=pytest.mark.slow, id="calibrated"),
        pytest.param(BY_HAND, id="by hand"),
    ],
)
def test_second_run_on_a_shared_ledger_trains_nobody_and_has_failed(
    noise: dict[str, Any], start_run: Start, in_process: Federate, tmp_path: Path
) -> None:
    ledger = tmp_path / "shared.sqlite"
    changes = noise | {
        "privacy.ledger": str(ledger),
        "server.rounds": 60 if noise is BY_HAND else 3,
    }
    first = start_run("first", **changes)
    assert in_process(first) in ("finished", "stopped")
    spent, target = epsilons(ledger), float(noise["privacy.epsilon"])
    assert all(0.8 * target < value <= target for value in spent.values())
    second = start_run("second", **changes)
    for _ in range(2):  # again: a resume
        assert in_process(RunFolder.open(second.path)) == "failed"
        assert not rows(ledger, second.run_id)
        assert sorted(lefts(second)) == SILOS
        for reason in lefts(second).values():
            assert reason.startswith("privacy.epsilon (all runs on the ledger)")
        assert "No silo trained" in second.state()["message"]
    assert epsilons(ledger) == spent
    assert (second.path / "report.json").exists()
    # A budget for the run alone does not open the ledger's.
    third = start_run("third", **changes | {"privacy.run_epsilon": 1.0})
    assert in_process(third) == "failed"
    assert epsilons(ledger) == spent


def test_run_epsilon_stops_this_run_and_the_next_one_begins_anew(
    start_run: Start, in_process: Federate, tmp_path: Path
) -> None:
    ledger = tmp_path / "shared.sqlite"
    changes = BY_HAND | {"privacy.ledger": str(ledger), "server.rounds": 200}
    changes |= {"privacy.epsilon": 6.0, "privacy.run_epsilon": 5.0}
    first = start_run("first", **changes)
    assert in_process(first) == "stopped"
    assert all("privacy.run_epsilon (this run alone)" in why for why in lefts(first).values())
    assert all(4.0 < value <= 5.0 for value in epsilons(ledger).values())
    before = rows(ledger)
    assert in_process(RunFolder.open(first.path)) == "stopped"
    assert rows(ledger) == before, "a resume spends nothing more"
    second = start_run("second", **changes)
    assert in_process(second) == "stopped"
    assert all("privacy.epsilon (all runs on the ledger)" in w for w in lefts(second).values())
    assert all(5.0 < value <= 6.0 for value in epsilons(ledger).values())


def test_trusted_noise_on_a_spent_ledger_trains_nobody_and_has_a_report(
    start_run: Start, in_process: Federate, tmp_path: Path
) -> None:
    ledger = tmp_path / "shared.sqlite"
    changes = CALIBRATED | {"privacy.unit": "client", "privacy.noise_by": "server"}
    changes |= {"privacy.ledger": str(ledger)}
    first = start_run("first", **changes)
    assert in_process(first) == "finished"
    count = rows(ledger)
    second = start_run("second", **changes)
    for _ in range(2):
        assert in_process(RunFolder.open(second.path)) == "failed"
        assert rows(ledger) == count
    assert "No silo trained" in second.state()["message"]
    assert "privacy.epsilon" in second.state()["message"]
    assert (second.path / "report.json").exists()


def _whole_run(settings_json: str, folder: str, start: Any, done: Any) -> None:
    from fedllm.settings.io import from_json
    from simulations.in_process import federate

    run = RunFolder.create(from_json(settings_json), Path(folder))
    start.wait()
    done.put((run.run_id, federate(run)))


@pytest.mark.slow
def test_runs_at_the_same_time_in_two_processes_never_exceed_together(
    tiny_settings: Callable[..., Any], tmp_path: Path
) -> None:
    from fedllm.settings.io import to_json

    ledger = tmp_path / "shared.sqlite"
    changes = BY_HAND | {"privacy.ledger": str(ledger), "server.rounds": 200}
    settings = tiny_settings(**changes | {"privacy.silos": {"alpha": {"epsilon": 3.0}}})
    context = multiprocessing.get_context("spawn")
    start, done = context.Barrier(2), context.Queue()
    processes = [
        context.Process(
            target=_whole_run, args=(to_json(settings), str(tmp_path / f"run-{i}"), start, done)
        )
        for i in range(2)
    ]
    for process in processes:
        process.start()
    ended = dict(done.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert set(ended.values()) == {"stopped"}
    targets = {"alpha": 3.0, "beta": 6.0, "gamma": 6.0, "delta": 6.0}
    found = epsilons(ledger)
    rates = {"alpha": 8 / 60, "beta": 8 / 45, "gamma": 8 / 30, "delta": 8 / 24}
    for silo, target in targets.items():
        assert found[silo] <= target
        with Ledger(ledger, read_only=True) as opened:
            events = opened.spent("server", party=silo)
        one_more = events + Counter({dp_sgd(rates[silo], 1.0, 1): 1})
        assert make_accountant("rdp").epsilon(one_more, 1e-5) > target, "the budget was used up"
    shares = [rows(ledger, run) for run in ended]
    assert all(sum(share.values()) > 0 for share in shares), "both runs took part"
