"""The operator's side of Flower's control interface: register nodes, start, list, follow and stop runs.

It speaks to the SuperLink on loopback, or through the proxy with the operator's certificate, by the
client that Flower's own command line uses; ``flwr run``, ``flwr list``, ``flwr log``, ``flwr stop`` and
``flwr supernode`` do the same. (They cannot show a client certificate, and do not print nodes' names.)
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from server.deployment.app_bundle import bundle_hash
from server.deployment.folder import (
    OPERATOR,
    DeploymentError,
    Folder,
    OperatorFile,
    read,
    split_address,
)

ONLINE = "online"
FINISHED, COMPLETED = "finished", "finished:completed"


class ServerAway(DeploymentError):
    """No SuperLink answers."""


@dataclass(frozen=True)
class NodeState:
    """A registered node as the SuperLink sees it.

    Attributes:
        status: ``registered`` (never seen), ``online``, ``offline``.
        since: when it came or left (ISO 8601, UTC); empty where it never did.
    """

    name: str
    node_id: int
    status: str
    since: str
    public_key: bytes


@dataclass(frozen=True)
class RunState:
    """A run as the SuperLink sees it.

    Attributes:
        status: ``pending``, ``starting``, ``running``, ``finished:completed``, ``finished:failed``,
            ``finished:stopped``.
        details: Flower's reason.
        folder: its run folder on the server's machine, as it was submitted.
        app: SHA-256 of the app that it ships.
    """

    run_id: int
    status: str
    details: str
    started: str
    folder: str
    app: str

    @property
    def over(self) -> bool:
        """True if it has ended, in whatever way."""
        return self.status.startswith(FINISHED)


class Control:
    """A connection to the control interface. Close it, or use it in a ``with``.

    Args:
        address: ``host:port``.
        authority: the deployment's certificate authority (PEM).
        certificate, key: the operator's, where the proxy asks for them.
    """

    def __init__(
        self,
        address: str,
        authority: Path,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors.http.runtime_version import (
            RuntimeVersionHttpInterceptor,
        )

        self.address = address
        try:
            context = ssl.create_default_context(cafile=str(authority))
            if certificate is not None:
                context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise DeploymentError(
                f"The certificates for the control interface cannot be read: {error}"
            ) from None
        self._client = ControlHttpClient(
            f"https://{address}",
            verify=context,
            interceptors=[
                CliClientHttpInterceptor(),
                RuntimeVersionHttpInterceptor(component_name="flwr CLI"),
            ],
        )

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    # Nodes

    def nodes(self) -> list[NodeState]:
        """Return the registered nodes, by name.

        Raises:
            DeploymentError: the SuperLink cannot be reached, or refuses.
        """
        from flwr.proto.control_pb2 import ListNodesRequest

        with self._errors():
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        states = [
            NodeState(
                name=node.name or f"node-{node.node_id}",
                node_id=node.node_id,
                status=node.status,
                since=node.last_activated_at if node.status == ONLINE else node.last_deactivated_at,
                public_key=bytes(node.public_key),
            )
            for node in found
            if node.status != "unregistered"
        ]
        return sorted(states, key=lambda node: node.name)

    def register(self, name: str, public_key: bytes) -> int:
        """Let a node in.

        Returns:
            Its id.

        Raises:
            DeploymentError: as :meth:`nodes`; also where the key is registered already.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest

        with self._errors():
            answer = self._client.RegisterNode(
                RegisterNodeRequest(public_key=public_key, name=name)
            )
        return int(answer.node_id)

    def unregister(self, node_id: int) -> None:
        """Shut a node out; its next message is refused.

        Raises:
            DeploymentError: as :meth:`nodes`.
        """
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        with self._errors():
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def agree(self, keys: Mapping[str, bytes]) -> list[str]:
        """Make the registered nodes those of ``keys`` (name to public key), and no others.

        Returns:
            What was changed, a line each.

        Raises:
            DeploymentError: as :meth:`nodes`.
        """
        changes = []
        wanted = {key.strip(): name for name, key in keys.items()}
        present = {}
        for node in self.nodes():
            if wanted.get(node.public_key.strip()) == node.name:
                present[node.name] = node.node_id
            else:
                self.unregister(node.node_id)
                changes.append(f"node {node.name} is shut out: its key is not in the folder")
        for name, key in keys.items():
            if name not in present:
                try:
                    self.register(name, key)
                except ServerAway:
                    raise
                except DeploymentError as error:
                    raise DeploymentError(
                        f"The node {name} is not registered: {error} A key that was shut out is not let in "
                        f"again; a new one is: `fedllm deploy add-node {name}`"
                    ) from None
                changes.append(f"node {name} is registered")
        return changes

    # Runs

    def start(self, app: bytes, config: Mapping[str, str]) -> int:
        """Return the start a run.

        Args:
            app: the bundle that it ships.
            config: its run configuration (see ``app_bundle.CONFIG``).

        Returns:
            Flower's id of the run.

        Raises:
            DeploymentError: as :meth:`nodes`.
        """
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        request = StartRunRequest(
            fab=fab_to_proto(Fab(bundle_hash(app), app, {})),
            override_config=user_config_to_proto(dict(config)),
        )
        with self._errors():
            answer = self._client.StartRun(request)
        if not answer.HasField("run_id"):
            raise DeploymentError("The SuperLink did not start the run and gave no reason")
        return int(answer.run_id)

    def stop(self, run_id: int) -> None:
        """Stop a run; what it saved stays.

        Raises:
            DeploymentError: as :meth:`nodes`; also where it is over already.
        """
        from flwr.proto.control_pb2 import StopRunRequest

        with self._errors():
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def runs(self, run_id: int | None = None) -> list[RunState]:
        """Return the runs that the SuperLink knows (or one of them), oldest first.

        Raises:
            DeploymentError: as :meth:`nodes`.
        """
        from flwr.proto.control_pb2 import ListRunsRequest

        with self._errors():
            found = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        states = [_run_state(run) for run in found.values()]
        return sorted(states, key=lambda run: run.started)

    def log(self, run_id: int, *, follow: bool) -> Iterator[str]:
        """Yield a run's log, a piece at a time; ``follow`` continues until the run is over.

        Raises:
            DeploymentError: as :meth:`nodes`.
        """
        from flwr.proto.control_pb2 import StreamLogsRequest

        with self._errors():
            for piece in self._client.StreamLogs(StreamLogsRequest(run_id=run_id)):
                yield piece.log_output
                if not follow:
                    return

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from flwr.supercore.error import FlowerError

        try:
            yield
        except httpx.HTTPStatusError as error:
            response = error.response
            flower = FlowerError.from_json(response.text)
            said = flower.message if flower else " ".join(response.text.split())[:300]
            if flower and flower.public_details:
                said += f" {flower.public_details}"
            raise DeploymentError(f"The server refused ({response.status_code}): {said}") from None
        except httpx.HTTPError as error:
            raise ServerAway(
                f"Expected a SuperLink at {self.address}, it cannot be reached: {error}; is "
                f"`fedllm deploy server` running there?"
            ) from None


def connect(folder: Path) -> Control:
    """Return the control interface as a deployment's folder, or the operator's part of it, reaches it.

    Raises:
        DeploymentError: ``folder`` is neither.
    """
    operator = folder / OPERATOR
    if operator.is_file():
        where = read(operator, OperatorFile, "the operator's folder")
        split_address(where.server)  # refuses what is no address
        shown = folder / "operator.pem"  # none: the server's loopback, through a tunnel
        key = folder / "operator.key"
        return Control(where.server, folder / "ca.pem", *((shown, key) if shown.exists() else ()))
    home = Folder(folder)
    return Control(f"127.0.0.1:{home.load().ports.superlink}", home.ca)


def wait_until_up(control: Control, seconds: float, stopped: Callable[[], bool]) -> None:
    """Wait for the SuperLink to answer.

    Raises:
        DeploymentError: it did not within ``seconds``, or ``stopped`` says so.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            control.nodes()
            return
        except DeploymentError:
            if stopped() or time.monotonic() > end:
                raise
        time.sleep(0.3)


def _run_state(run: Any) -> RunState:
    status = run.status.status
    if run.status.sub_status:
        status = f"{status}:{run.status.sub_status}"
    folder = run.override_config["run-folder"].string if "run-folder" in run.override_config else ""
    return RunState(
        run_id=run.run_id,
        status=status,
        details=run.status.details,
        started=run.pending_at,
        folder=folder,
        app=run.fab_hash,
    )
