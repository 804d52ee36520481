"""A hostile server in a secure sum, over the real client app: each refused in one line, before anything is spent.

The silo is real, with a file, a key and a ledger of its own; its two peers are the protocol's own objects in this process, and the
server may do what it likes with what they say.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message

from client.app import app
from client.identity import NodeIdentity
from client.task_fields import TRAIN
from fedllm import messages as names
from fedllm.report.extract.keys import load_signing_key
from fedllm.secure.member import Member
from fedllm.secure.messages import Advance, names_to_text, packets_to_text
from fedllm.secure.roster import Introduction, Roster
from fedllm.training.sum_share.mechanism import SUM
from privacy.ledger.ledger import Ledger
from simulations.in_process import over_the_wire

from .__main__ import hosted
from .honest import message_of, parts, settings_for, start_of
from .silo import ANSWERED, REFUSED, HostedSilo, quiet

ASKED: dict[str, Any] = {
    "privacy.noise_by": "sum",
    "secure.drop_outs": 1,
    "client.local_steps": 1,
    "privacy.spare_rounds": 10,
}
PEERS = ("north", "south")


def make_key(path: Path) -> NodeIdentity:
    """A node's key, and the identity with it."""
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return NodeIdentity(path)


class Run:
    """One run of the silo and its peers, as an honest server would begin it."""

    def __init__(self, silo: HostedSilo, keys: Path) -> None:
        self.silo = silo
        self.settings = settings_for(silo, TRAIN, **ASKED)
        self.fields = parts(silo, TRAIN, self.settings)[names.CONFIG]
        self.run = self.fields[names.RUN_ID]
        identities = {name: NodeIdentity(keys / f"{name}.key") for name in PEERS}
        self.peers = {
            name: Member(name, self.run, keys / "sums", one.sign)
            for name, one in identities.items()
        }
        said = [peer.introduce() for peer in self.peers.values()]
        self.roster = self.made([self.introduce(), *said])
        for peer in self.peers.values():
            peer.join(self.roster)

    def made(self, said: list[Introduction], noise: float = 0.8) -> Roster:
        """A roster of these silos with the settings' plan."""
        dimension = sum(value.numel() for value in start_of(self.settings).values())
        plan: dict[str, Any] = {"drop_outs": 1, "colluding": 0, "bits": 64}
        return Roster.make(said, noise_multiplier=noise, dimension=dimension, **plan)

    def message(self, kind: str, **fields: Any) -> Message:
        """A task of this kind."""
        content: dict[str, Any] = {names.CONFIG: self.fields | fields}
        if not kind.startswith(names.EXCHANGE):
            content[names.PARAMS] = dict(start_of(self.settings))
        return message_of(kind, content)

    def answer(self, kind: str, **fields: Any) -> Any:
        """The content of the silo's reply; it must be one."""
        task = over_the_wire(self.message(kind, **fields), f"{kind}-{len(str(fields))}")
        content = app(task, self.silo.context).content
        info: Any = content[names.INFO]
        assert info[names.STATUS] == names.OK, info[names.REASON]
        return content

    def introduce(self) -> Introduction:
        """What the silo says of itself."""
        info = self.answer(names.ASK_INTRODUCTION)[names.INFO]
        return Introduction.from_text(info[names.INTRODUCTION])

    def advance(self, session: int, roster: Roster | None = None) -> Advance:
        """The silo's shares for a session."""
        text = (roster or self.roster).to_text()
        fields = {names.SESSION: session, names.ROSTER: text}
        return Advance.from_text(
            self.answer(names.ASK_ADVANCE, **fields)[names.INFO][names.ADVANCE]
        )

    def training(self, session: int, number: int = 1, **fields: Any) -> dict[str, Any]:
        """Fields of a task of training in a session."""
        packets = {name: p.advance(session).packets["clinic"] for name, p in self.peers.items()}
        return {
            names.ROUND: number,
            names.SESSION: session,
            names.ROSTER: self.roster.to_text(),
            names.PACKETS: packets_to_text(packets),
            **fields,
        }

    def asked(self, kind: str, **fields: Any) -> Any:
        """What became of a task."""
        return self.silo.ask(lambda silo: self.message(kind, **fields))

    def refused(self, kind: str, match: str, **fields: Any) -> None:
        """A task is refused in one line that says why, and spends nothing."""
        found = self.asked(kind, **fields)
        assert (found.verdict, found.rows) == (REFUSED, 0), found
        assert match in found.reason, found.reason
        assert "\n" not in found.reason


@pytest.fixture(scope="module")
def silo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostedSilo]:
    """The hosted silo, which knows its peers' keys."""
    folder = tmp_path_factory.mktemp("hostile-sums")
    with quiet():
        made = hosted(folder)
        own = made.folder / "silo.toml"
        tree = tomllib.loads(own.read_text(encoding="utf-8"))
        make_key(made.folder / "node.key")
        lines = {
            name: load_signing_key(make_key(folder / f"{name}.key").key).public.line
            for name in PEERS
        }
        tree["secure"] = {"peers": lines}
        own.write_text(tomli_w.dumps(tree), encoding="utf-8")
        yield made


@pytest.fixture
def run(silo: HostedSilo) -> Run:
    """A run that has begun."""
    return Run(silo, silo.folder.parent)


def test_an_honest_round_is_answered_and_comes_again_as_the_same_bytes(run: Run) -> None:
    run.advance(1)
    task = run.training(1)
    first = run.asked(TRAIN, **task)
    assert (first.verdict, first.rows) == (ANSWERED, 1), first.reason
    replies = [run.answer(TRAIN, **task)[names.UPDATE][SUM].numpy() for _ in range(2)]
    np.testing.assert_array_equal(*replies)
    assert run.asked(TRAIN, **task).rows == 0


def test_a_round_again_in_the_same_session_with_anything_changed_is_refused(run: Run) -> None:
    run.answer(TRAIN, **run.training(1))
    for changed in (
        run.training(1, number=2),
        run.training(1, number=1) | {names.PLANNED_ROUNDS: 2},
    ):
        run.refused(TRAIN, "Expected a session above 1", **changed)
    found = run.asked(TRAIN, **run.training(2, number=1))
    assert (found.verdict, found.rows) == (ANSWERED, 1), "another session: a release with its row"


def test_a_swapped_key_an_unknown_silo_and_another_roster_are_refused(
    run: Run, tmp_path: Path
) -> None:
    mine, (north, south) = run.introduce(), [peer.introduce() for peer in run.peers.values()]
    make_key(tmp_path / "server.key")
    fake = Member(
        "south", run.run, tmp_path, NodeIdentity(tmp_path / "server.key").sign
    ).introduce()
    unsigned = replace(south, key=fake.key)
    for other in (fake, unsigned, replace(south, key=fake.key, signature="")):
        text = run.made([mine, north, other]).to_text()
        run.refused(
            TRAIN, "signed by the key pinned for it", **run.training(1) | {names.ROSTER: text}
        )
    stranger = Member("west", run.run, tmp_path, NodeIdentity(tmp_path / "server.key").sign)
    text = run.made([mine, north, stranger.introduce()]).to_text()
    run.refused(TRAIN, "key of silo 'west' signed", **run.training(1) | {names.ROSTER: text})
    ours = run.made([replace(mine, key=bytes(31) + b"\x09"), north, south]).to_text()
    run.refused(
        TRAIN, "Expected the key of silo 'clinic'", **run.training(1) | {names.ROSTER: ours}
    )
    run.answer(TRAIN, **run.training(1))
    more = run.made([mine, north, south], noise=0.9).to_text()
    run.refused(
        TRAIN,
        "Expected the terms that the run began with",
        **run.training(2) | {names.ROSTER: more},
    )


def test_less_noise_than_the_silo_asks_for_and_another_plan_are_refused(run: Run) -> None:
    said = [run.introduce(), *(peer.introduce() for peer in run.peers.values())]
    low = run.made(said, noise=0.75).to_text()
    run.refused(
        TRAIN, "Expected a common noise multiplier >= 0.8", **run.training(1) | {names.ROSTER: low}
    )
    none = replace(run.roster, drop_outs=0).to_text()
    run.refused(
        TRAIN,
        "of the settings, (1, 0, 64), got (0, 0, 64)",
        **run.training(1) | {names.ROSTER: none},
    )
    run.refused(names.ASK_ADVANCE, "of the settings", **{names.SESSION: 1, names.ROSTER: none})


def test_packets_that_no_peer_sealed_are_refused_before_the_row(run: Run) -> None:
    fields = run.training(1)
    nothing = packets_to_text({})
    run.refused(TRAIN, "Expected packets of at least 1 peers", **fields | {names.PACKETS: nothing})
    sealed = {name: peer.advance(2).packets["clinic"] for name, peer in run.peers.items()}
    run.refused(TRAIN, "in session 1", **fields | {names.PACKETS: packets_to_text(sealed)})
    for text in ("", "{", '{"packets": 1}', '{"packets": {"north": "zz"}}', "[" * 99):
        run.refused(TRAIN, "Expected", **fields | {names.PACKETS: text})
    run.refused(TRAIN, "Expected a session", **fields | {names.SESSION: -1})
    run.refused(TRAIN, "Expected a session", **fields | {names.SESSION: 2**62})


def test_a_sum_is_not_opened_before_below_the_threshold_or_twice(run: Run) -> None:
    def opening(*answered: str, session: int = 1) -> dict[str, Any]:
        return {names.SESSION: session, names.ANSWERED: names_to_text(list(answered))}

    run.advance(1)
    run.refused(names.ASK_OPENING, "did not open", **opening("clinic", "north"))
    run.answer(TRAIN, **run.training(1))
    run.refused(names.ASK_OPENING, "at least 2 silos", **opening("clinic"))
    run.refused(names.ASK_OPENING, "Expected silos that advanced", **opening("clinic", "west"))
    run.refused(names.ASK_OPENING, "did not open", **opening("clinic", "north", session=2))
    first = run.answer(names.ASK_OPENING, **opening("clinic", "north"))
    assert first[names.INFO][names.OPENING]
    run.refused(names.ASK_OPENING, "did not open", **opening("clinic", "north", "south"))
    with Ledger(run.silo.folder / "ledger.sqlite", read_only=True) as ledger:
        assert len([row for row in ledger.entries(run=run.run) if row.purpose == "train"]) == 1
