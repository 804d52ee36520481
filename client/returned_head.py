"""Check the ledger against the signed head that the server returns with each task.

A backup of a silo's whole folder takes the ledger, both heads and the node's key along; put back, it is whole by
itself. What the silo signed since lies with the server. A head counts here if the silo's own key signed it, so that
no server can make a ledger look rolled back; one that cannot be told to be the silo's own is noted and passed over.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from flwr.app import Message

from client.config import SiloConfig
from fedllm import messages as names
from fedllm.report.extract.keys import HEAD, KeyProblem, load_signing_key
from fedllm.report.extract.statement import LONGEST_HEAD, ExtractError, parse
from fedllm.report.extract.statement import Head as SignedHead
from privacy.ledger.ledger import Head, Ledger

log = logging.getLogger("fedllm.client")


def require_returned_head(own: SiloConfig, message: Message, ledger: Ledger) -> None:
    """Refuse a ledger that lacks a head which the silo signed and the server brings back with a task.

    It is asked before a task is carried out, and again before the silo signs the ledger's own head.

    Raises:
        LedgerRolledBack: the ledger lacks it.
    """
    head = _own_head(own, message)
    if head is not None:
        ledger.require_contains(head, "the server, by what this silo signed,")


def _own_head(own: SiloConfig, message: Message) -> Head | None:
    brought: Any = message.content.config_records.get(names.LEDGER, {})
    text, signature = brought.get(names.HEAD), brought.get(names.HEAD_SIGNATURE)
    if not (isinstance(text, str) and isinstance(signature, str) and len(text) <= LONGEST_HEAD):
        return None
    try:
        if not load_signing_key(Path(own.key)).public.verifies(HEAD, text, signature):
            raise ExtractError("another key signed it")
        signed = parse(SignedHead, text)
    except (KeyProblem, ExtractError) as error:
        log.warning("the head that the server brings back is passed over: %s", error)
        return None
    if signed.silo != own.name:
        log.warning("the head that the server brings back is that of the silo %r", signed.silo)
        return None
    return Head(signed.ledger.rows, signed.ledger.hash)
