"""The deployment's folder: what init writes, and what is said of mistakes."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from server.deployment import app_bundle, node, setup
from server.deployment.folder import (
    DeploymentError,
    Folder,
    NodeFile,
    find_folder,
    split_address,
)
from server.deployment.programs import node_config


def test_init_writes_whole_parts(folder: Folder) -> None:
    deployment = folder.load()
    assert deployment.nodes == ("alpha", "beta")
    for name in deployment.nodes:
        part = folder.node(name)
        found = node.load_node(part)
        assert (found.name, found.server) == (name, deployment.address)
        assert stat.S_IMODE((part / "node.key").stat().st_mode) == 0o600
    assert (folder.operator / "operator.pem").is_file()
    # A node's private key is in its own part alone, the authority's nowhere but in tls/.
    keys = sorted(str(p.relative_to(folder.path)) for p in folder.path.rglob("*.key"))
    assert keys == [
        "for-nodes/alpha/node.key",
        "for-nodes/beta/node.key",
        "for-operator/operator.key",
        "tls/ca.key",
        "tls/server.key",
    ]


def test_nginx_accepts_the_configuration(folder: Folder) -> None:
    from server.deployment.programs import find_program

    done = subprocess.run(
        [find_program("nginx"), "-t", "-p", f"{folder.path}/", "-c", "nginx.conf", "-e", "stderr"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_unit_files_can_be_read(folder: Folder) -> None:
    for script in [*folder.units.rglob("*.sbatch"), *folder.path.glob("for-nodes/*/**/*.sbatch")]:
        subprocess.run(["bash", "-n", str(script)], check=True, timeout=20)
    compose = yaml.safe_load((folder.units / "docker" / "compose.yaml").read_text())
    assert set(compose["services"]) == {"server"}
    ports = folder.load().ports
    assert compose["services"]["server"]["ports"] == [
        f"{ports.nodes}:{ports.nodes}",
        f"{ports.operator}:{ports.operator}",
    ]
    for file in folder.units.rglob("*"):
        if file.is_file():
            text = file.read_text()
            assert str(folder.path) not in text, f"{file} holds this machine's path"
            # SuperLink stays on loopback, whoever starts it.
            assert "--host 0.0.0.0" not in text
    unit = (folder.units / "systemd" / "fedllm-superlink.service").read_text()
    assert "ExecStart=/opt/fedllm/bin/flower-superlink --host 127.0.0.1" in unit


def test_the_app_is_the_same_bytes_each_time_and_holds_what_runs_need(
    folder: Folder, tmp_path: Path
) -> None:
    import io
    import zipfile

    first = app_bundle.bundle(folder.app)
    assert app_bundle.make_app(tmp_path / "app") == app_bundle.bundle_hash(first)
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {
        *app_bundle.PACKAGES,
        "pyproject.toml",
        ".info",
    }
    assert "client/app.py" in names
    assert "server/app.py" in names
    (tmp_path / "app" / "client" / "app.py").write_text("# altered\n")
    altered = app_bundle.bundle(tmp_path / "app")
    assert app_bundle.bundle_hash(altered) != app_bundle.bundle_hash(first)


def test_the_apps_keys_are_those_of_the_repositorys_own_app() -> None:
    import tomllib

    project = tomllib.loads(
        (Path(app_bundle.__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    )
    assert set(project["tool"]["flwr"]["app"]["config"]) == set(app_bundle.CONFIG)


def test_a_new_key_replaces_a_nodes_old_one(folder: Folder, tmp_path: Path) -> None:
    before = setup.node_keys(folder, folder.load())
    pair = tmp_path / "made-there"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(pair)],
        check=True,
        timeout=60,
    )
    deployment = setup.add_node(folder, folder.load(), "beta", pair.with_suffix(".pub"))
    after = setup.node_keys(folder, deployment)
    assert after["alpha"] == before["alpha"]
    assert after["beta"] != before["beta"]
    assert deployment.nodes == ("alpha", "beta")
    assert not (folder.node("beta") / "node.key").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('hosts = ["not a host"]', "not a host"),
        ('hosts = ["a.org"]\nnodes = ["../x"]', "Expected a name of letters"),
        ('hosts = ["a.org"]\nnodes = ["x", "x"]', "Expected distinct nodes"),
        ('hosts = ["a.org"]\nunknown = 1', "unknown"),
        ('hosts = ["a.org"]\nports = { nodes = 1, superlink = 1 }', "Expected distinct ports"),
        ("hosts = [", "Expected TOML"),
    ],
)
def test_mistakes_in_deployment_toml_are_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "deployment.toml").write_text(line)
    with pytest.raises(DeploymentError, match=said):
        Folder(tmp_path).load()


def test_a_readable_node_key_is_refused(folder: Folder) -> None:
    key = folder.node("alpha") / "node.key"
    key.chmod(0o644)
    try:
        with pytest.raises(DeploymentError, match="chmod 600"):
            node.load_node(folder.node("alpha"))
    finally:
        key.chmod(0o600)


def test_folder_is_found_by_option_environment_or_here(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDLLM_DEPLOYMENT", raising=False)
    with pytest.raises(DeploymentError, match="fedllm deploy init"):
        find_folder(None)
    assert find_folder(folder.path) == folder.path
    monkeypatch.setenv("FEDLLM_DEPLOYMENT", str(folder.path))
    assert find_folder(None) == folder.path


def test_node_configuration(tmp_path: Path) -> None:
    entries = {"other-file": "d a.jsonl", "partition-id": 3, "x": True}
    made = node_config(tmp_path, NodeFile(name="a", server="h:1", config=entries))
    named = f'silo-file="{tmp_path}/silo.toml" other-file="{tmp_path}/d a.jsonl"'
    assert made == f"{named} partition-id=3 x=true"
    with pytest.raises(DeploymentError, match="no quotes"):
        node_config(tmp_path, NodeFile(name="a", server="h:1", config={"x": 'a"b'}))


@pytest.mark.parametrize("address", ["", "host", "host:0", "host:x", ":1", "host:70000"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(DeploymentError, match="HOST:PORT"):
        split_address(address)
    assert split_address("[::1]:8443") == ("::1", 8443)
