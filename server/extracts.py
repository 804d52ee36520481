"""The silos' signed extracts of their ledgers: taken from replies, kept in the run folder, asked for at the end.

A run in a deployment has them, for its ledgers stay with the silos. Replies to its tasks bring them (which ones:
:mod:`client.extract`); each is verified with the node key that is registered for the silo, and takes the place of the
silo's last one. So a silo that dies has left its last word. Each task takes the silo's last signed head along, by which
the silo notices a ledger that was set back or copied.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dp_accounting.dp_event import DpEvent
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedllm import messages as names
from fedllm.report.extract.keys import NodeKey
from fedllm.report.extract.memory import Kept, newer, read_kept, verified_head, write_kept
from fedllm.report.extract.statement import LONGEST, LONGEST_HEAD, ExtractError
from fedllm.report.extract.store import (
    FOLDER,
    INDEX,
    Expected,
    Signed,
    path_of,
    read_index,
    verified,
    write_index,
    write_signed,
)
from fedllm.run.folder import RunFolder
from fedllm.settings.io import to_json
from privacy.events.serialization import event_to_json
from server.nodes.accompanied import AccompaniedGrid
from server.nodes.exchange import Stopped, exchange
from server.spending import SpendingView

log = logging.getLogger("fedllm")
WAIT = 60.0
"""Seconds to wait at the end of a run for the silos' last extracts."""


class Extracts:
    """The extracts of one run.

    Args:
        run: the run's folder, where they are kept.
        keys: the node key that is registered for each silo.
        memory: folder with the last head of each silo's ledger, of all runs of a deployment; None for none.
    """

    def __init__(
        self, run: RunFolder, keys: Mapping[str, NodeKey], memory: Path | None = None
    ) -> None:
        self.run = run
        self.keys = dict(keys)
        self.memory = memory
        self.delta = run.settings().privacy.delta
        self.silos: dict[str, Expected] = {}
        self.nodes: dict[int, str] = {}
        self.brought: set[str] = set()  # whose last reply brought the extract that is kept
        self.kept: dict[str, Kept] = {} if memory is None else self._remembered(memory)

    def begin(self, grid: Grid, nodes: Mapping[str, int]) -> Grid:
        """Expect an extract of each of these silos, next to those of a run that continues.

        Args:
            grid: Flower's connection to the nodes.
            nodes: silo to node id.

        Returns:
            The same grid; each task takes the last head of the silo's ledger along, each reply leaves its extract.
        """
        if (self.run.path / INDEX).exists():
            self.silos = read_index(self.run.path)
        for name, node in nodes.items():
            self.nodes[node] = name
            before = self.silos.get(name, Expected())
            self.silos[name] = replace(before, key=self.keys.get(name), final=False, told=None)
        write_index(self.run.path, self.silos)
        return AccompaniedGrid(grid, self)

    def add_to(self, task: Message) -> None:
        """Add the silo's last signed head, and the report's delta, to a task."""
        silo = self.nodes.get(task.metadata.dst_node_id)
        if silo is None:
            return
        fields = ConfigRecord({names.DELTA: self.delta})
        kept = self.kept.get(silo)
        if kept is not None:
            fields[names.HEAD] = kept.signed.text
            fields[names.HEAD_SIGNATURE] = kept.signed.signature
        # In a record of its own: several tasks may share one.
        task.content = RecordDict({**dict(task.content.items()), names.LEDGER: fields})

    def take(self, node_id: int, reply: Message) -> None:
        """Take the extract from a reply, if it has one; it is no part of the reply from then on."""
        silo = self.nodes.get(node_id)
        if silo is None or not reply.has_content():
            return
        self.brought.discard(silo)
        brought = reply.content.pop(names.LEDGER, None)
        if brought is None:
            return
        try:
            if not isinstance(brought, ConfigRecord):
                raise ExtractError("its reply brought no texts as its extract")
            self._keep(silo, brought)
        except ExtractError as error:
            self._distrust(silo, str(error))
        except OSError:  # of this machine
            raise
        except (
            Exception
        ) as error:  # a stranger's text found a hole in its reader, and the run continues
            log.debug("the extract of %s", silo, exc_info=error)
            self._distrust(silo, f"its extract cannot be read: {type(error).__name__}")

    def finish(self, grid: Grid, spending: SpendingView, stop: threading.Event) -> None:
        """Write down what the silos told of their releases, and ask each one that is there for its last extract.

        Args:
            grid: as :meth:`begin` gave it.
            spending: what the silos told with their updates.
            stop: where it is set, no one is asked; nor where the process is ended by SystemExit.
        """
        for name, expected in self.silos.items():
            events: Mapping[DpEvent, int] = spending.events.get(name, {})
            told = tuple((event_to_json(event), count) for event, count in events.items())
            self.silos[name] = replace(expected, told=told)
        write_index(self.run.path, self.silos)
        if stop.is_set() or isinstance(sys.exception(), SystemExit):
            return
        try:
            self._ask(grid, stop)
        except Stopped:
            return
        except (
            Exception
        ) as error:  # the network's: the run has its end, and each silo's last word is here
            log.warning("requesting the silos' last extracts failed: %s", error)

    def _ask(self, grid: Grid, stop: threading.Event) -> None:
        online = set(grid.get_node_ids())
        asked = [(node, name) for node, name in sorted(self.nodes.items()) if node in online]
        settings = to_json(self.run.settings())
        config = ConfigRecord({names.SETTINGS: settings, names.RUN_ID: self.run.run_id})
        tasks = [
            Message(
                RecordDict({names.CONFIG: config}),
                dst_node_id=node,
                message_type=names.ASK_EXTRACT,
            )
            for node, _ in asked
        ]
        self.brought.clear()
        answered = exchange(grid, tasks, timeout=WAIT, stop=stop)
        for (_, name), reply in zip(asked, answered, strict=True):
            if reply is not None and not reply.has_error() and name in self.brought:
                self.silos[name] = replace(self.silos[name], final=True)
        write_index(self.run.path, self.silos)

    def _keep(self, silo: str, brought: Any) -> None:
        """Verify what a reply brought, and keep it where it is newer than what is there.

        Raises:
            ExtractError: it cannot be relied on; the message says why.
        """
        key = self.keys.get(silo)
        if key is None:
            raise ExtractError("no node key is registered for it")
        signed = _signed(brought, names.EXTRACT, names.EXTRACT_SIGNATURE, LONGEST)
        extract = verified(signed, silo, key, self.run.run_id)
        signed_head = _signed(brought, names.HEAD, names.HEAD_SIGNATURE, LONGEST_HEAD)
        head = verified_head(signed_head, silo, key)
        if head.ledger.rows < extract.ledger.rows:
            raise ExtractError("the head of its ledger is older than its extract")
        before = self.kept.get(silo)
        if before is not None and not newer(head, before.head):
            return  # an answer that came late, or was sent again
        self.kept[silo] = Kept(head, signed_head, self.run.run_id)
        write_signed(path_of(self.run.path / FOLDER, silo), signed)
        if self.memory is not None:
            write_kept(self.memory, self.kept[silo])
        self.brought.add(silo)

    def _distrust(self, silo: str, problem: str) -> None:
        """Stop accepting this silo's extracts in this run: an impossible extract cannot be corrected later."""
        if self.silos[silo].problem:
            return
        log.warning("the silo %s does not vouch for its ledger: %s", silo, problem)
        self.silos[silo] = replace(self.silos[silo], problem=problem)
        write_index(self.run.path, self.silos)

    def _remembered(self, memory: Path) -> dict[str, Kept]:
        """Return the kept heads that are still of the registered keys: after a new key a silo's memory begins again."""
        found = {}
        for silo, kept in read_kept(memory).items():
            try:
                if silo in self.keys:
                    verified_head(kept.signed, silo, self.keys[silo])
                    found[silo] = kept
            except ExtractError:
                continue
        return found


def _signed(brought: Any, text: str, signature: str, longest: int) -> Signed:
    """Return the text and signature of a record.

    Raises:
        ExtractError: one is missing, no text, or too long.
    """
    found = [brought.get(text), brought.get(signature)]
    if not all(isinstance(part, str) for part in found):
        raise ExtractError(f"its reply brought no {text} with a signature")
    if len(found[0]) > longest or len(found[1]) > 1000:
        raise ExtractError(f"it sent a longer {text} than {longest} characters")
    return Signed(*found)
