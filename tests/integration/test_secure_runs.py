"""Whole runs with secure sums: the same model as in the clear, drop-outs, lost rounds, resumed runs, hostile silos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faulty_nodes import write_experiment
from flwr.app import ArrayRecord, Error, Message
from whole_runs import config, final, rounds, rows, run_by_command, same_bits

from fedllm import messages as names
from fedllm.run.folder import RunFolder
from fedllm.secure import masks
from fedllm.settings.io import load_settings
from fedllm.training.sum_share.mechanism import SUM, with_shares
from server.extensions.secure_sum import FILE
from simulations.in_process import federate

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
NAMES = ["alpha", "beta", "delta", "gamma"]
EXAMPLE = {"privacy.noise_by": "sum", "client.local_steps": 1}
CLIENT = {"privacy.noise_by": "sum", "privacy.unit": "client"}


def in_the_clear(patch: pytest.MonkeyPatch) -> None:
    """Masks are nothing: what the silos send is what they release. No report is written."""
    patch.setattr(masks, "add_mask", lambda vector, seed, sign=1: None)
    rounds_alone(patch)


def rounds_alone(patch: pytest.MonkeyPatch) -> None:
    """A run ends with its last round: neither adapter nor report, which take longer than all of it."""
    patch.setattr("fedllm.report.write_report", lambda run: None)
    patch.setattr("fedllm.adapter.export.export_adapter", lambda run, path: None)


class Without:
    """Loses a silo's reply to its task of training in one round, and keeps what all silos sent."""

    def __init__(self, silo: str = "", server_round: int = 0) -> None:
        self.silo, self.round = silo, server_round
        self.sent: list[np.ndarray[Any, Any]] = []
        self.kinds: list[str] = []

    def __call__(self, task: Message, reply: Message) -> Message:
        self.kinds.append(task.metadata.message_type)
        if task.metadata.message_type != names.TRAIN or not reply.has_content():
            return reply
        if names.UPDATE in reply.content:
            self.sent.append(reply.content[names.UPDATE][SUM].numpy())  # type: ignore[union-attr]
        named = reply.content[names.INFO][names.SILO]  # type: ignore[index]
        if named == self.silo and config(task)[names.ROUND] == self.round:
            return Message(Error(2, "lost on the way"), reply_to=task)
        return reply


def check_rows(run: RunFolder, extra: int = 0) -> None:
    """A row a round in each silo's ledger, whose view is of a sum for a server that learns sums."""
    found = rows(run, "train")
    assert len(found) == 4 * (3 + extra)
    for row in found:
        seen, alone = row.view("sum-only"), row.view("server")
        assert seen != alone
        assert with_shares(seen, 1) == alone


def test_masks_change_no_bit_of_the_model_and_a_missing_silo_is_missing_alone(
    start_run: Start, in_process: Federate
) -> None:
    changes = EXAMPLE | {"secure.drop_outs": 1}
    masked = start_run("masked", **changes)
    watch = Without("gamma", 2)
    assert in_process(masked, watch) == "finished"
    assert [record["in_sum"] for record in rounds(masked)] == [4, 3, 4]
    (lost,) = rounds(masked)[1]["failed"]
    assert lost["silo"] == "gamma"
    # Shares are asked for before the first round, and of the silo whose reply was lost.
    assert watch.kinds.count(names.ASK_ADVANCE) == 4 + 1
    assert watch.kinds.count(names.ASK_OPENING) == 4 + 3 + 4
    for vector in watch.sent:
        sizes = np.abs(vector.astype(np.float64))
        assert np.median(sizes) == pytest.approx(2.0**62, rel=0.3), "uniform up to 2^63"
    check_rows(masked)
    with pytest.MonkeyPatch.context() as patch:
        in_the_clear(patch)
        clear = start_run("clear", **changes)
        bare = Without("gamma", 2)
        assert in_process(clear, bare) == "finished"
    assert all(np.abs(vector).max() < 2**50 for vector in bare.sent)
    assert same_bits(final(masked), final(clear))
    pinned = masked.read_json(FILE)["pinned"]
    assert pinned == [], "in a simulation nobody knows a key of another silo"


def test_a_lost_round_is_repeated_in_another_session(
    start_run: Start, in_process: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unit client, and nobody may be missing."""
    rounds_alone(monkeypatch)
    run = start_run("run", **CLIENT, **{"privacy.spare_rounds": 1})
    assert in_process(run, Without("gamma", 2)) == "failed"
    message = run.state()["message"]
    assert "3 of 4 silos answered, 4 are needed" in message
    assert "gamma: " in message
    assert run.state()["round"] == 1
    assert run.read_json(FILE)["session"] == 2
    roster = run.read_json(FILE)["roster"]
    resumed = RunFolder.open(run.path)
    watch = Without()
    assert in_process(resumed, watch) == "finished"
    assert [record["in_sum"] for record in rounds(resumed)] == [4, 4, 4]
    assert resumed.read_json(FILE)["session"] == 4
    assert resumed.read_json(FILE)["roster"] == roster
    assert not {names.ASK_ADVANCE, names.ASK_OPENING} & set(watch.kinds)
    check_rows(resumed, extra=1)
    whole = start_run("whole", **CLIENT, **{"privacy.spare_rounds": 1})
    with pytest.MonkeyPatch.context() as patch:
        in_the_clear(patch)
        assert in_process(whole) == "finished"
    assert not same_bits(final(whole), final(resumed)), "the repeated round has noise of its own"


def test_a_silo_that_left_is_missing_from_then_on(
    start_run: Start, in_process: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds_alone(monkeypatch)

    class Leaving(Without):
        def __call__(self, task: Message, reply: Message) -> Message:
            if task.metadata.message_type == names.TRAIN and config(task)[names.ROUND] >= 2:
                info: Any = reply.content[names.INFO]
                if info[names.SILO] == "beta":
                    info[names.STATUS] = names.LEFT
                    info[names.REASON] = "its budget is spent"
            return super().__call__(task, reply)

    run, watch = start_run("run", **EXAMPLE, **{"secure.drop_outs": 1}), Leaving()
    assert in_process(run, watch) == "finished"
    assert [record["in_sum"] for record in rounds(run)] == [4, 3, 3]
    assert watch.kinds.count(names.TRAIN) == 4 + 4 + 3
    few = start_run("few", **EXAMPLE)
    assert in_process(few, Leaving()) == "stopped"
    assert "beta: its budget is spent" in few.state()["message"]
    assert few.state()["round"] == 1


class Shifting(Without):
    """A silo with other code: it adds to its masked integers what it likes, and nobody sees it alone."""

    def __init__(self, by: int) -> None:
        super().__init__()
        self.by = by

    def __call__(self, task: Message, reply: Message) -> Message:
        if task.metadata.message_type == names.TRAIN and reply.has_content():
            content: Any = reply.content
            if content[names.INFO][names.SILO] == "alpha":
                vector = torch.from_numpy(content[names.UPDATE][SUM].numpy().copy())
                vector[0] += self.by
                content[names.UPDATE] = ArrayRecord({SUM: vector})
        return reply


@pytest.mark.slow
def test_a_hostile_silo_moves_a_sum_as_far_as_the_bound_and_no_further(
    start_run: Start, in_process: Federate
) -> None:
    changes = CLIENT | {"server.rounds": 1}
    honest, moved, far = (start_run(name, **changes) for name in ("honest", "moved", "far"))
    assert in_process(honest) == "finished"
    assert in_process(moved, Shifting(int(1e3))) == "finished"
    assert not same_bits(final(honest), final(moved))
    assert in_process(far, Shifting(int(2.0**50))) == "failed"
    message = far.state()["message"]
    assert "masked what no honest silo does" in message
    assert "alpha, beta, delta, gamma" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        EXAMPLE | {"clipping.form": "adaptive", "privacy.clip": 5.0, "client.batch_size": 20},
        CLIENT | {"clipping.form": "adaptive", "privacy.clip": 5.0},
        EXAMPLE | {"codec.name": "random-projection", "codec.ratio": 4.0, "codec.noise": "in-code"},
        CLIENT | {"codec.name": "random-projection", "codec.ratio": 4.0, "codec.noise": "in-code"},
        EXAMPLE | {"teacher.kind": "ema"},
        EXAMPLE | {"awp.form": "per-example"},
        EXAMPLE | {"secure.colluding": 1, "secure.drop_outs": 1, "secure.bits": 32},
        EXAMPLE | {"adapter.form": "lora", "adapter.rank": 2, "codec.downlink": "int8"},
        EXAMPLE
        | {"evaluation.clients": "private", "evaluation.clients_holdout": 0.2}
        | {"evaluation.clients_noise": 5.0, "evaluation.every": 1},
        EXAMPLE | {"privacy.noise_multiplier": None, "privacy.epsilon": 8.0},
    ],
    ids=lambda changes: " ".join(str(v) for v in list(changes.values())[2:6]),
)
def test_with_other_optional_parts_masks_change_no_bit_either(
    start_run: Start, in_process: Federate, changes: dict[str, Any]
) -> None:
    masked, clear = start_run("masked", **changes), start_run("clear", **changes)
    assert in_process(masked) == "finished", masked.state()["message"]
    with pytest.MonkeyPatch.context() as patch:
        in_the_clear(patch)
        assert in_process(clear) == "finished"
    assert same_bits(final(masked), final(clear))
    if changes.get("clipping.form") == "adaptive":
        clips = [record["clip"] for record in rounds(masked)]
        assert len(set(clips)) == 3
    if changes.get("evaluation.clients") == "private":
        noises = {row.details["noise_multiplier"] for row in rows(masked)}
        assert len(noises) == 1, "one noise in the plan and in all rows"


@pytest.mark.slow
def test_flowers_engine_gives_the_same_model(
    tiny_tree: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """There any process answers for any silo: the records are on disk."""
    changes = {**EXAMPLE, "secure.drop_outs": 1, "simulation.workers": 2}
    changes |= {"simulation.engine": "ray", "evaluation.clients": "off"}
    path = write_experiment(tmp_path / "experiment.toml", tiny_tree(**changes))
    simulated = run_by_command(path, tmp_path / "simulated")
    alone = RunFolder.create(load_settings(path), tmp_path / "alone")
    assert federate(alone) == "finished"
    assert same_bits(final(simulated), final(alone))
