"""Runs whose clipping norm follows the norms: its path, the ledger, the report, a resume."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Message, MetricRecord

from fedllm import messages as names
from fedllm.report.build import build
from fedllm.report.page.render import render
from fedllm.run.folder import RunFolder
from privacy.ledger.ledger import Ledger
from privacy.mechanisms.adaptive_clipping import moved_clip

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
ADAPTIVE = {"clipping.form": "adaptive", "privacy.clip": 50.0, "clipping.learning_rate": 0.5}


def path(run: RunFolder) -> list[tuple[float, float]]:
    """(norm, noisy share below) by round."""
    rounds = [m for m in run.metrics() if m["kind"] == "round"]
    return [(m["clip"], m["below_clip"]) for m in rounds]


@pytest.mark.parametrize(
    "changes",
    [
        {"client.batch_size": 20},
        {"privacy.unit": "client"},
        {"privacy.unit": "client", "privacy.noise_by": "server", "server.sampling": "poisson"},
    ],
    ids=["example", "client", "server"],
)
def test_the_norm_moves_and_every_row_tells_it(
    start_run: Start, in_process: Federate, changes: dict[str, Any]
) -> None:
    run = start_run("run", **ADAPTIVE, **changes)
    assert in_process(run) == "finished"
    found = path(run)
    assert found[0][0] == 50.0
    for (clip, below), (following, _) in itertools.pairwise(found):
        share = min(1.0, max(0.0, below))
        assert following == pytest.approx(moved_clip(clip, share, 0.5, 0.5), rel=1e-12)
    if changes.keys() == {"client.batch_size"}:
        # Gradients are far shorter than 50: the norm falls, by a factor exp(-0.25) a round but for noise.
        assert found[-1][0] < 50 * 0.8
    with Ledger(run.ledger_path, read_only=True) as ledger:
        entries = [e for e in ledger.entries() if e.purpose == "train"]
    assert entries
    for entry in entries:
        assert entry.details["clip"] == found[entry.round - 1][0]
    content = build(run)
    assert [row["clip"] for row in content["training"]["clipping"]] == [c for c, _ in found]
    html = render(content, "0" * 64)
    assert 'id="figure-clipping"' in html
    assert "which the server moves after each round" in html


def test_a_resumed_run_keeps_its_norm(start_run: Start, in_process: Federate) -> None:
    whole, parts = (start_run(name, **ADAPTIVE) for name in ("whole", "parts"))
    assert in_process(whole) == "finished"
    stop = threading.Event()

    def tamper(task: Message, reply: Message) -> Message:
        if int(task.content[names.CONFIG].get(names.ROUND, 0)) == 3:
            stop.set()
        return reply

    assert in_process(parts, tamper, stop) == "interrupted"
    assert parts.state()["round"] == 2
    assert in_process(RunFolder.open(parts.path)) == "finished"
    assert path(parts) == path(whole)
    assert path(whole)[-1][0] != 50.0


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_reply_without_a_count_is_refused(
    start_run: Start, in_process: Federate, value: float | None
) -> None:
    def tamper(task: Message, reply: Message) -> Message:
        train = task.metadata.message_type == "train"
        if train and reply.content[names.INFO][names.SILO] == "beta":
            kept = {k: v for k, v in reply.content[names.METRICS].items() if k != names.BELOW}
            told = {} if value is None else {names.BELOW: value}
            reply.content[names.METRICS] = MetricRecord({**kept, **told})
        return reply

    run = start_run("run", **ADAPTIVE, **{"server.max_failures": 0.5})
    assert in_process(run, tamper) == "finished"
    rounds = [m for m in run.metrics() if m["kind"] == "round"]
    for record in rounds:
        (refused,) = record["refused"]
        assert refused["silo"] == "beta"
        assert "below-clip" in refused["reason"]


def test_without_privacy_and_with_a_fixed_norm_nothing_moves(
    start_run: Start, in_process: Federate
) -> None:
    for name, changes in {
        "none": ADAPTIVE | {"privacy.mode": "none"},
        "fixed": {"clipping.quantile": 0.9},
    }.items():
        run = start_run(name, **changes)
        assert in_process(run) == "finished"
        assert all("clip" not in m for m in run.metrics() if m["kind"] == "round")
        assert build(run)["training"]["clipping"] == []
