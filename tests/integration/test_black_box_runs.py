"""``model.access = "black-box"`` in whole runs: messages, the rebuilt model, the ledger, resuming, the report."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from fedllm import messages as names
from fedllm.adapter.export import export_adapter
from fedllm.adapter.predict import Predictor
from fedllm.data.silos import load_federation
from fedllm.report.build import build
from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training.black_box.directions import NUMBERS, Directions, DirectionsPlan, round_seed
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.accountants import make_accountant
from privacy.events.kinds import ScalarNoiseDpEvent
from privacy.ledger.ledger import Ledger
from server.robust.update_law import UpdateLaw
from tests.support.endpoint_answers import Answers, answering

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
BLACK_BOX = {
    "model.access": "black-box",
    "zeroth_order.directions": 3,
    "server.rounds": 2,
    "server.optimizer": "sgd",
    "server.learning_rate": 1.0,
    "server.momentum": 0.0,
    "server.schedule": "constant",
    "privacy.accountant": "pld",
}
LAPLACE = {
    "privacy.mechanism": "lmo",
    "privacy.noise": json.dumps({"family": "laplace", "parameters": {"scale": 1.0}}),
}
CLIENT = {"privacy.unit": "client"}
TRUSTED = CLIENT | {"privacy.noise_by": "server"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path_factory.getbasetemp() / "calibrations"))


def last(run: RunFolder) -> dict[str, Tensor]:
    found = latest_checkpoint(run.checkpoints_path)
    assert found is not None
    return found.params


@pytest.mark.parametrize(
    "changes",
    [{}, LAPLACE, CLIENT, CLIENT | LAPLACE, TRUSTED, TRUSTED | LAPLACE],
    ids=["example", "example-laplace", "client", "client-laplace", "trusted", "trusted-laplace"],
)
def test_a_run_spends_its_target_and_sends_a_few_numbers(
    start_run: Start, in_process: Federate, changes: dict[str, Any]
) -> None:
    target = {"privacy.noise_multiplier": None, "privacy.epsilon": 4.0}
    run = start_run("run", **BLACK_BOX | changes | target)
    assert in_process(run) == "finished"
    rounds = [r for r in run.metrics() if r["kind"] == "round"]
    assert [r["bytes_up"] for r in rounds] == [4 * 2 * 3 * 4] * 2  # 4 silos, 2 steps, 3 directions
    adversary = "outsider" if changes.get("privacy.noise_by") == "server" else "server"
    with Ledger(run.ledger_path, read_only=True) as ledger:
        for party in ledger.parties():
            spent = ledger.spent(adversary, party=party)
            assert 4.0 * 0.99 <= make_accountant("pld").epsilon(spent, 1e-5) <= 4.0
            singles = [e for e in spent if isinstance(getattr(e, "event", e), ScalarNoiseDpEvent)]
            if changes.get("privacy.mechanism") == "lmo":
                assert len(singles) == len(spent) == 1
                assert spent.total() == 2 * 2 * 3
            else:
                assert not singles
    report = build(run)
    assert report["guarantee"]["epsilon"] == pytest.approx(4.0, rel=0.01)
    spending = [r["epsilon"] for r in run.metrics() if r["kind"] == "silo"]
    assert max(spending) == pytest.approx(4.0, rel=0.01)
    titles = {item["title"]: item["text"] for item in report["assumptions"]}
    assert "differences of losses" in titles["Clipping"] or "numbers" in titles["Clipping"]
    assert "gradient" not in titles["Clipping"]


@pytest.mark.parametrize("more", [{}, {"codec.downlink": "int8"}, {"zeroth_order.subspace": 5}])
def test_the_model_is_what_the_numbers_and_the_announced_seeds_say(
    start_run: Start, in_process: Federate, more: dict[str, Any]
) -> None:
    received: dict[int, list[tuple[Tensor, str, dict[str, Tensor]]]] = {}

    def tamper(task: Message, reply: Message) -> Message:
        if task.metadata.message_type == "train":
            config: Any = task.content[names.CONFIG]
            update: Any = reply.content[names.UPDATE]
            sent: Any = task.content[names.PARAMS]
            tensors = update.to_torch_state_dict()
            assert list(tensors) == [NUMBERS]
            server_round, seed = int(config[names.ROUND]), str(config[names.DIRECTIONS])
            told = (tensors[NUMBERS], seed, sent.to_torch_state_dict())
            received.setdefault(server_round, []).append(told)
        return reply

    from fedllm.codec.downlink import decode_params

    run = start_run("run", **BLACK_BOX | more)
    assert in_process(run, tamper) == "finished"
    settings = run.settings()
    expected = initial_params(shared_tunable(settings), settings)
    for server_round in (1, 2):
        rows = received[server_round]
        assert {seed for _, seed, _ in rows} == {round_seed(7, run.run_id, server_round)}
        sent = decode_params(rows[0][2], settings.codec.downlink)
        directions = Directions(DirectionsPlan.of(settings), sent, rows[0][1])
        assert len({row[0].numpy().tobytes() for row in rows}) == 4
        mean = torch.stack([row[0].double() for row in rows]).mean(0).float()
        moved = directions.update(mean)
        expected = {name: value + moved[name] for name, value in expected.items()}
    for name, value in last(run).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        assert float(moved[name].norm()) > 0


def test_a_resumed_run_is_the_run(start_run: Start, in_process: Federate) -> None:
    whole = start_run("whole", **BLACK_BOX | LAPLACE)
    assert in_process(whole) == "finished"
    halted = start_run("halted", **BLACK_BOX | LAPLACE)
    stop = threading.Event()

    class Halt:
        def record(self, record: dict[str, Any]) -> None:
            if record["kind"] == "round" and record["round"] == 1:
                stop.set()

        def close(self) -> None:
            pass

    assert in_process(halted, stop=stop, callbacks=[Halt()]) == "interrupted"
    assert in_process(halted) == "finished"
    # Directions and noise are those of the run's own id: the same rounds, not the same numbers.
    assert halted.state()["round"] == whole.state()["round"] == 2
    with Ledger(halted.ledger_path, read_only=True) as ledger:
        for party in ledger.parties():
            assert ledger.spent("server", party=party).total() == 2 * 2 * 3
    for folder in (whole, halted):
        assert build(folder)["guarantee"]["level"] == "conditional"


def test_numbers_of_another_shape_are_refused(start_run: Start, in_process: Federate) -> None:
    def tamper(task: Message, reply: Message) -> Message:
        info: Any = reply.content.config_records.get(names.INFO, {})
        if task.metadata.message_type == "train" and info[names.SILO] == "alpha":
            reply.content[names.UPDATE] = ArrayRecord({NUMBERS: torch.zeros(2, 4)})
        return reply

    run = start_run("run", **BLACK_BOX)
    assert in_process(run, tamper) == "finished"
    rounds = [r for r in run.metrics() if r["kind"] == "round"]
    assert [len(r["refused"]) for r in rounds] == [1, 1]
    assert all("alpha" in json.dumps(r["refused"]) for r in rounds)


@pytest.mark.parametrize("more", [{}, LAPLACE], ids=["gaussian", "laplace"])
def test_a_trusted_server_clips_the_numbers_itself(
    start_run: Start, in_process: Federate, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """A silo sends a thousand times what it may, past the law of norms: the clip bounds the move of the model."""
    monkeypatch.setattr(UpdateLaw, "check", lambda law, accepted: (accepted, {}))
    moved = {}
    for factor in (1.0, 1000.0):

        def tamper(task: Message, reply: Message, factor: float = factor) -> Message:
            if task.metadata.message_type == "train":
                update: Any = reply.content[names.UPDATE]
                numbers = update.to_torch_state_dict()[NUMBERS]
                reply.content[names.UPDATE] = ArrayRecord({NUMBERS: factor * numbers})
            return reply

        name = {"privacy.noise_multiplier": 0.01, "privacy.epsilon": None, "server.rounds": 1}
        run = start_run(f"run-{factor:g}", **BLACK_BOX | TRUSTED | more | name)
        assert in_process(run, tamper) == "finished"
        (record,) = [r for r in run.metrics() if r["kind"] == "round"]
        moved[factor] = record["update_norm"]
    numbers = 2 * 3
    entry = max(1.0, float(last(run)["prefix"].square().mean().sqrt()))
    size = sum(value.numel() for value in last(run).values())
    most = (
        0.1 * 0.5 / 3 * numbers * (1 + 0.1) * entry * size**0.5
    )  # rate, clip, mean over directions
    assert moved[1000.0] <= most
    assert moved[1.0] <= most


def test_other_directions_are_another_release(
    tiny_settings: Callable[..., Any], tmp_path: Path
) -> None:
    """Seeded: other noise and another key in the ledger. A worker without a seed of directions refuses."""
    settings = tiny_settings(**BLACK_BOX)
    silo = next(s for s in load_federation(settings).silos if s.name == "alpha")
    worker = SiloWorker(settings, silo, run="r", ledger=tmp_path / "ledger.sqlite")
    params = initial_params(shared_tunable(settings), settings)

    def directed(seed: str) -> SiloTask:
        return SiloTask(params, 1, 2, {names.DIRECTIONS: seed})

    assert worker.digest(directed("a"), 1.0) != worker.digest(directed("b"), 1.0)
    replies = [worker.train(directed(seed)) for seed in ("aa", "ab", "aa")]
    numbers = [reply.update[NUMBERS] for reply in replies]
    assert torch.equal(numbers[0], numbers[2])
    assert not torch.equal(numbers[0], numbers[1])
    assert len(list(worker.ledger.entries(party="alpha"))) == 2
    with pytest.raises(ValueError, match="Expected directions beside the parameters"):
        worker.train(SiloTask(params, 1, 2))
    plain = SiloWorker(tiny_settings(), silo, run="p", ledger=tmp_path / "plain.sqlite")
    with pytest.raises(ValueError, match="Expected nothing beside the parameters of a train task"):
        plain.train(directed("aa"))


def test_a_run_through_an_endpoint_exports_what_predicts(
    start_run: Start, in_process: Federate, tmp_path: Path
) -> None:
    with answering() as url:
        run = start_run(
            "run",
            **BLACK_BOX
            | {
                "prefix.length": 0,
                "endpoint.url": url,
                "endpoint.prompts": ["Review: {text}. It is", "{text}: a text that is"],
                "task.label_words": [" negative", " positive"],
            },
        )
        assert in_process(run) == "finished"
        start = initial_params(shared_tunable(run.settings()), run.settings())
        assert all(not torch.equal(value, start[name]) for name, value in last(run).items())
        asked = len(Answers.bodies)
        assert asked == len({body["prompt"] for body in Answers.bodies})
        export_adapter(run, tmp_path / "adapter")
        card = (tmp_path / "adapter" / "README.md").read_text()
        assert "calibration of label words" in card
        (answer,) = Predictor(tmp_path / "adapter").predict(["w5 w6 w7"])
        assert sum(answer["probabilities"].values()) == pytest.approx(1.0)
        assert build(run)["guarantee"]["level"] == "conditional"


def test_nothing_private_moves_where_no_noise_is_asked_for(
    start_run: Start, in_process: Federate
) -> None:
    run = start_run("run", **BLACK_BOX | {"privacy.mode": "none"})
    assert in_process(run) == "finished"
    report = build(run)
    assert report["headline"].startswith("NO GUARANTEE")
