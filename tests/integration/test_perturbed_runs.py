"""Whole runs with each form of the perturbation: ledger, report, messages, resuming, Flower's engine."""

from __future__ import annotations

import html
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import dp_event as dp
from flwr.app import Message
from whole_runs import final, rows, run_by_command, same_bits

from fedllm import messages as names
from fedllm.budget.plan import warnings
from fedllm.report import build
from fedllm.report.page.render import render
from fedllm.run.folder import RunFolder
from fedllm.settings.io import to_toml
from fedllm.training.perturbation import UNBOUNDED_ASCENT
from privacy.accountants import make_accountant
from privacy.events.constructors import dp_sgd, gaussian
from privacy.events.multiset import is_private
from privacy.guarantee import OUTSIDER, SERVER
from privacy.ledger.ledger import Ledger

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
FORMS = ("per-example", "batch")
SILOS = 4
CHANGES = {"server.rounds": 3, "awp.gamma": 0.5, "awp.rounds": 2}
IN_CODE = {"codec.name": "random-projection", "codec.ratio": 4, "codec.noise": "in-code"}


def leaves(event: Any) -> list[Any]:
    """The mechanisms of a row as it was written, not normalised."""
    if isinstance(event, dp.SelfComposedDpEvent):
        return leaves(event.event) * event.count
    if isinstance(event, dp.ComposedDpEvent):
        return [leaf for part in event.events for leaf in leaves(part)]
    return [event]


@pytest.mark.parametrize("codec", ["plain", "in-code"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_and_report_say_what_each_form_guarantees(
    form: str, codec: str, start_run: Start, in_process: Federate
) -> None:
    """Two perturbed rounds of two steps and a plain one, by four silos."""
    changes = CHANGES | {"awp.form": form} | (IN_CODE if codec == "in-code" else {})
    run = start_run("run", **changes)
    assert in_process(run) == "finished", run.state()["message"]
    found = rows(run)
    assert len(found) == 3 * SILOS
    for row in found:
        rate, noise = row.details["sampling_rate"], row.details["noise_multiplier"]
        assert noise == 0.8
        plain = dp_sgd(rate, noise, 1)
        steps = leaves(row.view(SERVER))
        if form == "batch" and row.round <= 2:
            assert [s for s in steps if is_private(s)] == [plain] * 2
            reasons = [s.reason for s in steps if not is_private(s)]
            assert reasons == [UNBOUNDED_ASCENT] * 2
        else:
            assert steps == [plain] * 2
    report = build(run)
    told = report["training"]["perturbation"]
    assert (told["form"], told["gamma"], told["rounds"]) == (form, 0.5, 2)
    page = html.unescape(render(report, "0" * 64))
    assert f"<strong>{form}</strong>, gamma 0.5 " in page
    assert told["guarantee"].split(":")[0] in page
    if form == "batch":
        assert report["headline"].startswith("NO GUARANTEE: epsilon is infinite.")
        assert UNBOUNDED_ASCENT in report["headline"]
        assert report["guarantee"]["level"] == "none"
        assert math.isinf(report["guarantee"]["epsilon"])
        return
    assert report["guarantee"]["level"] == "conditional"  # the noise is seeded
    bare = start_run("bare", **{k: v for k, v in changes.items() if not k.startswith("awp.")})
    assert in_process(bare) == "finished"
    assert report["guarantee"]["epsilon"] == pytest.approx(
        build(bare)["guarantee"]["epsilon"], rel=1e-9
    )
    assert not same_bits(final(run), final(bare))


def test_the_form_without_a_guarantee_is_warned_of_before_training(tiny_settings: Any) -> None:
    for form in FORMS:
        settings = tiny_settings(**{"awp.form": form})
        warned = " ".join(warnings(settings, {"alpha": 60}))
        assert (f"NO GUARANTEE: {UNBOUNDED_ASCENT}" in warned) == (form == "batch")
    by_client = tiny_settings(**{"awp.form": "batch", "privacy.unit": "client"})
    assert "NO GUARANTEE" not in " ".join(warnings(by_client, {"alpha": 60}))


@pytest.mark.parametrize("form", ["per-example", "batch"])
def test_at_client_level_every_form_keeps_the_guarantee(
    form: str, start_run: Start, in_process: Federate
) -> None:
    run = start_run("run", **CHANGES, **{"awp.form": form, "privacy.unit": "client"})
    assert in_process(run) == "finished"
    assert all(leaves(row.view(SERVER)) == [gaussian(0.8)] for row in rows(run))
    report = build(run)
    assert report["guarantee"]["level"] == "conditional"
    assert report["guarantee"]["epsilon"] < math.inf
    assert "as a whole afterwards" in report["training"]["perturbation"]["guarantee"]


def test_noise_by_the_server(start_run: Start, in_process: Federate) -> None:
    changes = {"privacy.unit": "client", "privacy.noise_by": "server", "awp.form": "per-example"}
    run = start_run("run", **CHANGES, **changes)
    assert in_process(run) == "finished"
    assert all(leaves(row.view(OUTSIDER)) == [gaussian(0.8)] for row in rows(run))
    assert build(run)["guarantee"]["level"] == "outsider-only"


def test_a_target_is_used_up_and_not_exceeded(start_run: Start, in_process: Federate) -> None:
    """With ``batch`` the noise is that of a run with a guarantee, and the ledger says that it gives none."""
    target = {"privacy.epsilon": 4.0, "privacy.noise_multiplier": None}
    noise = {}
    for form in ("none", "per-example", "batch"):
        run = start_run(form, **CHANGES, **target, **{"awp.form": form})
        assert in_process(run) == "finished"
        found = rows(run)
        assert len(found) == 3 * SILOS
        noise[form] = {row.party: row.details["noise_multiplier"] for row in found}
        with Ledger(run.ledger_path, read_only=True) as ledger:
            spent = ledger.spent(SERVER, party="alpha")
        accountant = make_accountant("rdp")
        private = {event: count for event, count in spent.items() if is_private(event)}
        assert 0.99 * 4 < accountant.epsilon(private, 1e-5) <= 4
        assert math.isinf(accountant.epsilon(spent, 1e-5)) == (form == "batch")
    assert noise["per-example"] == noise["none"] == noise["batch"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"server.checkpoint_every": 2, "server.fraction": 0.75, "codec.downlink": "int8"},
        IN_CODE,
    ],
    ids=["plain", "partial", "in-code"],
)
def test_a_resumed_run_gives_the_same_bits(
    changes: dict[str, Any], start_run: Start, in_process: Federate
) -> None:
    changes = CHANGES | {"awp.form": "per-example", "server.rounds": 5, "awp.rounds": 4} | changes
    whole, cut = start_run("whole", **changes), start_run("cut", **changes)
    assert in_process(whole) == "finished"
    stop = threading.Event()

    def tamper(task: Message, reply: Message) -> Message | None:
        config: Any = task.content[names.CONFIG]
        if task.metadata.message_type == "train" and int(config[names.ROUND]) == 4:
            stop.set()
        return reply

    assert in_process(cut, tamper, stop) == "interrupted"
    assert in_process(RunFolder.open(cut.path)) == "finished"
    assert same_bits(final(whole), final(cut))
    keys = [{(r.party, r.key) for r in rows(run)} for run in (whole, cut)]
    assert keys[0] == keys[1]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["per-example", "batch"])
def test_flowers_engine_with_two_workers_gives_the_same_bits(
    form: str, start_run: Start, in_process: Federate, tiny_settings: Any, tmp_path: Path
) -> None:
    changes = CHANGES | {"awp.form": form, "simulation.workers": 2}
    here = start_run("here", **changes)
    assert in_process(here) == "finished"
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(to_toml(tiny_settings(**changes)), encoding="utf-8")
    there = run_by_command(experiment, tmp_path / "engine")
    assert same_bits(final(here), final(there))
    keys = [{(r.party, r.key) for r in rows(run)} for run in (here, there)]
    assert keys[0] == keys[1]
