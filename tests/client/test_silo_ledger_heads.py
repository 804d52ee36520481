"""A silo whose ledger was put back, moved or lost takes no part until somebody decides otherwise."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configured_silo import write_silo
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from typer.testing import CliRunner

import client.extract
import fedllm.silo.process
from client.app import app
from client.config import load_silo
from fedllm import messages as names
from fedllm.report.extract.keys import HEAD, load_signing_key
from fedllm.report.extract.statement import Head as SignedHead
from fedllm.report.extract.statement import HeadItem, text_of
from fedllm.settings.io import to_json
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.ledger.heads import HeadFile
from privacy.ledger.ledger import Head, Ledger
from simulations.cli.main import app as fedllm_command

Make = Callable[..., Any]


class Node:
    """A silo with its own config, and the tasks that it is asked."""

    def __init__(self, settings: Any, folder: Path, data: Path) -> None:
        self.settings, self.folder = settings, folder
        self.file = write_silo(folder / "silo", settings, data)
        self.silo = load_silo(self.file)
        self.ledger = Path(self.silo.ledger)

    def ask(self, server_round: int, head: ConfigRecord | None = None) -> Any:
        return self.reply(server_round, head)[names.INFO]

    def reply(self, server_round: int, head: ConfigRecord | None = None) -> RecordDict:
        config = {
            names.SETTINGS: to_json(self.settings),
            names.RUN_ID: "run",
            names.RUN_FOLDER: "/not/here",
            names.ROUND: server_round,
            names.PLANNED_ROUNDS: 3,
        }
        params = initial_params(shared_tunable(self.settings), self.settings)
        content = RecordDict(
            {names.CONFIG: ConfigRecord(config), names.PARAMS: ArrayRecord(params)}
        )
        if head is not None:
            content[names.LEDGER] = head
        context = Context(
            run_id=1,
            node_id=5,
            node_config={"silo-file": str(self.file)},
            state=RecordDict(),
            run_config={},
        )
        return app(Message(content, dst_node_id=5, message_type="train"), context).content

    def rows(self) -> list[int]:
        with Ledger(self.ledger, read_only=True) as ledger:
            return [row.round for row in ledger.entries()]


def new_process() -> None:
    """Forget what a process has once: its open ledgers and workers."""
    fedllm.silo.process._workers.clear()
    fedllm.silo.process._ledgers.clear()


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    monkeypatch.delenv("FEDLLM_SILO", raising=False)


@pytest.fixture
def node(tiny_settings: Make, tmp_path: Path, word_files: Path) -> Node:
    settings = tiny_settings(**{"privacy.randomness": "os"})
    node = Node(settings, tmp_path, word_files / "validation.jsonl")
    assert node.ask(1)[names.STATUS] == names.OK
    shutil.copytree(node.ledger.parent, tmp_path / "backup")
    assert node.ask(2)[names.STATUS] == names.OK
    return node


def test_the_state_folder_keeps_the_head_that_lies_beside_the_ledger(node: Node) -> None:
    beside = HeadFile(Path(f"{node.ledger}.head")).read()
    assert beside is not None
    assert HeadFile(node.silo.kept_heads[0]).read() == beside


def put_back(node: Node) -> None:
    for name in ("ledger.sqlite", "ledger.sqlite.head"):
        shutil.copy(node.folder / "backup" / name, node.ledger.parent)


def delete(node: Node) -> None:
    for name in ("ledger.sqlite", "ledger.sqlite.head"):
        (node.ledger.parent / name).unlink()


def move(node: Node) -> None:
    """To a folder of another name, as a new machine has it: the state stays behind."""
    shutil.rmtree(node.silo.state)


@pytest.mark.parametrize("restarted", [True, False])
@pytest.mark.parametrize("what", [put_back, delete, move])
def test_a_ledger_that_lacks_its_head_spends_nothing(
    node: Node, what: Callable[[Node], None], restarted: bool
) -> None:
    what(node)
    if restarted:
        new_process()
    before = node.ledger.read_bytes() if node.ledger.exists() else None
    told = node.ask(3)
    assert told[names.STATUS] == names.FAILED
    assert "ledger" in told[names.REASON]
    assert str(node.folder) not in told[names.REASON]
    assert (node.ledger.read_bytes() if node.ledger.exists() else None) == before


@pytest.mark.parametrize("what", [put_back, delete, move])
def test_it_goes_on_once_somebody_decided_it(node: Node, what: Callable[[Node], None]) -> None:
    what(node)
    new_process()
    rows = node.rows() if node.ledger.exists() else []
    (head,) = node.silo.kept_heads
    words = [
        "ledger",
        "adopt",
        str(node.ledger),
        "--kept",
        str(head),
        "--because",
        "the disk broke",
    ]
    done = CliRunner().invoke(fedllm_command, words)
    assert done.exit_code == 0, done.output
    told = node.ask(3)
    assert told[names.STATUS] == names.OK, told[names.REASON]
    assert node.rows() == [*rows, 3]
    shown = CliRunner().invoke(fedllm_command, ["ledger", "verify", str(node.ledger)])
    assert shown.exit_code == 0
    assert "because: the disk broke" in " ".join(shown.output.split())


def test_two_silos_in_one_folder_have_heads_of_their_own(node: Node) -> None:
    other = node.silo.model_copy(
        update={"name": "../a name/that no file has"[3:].replace("/", " ")}
    )
    assert other.kept_heads != node.silo.kept_heads
    assert other.kept_heads[0].parent == node.silo.kept_heads[0].parent


# -- the head that comes back from the server ----------------------------------------------------


def returned(node: Node, head: Head, key: Path | None = None, silo: str = "clinic") -> ConfigRecord:
    """A head as the server brings it back with a task."""
    text = text_of(
        SignedHead(
            silo=silo,
            made="2026-01-01T00:00:00.000+00:00",
            ledger=HeadItem(rows=head.rows, hash=head.hash),
        )
    )
    signature = load_signing_key(key or Path(node.silo.key)).sign(HEAD, text)
    return ConfigRecord({names.HEAD: text, names.HEAD_SIGNATURE: signature})


def make_key(path: Path) -> Path:
    private = ec.generate_private_key(ec.SECP384R1())
    form = serialization.PrivateFormat.PKCS8
    none = serialization.NoEncryption()
    path.write_bytes(private.private_bytes(serialization.Encoding.PEM, form, none))
    return path


def test_a_whole_folder_put_back_is_told_by_what_the_silo_signed(node: Node) -> None:
    """Ledger, heads and key of one backup: whole by themselves."""
    make_key(Path(node.silo.key))
    (kept,) = node.silo.kept_heads
    server = HeadFile(kept).read()
    assert server is not None
    told = node.ask(3, returned(node, server))
    assert told[names.STATUS] == names.OK, told[names.REASON]  # behind the ledger is no matter
    put_back(node)
    shutil.copy(f"{node.ledger}.head", kept)
    new_process()
    before = node.rows()
    told = node.ask(3, returned(node, server))
    assert told[names.STATUS] == names.FAILED
    assert (
        f"not row {server.rows} as the server, by what this silo signed, knows it"
        in (told[names.REASON])
    )
    assert node.rows() == before
    words = ["ledger", "adopt", str(node.ledger), "--kept", str(kept), "--head", str(server)]
    done = CliRunner().invoke(fedllm_command, [*words, "--because", "all of it from the backup"])
    assert done.exit_code == 0, done.output
    new_process()
    told = node.ask(3, returned(node, server))
    assert told[names.STATUS] == names.OK, told[names.REASON]


def test_a_refused_ledger_does_not_vouch(node: Node) -> None:
    """Neither with an extract nor with a head that the server would then bring back."""
    make_key(Path(node.silo.key))
    (kept,) = node.silo.kept_heads
    server = HeadFile(kept).read()
    assert server is not None
    client.extract._made.clear()
    content = node.reply(3, returned(node, server))
    assert content[names.INFO][names.STATUS] == names.OK
    assert names.HEAD in content[names.LEDGER]
    put_back(node)
    shutil.copy(f"{node.ledger}.head", kept)
    new_process()
    content = node.reply(4, returned(node, server))
    assert content[names.INFO][names.STATUS] == names.FAILED
    assert names.LEDGER not in content


@pytest.mark.parametrize("forged", ["another key", "another silo", "no key"])
def test_no_server_makes_a_ledger_look_rolled_back(node: Node, tmp_path: Path, forged: str) -> None:
    make_key(Path(node.silo.key))
    ahead = Head(9, "f" * 64)
    head = returned(node, ahead)
    if forged == "another key":
        head = returned(node, ahead, make_key(tmp_path / "other.pem"))
    elif forged == "another silo":
        head = returned(node, ahead, silo="another")
    else:
        Path(node.silo.key).unlink()
    told = node.ask(3, head)
    assert told[names.STATUS] == names.OK, told[names.REASON]
