"""Which silo a Flower node serves, and where its data and ledger are.

In a simulation the node's ``partition-id`` counts through the silos of the data settings. In a
deployment the node's own configuration names its data file (``data-path``), its name (``silo``) and
its ledger (``ledger``), and what the server says about them is not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from flwr.app import ConfigRecord, Context

from fedllm import __version__
from fedllm import messages as names
from fedllm.models import resolve_device
from fedllm.run_folder import RunFolder
from fedllm.settings import Settings
from fedllm.silo_account import default_ledger
from fedllm.silo_worker import SiloWorker, shared_worker, use_threads
from fedllm.silos import Silo, load_federation, load_silo_file


def silo_of(settings: Settings, context: Context) -> Silo | None:
    """The node's silo, or None for a node beyond the number of silos.

    Raises:
        DataError: the data cannot be read or divided.
    """
    node = context.node_config
    if "data-path" in node:
        name = str(node.get("silo", f"silo-{context.node_id}"))
        return load_silo_file(settings, str(node["data-path"]), name)
    silos = load_federation(settings).silos
    place = int(node.get("partition-id", -1))
    return silos[place] if 0 <= place < len(silos) else None


def open_silo(settings: Settings, context: Context, config: ConfigRecord) -> SiloWorker:
    """The worker of this node's silo.

    Raises:
        DataError: as :func:`silo_of`.
        ValueError: the node has no silo.
    """
    use_threads(settings.simulation.threads)
    silo = silo_of(settings, context)
    if silo is None:
        raise ValueError(f"Expected a silo for this node, its partition-id has none: {context}")
    folder, run_id = Path(str(config[names.RUN_FOLDER])), str(config[names.RUN_ID])
    node = context.node_config
    if "ledger" in node:
        ledger, log = Path(str(node["ledger"])), None
    elif "data-path" in node:
        ledger = Path.home() / ".fedllm" / f"{quote(silo.name, safe='')}.ledger.sqlite"
        ledger.parent.mkdir(parents=True, exist_ok=True)
        log = None
    else:
        ledger = default_ledger(settings, folder)
        log = RunFolder(folder, run_id, settings).silo_log_path(silo.name)
    return shared_worker(settings, silo, run=run_id, ledger=ledger, log=log)


def describe_node(settings: Settings, context: Context) -> tuple[dict[str, Any], dict[str, Any]]:
    """Texts and numbers that the node tells about itself; sizes only where they are public.

    Raises:
        DataError: as :func:`silo_of`.
    """
    silo = silo_of(settings, context)
    info: dict[str, Any] = {
        names.SILO: silo.name if silo else "",
        names.STATUS: names.OK if silo else names.IDLE,
        names.REASON: "",
        "version": __version__,
        "device": str(resolve_device(settings.model.device)),
        "tasks": "classification,generation",
        "units": "example,client",
    }
    numbers: dict[str, Any] = {}
    if silo and settings.data.sizes == "public":
        numbers[names.EXAMPLES] = len(silo.train)
    return info, numbers
