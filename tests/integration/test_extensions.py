"""Optional parts of a run: a list that strategy and readers call by its hooks, and that others may add to."""

from __future__ import annotations

import ast
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dp_accounting.dp_event import DpEvent
from flwr.app import ArrayRecord, ConfigRecord, MessageType
from torch import Tensor
from whole_runs import final, rounds, same_bits, spent

from fedllm import messages as names
from fedllm.budget.account import SiloAccount
from fedllm.budget.local_policy import LimitRefused
from fedllm.budget.round_draws import round_draws
from fedllm.data.batches import Feature
from fedllm.data.silos import load_federation
from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.silo.extensions.adaptive_clip import SiloClip
from fedllm.silo.extensions.base import Answer, Make, Respond, SiloExtension
from fedllm.silo.extensions.codec import SiloCodec
from fedllm.silo.extensions.duplicate import SiloDuplicate
from fedllm.silo.extensions.evaluation import SiloEvaluation
from fedllm.silo.extensions.factory import make_silo_extensions, register_silo_extension
from fedllm.silo.extensions.layers import SiloScores
from fedllm.silo.extensions.secure_sum import SecureSum
from fedllm.silo.extensions.zeroth_order import SiloDirections
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.silo.task_form import TaskForm, positive
from fedllm.task_errors import TaskRefused
from fedllm.training.steps import LocalResult, Streams
from privacy.events.constructors import gaussian
from privacy.events.multiset import multiset
from privacy.ledger.ledger import Ledger
from server.aggregation import Contribution, MeanUpdate
from server.extensions.adaptive_clip import AdaptiveClip
from server.extensions.ask_silos import ask_silos
from server.extensions.base import Asking, Extras, RoundExtension
from server.extensions.central_noise import CentralNoise
from server.extensions.codec import EncodedUpdates
from server.extensions.factory import make_extensions, register_extension
from server.extensions.layers import LayerChoice
from server.extensions.secure_sum import SecureSums
from server.extensions.teacher import DuplicateTeacher, TeacherPull
from server.extensions.zeroth_order import ScalarEstimates
from server.replies import ReplyRefused
from server.replies.training import TrainingForm, TrainingReply

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
ROOT = Path(__file__).resolve().parents[2]
NAMES = ["alpha", "beta", "delta", "gamma"]


class Toy(RoundExtension):
    """Notes each hook's call, counts the rounds over restarts, and refuses the replies of some silos."""

    def __init__(self, refused: Sequence[str] = ()) -> None:
        self.refused = refused
        self.seen: list[tuple[Any, ...]] = []
        self.moves = torch.zeros(())

    def before_run(self, grid: Any) -> None:
        self.seen.append(("before_run", self.run.finished_rounds))

    def after_restore(self, grid: Any) -> None:
        self.seen.append(("after_restore", self.run.finished_rounds))

    def before_round(self, grid: Any) -> None:
        self.seen.append(("before_round", self.run.finished_rounds + 1))

    def task_extras(self, asking: Asking, silo: str) -> Extras:
        self.seen.append(("task", asking.kind, asking.server_round, silo))
        return Extras()

    def deliver(self, grid: Any, silos: Sequence[str], server_round: int) -> int:
        self.seen.append(("deliver", server_round, tuple(silos)))
        return 1000

    def read(self, silo: str, reply: TrainingReply) -> TrainingReply:
        self.seen.append(("reply", silo, sorted(reply.update)))
        if silo in self.refused:
            raise ReplyRefused("Expected nothing of this silo, got an update")
        return reply

    def after_move(
        self,
        params: dict[str, Tensor],
        mean: MeanUpdate,
        counted: Sequence[Contribution],
        server_round: int,
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        self.moves = self.moves + 1
        self.seen.append(("move", server_round, sorted(c.silo for c in counted)))
        return params, {"toy_moves": float(self.moves)}

    def state(self) -> dict[str, Tensor]:
        return {"toy.moves": self.moves}

    def meta(self) -> dict[str, Any]:
        return {"toy": "was here"}

    def load_state(self, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        assert meta["toy"] == "was here"
        self.moves = state["toy.moves"].clone()


@pytest.fixture
def toys() -> Iterator[list[Toy]]:
    """Each run in this process gets a toy, and refuses what beta sends."""
    made: list[Toy] = []

    def make(settings: Any, folder: RunFolder) -> Toy:
        made.append(Toy(refused=["beta"]))
        return made[-1]

    forget = register_extension(make)
    yield made
    forget()


def test_an_extension_from_outside_sees_tasks_replies_and_moves(
    toys: list[Toy], start_run: Start, in_process: Federate
) -> None:
    run = start_run("run", **{"server.rounds": 2, "evaluation.clients": "off"})
    assert in_process(run) == "finished"
    (toy,) = toys
    assert toy.seen[:2] == [("before_run", 0), ("after_restore", 0)]
    of_a_round = [
        ("before_round", 2),
        *[("task", MessageType.TRAIN, 2, name) for name in NAMES],
        ("deliver", 2, tuple(NAMES)),
        *[("reply", name, sorted(final(run))) for name in NAMES],
        ("move", 2, ["alpha", "delta", "gamma"]),
    ]
    assert toy.seen[-len(of_a_round) :] == of_a_round
    found = rounds(run)
    assert [record["toy_moves"] for record in found] == [1, 2]
    for record in found:
        assert record["refused"] == [
            {"silo": "beta", "reason": "Expected nothing of this silo, got an update"}
        ]
        assert record["replied"] == 3
    checkpoint = latest_checkpoint(run.checkpoints_path)
    assert checkpoint is not None
    assert float(checkpoint.state["toy.moves"]) == 2
    told = checkpoint.meta["spending"]["events"]
    assert sorted(told) == ["alpha", "delta", "gamma"], "a refused reply changes no view"
    assert sum(spent(run)["server"].values()) == 2 * len(NAMES), "the silos' ledgers decide"


def test_the_state_of_an_extension_is_restored(
    toys: list[Toy], start_run: Start, in_process: Federate
) -> None:
    """Interrupted in its second round, a run continues with the toy's count of the first."""
    run = start_run("run", **{"server.rounds": 3, "server.checkpoint_every": 1})
    stop = threading.Event()

    def tamper(task: Any, reply: Any) -> Any:
        if task.metadata.message_type == MessageType.TRAIN and task.metadata.group_id == "2":
            stop.set()
        return reply

    assert in_process(run, tamper, stop) == "interrupted"
    assert in_process(RunFolder.open(run.path)) == "finished"
    first, second = toys
    assert float(first.moves) == 1
    assert ("after_restore", 1) in second.seen
    assert float(second.moves) == 3


def test_an_idle_extension_changes_nothing(start_run: Start, in_process: Federate) -> None:
    plain = start_run("plain")
    assert in_process(plain) == "finished"
    forget = register_extension(lambda settings, folder: RoundExtension())
    try:
        idle = start_run("idle")
        assert in_process(idle) == "finished"
    finally:
        forget()
    assert same_bits(final(plain), final(idle))
    assert spent(plain) == spent(idle)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"privacy.mode": "none"}, []),
        ({"server.aggregation": "median"}, []),
        ({"codec.name": "int8"}, [EncodedUpdates]),
        ({"teacher.kind": "ema"}, [TeacherPull]),
        ({"awp.form": "per-example"}, []),
        ({"clipping.form": "adaptive"}, [AdaptiveClip]),
        ({"privacy.noise_by": "sum", "client.local_steps": 1}, [SecureSums]),
        ({"privacy.unit": "client", "privacy.noise_by": "server"}, [CentralNoise]),
        (
            {
                "privacy.unit": "client",
                "privacy.noise_by": "server",
                "clipping.form": "adaptive",
                "teacher.kind": "ema",
            },
            [CentralNoise, AdaptiveClip, TeacherPull],
        ),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_the_settings_decide_which_extensions_there_are(
    changes: dict[str, Any], expected: list[type], start_run: Start
) -> None:
    run = start_run("run", **changes)
    draws = round_draws(run.settings(), NAMES, None)
    found = make_extensions(run.settings(), run, silos=NAMES, draws=draws)
    assert [type(extension) for extension in found] == expected


KINDS = (
    AdaptiveClip,
    CentralNoise,
    DuplicateTeacher,
    EncodedUpdates,
    LayerChoice,
    ScalarEstimates,
    SecureSums,
    TeacherPull,
)


def imported(path: Path) -> set[str]:
    """Modules that a file imports, with the names taken from them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_rounds_name_no_extension() -> None:
    """What calls the hooks knows the base alone, and asks no settings which extensions there are."""
    kinds = {kind.__name__ for kind in KINDS}
    parts = {"codec", "teacher", "directions", "trusted_noise", "layers", "central_noise"}
    files = ["strategy.py", "round_update.py", "run_state.py", "evaluation.py"]
    paths = [ROOT / "server" / name for name in files]
    for path in [*paths, *(ROOT / "server" / "replies").glob("*.py")]:
        theirs = {name for name in imported(path) if name.startswith("server.extensions")}
        assert {name.split(".")[2] for name in theirs if name.count(".") > 1} <= {"base"}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Name) and node.id in kinds), path
            own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if own and node.value.id == "self":
                assert node.attr not in parts, (path, node.attr)


def test_run_makes_extensions_by_the_factory_alone() -> None:
    theirs = {
        name for name in imported(ROOT / "server" / "run.py") if name.startswith("server.extens")
    }
    assert theirs <= {
        "server.extensions.factory",
        "server.extensions.factory.make_extensions",
    }


# -- the silo's half ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"privacy.mode": "none"}, []),
        ({"awp.form": "per-example"}, []),
        ({"teacher.kind": "ema"}, []),
        ({"privacy.unit": "client", "privacy.noise_by": "server"}, []),
        ({"codec.name": "int8"}, [SiloCodec]),
        ({"clipping.form": "adaptive"}, [SiloClip]),
        ({"privacy.noise_by": "sum", "client.local_steps": 1}, [SecureSum]),
        ({"privacy.mode": "none", "teacher.kind": "nonprivate"}, [SiloDuplicate]),
        ({"model.access": "black-box"}, [SiloDirections]),
        ({"layers.form": "private", "layers.keep": 1}, [SiloScores]),
        ({"evaluation.clients": "raw", "evaluation.clients_holdout": 0.2}, [SiloEvaluation]),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_the_settings_decide_which_extensions_a_silo_has(
    changes: dict[str, Any], expected: list[type], tiny_settings: Callable[..., Any]
) -> None:
    found = make_silo_extensions(tiny_settings(**changes))
    assert [type(extension) for extension in found] == expected


OPTIONAL = (
    "fedllm.codec",
    "fedllm.flatness",
    "fedllm.secure",
    "fedllm.training.sum_share",
    "fedllm.training.adaptive_clip",
    "fedllm.training.black_box",
    "fedllm.training.encoding",
    "fedllm.training.statistics",
    "fedllm.training.zeroth_order",
    "fedllm.silo.codec_needs",
    "fedllm.silo.evaluation",
)
BESIDE = {"BELOW", "CANDIDATES", "CLIP", "CODEC", "CODEC_META", "CODEC_VERSION", "CORRECT", "COUNT"}
BESIDE |= {"DIRECTIONS", "DUPLICATE", "EVALUATE", "SCORES", "STATISTICS", "SEND_CODEC"}
BESIDE |= {"ASK_SCORES", "ASK_STATISTICS", "ASK_INTRODUCTION", "ASK_ADVANCE", "ASK_OPENING"}
BESIDE |= {"SESSION", "ROSTER", "PACKETS", "ANSWERED", "INTRODUCTION", "ADVANCE", "OPENING"}


@pytest.mark.parametrize(
    "file",
    [
        "fedllm/silo/silo.py",
        "fedllm/silo/silo_in_run.py",
        "fedllm/silo/task.py",
        "client/app.py",
        "client/delivery.py",
        "client/node.py",
    ],
)
def test_a_silo_names_no_optional_part(file: str) -> None:
    """Neither its module nor what it sends: the extensions and their factory do."""
    for name in imported(ROOT / file):
        assert not any(name == part or name.startswith(part + ".") for part in OPTIONAL), name
        if name.startswith("fedllm.silo.extensions."):
            assert name.split(".")[3] in ("base", "factory"), name
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id == "names"
            assert not (own and node.attr in BESIDE), node.attr


TOY, SCALE, POINT, NOISE = "query.toy", "toy-scale", "toy-point", 40.0


class SiloToy(SiloExtension):
    """Releases a noisy number of examples in each round, and once before them."""

    def brings(self, kind: str) -> TaskForm:
        if kind == names.TRAIN:
            return TaskForm({SCALE: positive}, frozenset({POINT}))
        return TaskForm({SCALE: positive} if kind == TOY else {})

    def check(self, task: SiloTask) -> None:
        if task.kind == names.TRAIN:
            self.run.check(task.extras[POINT], "a toy point")

    def round_events(self) -> Counter[DpEvent]:
        return multiset({gaussian(NOISE): 1})

    def request_events(self, sampling_rate: float) -> Mapping[str, Counter[DpEvent]]:
        return {"toy": multiset({gaussian(NOISE): 1})}

    def releases(self, task: SiloTask, account: SiloAccount) -> Mapping[str, Make]:
        return {"toy-count": self.count}

    def count(self, features: list[Feature], streams: Streams) -> dict[str, Tensor]:
        noise = NOISE * float(streams("toy-noise", 0).standard_normal((1,))[0])
        return {"toy": torch.tensor([len(features) + noise], dtype=torch.float64)}

    def reply(self, task: SiloTask, result: LocalResult) -> Answer:
        return Answer(texts={"toy-text": "of scale " + format(task.extras[SCALE], "g")})

    def requests(self) -> Mapping[str, Respond]:
        return {TOY: self.before}

    def before(self, task: SiloTask, account: SiloAccount) -> Answer:
        def record(key: str) -> None:
            account.spend("toy", task.round, key, self.request_events(0.0)["toy"])

        (count,) = self.run.release(task, "toy", [self.count], record, self.run.train_features)
        return Answer({"toy": count}, {names.SAMPLING_RATE: account.sampling_rate})


class ServerToy(RoundExtension):
    """The server's half: asks once, sends a scale and a point, and keeps what comes."""

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self.counts: dict[tuple[int, str], float] = {}

    def after_restore(self, grid: Any) -> None:
        run = self.run
        tasks = run.tasks(TOY, NAMES, 0, run.arrays(), ConfigRecord())
        options: Any = {"record": "toy", "size": 1, "noise": NOISE, "what": "toy counts"}
        found = ask_silos(grid, run, NAMES, tasks, **options)
        self.before = {name: float(released) for name, (released, _) in found.items()}

    def task_extras(self, asking: Asking, silo: str) -> Extras:
        fields = {SCALE: 1.0 + asking.server_round}
        if asking.kind != MessageType.TRAIN:
            return Extras(fields=fields)
        return Extras({POINT: ArrayRecord(dict(self.run.model.params))}, fields)

    def reply_form(self, form: TrainingForm) -> TrainingForm:
        spec = {"toy": ((1,), torch.float64)}
        texts = {"toy-text": f"of scale {1.0 + form.server_round:g}"}
        records = {**form.records, "toy-count": spec}
        return replace(form, records=records, texts={**form.texts, **texts})

    def read(self, silo: str, reply: TrainingReply) -> TrainingReply:
        number = self.run.finished_rounds + 1
        self.counts[number, silo] = float(reply.records["toy-count"]["toy"])
        return reply


@pytest.fixture
def silo_toy() -> Iterator[None]:
    forget = register_silo_extension(lambda settings: SiloToy())
    yield
    forget()


@pytest.mark.usefixtures("silo_toy")
def test_an_extension_of_the_silos_from_outside_works_through_a_run(
    start_run: Start, in_process: Federate
) -> None:
    """Both halves: its extras arrive, its releases are in the ledger before they leave and answered under noise."""
    made: list[ServerToy] = []

    def make(settings: Any, folder: RunFolder) -> ServerToy:
        made.append(ServerToy())
        return made[-1]

    forget = register_extension(make)
    try:
        run = start_run("run", **{"server.rounds": 2, "evaluation.clients": "off"})
        assert in_process(run) == "finished"
    finally:
        forget()
    (toy,) = made
    assert sorted(toy.before) == NAMES
    assert sorted(toy.counts) == [(number, name) for number in (1, 2) for name in NAMES]
    noisy = [*toy.before.values(), *toy.counts.values()]
    assert len(set(noisy)) == len(noisy)
    assert all(value != round(value) for value in noisy)
    with Ledger(run.ledger_path, read_only=True) as ledger:
        for name in NAMES:
            mine = ledger.entries(party=name)
            events = [(e.purpose, multiset(e.view("server"))[gaussian(NOISE)]) for e in mine]
            assert events == [("toy", 1), ("train", 1), ("train", 1)]


@pytest.mark.usefixtures("silo_toy")
def test_a_toys_extras_are_held_against_its_form_and_are_in_the_fingerprint(
    tiny_settings: Callable[..., Any], tmp_path: Path
) -> None:
    settings = tiny_settings()
    silo = load_federation(settings).silos[0]
    worker = SiloWorker(settings, silo, run="r", ledger=tmp_path / "ledger.sqlite")
    params = worker.initial

    def task(**extras: Any) -> SiloTask:
        return SiloTask(params, 1, 3, {SCALE: 1.0, POINT: params, **extras})

    moved = {name: value + 1 for name, value in params.items()}
    found = [worker.train(t) for t in (task(), task(**{SCALE: 2.0}), task(**{POINT: moved}))]
    counts = [float(reply.beside.tensors["toy-count"]["toy"]) for reply in found]
    assert len(set(counts)) == 3, "another extra is another noise"
    rows = len(worker.ledger.entries())
    huge = {name: value + 1e6 for name, value in params.items()}
    for wrong in (task(more=1), SiloTask(params, 1, 2, {SCALE: 1.0}), task(**{POINT: huge})):
        with pytest.raises((TaskRefused, LimitRefused)):
            worker.train(wrong)
    assert len(worker.ledger.entries()) == rows, "nothing is spent for a task that must fail"


@pytest.mark.usefixtures("silo_toy")
def test_a_toy_that_nobody_would_record_is_refused(
    tiny_settings: Callable[..., Any], tmp_path: Path
) -> None:
    """With noise by the server it is the server that records the round, and knows nothing of the toy."""
    settings = tiny_settings(**{"privacy.unit": "client", "privacy.noise_by": "server"})
    silo = load_federation(settings).silos[0]
    worker = SiloWorker(settings, silo, run="r", ledger=tmp_path / "ledger.sqlite")
    with pytest.raises(TaskRefused, match=r"privacy\.noise_by=client for an extension"):
        worker.train(SiloTask(worker.initial, 1, 2, {SCALE: 1.0, POINT: worker.initial}))
    assert worker.ledger.entries() == []


def test_the_budget_leaves_room_for_a_toy(
    tiny_settings: Callable[..., Any], tmp_path: Path
) -> None:
    """With its releases the same target takes more noise, and holds for all of them together."""
    settings = tiny_settings(**{"privacy.noise_multiplier": None, "privacy.epsilon": 4.0})
    silo = load_federation(settings).silos[0]

    def account(name: str) -> SiloAccount:
        worker = SiloWorker(settings, silo, run="r", ledger=tmp_path / f"{name}.sqlite")
        return worker.account(3)

    plain = account("plain")
    forget = register_silo_extension(lambda settings: SiloToy())
    try:
        beside = account("toy")
    finally:
        forget()
    assert beside.noise_multiplier > plain.noise_multiplier
    planned = beside.planned()
    assert planned[gaussian(NOISE)] == 3 + 1
    assert beside.bounds[0].budget.cost(planned) <= 4.0 * (1 + 1e-6)
