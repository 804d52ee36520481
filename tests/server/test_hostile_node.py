"""The hostile silo before the first round: forged descriptions of its node, and forged confirmations of a codec."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from answering_nodes import Answering
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from forged_replies import VALUES, forged
from forged_results import FREE, Result, check, table
from report_runs import NOISE, new_run
from report_runs import SILOS as SIZES
from vouching import Silo

from client.app import app
from fedllm import messages as names
from fedllm.codec import Layout, make_codec
from fedllm.report.extract.keys import EXTRACT, HEAD
from fedllm.report.extract.make import make_head
from fedllm.report.extract.statement import text_of
from fedllm.run.folder import RunFolder
from fedllm.training.encoding import Encoding
from privacy.events.constructors import dp_sgd
from privacy.ledger.ledger import Ledger
from server.extensions.codec import CodecDelivery
from server.extracts import Extracts
from server.nodes.discovery import find_silos
from server.replies import RunStopped, sort_replies
from simulations.in_process import LocalGrid

SILOS = ["alpha", "beta", "delta", "gamma"]


def description(silo: str) -> RecordDict:
    info = {
        names.SILO: silo,
        names.STATUS: names.OK,
        names.REASON: "",
        "version": "1",
        "device": "cpu",
    }
    told = {**info, "tasks": "classification", "units": "example"}
    return RecordDict(
        {names.INFO: ConfigRecord(told), names.METRICS: MetricRecord({names.EXAMPLES: 45})}
    )


def test_description_is_what_a_client_says(
    tiny_settings: Callable[..., Any], start_run: Callable[..., RunFolder]
) -> None:
    grid, seen = LocalGrid(app, 4), []
    grid.tamper = lambda task, reply: seen.append(reply.content) or reply
    found = find_silos(grid, tiny_settings(), threading.Event(), 4)
    assert sorted(found.nodes) == SILOS
    honest = description("alpha")
    assert list(seen[0]) == list(honest)
    assert sorted(seen[0][names.INFO]) == sorted(honest[names.INFO])
    assert sorted(seen[0][names.METRICS]) == sorted(honest[names.METRICS])


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "simulated"])
def test_forged_descriptions_leave_the_node_out_and_nobody_else(
    registered: bool, tiny_settings: Callable[..., Any]
) -> None:
    nodes = dict(enumerate(SILOS, start=10))
    settings = tiny_settings(**{"server.wait_for_clients": 0.3})
    results = []
    for name, content in forged(description("beta")):
        grid = Answering({n: description(silo) for n, silo in nodes.items()}, {})
        grid.contents[11] = content
        if registered:
            grid.names = dict(nodes)
        began = time.process_time()
        found = find_silos(grid, settings, threading.Event(), 4)
        seconds = time.process_time() - began
        others = dict(found.nodes)
        taken = others.pop("beta", None)
        for silo in ("alpha", "delta"):
            assert others[silo] == grid.get_node_ids()[SILOS.index(silo)], name
        if registered:
            assert others.get("gamma") == 13, (name, "another node spoke for gamma")
            assert set(others) <= set(SILOS), name
        assert taken in (None, 11), name
        bad = [*found.failed, *found.refused, *found.left]
        assert all(item["silo"] in ("beta", "node 11", "node 13") for item in bad), (name, bad)
        reason = "; ".join(item["reason"] for item in bad)[:2000]
        outcome = "answered" if taken == 11 else "refused"
        results.append(Result("description", name, outcome, reason, seconds))
    print(f"\n{table(results)}")
    check_descriptions(results, registered)


def check_descriptions(results: Sequence[Result], registered: bool) -> None:
    texts = {n for n, v in VALUES.items() if isinstance(v, str) and len(v) <= 256}
    for result in results:
        where, _, how = result.forgery.partition(": ")
        context = (result.forgery[:100], result.outcome, result.reason)
        assert result.seconds < 1, context
        assert result.reason.isprintable(), context
        field = where.partition(".")[2]
        if result.outcome == "answered":
            unused = field in ("version", "device", "tasks", "units")
            free = FREE.get(where, set()) | (texts | {"missing"} if unused else set())
            optional = where == f"metrics.{names.EXAMPLES}" and how == "missing"
            empty = where == names.METRICS and how == "no numbers in it"
            assert how in free or optional or empty, context
        elif registered:
            assert result.reason, context


def test_forged_confirmations_of_a_codec(
    tiny_settings: Callable[..., Any],
) -> None:
    settings = tiny_settings(**{"codec.name": "int8"})
    params = {"prefix": torch.zeros(4, 5)}
    codec = make_codec(settings.codec, Layout.of(params), None, 0)
    encoding = Encoding.of(codec, codec.version, settings, params)
    honest = RecordDict({names.INFO: ConfigRecord({names.STATUS: names.OK, names.REASON: ""})})
    results = []
    for name, content in forged(honest):
        grid = Answering({10: honest, 11: content}, {})
        link = CodecDelivery(encoding, {"alpha": 10, "beta": 11})
        began = time.process_time()
        done = link.deliver(grid, ["alpha", "beta"], settings, 1.0, threading.Event())
        seconds = time.process_time() - began
        bad = [*done.failed, *done.refused]
        assert all(item["silo"] == "beta" for item in bad), name
        assert link._delivered == {"alpha"} | (set() if bad else {"beta"}), name
        reason = bad[0]["reason"] if bad else ""
        results.append(Result("delivery", name, "refused" if bad else "answered", reason, seconds))
    print(f"\n{table(results)}")
    check([r for r in results if r.forgery != "info.reason: 10 MB of text"])


def test_forged_extracts_cost_the_silo_its_voucher_and_nobody_else_anything(tmp_path: Path) -> None:
    """Unsigned ones, and texts that the hostile silo signed with its own key."""
    run, silo = new_run(tmp_path), Silo(tmp_path / "silos", "A")
    silo.enter(run, 1, dp_sgd(SIZES["A"], NOISE, 1))
    with Ledger(silo.ledger) as ledger:
        texts = {
            names.EXTRACT: text_of(silo.extract(run)),
            names.HEAD: text_of(make_head(ledger, "A")),
        }
    domains = {names.EXTRACT: (EXTRACT, names.EXTRACT_SIGNATURE)}
    domains[names.HEAD] = (HEAD, names.HEAD_SIGNATURE)

    def signed(changes: dict[str, str]) -> RecordDict:
        brought: dict[str, str] = {}
        for name, text in (texts | changes).items():
            domain, signature = domains[name]
            brought |= {name: text, signature: silo.key.sign(domain, text)}
        return RecordDict({names.LEDGER: ConfigRecord(brought)})

    lies = [
        "",
        "[" * 100_000,
        '{"a":' * 100_000,
        "null",
        "NaN",
        "1e999",
        "9" * 5000,
        "{}",
        '"\\ud800"',
    ]
    contents = [signed({name: lie}) for name in texts for lie in lies]
    contents += [content for _, content in forged(signed({})) if names.LEDGER in content]
    trusted = 0
    for content in contents:
        extracts = Extracts(run, {"A": silo.key.public})
        extracts.begin(LocalGrid(None, 0), {"A": 7})
        message = Message(RecordDict(), dst_node_id=7, message_type="train")
        reply = Message(RecordDict(), reply_to=message)
        reply.__dict__["_content"] = content
        extracts.take(7, reply)
        assert names.LEDGER not in content
        trusted += not extracts.silos["A"].problem
    assert trusted <= 12, "those alone that bring the honest extract, and something beside it"


def test_errors_and_silence_are_failures_with_a_bounded_reason() -> None:
    grid = Answering({10: None}, {})
    message = Message(RecordDict(), dst_node_id=10, message_type="query")
    (task_id,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([task_id])
    found = sort_replies(["alpha", "beta"], [reply, None], lambda name, content: name, 3.0)
    assert [len(item["reason"]) for item in found.failed] == [500, len("no reply within 3 s")]
    assert found.accepted == []


def test_two_nodes_of_one_name_in_a_simulation_are_both_left_out(
    tiny_settings: Callable[..., Any],
) -> None:
    settings = tiny_settings(**{"server.wait_for_clients": 0.3})
    told = {10: "alpha", 11: "beta", 12: "beta", 13: "gamma", 14: "delta"}
    grid = Answering({n: description(silo) for n, silo in told.items()}, {})
    found = find_silos(grid, settings, threading.Event(), 5)
    assert sorted(found.nodes) == ["alpha", "delta", "gamma"]
    assert [item["silo"] for item in found.refused] == ["node 11", "node 12"]
    with pytest.raises(RunStopped, match=r"missing: beta .*several say that they are 'beta'"):
        find_silos(grid, settings, threading.Event(), None, wanted=SILOS)
