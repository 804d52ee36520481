"""Sign an extract of the silo's ledger, and its head, for the silo's replies.

An extract is a function of the ledger's rows (mechanisms, rounds, purposes), which are written before anything is
computed on the data. It goes with refusals of a run's tasks too, so that the server has a silo's last word when it
leaves. One that cannot be made is an error in the silo's own log, and the reply goes without it.

To account for a ledger of many runs takes seconds. So that it takes at most a twentieth of a run's time, a reply to a
round goes without an extract where the last one is not twenty times as old as it took to make: the run's plan in it
holds for what was released since.
"""

from __future__ import annotations

import logging
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from client.config import SiloConfig
from client.returned_head import require_returned_head
from client.task_fields import is_run_id
from fedllm import messages as names
from fedllm.report.extract.keys import EXTRACT, HEAD, KeyProblem, SigningKey, load_signing_key
from fedllm.report.extract.make import make_extract, make_head
from fedllm.report.extract.statement import text_of
from fedllm.settings.io import from_json
from fedllm.silo.process import shared_ledger
from privacy.guarantee import Relation, Unit
from privacy.ledger.error import LedgerError

log = logging.getLogger("fedllm.client")
SHARE = 20.0
"""Times the cost of an extract that pass until the next one goes with the reply to a round."""
_made: dict[
    str, tuple[str, float, float]
] = {}  # of each ledger the last: its run, when, seconds that it took


def add_extract(own: SiloConfig, message: Message, content: RecordDict) -> None:
    """Add the signed extract to the content of a reply; nothing where the silo sends none, or it cannot be made."""
    if own.extract == "none":
        return
    try:
        config: Any = message.content.config_records.get(names.CONFIG, {})
        run = config.get(names.RUN_ID)
        if not is_run_id(run):
            return  # of no run, or of a text that no ledger knows
        if not _due(own, run, message, content):
            return
        began = time.monotonic()
        content[names.LEDGER] = _signed(own, message, config)
        _made[own.ledger] = (run, time.monotonic(), time.monotonic() - began)
    except KeyProblem as error:
        _log_once(
            f"no extract of the ledger is sent, the report states nothing for this silo: {error}"
        )
    except LedgerError as error:
        log.error("no extract of the ledger is sent: %s", error)
    except Exception as error:
        log.error("no extract of the ledger is sent: %s", error, exc_info=error)


def _due(own: SiloConfig, run: str, message: Message, content: RecordDict) -> bool:
    """Return True if an extract goes with this reply: always with a run's first and last, and where the silo may
    leave."""
    info: Any = content.config_records.get(names.INFO, {})
    if message.metadata.message_type == names.ASK_EXTRACT or info.get(names.STATUS) != names.OK:
        return True
    last, when, cost = _made.get(own.ledger, ("", 0.0, 0.0))
    return last != run or time.monotonic() - when >= SHARE * cost


def _signed(own: SiloConfig, message: Message, config: Any) -> ConfigRecord:
    """Sign the extract and the head, unless the ledger lacks the head that the server brings back.

    Raises:
        LedgerError: the ledger is refused; a signed head of it would vouch for what was rolled back.
        KeyProblem: the node's key cannot be read.
    """
    delta = _delta(message)
    key = _key(own.key, Path(own.key).stat().st_mtime_ns if Path(own.key).exists() else 0)
    settings = from_json(str(config[names.SETTINGS]))
    ledger = shared_ledger(Path(own.ledger), own.kept_heads)
    require_returned_head(own, message, ledger)
    extract = text_of(
        make_extract(
            ledger,
            silo=own.name,
            run=str(config[names.RUN_ID]),
            unit=Unit(settings.privacy.unit),
            relation=Relation(settings.privacy.relation),
            delta=settings.privacy.delta if delta is None else delta,
            own=own.local_policy(),
            events=own.extract == "events",
        )
    )
    head = text_of(make_head(ledger, own.name))
    return ConfigRecord(
        {
            names.EXTRACT: extract,
            names.EXTRACT_SIGNATURE: key.sign(EXTRACT, extract),
            names.HEAD: head,
            names.HEAD_SIGNATURE: key.sign(HEAD, head),
        }
    )


def _delta(message: Message) -> float | None:
    """Return the delta that the run's report states, where the task tells it and it is one."""
    brought: Any = message.content.config_records.get(names.LEDGER, {})
    delta = brought.get(names.DELTA)
    return delta if isinstance(delta, float) and 0 < delta < 1 else None


@lru_cache(maxsize=8)
def _key(path: str, version: int) -> SigningKey:
    """Load the key, once for the same file on disk."""
    return load_signing_key(Path(path))


@lru_cache(maxsize=64)
def _log_once(text: str) -> None:
    log.warning("%s", text)
