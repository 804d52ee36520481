"""Network namespaces as separate hosts: a server with a switch, nodes plugged into it, and this machine's own
namespace as the operator's."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence

import pytest

NETWORK = "10.231.77"
SERVER = "server"


class Hosts:
    """Namespaces that see each other through a bridge in the server's.

    Args:
        names: of the nodes' hosts; the server's is made beside them.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._tag = f"fl{os.getpid() % 100000}"
        self._numbers = {SERVER: 1} | {name: 10 + i for i, name in enumerate(names)}
        try:
            for name in self._numbers:
                self._ip("netns", "add", self.space(name))
                self._in(name, "link", "set", "lo", "up")
            self._in(SERVER, "link", "add", "switch", "type", "bridge")
            self._in(SERVER, "address", "add", f"{self.address(SERVER)}/24", "dev", "switch")
            self._in(SERVER, "link", "set", "switch", "up")
            for name in names:
                self._plug(name, "netns", self.space(name))
                self._in(name, "address", "add", f"{self.address(name)}/24", "dev", "uplink")
                self._in(name, "link", "set", "uplink", "up")
            self._plug("operator", "name", f"{self._tag}op")
            self._ip("address", "add", f"{NETWORK}.250/24", "dev", f"{self._tag}op")
            self._ip("link", "set", f"{self._tag}op", "up")
        except BaseException:
            self.close()
            raise

    def space(self, name: str) -> str:
        """The namespace of a host."""
        return f"{self._tag}-{name}"

    def address(self, name: str) -> str:
        """The host's address."""
        return f"{NETWORK}.{self._numbers[name]}"

    def prefix(self, name: str) -> list[str]:
        """What makes a command run on a host."""
        return ["ip", "netns", "exec", self.space(name)]

    def cut(self, name: str) -> None:
        """Pull a node's plug: what is sent gets nowhere, and nobody is told."""
        self._in(SERVER, "link", "set", f"port-{name}", "nomaster")

    def heal(self, name: str) -> None:
        """Plug it in again."""
        self._in(SERVER, "link", "set", f"port-{name}", "master", "switch")

    def close(self) -> None:
        """Take everything down."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self._ip("link", "delete", f"{self._tag}op")
        for name in self._numbers:
            with contextlib.suppress(subprocess.CalledProcessError):
                self._ip("netns", "delete", self.space(name))

    def _plug(self, name: str, *end: str) -> None:
        """A cable from the switch to a namespace (``netns NAME``) or, under another name, to this one."""
        port = f"port-{name}"
        if end[0] == "netns":
            self._in(SERVER, "link", "add", port, "type", "veth", "peer", "name", "uplink", *end)
        else:
            self._ip(
                "link",
                "add",
                end[1],
                "type",
                "veth",
                "peer",
                "name",
                port,
                "netns",
                self.space(SERVER),
            )
        self._in(SERVER, "link", "set", port, "master", "switch")
        self._in(SERVER, "link", "set", port, "up")

    def _in(self, name: str, *words: str) -> None:
        self._ip("-n", self.space(name), *words)

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def make_hosts(*names: str) -> Hosts:
    """The hosts, or a skip that says what they need."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed (apt-get install iproute2)")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    try:
        return Hosts(names)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
