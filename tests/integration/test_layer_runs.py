"""Whole runs that choose their layers: real client and server code, joined within this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message
from whole_runs import final, rounds, rows, same_bits

from fedllm import messages as names
from fedllm.adapter.predict import Predictor
from fedllm.flatness.layer_choice import Choice
from fedllm.report import build
from fedllm.run.folder import RunFolder, RunFolderError
from privacy.accountants import make_accountant
from privacy.events.constructors import pure_dp
from privacy.events.multiset import is_private
from privacy.guarantee import SERVER
from privacy.ledger.ledger import composed
from tests.support.deep import LAYERS, deep_settings

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
SILOS = ["alpha", "beta", "delta", "gamma"]
PRIVATE = {"layers.form": "private", "layers.examples": 16}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, word_files: Path) -> Any:
    return deep_settings(tmp_path_factory.mktemp("deep"), word_files)


@pytest.fixture
def start(make: Any, tmp_path: Path) -> Start:
    return lambda name, **changes: RunFolder.create(make(**changes), tmp_path / name)


def choice_of(run: RunFolder) -> Choice:
    choice = run.choice()
    assert choice is not None
    assert choice.kept is not None
    return choice


def test_layers_chosen_before_training_are_layers_given_from_the_start(
    start: Start, in_process: Federate
) -> None:
    """Public text costs nothing: the same bits, the same rows, and no scores in the ledger."""
    chosen = start("chosen", **{"layers.form": "public", "layers.search": "greedy"})
    assert in_process(chosen) == "finished", chosen.state()["message"]
    choice = choice_of(chosen)
    assert len(choice.steps) == LAYERS - 2
    assert [len(step.candidates) for step in choice.steps] == [4, 3]
    given = start("given", **{"prefix.layers": list(choice.remaining)})
    assert in_process(given) == "finished"
    assert same_bits(final(chosen), final(given))
    assert [r["bytes_up"] for r in rounds(chosen)] == [r["bytes_up"] for r in rounds(given)]
    keys = [{(r.party, r.purpose, r.key) for r in rows(run)} for run in (chosen, given)]
    assert keys[0] == keys[1]
    assert {row.purpose for row in rows(chosen)} == {"train"}
    assert build(chosen)["layers"]["mu"] == []


@pytest.mark.parametrize("after", [0, 2])
def test_private_scores_are_recorded_before_they_leave_and_the_target_holds(
    after: int, start: Start, in_process: Federate
) -> None:
    target = {"privacy.noise_multiplier": None, "privacy.epsilon": 20.0}
    run = start("private", **PRIVATE, **target, **{"layers.after": after})
    seen: list[str] = []
    sizes: list[int] = []

    def watch(task: Message, reply: Message) -> Message:
        content: Any = reply.content
        if task.metadata.message_type == names.ASK_SCORES:
            silo = str(content[names.INFO][names.SILO])
            assert silo in {row.party for row in rows(run, "layer-scores")}
            seen.append(silo)
        if task.metadata.message_type == "train":
            sizes.append(content[names.UPDATE].to_torch_state_dict()["prefix"].shape[0])
        return reply

    assert in_process(run, watch) == "finished", run.state()["message"]
    assert sorted(seen) == SILOS
    assert sizes == [LAYERS] * 4 * after + [2] * 4 * (3 - after)
    choice = choice_of(run)
    assert choice.round == after
    assert sorted(choice.steps[0].scores) == SILOS
    assert choice.steps[0].noise_std > 0
    assert final(run)["prefix"].shape[0] == 2
    # Messages get shorter, both ways.
    first, last = rounds(run)[0], rounds(run)[-1]
    plain = 4 * (2 * 2 * 4 * 2 * 4)  # two layers' keys and values
    assert first["bytes_up"] - last["bytes_up"] == (4 * plain if after else 0)
    assert first["bytes_down"] - last["bytes_down"] == (4 * plain if after else 0)
    settings = run.settings()
    assert settings.prefix.layers == choice.kept
    accountant = make_accountant("rdp")
    noises = {row.details["noise_multiplier"] for row in rows(run) if row.party == "beta"}
    assert len(noises) == 1  # the choice does not change it
    for silo in SILOS:
        mine = [row for row in rows(run) if row.party == silo]
        (released,) = [row for row in mine if row.purpose == "layer-scores"]
        assert released.round == after
        assert is_private(released.view(SERVER))
        spent = accountant.epsilon(composed(mine, SERVER), settings.privacy.delta)
        assert 0.9 * 20 < spent <= 20
    # What the run leaves behind carries the kept layers alone.
    predictor = Predictor(run)
    assert predictor.tunable.spec is not None
    assert predictor.tunable.spec.layers == choice.kept
    exported = Predictor(run.adapter_path)
    assert exported.tunable.spec == predictor.tunable.spec
    assert exported.predict(["w5 w9"]) == predictor.predict(["w5 w9"])
    part = run.read_json("report.json")["layers"]
    assert part["kept"] == list(choice.remaining)
    assert part["steps"][0]["silos"] == 4
    (server,) = [row for row in part["mu"] if row["adversary"] == "server"]
    assert 0 < server["scores"]["mu"] < server["training"]["mu"] < server["total"]["mu"]
    assert "<h2>Layers</h2>" in (run.path / "report.html").read_text()


@pytest.mark.parametrize("cut", ["in the next round", "once it is written", "between two steps"])
def test_a_run_that_was_interrupted_at_the_choice_gives_the_same_bits(
    cut: str, start: Start, in_process: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = PRIVATE | {"layers.after": 1, "layers.search": "greedy", "server.averaging": 0.5}
    changes |= {"server.checkpoint_every": 3}  # none of its own falls to the choice
    whole = start("whole", **changes)
    assert in_process(whole) == "finished"
    run = start("cut", **changes)
    stop = threading.Event()
    asked: list[tuple[str, int]] = []

    def watch(task: Message, reply: Message) -> Message:
        kind, config = task.metadata.message_type, task.content[names.CONFIG]
        asked.append((kind, len(list(config.get(names.CANDIDATES, [])))))  # type: ignore[union-attr]
        if cut == "in the next round" and kind == "train" and int(config[names.ROUND]) == 2:  # type: ignore[index]
            stop.set()
        if cut == "between two steps" and asked.count((names.ASK_SCORES, 3)):
            stop.set()  # the second step is asked for, and its replies are lost
        return reply

    written: list[Any] = []

    def write(name: str, value: Any) -> Any:
        done = RunFolder.write_json(run, name, value)
        if cut == "once it is written" and name == "layers.json" and value["kept"]:
            written.append(value)
            raise KeyboardInterrupt  # as a kill: nothing after this line happens
        return done

    monkeypatch.setattr(run, "write_json", write)
    if cut == "once it is written":
        with pytest.raises(KeyboardInterrupt):
            in_process(run, watch, stop)
        assert written
    else:
        assert in_process(run, watch, stop) == "interrupted"
    before = len(rows(run, "layer-scores"))
    asked.clear()
    stop.clear()
    again = RunFolder.open(run.path)
    begun = again.choice()
    assert begun is not None
    assert len(begun.steps) == (1 if cut == "between two steps" else 2)
    assert in_process(again, watch) == "finished"
    # What was measured is not measured again; a repeated release is the same one.
    wanted = [(names.ASK_SCORES, 3)] * 4 if cut == "between two steps" else []
    assert [task for task in asked if task[0] == names.ASK_SCORES] == wanted
    assert len(rows(again, "layer-scores")) == before == 8
    assert same_bits(final(again), final(whole))
    assert choice_of(again).kept == choice_of(whole).kept
    assert rounds(again)[-1]["bytes_up"] < rounds(again)[0]["bytes_up"]
    keys = [{(r.party, r.key) for r in rows(r)} for r in (again, whole)]
    assert keys[0] == keys[1]


def test_a_run_killed_before_its_first_round_goes_on_with_its_choice(
    start: Start, in_process: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint yet: the choice alone is on disk."""
    changes = PRIVATE | {"server.rounds": 2}
    whole, run = start("whole", **changes), start("cut", **changes)
    assert in_process(whole) == "finished"

    def write(name: str, value: Any) -> Any:
        RunFolder.write_json(run, name, value)
        if name == "layers.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "write_json", write)
    with pytest.raises(KeyboardInterrupt):
        in_process(run)
    asked: list[str] = []

    def watch(task: Message, reply: Message) -> Message:
        asked.append(task.metadata.message_type)
        return reply

    again = RunFolder.open(run.path)
    assert again.settings().prefix.layers != "all"
    assert in_process(again, watch) == "finished"
    assert names.ASK_SCORES not in asked
    assert same_bits(final(again), final(whole))
    keys = [{(r.party, r.key) for r in rows(r)} for r in (again, whole)]
    assert keys[0] == keys[1]


def test_a_trusted_server_goes_on_with_fewer_layers(start: Start, in_process: Federate) -> None:
    trusted = {"privacy.unit": "client", "privacy.noise_by": "server"}
    run = start("trusted", **trusted, **{"layers.form": "public", "layers.after": 1})
    assert in_process(run) == "finished", run.state()["message"]
    assert final(run)["prefix"].shape[0] == 2
    assert rounds(run)[-1]["bytes_up"] < rounds(run)[0]["bytes_up"]


def test_a_decoder_with_chosen_layers_is_exported_without_peft(
    start: Start, in_process: Federate, tmp_path: Path, word_files: Path
) -> None:
    """PEFT's format has a prefix in every layer; none there is another model than one of zeros."""
    settings = deep_settings(tmp_path, word_files, "decoder")(
        **{"layers.form": "public", "server.rounds": 1}
    )
    run = RunFolder.create(settings, tmp_path / "decoder")
    assert in_process(run) == "finished", run.state()["message"]
    from fedllm.adapter.export import export_adapter

    exported = export_adapter(run, tmp_path / "out")
    assert not exported.peft
    assert "every layer" in exported.why_not_peft
    kept = choice_of(run).remaining
    predictor = Predictor(tmp_path / "out")
    assert predictor.tunable.spec is not None
    assert predictor.tunable.spec.layers == kept
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"2 positions in 2 layers ({kept[0]}, {kept[1]})" in card


def test_a_checkpoint_of_before_the_choice_is_used_with_all_its_layers(
    start: Start, in_process: Federate
) -> None:
    run = start("kept", **PRIVATE, **{"layers.after": 1, "server.keep_checkpoints": 9})
    assert in_process(run) == "finished"
    from fedllm.adapter.export import export_adapter

    out = run.path.parent / "early"
    assert export_adapter(run.checkpoints_path / "round-00001", out).round == 1
    early = Predictor(out)
    assert early.tunable.spec is not None
    assert early.tunable.spec.layers == tuple(range(LAYERS))
    (run.path / "layers.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"layers\.json is damaged"):
        run.settings()
    assert any("layers.json" in problem for problem in build(run)["problems"])


@pytest.mark.parametrize("search", ["one-shot", "greedy"])
def test_votes_are_counted(search: str, start: Start, in_process: Federate) -> None:
    changes = {"layers.form": "private-top-k", "layers.examples": 16, "layers.epsilon": 2.0}
    run = start("votes", **changes, **{"layers.search": search, "layers.keep": 1})
    steps = 3 if search == "greedy" else 1

    def tamper(task: Message, reply: Message) -> Message:
        content: Any = reply.content
        if task.metadata.message_type == names.ASK_SCORES:
            silo = str(content[names.INFO][names.SILO])
            votes = content[names.SCORES].to_torch_state_dict()[names.SCORES]
            if silo == "gamma":  # more votes than it has
                content[names.SCORES] = ArrayRecord({names.SCORES: torch.ones_like(votes)})
        return reply

    assert in_process(run, tamper) == "finished", run.state()["message"]
    choice = choice_of(run)
    assert len(choice.steps) == steps
    for step in choice.steps:
        kept = len(step.candidates) - len(step.dropped)
        assert kept == (1 if search == "one-shot" else len(step.candidates) - 1)
        assert all(sum(votes) == kept for votes in step.scores.values())
        assert sorted(step.scores) == ["alpha", "beta", "delta"]
        counted = [sum(votes) for votes in zip(*step.scores.values(), strict=True)]
        assert step.mean == pytest.approx([count / 3 for count in counted])
    recorded = [row.view(SERVER) for row in rows(run, "layer-scores") if row.party == "alpha"]
    assert recorded == [pure_dp(2.0)] * steps
    (server,) = [r for r in build(run)["layers"]["mu"] if r["adversary"] == "server"]
    assert server["scores"]["mu"] > 0
    assert not server["scores"]["exact"]


def test_scores_as_they_are_take_the_guarantee_away(start: Start, in_process: Federate) -> None:
    run = start("paper", **{"layers.form": "paper", "server.rounds": 1})
    assert in_process(run) == "finished"
    report = run.read_json("report.json")
    assert report["guarantee"]["level"] == "none"
    assert "layers.form=paper" in report["headline"] + " ".join(report["guarantee"]["reasons"])
    assert all(not is_private(row.view(SERVER)) for row in rows(run, "layer-scores"))


def test_scores_without_a_row_take_the_guarantee_away(start: Start, in_process: Federate) -> None:
    run = start("without-row", **PRIVATE, **{"server.rounds": 1})
    assert in_process(run) == "finished"
    assert build(run)["guarantee"]["level"] == "conditional"  # seeded
    told = run.read_json("layers.json")
    told["steps"][0]["sampling_rates"]["omega"] = 0.5
    run.write_json("layers.json", told)
    report = build(run)
    assert report["guarantee"]["level"] == "none"
    assert "omega" in report["headline"] + " ".join(report["guarantee"]["reasons"])


def test_scores_that_are_none_are_refused(start: Start, in_process: Federate) -> None:
    run = start("bad", **PRIVATE, **{"server.rounds": 1})

    def tamper(task: Message, reply: Message) -> Message:
        content: Any = reply.content
        if task.metadata.message_type == names.ASK_SCORES:
            silo = str(content[names.INFO][names.SILO])
            value = content[names.SCORES].to_torch_state_dict()[names.SCORES]
            bad = {"gamma": value * float("nan"), "beta": value[:-1]}.get(silo, value)
            content[names.SCORES] = ArrayRecord({names.SCORES: bad})
        return reply

    assert in_process(run, tamper) == "finished"
    assert sorted(choice_of(run).steps[0].scores) == ["alpha", "delta"]


def test_more_layers_than_there_are_end_the_run_before_training(
    start: Start, in_process: Federate
) -> None:
    run = start("many", **{"layers.form": "public", "layers.keep": LAYERS})
    assert in_process(run) == "failed"
    assert "Expected layers.keep below 4" in run.state()["message"]
    assert not run.ledger_path.exists()
