"""Teachers in whole runs: what moves the model, what the ledger holds, what a resumed run repeats."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message
from safetensors.torch import load_file
from whole_runs import same_bits

from fedllm import messages as names
from fedllm.data.silos import load_federation
from fedllm.report import write_report
from fedllm.report.build import build
from fedllm.run.checkpoints import latest_checkpoint, load_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.events.multiset import is_private, multiset
from privacy.ledger.ledger import Ledger
from server.aggregation import Contribution, mean_update
from server.global_model import ServerOptimizer

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
EMA = {"teacher.kind": "ema", "teacher.strength": 0.3, "teacher.decay": 0.7, "teacher.steps": 2}


@pytest.fixture
def public_text(tmp_path: Path, word_records: Callable[..., Any]) -> dict[str, Any]:
    """Settings of a public file of 30 examples."""
    path = tmp_path / "public.jsonl"
    rows = word_records(30, seed=500)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"public.source": "files", "public.path": str(path), "teacher.batch_size": 8}


def recorded_updates() -> tuple[dict[int, list[Contribution]], Callable[..., Message]]:
    """Each round's updates as they arrive, and what collects them."""
    found: dict[int, list[Contribution]] = {}

    def tamper(task: Message, reply: Message) -> Message:
        if task.metadata.message_type == "train":
            content: Any = reply.content
            server_round = int(task.content.config_records[names.CONFIG][names.ROUND])  # type: ignore[arg-type]
            update = content[names.UPDATE].to_torch_state_dict()
            silo = str(content[names.INFO][names.SILO])
            found.setdefault(server_round, []).append(Contribution(silo, update, None))
        return reply

    return found, tamper


def events(run: RunFolder) -> Counter[Any]:
    """What the ledger holds, without what names the run and the release."""
    with Ledger(run.ledger_path, read_only=True) as ledger:
        return Counter(
            (e.party, str(e.unit), e.purpose, e.round, str(sorted(e.views.items())), str(e.details))
            for e in ledger.entries()
        )


def test_ema_is_the_hand_computed_recursion_over_a_run(
    start_run: Start, in_process: Federate
) -> None:
    """From each checkpoint and the updates of the next round: the mean, the server's step, the pull
    in closed form towards the average of the models before, then the average's own step."""
    run = start_run(
        "run",
        **EMA,
        **{
            "teacher.start": 1,
            "server.rounds": 4,
            "server.keep_checkpoints": 4,
            "server.optimizer": "sgd",
            "server.momentum": 0.0,
            "server.averaging": 0.5,
        },
    )
    updates, tamper = recorded_updates()
    assert in_process(run, tamper) == "finished"
    settings = run.settings()
    model = initial_params(shared_tunable(settings), settings)
    teacher = {name: value.double() for name, value in model.items()}
    average = dict(teacher)
    optimizer = ServerOptimizer(settings.server, model)
    for t in range(1, 5):
        mean, _ = mean_update(updates[t], model, len(updates[t]))
        stepped = optimizer.step(model, mean, None, t)
        factor = 1.0 if t == 1 else (1 - 0.3) ** 2
        saved = load_checkpoint(run.checkpoints_path / f"round-{t:05d}").state
        for name, value in stepped.items():
            pulled = teacher[name] + factor * (value.double() - teacher[name])
            teacher[name] = 0.7 * teacher[name] + 0.3 * pulled
            average[name] = 0.5 * average[name] + 0.5 * pulled
            for prefix, expected in (("last", pulled), ("teacher", teacher[name])):
                assert torch.allclose(
                    saved[f"{prefix}.{name}"].double(), expected, rtol=0, atol=1e-6
                ), (t, prefix, name)
            # server.averaging goes on beside it, over the pulled models.
            assert torch.allclose(saved[f"average.{name}"].double(), average[name], atol=1e-6)
        model = {name: saved[f"last.{name}"] for name in model}
        told = next(m for m in run.metrics() if m["kind"] == "round" and m["round"] == t)
        assert ("teacher_distance" in told) == (t > 1)
        assert told["teacher_seconds"] >= 0


def test_ema_leaves_the_ledger_as_it_is_without(start_run: Start, in_process: Federate) -> None:
    plain, pulled = start_run("plain"), start_run("pulled", **EMA)
    assert in_process(plain) == in_process(pulled) == "finished"
    assert events(plain) == events(pulled)
    assert sum(events(pulled).values()) == 12
    first, second = (latest_checkpoint(r.checkpoints_path) for r in (plain, pulled))
    assert first is not None
    assert second is not None
    assert not same_bits(first.params, second.params)


@pytest.mark.parametrize("distillation", [0.0, 2.0])
def test_resumed_run_has_the_same_bits(
    distillation: float, start_run: Start, in_process: Federate, public_text: dict[str, Any]
) -> None:
    """Interrupted in rounds 3 and 4, with a checkpoint every other round."""
    changes = EMA | public_text | {"server.rounds": 5, "server.checkpoint_every": 2}
    changes["teacher.distillation"] = distillation
    whole, parts = start_run("whole", **changes), start_run("parts", **changes)
    assert in_process(whole) == "finished"
    for server_round in (3, 4):
        stop = threading.Event()

        def tamper(
            task: Message,
            reply: Message,
            at: int = server_round,
            halt: threading.Event = stop,
        ) -> Message | None:
            content: Any = task.content
            if (task.metadata.message_type, content[names.CONFIG].get(names.ROUND)) != (
                "train",
                at,
            ):
                return reply
            halt.set()
            return None

        assert in_process(RunFolder.open(parts.path), tamper, stop) == "interrupted"
    assert in_process(RunFolder.open(parts.path)) == "finished"
    first, second = (latest_checkpoint(r.checkpoints_path) for r in (whole, parts))
    assert first is not None
    assert second is not None
    assert first.round == second.round == 5
    assert same_bits(first.state, second.state)
    assert any(name.startswith("teacher.") for name in first.state)
    told = [m for m in whole.metrics() if m["kind"] == "round"]
    assert all(("teacher_divergence" in m) == (distillation > 0) for m in told)


def test_distillation_without_usable_text_is_told_before_training(
    start_run: Start, in_process: Federate, tmp_path: Path
) -> None:
    changes = {"public.source": "files", "public.path": str(tmp_path / "absent.jsonl")}
    run = start_run("run", **EMA, **changes, **{"teacher.distillation": 1.0})
    assert in_process(run) == "failed"
    assert "No teacher" in run.state()["message"]
    assert "absent.jsonl" in run.state()["message"]
    assert not run.ledger_path.exists() or not events(run)


def steps_of(run: RunFolder, in_process: Federate, *halts: int) -> list[int]:
    """Run, interrupted after these steps of the teacher's training; all steps that were told."""
    steps: list[int] = []
    for at in [*halts, None]:
        stop = threading.Event()

        class Watch:
            def record(
                self,
                record: Mapping[str, Any],
                at: int | None = at,
                halt: threading.Event = stop,
            ) -> None:
                if record["kind"] == "teacher":
                    steps.append(record["step"])
                    if record["step"] == at:
                        halt.set()

            def close(self) -> None:
                pass

        expected = "finished" if at is None else "interrupted"
        assert in_process(RunFolder.open(run.path), None, stop, (Watch(),)) == expected
    return steps


def test_public_teacher_is_trained_once_and_pulls_the_model(
    start_run: Start, in_process: Federate, public_text: dict[str, Any]
) -> None:
    changes = public_text | {"teacher.kind": "public", "teacher.public_steps": 30}
    changes |= {"teacher.strength": 1.0, "teacher.public_learning_rate": 0.05}
    run, parts = start_run("run", **changes), start_run("parts", **changes)
    assert steps_of(run, in_process) == list(range(1, 31))
    assert steps_of(parts, in_process, 7, 29) == list(range(1, 31))
    first, second = (latest_checkpoint(r.checkpoints_path) for r in (run, parts))
    assert first is not None
    assert second is not None
    assert same_bits(first.state, second.state)
    assert events(run) == events(parts) == events(finished(start_run("plain"), in_process))
    # Strength 1 sets the model to the teacher.
    teacher = load_file(run.path / "teacher.safetensors")
    for name, value in first.params.items():
        assert torch.allclose(value, teacher[f"weights.{name}"], atol=1e-6)
    described = run.read_json("teacher.json")
    judged = next(m for m in reversed(run.metrics()) if m["kind"] == "evaluation")
    assert described["evaluation"]["loss"] == pytest.approx(judged["loss"], abs=1e-4)
    assert (described["examples"], described["left_out_in_evaluation"]) == (30, 0)
    report = run.read_json("report.json")
    assert report["guarantee"]["level"] == "conditional", "seeded, as without a teacher"
    assert report["teacher"]["kind"] == "public"
    assert report["teacher"]["public"]["examples"] == 30
    assumed = {item["title"]: item["text"] for item in report["assumptions"]}
    assert "used for the training of the teacher, without noise" in assumed["Public text"]
    # Another file under the same name is refused.
    (parts.path / "teacher.safetensors").write_bytes(
        (run.path / "teacher.safetensors").read_bytes()[:-1]
    )
    assert in_process(RunFolder.open(parts.path)) == "failed"
    assert "No teacher" in parts.state()["message"]


def finished(run: RunFolder, in_process: Federate) -> RunFolder:
    assert in_process(run) == "finished"
    return run


NONPRIVATE = {"teacher.kind": "nonprivate", "teacher.strength": 0.5}
PLAIN = {"privacy.mode": "none"}
MECHANISMS: dict[str, dict[str, Any]] = {
    "example": {},
    "client": {"privacy.unit": "client"},
    "trusted server": {
        "privacy.unit": "client",
        "privacy.noise_by": "server",
        "privacy.epsilon": None,
        "server.sampling": "poisson",
        "server.fraction": 0.7,
    },
    "codec": {"codec.name": "top-k"},
}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_nonprivate_teacher_is_labelled_everywhere(
    mechanism: str, start_run: Start, in_process: Federate
) -> None:
    """Each round's row holds the event of the plain run and one without a guarantee, and nobody's
    epsilon is finite: in the ledger, in the live view, in the report's first line."""
    changes = MECHANISMS[mechanism]
    plain = finished(start_run("plain", **changes), in_process)
    seen: list[dict[str, Any]] = []

    class Watch:
        def record(self, record: Mapping[str, Any]) -> None:
            seen.append(dict(record))

        def close(self) -> None:
            pass

    run = start_run("run", **changes, **NONPRIVATE)
    assert in_process(run, None, None, (Watch(),)) == "finished"
    with Ledger(run.ledger_path, read_only=True) as mine, Ledger(plain.ledger_path) as other:
        rows = {(e.party, e.round): e for e in mine.entries()}
        without = {(e.party, e.round): e for e in other.entries()}
    assert rows
    assert rows.keys() == without.keys()
    for place, entry in rows.items():
        assert entry.details == without[place].details, "the model's own noise is what it was"
        for adversary, event in entry.views.items():
            found = multiset(event)
            before = multiset(without[place].views[adversary])
            assert Counter({e: n for e, n in found.items() if is_private(e)}) == Counter(
                {e: n for e, n in before.items() if is_private(e)}
            )
            assert not all(map(is_private, found))
    warned = [r["message"] for r in seen if r["kind"] == "warning"]
    assert any("NO GUARANTEE" in text and "teacher.kind=nonprivate" in text for text in warned)
    spent = [r["epsilon"] for r in run.metrics() if r["kind"] == "silo"]
    assert spent
    assert all(value == float("inf") for value in spent)
    report = run.read_json("report.json")
    assert report["headline"].startswith("NO GUARANTEE: epsilon is infinite")
    assert "teacher.kind=nonprivate" in report["headline"]
    assert report["teacher"]["guarantee"] is False
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert page.index("teacher.kind=nonprivate") < page.index("<h1>")


def test_the_duplicate_is_the_model_of_a_run_without_privacy(
    start_run: Start, in_process: Federate
) -> None:
    """With full batches nothing is drawn: the duplicate's path is that of plain federated training,
    whatever the private model beside it does; and the private one is pulled towards it."""
    changes = {"client.sampling_rate": 1.0, "server.keep_checkpoints": 3}
    plain = finished(start_run("plain", **changes, **PLAIN), in_process)
    run = finished(start_run("run", **changes, **NONPRIVATE), in_process)
    for t in (1, 2, 3):
        model = load_checkpoint(plain.checkpoints_path / f"round-{t:05d}").params
        state = load_checkpoint(run.checkpoints_path / f"round-{t:05d}").state
        for name, value in model.items():
            assert torch.allclose(value, state[f"teacher.{name}"], atol=1e-5), (t, name)
            assert not torch.equal(state[f"last.{name}"], state[f"teacher.{name}"])
    rows = [r for r in run.metrics() if r["kind"] == "round"]
    plainly = [r for r in plain.metrics() if r["kind"] == "round"]
    for key in ("bytes_up", "bytes_down"):
        assert [r[key] for r in rows] == [2 * r[key] for r in plainly], "two of each tensor"


def test_resumed_duplicate_has_the_same_bits(start_run: Start, in_process: Federate) -> None:
    changes = NONPRIVATE | {"server.rounds": 4, "server.checkpoint_every": 2}
    whole = finished(start_run("whole", **changes), in_process)
    parts = start_run("parts", **changes)
    stop = threading.Event()

    def tamper(task: Message, reply: Message) -> Message | None:
        content: Any = task.content
        if content[names.CONFIG].get(names.ROUND) != 4:
            return reply
        stop.set()
        return None

    assert in_process(parts, tamper, stop) == "interrupted"
    assert in_process(RunFolder.open(parts.path)) == "finished"
    first, second = (latest_checkpoint(r.checkpoints_path) for r in (whole, parts))
    assert first is not None
    assert second is not None
    assert same_bits(first.state, second.state)


def test_a_raw_update_is_not_given_unless_the_settings_say_so(
    start_run: Start, tiny_settings: Callable[..., Any], tmp_path: Path
) -> None:
    """Whatever a server asks for: the settings that the silo's ledger goes by decide."""
    silo = load_federation(tiny_settings()).silos[0]
    for changes, sends in (({}, True), (EMA, True), (NONPRIVATE, False)):
        settings = tiny_settings(**changes)
        params = initial_params(shared_tunable(settings), settings)
        ledger = tmp_path / f"{len(changes)}.sqlite"
        worker = SiloWorker(settings, silo, run="r", ledger=ledger)
        with pytest.raises(
            ValueError, match="beside the parameters of a train task for these settings, got"
        ):
            worker.train(SiloTask(params, 1, 3, {"duplicate": params} if sends else {}))
        with Ledger(ledger, read_only=True) as found:
            assert not list(found.entries())


@pytest.mark.parametrize("fault", ["absent", "shape", "nan"])
def test_a_bad_duplicate_refuses_the_whole_reply(
    fault: str, start_run: Start, in_process: Federate
) -> None:
    run = start_run("run", **NONPRIVATE, **{"server.max_failures": 1.0})

    def tamper(task: Message, reply: Message) -> Message:
        content: Any = reply.content
        if task.metadata.message_type == "train" and content[names.INFO][names.SILO] == "beta":
            tensors = content[names.DUPLICATE].to_torch_state_dict()
            if fault == "absent":
                del content[names.DUPLICATE]
            else:
                bad = tensors["prefix"][:1] if fault == "shape" else tensors["prefix"] * torch.nan
                content[names.DUPLICATE] = ArrayRecord({**tensors, "prefix": bad})
        return reply

    assert in_process(run, tamper) == "finished"
    rows = [r for r in run.metrics() if r["kind"] == "round"]
    assert all([item["silo"] for item in r["refused"]] == ["beta"] for r in rows)
    assert all(r["replied"] == 3 for r in rows)


def test_a_trusted_server_uses_no_duplicate_that_its_ledger_does_not_know(
    start_run: Start, in_process: Federate
) -> None:
    """The budget ends the run in round 3: the silos have sent raw updates by then, no row records them,
    and neither the model nor the teacher takes them."""
    run = start_run(
        "run",
        **NONPRIVATE,
        **{
            "privacy.unit": "client",
            "privacy.noise_by": "server",
            "privacy.noise_multiplier": 1.0,
            "privacy.epsilon": 8.5,
            "server.rounds": 5,
            "server.keep_checkpoints": 5,
        },
    )
    asked: list[int] = []

    def tamper(task: Message, reply: Message) -> Message:
        content: Any = reply.content
        if task.metadata.message_type == "train":
            assert names.DUPLICATE in content.array_records
            asked.append(int(task.content[names.CONFIG][names.ROUND]))  # type: ignore[index,arg-type,call-overload]
        return reply

    assert in_process(run, tamper) == "stopped"
    with Ledger(run.ledger_path, read_only=True) as ledger:
        recorded = max(entry.round for entry in ledger.entries())
    assert max(asked) == recorded + 1 == run.state()["round"]
    states = [
        load_checkpoint(run.checkpoints_path / f"round-{t:05d}").state
        for t in (recorded, recorded + 1)
    ]
    teachers = [{n: v for n, v in s.items() if n.startswith("teacher.")} for s in states]
    assert same_bits(*teachers)


def test_the_report_says_it_even_where_the_ledger_does_not(
    start_run: Start, in_process: Federate
) -> None:
    """Settings with a non-private teacher take the guarantee away, whatever the rows hold."""
    run = finished(start_run("run"), in_process)
    assert run.read_json("report.json")["guarantee"]["level"] == "conditional"
    file = run.path / "settings.toml"
    text = file.read_text(encoding="utf-8")
    assert text.count('kind = "none"') == 1
    file.write_text(text.replace('kind = "none"', 'kind = "nonprivate"'), encoding="utf-8")
    report = build(run.path)
    assert report["headline"].startswith("NO GUARANTEE: epsilon is infinite")
    assert "teacher.kind=nonprivate" in report["headline"]


def test_measured_membership_stands_beside_the_first_line(
    start_run: Start, in_process: Federate
) -> None:
    run = finished(start_run("run", **NONPRIVATE), in_process)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Not measured for this model" in page[: page.index("<h1>")]
    figure = {"attack": "loss threshold", "auc": 0.731, "low": 0.702, "high": 0.758, "runs": 3}
    run.write_json("membership.json", figure)
    write_report(run)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    above = page[: page.index("<h1>")]
    assert "loss threshold: AUC 0.731, 95% confidence interval 0.702 to 0.758, over 3 runs" in above
    assert build(run.path)["membership"] == [figure | {"label": None}]
    both = [figure, figure | {"attack": "calibrated"}]
    run.write_json("membership.json", {"attacks": both, "label": "made of <private> texts"})
    found = build(run.path)["membership"]
    assert found == [row | {"label": "made of <private> texts"} for row in both]
    write_report(run)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "It is made of &lt;private&gt; texts." in page[: page.index("<h1>")]
    run.write_json("membership.json", {"attack": "loss threshold"})
    found = build(run.path)
    assert found["membership"] == []
    assert any("membership.json is damaged" in problem for problem in found["problems"])


@pytest.mark.parametrize("kind", ["ema", "public", "nonprivate"])
def test_layers_dropped_after_a_warm_up_leave_every_teacher(
    kind: str, start_run: Start, in_process: Federate, public_text: dict[str, Any]
) -> None:
    """With distillation; interrupted after the choice, and resumed to the same bits."""
    changes = public_text | {"teacher.kind": kind, "teacher.distillation": 0.5}
    changes |= {"teacher.public_steps": 5, "layers.form": "public", "layers.keep": 1}
    changes |= {"layers.after": 2, "server.rounds": 4, "server.checkpoint_every": 2}
    whole = finished(start_run("whole", **changes), in_process)
    parts = start_run("parts", **changes)
    stop = threading.Event()

    def tamper(task: Message, reply: Message) -> Message | None:
        content: Any = task.content
        if content[names.CONFIG].get(names.ROUND) != 4:
            return reply
        stop.set()
        return None

    assert in_process(parts, tamper, stop) == "interrupted"
    assert in_process(RunFolder.open(parts.path)) == "finished"
    first, second = (latest_checkpoint(r.checkpoints_path) for r in (whole, parts))
    assert first is not None
    assert second is not None
    assert first.params["prefix"].shape[0] == 1
    assert same_bits(first.state, second.state)
    rows = [m for m in whole.metrics() if m["kind"] == "round"]
    assert all(m["teacher_divergence"] >= 0 for m in rows)
