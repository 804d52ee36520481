"""Runs in which silos fail, answer what cannot be used, or do not answer in time."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message
from torch import Tensor
from whole_runs import config, final, loop, poison, rounds, same_bits, spent, tell, without

from fedllm import messages as names
from fedllm.run.folder import RunFolder

Start = Callable[..., RunFolder]
Federate = Callable[..., str]


def renamed(update: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("prefix", "suffix"): value for name, value in update.items()}


def of(reply: Message, name: str, value: Any) -> Message:
    del reply.content[names.INFO][name]
    if value is not None:
        reply.content[names.INFO][name] = value
    return reply


def pretend(reply: Message, silo: str) -> Message:
    reply.content[names.INFO][names.SILO] = silo
    return reply


FAULTS: dict[str, tuple[Callable[[Message], Message | None], str]] = {
    "nan": (
        lambda r: poison(r, lambda u: u | {"prefix": u["prefix"] * float("nan")}),
        "finite numbers for prefix",
    ),
    "infinity": (
        lambda r: poison(r, lambda u: u | {"head.bias": u["head.bias"] + float("inf")}),
        "finite numbers for head.bias",
    ),
    "shape": (lambda r: poison(r, lambda u: u | {"prefix": u["prefix"][:1]}), "Expected shape"),
    "dtype": (lambda r: poison(r, lambda u: u | {"prefix": u["prefix"].double()}), "float32"),
    "huge": (
        lambda r: poison(r, lambda u: u | {"prefix": u["prefix"] + 1e6}),
        "server.max_update_norm",
    ),
    "missing tensor": (
        lambda r: poison(r, lambda u: {"prefix": u["prefix"]}),
        "Expected the tensors",
    ),
    "other tensor": (lambda r: poison(r, renamed), "Expected the tensors"),
    "no update": (lambda r: without(r, names.UPDATE), "Expected the record update"),
    "no metrics": (lambda r: without(r, names.METRICS), "Expected the record metrics"),
    "no info": (lambda r: without(r, names.INFO), "Expected the record info"),
    "noise claim": (
        lambda r: tell(r, names.NOISE_STD + "prefix", 1e300),
        "noise-std.prefix",
    ),
    "nan noise claim": (lambda r: tell(r, names.NOISE_STD + "prefix", float("nan")), "noise-std"),
    "rate claim": (lambda r: tell(r, names.SAMPLING_RATE, -1.0), "metrics.sampling-rate, got -1.0"),
    "noise multiplier claim": (
        lambda r: tell(r, names.NOISE_MULTIPLIER, 0.0),
        "metrics.noise-multiplier, got 0.0",
    ),
    "another's name": (lambda r: pretend(r, "gamma"), "Expected a reply of silo"),
    "another round": (lambda r: of(r, names.ROUND, 1), "as info.round, got 1"),
    "another run": (lambda r: of(r, names.RUN_ID, "other"), "as info.run-id, got 'other'"),
    "no round": (lambda r: of(r, names.ROUND, None), "as info.round, got none"),
}


def test_unusable_replies_are_refused_by_name_and_the_round_goes_on(
    start_run: Start, in_process: Federate, tmp_path: Any
) -> None:
    """One fault a round at one silo; the model is that of a loop which leaves those replies out."""
    faults = list(FAULTS)
    run = start_run("run", **{"server.rounds": len(faults) + 3})

    def tamper(task: Message, reply: Message) -> Message | None:
        if task.metadata.message_type != "train":
            return reply
        server_round = config(task)[names.ROUND]
        silo = reply.content[names.INFO][names.SILO]
        if silo == "beta" and server_round <= len(faults):
            return FAULTS[faults[server_round - 1]][0](reply)
        if silo == "delta" and server_round == len(faults) + 1:
            return Message(Error(2, "RuntimeError: the silo broke"), reply_to=task)
        return reply

    assert in_process(run, tamper) == "finished"
    records = rounds(run)
    assert len(records) == len(faults) + 3
    for fault, record in zip(faults, records, strict=False):
        (refused,) = record["refused"]
        assert refused["silo"] == "beta", fault
        assert FAULTS[fault][1] in refused["reason"], (fault, refused)
        assert record["replied"] == 3
        assert record["failed"] == []
    (failed,) = records[len(faults)]["failed"]
    assert failed == {"silo": "delta", "reason": "RuntimeError: the silo broke"}
    assert [r["replied"] for r in records[-2:]] == [4, 4]
    absent = {r: {"beta"} for r in range(1, len(faults) + 1)} | {len(faults) + 1: {"delta"}}
    assert same_bits(final(run), loop(run, tmp_path, absent))


def test_silo_that_does_not_answer_in_time_is_left_out(
    start_run: Start, in_process: Federate, tmp_path: Any
) -> None:
    run = start_run("run", **{"server.timeout": 3.0})

    def tamper(task: Message, reply: Message) -> Message | None:
        late = reply.content[names.INFO][names.SILO] == "gamma"
        return None if late and config(task).get(names.ROUND) == 2 else reply

    assert in_process(run, tamper) == "finished"
    assert rounds(run)[1]["failed"] == [{"silo": "gamma", "reason": "no reply within 3 s"}]
    assert same_bits(final(run), loop(run, tmp_path, {2: {"gamma"}}))


def test_more_failures_than_tolerated_stop_the_run_which_can_be_resumed(
    start_run: Start, in_process: Federate, tmp_path: Any
) -> None:
    changes = {"server.rounds": 4, "server.checkpoint_every": 4, "server.max_failures": 0.5}
    run = start_run("run", **changes)

    def tamper(task: Message, reply: Message) -> Message | None:
        if config(task).get(names.ROUND) != 3:
            return reply
        bad = {"alpha", "beta", "gamma"}
        if reply.content[names.INFO][names.SILO] in bad:
            return poison(reply, lambda u: u | {"prefix": u["prefix"] * float("nan")})
        return reply

    assert in_process(run, tamper) == "failed"
    state = run.state()
    assert state["status"] == "failed"
    assert "3 of 4 silos failed in round 3" in state["message"]
    assert "server.max_failures=0.5" in state["message"]
    for silo in ("alpha", "beta", "gamma"):
        assert silo in state["message"]
    assert state["round"] == 2, "finished rounds are kept whatever checkpoint_every"
    assert in_process(RunFolder.open(run.path)) == "finished"
    assert same_bits(final(run), loop(run, tmp_path))
    whole = start_run("whole", **changes)
    in_process(whole)
    assert spent(whole) == spent(run)
    shown = [
        {m["silo"]: m["epsilon"] for m in r.metrics() if m["kind"] == "silo"} for r in (whole, run)
    ]
    assert shown[0] == shown[1]


def test_a_silo_whose_data_are_bad_takes_no_part_and_knows_why(
    start_run: Start,
    in_process: Federate,
    caplog: pytest.LogCaptureFixture,
    word_files: Path,
    tmp_path: Path,
) -> None:
    rows = (word_files / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    own = [row for row in rows if json.loads(row)["label"] == "low"]  # the server's are good
    (tmp_path / "validation.jsonl").write_text("\n".join(own), encoding="utf-8")
    shutil.copy(word_files / "train.jsonl", tmp_path)
    run = start_run("run", **{"task.labels": ["low", "middle"], "data.path": str(tmp_path)})
    began = time.monotonic()
    try:
        status, message = in_process(run), str(run.state()["message"])
    except ValueError as error:
        status, message = run.state()["status"], str(error)
    assert status == "failed"
    assert "takes no part in the run; its own log has the reason" in message
    assert "high" not in message, "a label of the data has left a silo"
    assert "the class 'high', which is not among low, middle" in caplog.text
    assert time.monotonic() - began < 60
