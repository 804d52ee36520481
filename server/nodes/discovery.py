"""Find the silos of a run by name, and check which node may speak for which silo.

In a deployment the nodes are chosen by the names under which they are registered
(:mod:`server.nodes.identities`), so no one else is sent anything, the first question included. In a simulation nodes
have no names; those that are there are asked, and only the ones that are wanted get tasks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedllm import messages as names
from fedllm.settings.experiment import Settings
from fedllm.settings.io import to_json
from server.nodes.exchange import Stopped, exchange
from server.nodes.identities import Identity, connected
from server.replies import Item, ReplyRefused, RunStopped
from server.replies.envelope import Envelope, why_none
from server.replies.node import NodeReply, read_node
from server.replies.refusal import one_line, shown

_POLL = 0.05


@dataclass
class Found:
    """The silos of a run.

    Attributes:
        nodes: node id of each silo, by name.
        keys: the public key (PEM) that each silo's node signs with; none in a simulation.
        sizes: number of examples of each silo, where it is public, else None.
        failed, refused, left: silos and nodes that take no part, with why: they cannot, their answer is not
            usable, or their own limits refuse the experiment.
    """

    nodes: dict[str, int] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int | None] = field(default_factory=dict)
    failed: list[Item] = field(default_factory=list)
    refused: list[Item] = field(default_factory=list)
    left: list[Item] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """A sentence for each that failed or was refused, and then for those whose limits refuse."""
        items = [*self.failed, *self.refused, *self.left]
        return list(dict.fromkeys(f"{item['silo']}: {item['reason']}" for item in items))


def find_silos(
    grid: Grid,
    settings: Settings,
    stop: threading.Event,
    expected: int | None,
    *,
    wanted: Sequence[str] = (),
    backbone: str = "",
) -> Found:
    """Wait for the nodes of a run and ask them which silo they serve.

    Args:
        expected: number of nodes to wait for where ``wanted`` names none; None takes those that are there.
        wanted: names of the silos of the run; no one else takes part.
        backbone: digest of the frozen model's weights, for nodes that compare.

    Raises:
        RunStopped: one of ``wanted`` is not there within ``server.wait_for_clients`` (the message names it),
            no node has a silo, or a larger share than ``server.max_failures`` cannot take part.
        Stopped: ``stop`` was set.
    """
    wait = settings.server.wait_for_clients
    config = ConfigRecord({names.SETTINGS: to_json(settings), names.BACKBONE: backbone})

    def ask(nodes: Sequence[Identity]) -> list[Message | None]:
        tasks = [
            Message(
                RecordDict({names.CONFIG: config}),
                dst_node_id=node.node_id,
                message_type=MessageType.QUERY,
            )
            for node in nodes
        ]
        return exchange(grid, tasks, timeout=wait, stop=stop)

    found = Found()
    if wanted:
        _find_by_name(grid, found, ask, wanted, wait, stop)
    else:
        nodes = wait_for_nodes(grid, expected, timeout=wait, stop=stop)
        if len(nodes) < (expected or 1):
            raise RunStopped(
                f"Expected {expected or 'some'} nodes within server.wait_for_clients={wait:g} s, found "
                f"{len(nodes)}"
            )
        _sort(found, nodes, ask(nodes), wait)
    bad = len(found.failed) + len(found.refused)
    if not found.nodes or bad / max(1, bad + len(found.nodes)) > settings.server.max_failures:
        raise RunStopped(f"No run: {'; '.join(found.problems) or 'none of the nodes has a silo'}")
    return found


def _find_by_name(
    grid: Grid,
    found: Found,
    ask: Callable[[Sequence[Identity]], list[Message | None]],
    wanted: Sequence[str],
    wait: float,
    stop: threading.Event,
) -> None:
    """Wait until each of the wanted silos is connected, anyone who else is; ask those, and no others."""
    end = time.monotonic() + wait
    asked: set[int] = set()
    while True:
        nodes = connected(grid)
        named = any(node.name for node in nodes)
        here = [node for node in nodes if node.name in wanted]
        if not named:  # a simulation: who they are they say themselves
            here = [node for node in nodes if node.node_id not in asked]
        complete = not named or {node.name for node in here} == set(wanted)
        if here and complete:
            asked |= {node.node_id for node in here}
            _sort(found, here, ask(here), wait, wanted)
        missing = sorted(set(wanted) - _answered(found, named))
        if not missing:
            return
        if time.monotonic() > end:
            there = {node.name for node in here} if named else _answered(found, named)
            missing = sorted(set(wanted) - there)
            said = f" ({'; '.join(found.problems)})" if found.problems else ""
            raise RunStopped(
                f"Expected the silos {', '.join(wanted)} within server.wait_for_clients={wait:g} s, found "
                f"{len(nodes)} nodes; missing: {', '.join(missing)}{said}"
            )
        if stop.wait(_POLL):
            raise Stopped


def _answered(found: Found, named: bool) -> set[str]:
    """Return the silos that have spoken. A node without a registered name speaks for none where it fails."""
    items = [*found.left, *((*found.failed, *found.refused) if named else ())]
    return set(found.nodes) | {item["silo"] for item in items}


def _sort(
    found: Found,
    nodes: Sequence[Identity],
    replies: Sequence[Message | None],
    wait: float,
    wanted: Sequence[str] = (),
) -> None:
    """Add what the nodes answered."""
    good: list[tuple[Identity, NodeReply]] = []
    for node, reply in zip(nodes, replies, strict=True):
        why = why_none(reply, wait)
        if why is not None or reply is None:
            found.failed.append({"silo": node.shown, "reason": str(why)})
            continue
        try:
            told = read_node(reply.content)
            check_identity(node, told.envelope)
        except Exception as error:  # a stranger's message
            found.refused.append({"silo": node.shown, "reason": one_line(str(error))})
            continue
        envelope, item = told.envelope, {"silo": node.shown, "reason": told.envelope.reason}
        if envelope.status == names.OK:
            good.append((node, told))
        elif envelope.status == names.LEFT:
            found.left.append(item | {"silo": envelope.silo or node.shown})
        elif envelope.status != names.IDLE:
            found.failed.append(item)
    claims = [told.envelope.silo for _, told in good] + list(found.nodes)
    for node, told in good:
        name = told.envelope.silo
        if claims.count(name) > 1:
            reason = f"Expected one node for each silo, several say that they are {shown(name)}"
            found.refused.append({"silo": node.shown, "reason": reason})
            found.nodes.pop(name, None)
        elif not wanted or name in wanted:
            found.nodes[name], found.sizes[name] = node.node_id, told.examples
            if node.public_key:
                found.keys[name] = node.public_key


def check_identity(node: Identity, envelope: Envelope) -> None:
    """Refuse a node that speaks for another silo than the one that its key is registered for.

    Raises:
        ReplyRefused: it does.
    """
    nameless = not envelope.silo and envelope.status != names.OK
    if node.name and envelope.silo != node.name and not nameless:
        raise ReplyRefused(
            f"Expected the silo {node.name}, which this node's key is registered for, got "
            f"{shown(envelope.silo)}"
        )


def wait_for_nodes(
    grid: Grid,
    count: int | None,
    *,
    timeout: float,
    stop: threading.Event,
    settle: float = 3.0,
) -> list[Identity]:
    """Return the connected nodes, by id.

    With ``count``: once there are that many. Without: once there is one and no other has come for
    ``settle`` seconds (Flower starts the ServerApp before all nodes are registered). After
    ``timeout`` seconds: those that are there.

    Raises:
        Stopped: ``stop`` was set.
    """
    end = time.monotonic() + timeout
    seen: list[Identity] = []
    since = time.monotonic()
    while True:
        nodes = connected(grid)
        now = time.monotonic()
        if nodes != seen:
            seen, since = nodes, now
        settled = bool(nodes) and now - since >= settle
        if (len(nodes) >= count if count is not None else settled) or now > end:
            return nodes
        if stop.wait(_POLL):
            raise Stopped
