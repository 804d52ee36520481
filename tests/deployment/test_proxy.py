"""What nginx lets through, without a SuperLink behind it: each refusal has a message and a log line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from deployments import ask, make_folder, wait_for

from server.deployment import certificates, node, setup
from server.deployment.control import Control, connect
from server.deployment.folder import DeploymentError, Folder
from server.deployment.proxy import OPERATOR_REFUSAL, REFUSAL

Start = Callable[[Folder], None]


def log_line(folder: Folder, name: str, *words: str) -> str:
    """The last line of a log that holds all the words, once it is there."""

    def found() -> str:
        path = folder.logs / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return next((line for line in reversed(lines) if all(w in line for w in words)), "")

    return str(wait_for(found, f"{words} in {name}", 20))


def test_nodes_reach_nothing_but_their_interface(folder: Folder, start_proxy: Start) -> None:
    start_proxy(folder)
    port = folder.load().ports.nodes
    for target in (
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet//../control/start-run",
        "//v1/control/start-run",
        "/v1/fleet/x/../../control/start-run",
        "/v1/fleet/pull-messages?/v1/control/start-run",
        "/v1/fleet/pull-messages%0a",
        "/v1/fleet/",
        "/V1/CONTROL/start-run",
        "/health",
        "/docs",
        "/openapi.json",
        "/",
        "http://127.0.0.1/v1/control/start-run",
    ):
        status, body = ask(port, target, ca=folder.ca)
        assert (status, body.strip()) == (403, REFUSAL), target
    assert ask(port, "/v1/fleet/pull-messages", ca=folder.ca, method="GET")[0] == 403
    line = log_line(folder, "proxy-access.log", "POST /v1/control/start-run")
    assert 'REFUSED "POST /v1/control/start-run" status=403 why="not served at this port, ' in line
    # What nodes need is passed on (there is no SuperLink here).
    assert ask(port, "/v1/fleet/pull-messages", ca=folder.ca)[0] == 502
    line = log_line(folder, "proxy-access.log", "POST /v1/fleet/pull-messages", "502")
    assert 'why="SuperLink is not running"' in line


def test_the_control_client_is_refused_at_the_nodes_door(
    folder: Folder, start_proxy: Start
) -> None:
    start_proxy(folder)
    with Control(f"127.0.0.1:{folder.load().ports.nodes}", folder.ca) as link:
        with pytest.raises(
            DeploymentError, match=r"refused \(403\): Refused: this port serves only"
        ):
            link.start(b"code", {})
        with pytest.raises(DeploymentError, match="this port serves only nodes"):
            link.nodes()
    log_line(folder, "proxy-access.log", "REFUSED", "POST /v1/control/start-run")


def test_the_operators_door_wants_the_operators_certificate(
    folder: Folder, start_proxy: Start, restart_proxy: Start, tmp_path: Path
) -> None:
    start_proxy(folder)
    port = folder.load().ports.operator
    good = (folder.operator / "operator.pem", folder.operator / "operator.key")
    target = "/v1/control/list-runs"
    assert ask(port, target, ca=folder.ca, pair=good)[0] == 502  # passed on
    assert ask(port, "/v1/fleet/pull-messages", ca=folder.ca, pair=good) == (
        403,
        OPERATOR_REFUSAL + "\n",
    )
    # None; the server's own, which may only serve; one of another authority; one that has ended.
    server = (folder.server_certificate, folder.server_key)
    foreign, ended = tmp_path / "foreign", tmp_path / "ended"
    for place, authority in ((foreign, None), (ended, folder)):
        place.mkdir()
        pair = (place / "ca.pem", place / "ca.key")
        if authority is None:
            certificates.make_authority("other", *pair)
        else:
            pair = (authority.ca, authority.ca_key)
        certificates.make_certificate(
            *pair,
            place / "x.pem",
            place / "x.key",
            name="operator",
            days=365 if authority is None else -1,
        )
    for own, said in (
        (None, "No required SSL certificate"),
        (server, "certificate error"),
        ((foreign / "x.pem", foreign / "x.key"), "certificate error"),
        ((ended / "x.pem", ended / "x.key"), "certificate error"),
    ):
        status, body = ask(port, target, ca=folder.ca, pair=own)
        assert status == 400, own
        assert said in body
        line = log_line(folder, "proxy-access.log", f"POST {target}", "status=400")
        assert 'why="no valid client certificate, or no HTTP"' in line
    log_line(folder, "proxy-error.log", "certificate has expired")
    old = tmp_path / "old"
    shutil.copytree(folder.operator, old)
    setup.renew_operator(folder, folder.load())
    setup.write_files(folder, folder.load())
    restart_proxy(folder)
    with connect(old) as link, pytest.raises(DeploymentError, match="was replaced by a newer one"):
        link.nodes()
    with connect(folder.operator) as link, pytest.raises(DeploymentError, match="502"):
        link.nodes()


def test_a_node_of_another_authority_is_told_and_logged(
    folder: Folder, start_proxy: Start, tmp_path: Path
) -> None:
    start_proxy(folder)
    part = tmp_path / "alpha"
    shutil.copytree(folder.node("alpha"), part)
    certificates.make_authority("other", part / "ca.pem", tmp_path / "ca.key")
    with pytest.raises(DeploymentError, match="not of the authority in"):
        node.check_server(part, node.load_node(part))
    log_line(folder, "proxy-error.log", "SSL_do_handshake() failed", "unknown ca")


def test_an_ended_certificate_is_told_and_logged(tmp_path: Path, start_proxy: Start) -> None:
    folder = make_folder(tmp_path / "fedllm", "alpha")
    setup.renew_server(folder, folder.load(), days=-1)
    with pytest.raises(DeploymentError, match=r"ended on .*fedllm deploy renew"):
        certificates.check(folder.ca, folder.server_certificate)
    start_proxy(folder)
    part = folder.node("alpha")
    with pytest.raises(DeploymentError, match=r"has ended: the operator .*fedllm deploy renew"):
        node.check_server(part, node.load_node(part))
    log_line(folder, "proxy-error.log", "SSL_do_handshake() failed", "certificate expired")


def test_another_name_and_nobody_are_told(folder: Folder, start_proxy: Start) -> None:
    part = folder.node("alpha")
    found = node.load_node(part)
    with pytest.raises(node.Unreachable, match="cannot be reached"):
        node.check_server(part, found)
    start_proxy(folder)
    node.check_server(part, found)
    other = found.model_copy(update={"server": f"127.0.0.2:{folder.load().ports.nodes}"})
    with pytest.raises(DeploymentError, match=r"is not for 127\.0\.0\.2"):
        node.check_server(part, other)
