"""Map a node to its silo: the name under which the operator registered its key.

In a deployment every node signs with a key that `fedllm deploy` registered at the SuperLink under the silo's name
(:meth:`server.deployment.control.Control.agree`). The SuperLink checks the key at each of the node's messages, and
tells the server app which name goes with which node id. So a node's own word about its silo is compared with
its registration, and is worth nothing against it.

In a simulation nodes are this program's own: there are no keys and no names, a node's place among the silos
(``partition-id``) is its name, and what it says counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from flwr.serverapp import Grid


class _Node(Protocol):
    node_id: int
    name: str
    public_key: bytes


@dataclass(frozen=True)
class Identity:
    """A connected node.

    Attributes:
        node_id: by which it is sent messages.
        name: the silo that it is registered for; empty in a simulation.
        public_key: with which it signs (PEM); empty in a simulation.
    """

    node_id: int
    name: str = ""
    public_key: bytes = b""

    @property
    def shown(self) -> str:
        """The node's name in messages."""
        return self.name or f"node {self.node_id}"


def connected(grid: Grid) -> list[Identity]:
    """Return the nodes that are connected now, by id, with what is known of them.

    A node without a registered name is left out where others have one: it may not speak for anybody. So are two
    of one name, of which neither is sure.
    """
    nodes = _identities(grid)
    if not any(node.name for node in nodes):
        return nodes
    names = [node.name for node in nodes]
    return [node for node in nodes if node.name and names.count(node.name) == 1]


def _identities(grid: Grid) -> list[Identity]:
    found: Iterable[_Node] = grid.get_nodes()
    nodes = [Identity(n.node_id, n.name, bytes(n.public_key) if n.name else b"") for n in found]
    return sorted(nodes, key=lambda node: node.node_id)
