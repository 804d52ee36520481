"""The systemd units: little is left open, by systemd's own count, and what is needed is left."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from deployments import make_folder

from server.deployment.folder import Folder
from server.deployment.hardening import hardening

SERVICES = ("superlink", "superexec", "proxy", "node-alpha")
MOST_EXPOSED = 3.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return make_folder(tmp_path_factory.mktemp("units") / "fedllm", "alpha")


def unit(folder: Folder, service: str) -> Path:
    place = folder.node("alpha") / "units" if service == "node-alpha" else folder.units
    return place / "systemd" / f"fedllm-{service}.service"


@pytest.mark.parametrize("service", SERVICES)
def test_little_is_left_open(folder: Folder, service: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", unit(folder, service)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSED
    assert "Unknown" not in done.stderr, "a line that this systemd does not know"


@pytest.mark.parametrize("service", SERVICES)
def test_one_folder_may_be_written(folder: Folder, service: str) -> None:
    text = unit(folder, service).read_text()
    assert text.count("ProtectSystem=strict") == 1
    assert re.findall(r"^ReadWritePaths=(.*)$", text, re.M) == ["/srv/fedllm"]
    caches = re.search(r'^Environment="FEDLLM_CACHE=(\S+)" "HF_HOME=(\S+)"$', text, re.M)
    assert caches is not None
    assert all(path.startswith("/srv/fedllm/") for path in caches.groups())


def test_what_the_programs_need_is_left() -> None:
    """PyTorch makes kernels as it runs and pins threads, a node uses GPUs and /proc/meminfo."""
    node, proxy, link = (hardening(name, "/x") for name in ("node", "proxy", "superlink"))
    assert "MemoryDenyWriteExecute=yes" not in (*node, *hardening("superexec", "/x"))
    assert "SystemCallFilter=~@resources" not in (*node, *hardening("superexec", "/x"))
    assert "ProcSubset=pid" not in node
    assert "PrivateDevices=yes" not in node
    assert "DeviceAllow=char-nvidia* rw" in node
    assert "MemoryDenyWriteExecute=yes" in proxy
    assert "IPAddressAllow=localhost" in link
    assert "IPAddressDeny=any" not in (*node, *proxy)
