"""Checks of a silo's machine before its node joins a federation."""

from __future__ import annotations

import email.utils
import http.client
import platform
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from client.config import SiloConfig, load_silo
from client.executor.approval import read_approved
from client.node import configured_silo
from fedllm import __version__
from fedllm.models.backbone import load_backbone
from fedllm.models.embedded import EMBEDDED_NAMES
from fedllm.models.loading.placement import resolve_device
from fedllm.models.memory import free_bytes
from fedllm.report.plan_figures import SO_FAR, plan_epsilons, plans_text
from fedllm.settings.io import parse_settings
from fedllm.settings.kinds import TASKS
from privacy.accountants import make_accountant
from privacy.file_system import file_system_of
from privacy.guarantee import Relation, Unit
from privacy.ledger.guard import Guard
from privacy.ledger.ledger import Ledger
from server.deployment.folder import NODE, split_address
from server.deployment.node import check_server, load_node
from server.deployment.processes import require_free_port
from server.deployment.programs import silo_path

LEAST_DISK = 2 * 2**30
"""Minimum free bytes on the disks of the ledger and the caches."""
MOST_SKEW = 60.0
"""Maximum difference in seconds between this clock and the server's; each request is signed with its time."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: name of the check.
        good: True if the check passed.
        text: the result and, if the check failed, the remedy.
    """

    what: str
    good: bool
    text: str


def examine(silo_file: Path | None, node_folder: Path | None) -> list[Finding]:
    """Run all checks; a check that cannot run is a failed finding, never an exception.

    Args:
        silo_file: the silo config; None takes the one that the node's folder names.
        node_folder: with ``node.toml``; None leaves out ports and the server.
    """
    found = [_one("versions", _versions), *_gpus()]
    if silo_file is None and node_folder is not None and (node_folder / NODE).is_file():
        silo_file = silo_path(node_folder, load_node(node_folder))
    silo: SiloConfig | None = None
    if silo_file is not None:
        try:
            silo = load_silo(silo_file)
            found.append(Finding("silo config", True, f"{silo.name}: {silo_file}"))
        except ValueError as error:
            found.append(Finding("silo config", False, str(error)))
    if silo is not None:
        found += _silo(silo)
    if node_folder is not None:
        found += _network(node_folder)
    return found


def _silo(silo: SiloConfig) -> Iterator[Finding]:
    yield _one("device", lambda: _device(silo))
    yield _one("model", lambda: _model(silo))
    yield _one("data", lambda: _data(silo))
    yield _one("ledger", lambda: _ledger(silo))
    yield _one("approved apps", lambda: _approved(silo))
    for name, path in {"ledger": silo.ledger, "cache": silo.cache}.items():
        if path is not None:
            yield _one(f"disk of the {name}", partial(_disk, Path(path)))


def _network(folder: Path) -> Iterator[Finding]:
    yield _one("node's folder", lambda: (True, f"{load_node(folder).name}: {folder}"))
    yield _one("port", lambda: _port(folder))
    yield _one("server", lambda: _server(folder))
    yield _one("clock", lambda: _clock(folder))


def _one(what: str, look: Callable[[], tuple[bool, str]]) -> Finding:
    try:
        good, text = look()
    except Exception as error:
        good, text = False, f"{error}" or type(error).__name__
    return Finding(what, good, " ".join(text.split()))


def _versions() -> tuple[bool, str]:
    names = ("torch", "transformers", "flwr")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    versions = f"fedllm {__version__}, {versions}"
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    return True, f"Python {platform.python_version()}, {versions} (torch built for {build})"


def _gpus() -> list[Finding]:
    """Report the GPUs that the driver and PyTorch see."""
    driver = ""
    program = shutil.which("nvidia-smi")
    if program is not None:
        asked = [program, "--query-gpu=name,driver_version,memory.free", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30)
        driver = "; ".join(done.stdout.strip().splitlines()) if done.returncode == 0 else ""
    if not torch.cuda.is_available():
        if not driver:
            return [Finding("GPU", True, "none")]
        why = "this torch is built for the CPU" if not torch.version.cuda else "CUDA does not start"
        return [Finding("GPU", False, f"the driver has {driver}, PyTorch has none: {why}")]
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        text = (
            f"{torch.cuda.get_device_name(index)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, "
            f"bfloat16 {'yes' if torch.cuda.is_bf16_supported(False) else 'no'}; driver: {driver or '?'}"
        )
        found.append(Finding(f"GPU cuda:{index}", True, text))
    return found


def _device(silo: SiloConfig) -> tuple[bool, str]:
    device = resolve_device(silo.model.device)
    return True, f"{silo.model.device} is {device}, {free_bytes(device) / 2**30:.1f} GiB free"


def _model(silo: SiloConfig) -> tuple[bool, str]:
    """Load the silo's copy of the model and compare its digest, or that of each embedded model allowed."""
    names = [silo.model.path]
    if silo.model.path is None:
        names = [name for name in EMBEDDED_NAMES if name in silo.limits.models]
    shown, good = [], True
    for name in filter(None, names):
        digest = load_backbone(name, device="cpu").weights_digest
        good = good and silo.model.sha256 in (None, digest)
        shown.append(f"{name}: SHA-256 of its weights {digest}")
    text = "; ".join(shown) or "none here"
    if silo.model.path is None:
        text = f"allowed: {', '.join(silo.limits.models)}; here: {text}"
    return (
        good,
        text if good else f"Expected SHA-256 {silo.model.sha256} (model.sha256), got {text}",
    )


def _data(silo: SiloConfig) -> tuple[bool, str]:
    data = silo.data
    task: dict[str, Any] = {"text": list(data.text), "target": data.target}
    task["labels"] = list(data.labels) or None
    task["kind"] = next(kind for kind in TASKS if TASKS[kind].holds == data.holds)
    if data.holds == "number":
        task["target_range"] = [0.0, 1.0]  # not used by what is read here
    loaded = configured_silo(silo, parse_settings({"task": task}))
    held = f", {len(loaded.held_out)} held out" if silo.data.holdout else ""
    left = [f"; left out: {what}" for what in loaded.train.left_out]
    return True, f"{silo.data.path}: {len(loaded.train)} examples{held}{''.join(left)}"


def _ledger(silo: SiloConfig) -> tuple[bool, str]:
    path, budget = Path(silo.ledger), silo.budget
    place = file_system_of(path)
    if place.kind == "network":
        return False, f"{path} is on a network file system ({place.type}): keep it on a local disk"
    if not path.exists():
        Guard(path, silo.kept_heads).before_creation()
        return (
            True,
            f"{path}: none yet; budget epsilon={budget.epsilon:g} at delta={budget.delta:g}",
        )
    with Ledger(path, read_only=True, kept=silo.kept_heads) as ledger:
        report = ledger.verify()
        if not report.ok or report.notes:
            return False, f"{path}: {[*report.problems, *report.notes][0]}"
        against = silo.local_policy().bound().budget.adversary
        events = ledger.spent(against, party=silo.name, unit=Unit(budget.unit))
        rows = len(ledger.entries(party=silo.name))
        plans = plan_epsilons(
            ledger,
            silo.name,
            unit=Unit(budget.unit),
            relation=Relation(budget.relation),
            adversary=against,
            delta=budget.delta,
            accountant=budget.accountant,
        )
    spent = make_accountant(budget.accountant, Relation(budget.relation)).epsilon(
        events, budget.delta
    )
    text = f"{path}: {rows} rows, epsilon {spent:.4g} of {budget.epsilon:g} at delta={budget.delta:g}, {SO_FAR}"
    if plans:
        text += f"; {plans_text(plans)}"
    if place.kind == "unknown":
        text += f"; it is unknown if file system {place.type} is local to this machine"
    if report.adoptions:
        text += f"; {report.adoptions[-1]}"
    return spent <= budget.epsilon, text


def _approved(silo: SiloConfig) -> tuple[bool, str]:
    entries = read_approved(silo.approved)
    if not entries:
        return (
            False,
            f"none in {silo.approved}, so nothing runs; approve one with `fedllm deploy approve`",
        )
    return True, ", ".join(f"{_short(key)} {entry.app}".strip() for key, entry in entries.items())


def _disk(path: Path) -> tuple[bool, str]:
    folder = next(place for place in (path, *path.parents) if place.is_dir())
    free = shutil.disk_usage(folder).free
    text = f"{folder}: {free / 2**30:.1f} GiB free"
    return free >= LEAST_DISK, text if free >= LEAST_DISK else f"{text}, fewer than 2"


def _port(folder: Path) -> tuple[bool, str]:
    port = load_node(folder).port
    require_free_port(port, "this node's programs (port in node.toml; is the node running?)")
    return True, f"127.0.0.1:{port} is free"


def _server(folder: Path) -> tuple[bool, str]:
    node = load_node(folder)
    check_server(folder, node)
    return True, f"{node.server} answers, with a certificate of {folder / 'ca.pem'}"


def _clock(folder: Path) -> tuple[bool, str]:
    """Compare this clock with the Date header of the server's answer."""
    host, port = split_address(load_node(folder).server)
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    connection = http.client.HTTPSConnection(host, port, timeout=10, context=context)
    try:
        connection.request("GET", "/")
        date = connection.getresponse().getheader("Date")
    finally:
        connection.close()
    if date is None:
        return True, "the server does not send its time"
    skew = time.time() - email.utils.parsedate_to_datetime(date).timestamp()
    text = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server"
    return abs(skew) <= MOST_SKEW, text if abs(skew) <= MOST_SKEW else f"{text}: set it by NTP"


def _short(digest: str) -> str:
    return digest[:12]
