"""Optional parts of a run: a list that strategy and readers call by its hooks, and that others may add to."""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import MessageType
from torch import Tensor
from whole_runs import final, rounds, same_bits, spent

from fedllm.budget.round_draws import round_draws
from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder
from server.aggregation import Contribution, MeanUpdate
from server.extensions.adaptive_clip import AdaptiveClip
from server.extensions.base import Asking, Extras, RoundExtension
from server.extensions.central_noise import CentralNoise
from server.extensions.codec import EncodedUpdates
from server.extensions.factory import make_extensions, register_extension
from server.extensions.layers import LayerChoice
from server.extensions.teacher import DuplicateTeacher, TeacherPull
from server.extensions.zeroth_order import ScalarEstimates
from server.replies import ReplyRefused
from server.replies.training import TrainingReply

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
