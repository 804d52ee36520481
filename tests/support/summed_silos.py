"""Silos of a secure sum in this process, and the server's part as a few lines: no messages, no strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedllm import messages as names
from fedllm.data.silos import load_federation
from fedllm.secure.messages import Advance, Opening
from fedllm.secure.roster import Introduction, Roster
from fedllm.secure.sums import Sums
from fedllm.silo.extensions.secure_sum import SentPackets, SentRoster, sum_context
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training.sum_share.mechanism import SUM, ring_of
from privacy.secure_sum.ring import Ring

RUN = "run-1"


class SummedSilos:
    """The silos of tiny settings, each with a ledger of its own in a folder.

    Attributes:
        workers: by name.
        params: at which all tasks are.
    """

    def __init__(self, settings: Any, folder: Path, chosen: Sequence[str] = ()) -> None:
        self.settings, self.folder = settings, folder
        self.silos = [
            silo for silo in load_federation(settings).silos if not chosen or silo.name in chosen
        ]
        self.workers = {silo.name: self.worker(silo.name) for silo in self.silos}
        self.params: dict[str, Tensor] = next(iter(self.workers.values())).initial

    def worker(self, name: str) -> SiloWorker:
        """A worker as of another process, on the same ledger and record."""
        (silo,) = [silo for silo in self.silos if silo.name == name]
        path = self.folder / name / "ledger.sqlite"
        path.parent.mkdir(parents=True, exist_ok=True)
        return SiloWorker(self.settings, silo, run=RUN, ledger=path)

    def task(self, kind: str, extras: Mapping[str, Any], number: int = 1) -> SiloTask:
        """A task of this kind."""
        params = {} if kind.startswith(names.EXCHANGE) else self.params
        return SiloTask(params, number, 3, extras, kind)

    def introductions(self) -> dict[str, Introduction]:
        """What each silo says of itself."""
        task = self.task(names.ASK_INTRODUCTION, {})
        return {
            name: Introduction.from_text(worker.answer(task).texts[names.INTRODUCTION])
            for name, worker in self.workers.items()
        }

    def roster(self, **changes: Any) -> Roster:
        """The roster of all, with the settings' plan."""
        secure = self.settings.secure
        plan: dict[str, Any] = {
            "drop_outs": secure.drop_outs,
            "colluding": secure.colluding,
            "bits": secure.bits,
            "noise_multiplier": self.settings.privacy.noise_multiplier,
            "dimension": sum(value.numel() for value in self.params.values()),
        }
        return Roster.make(self.introductions().values(), **plan | changes)

    def advances(self, roster: Roster, session: int) -> list[Advance]:
        """The advances of all silos."""
        task = self.task(
            names.ASK_ADVANCE, {names.SESSION: session, names.ROSTER: SentRoster(roster)}
        )
        return [
            Advance.from_text(worker.answer(task).texts[names.ADVANCE])
            for worker in self.workers.values()
        ]

    def begin(self, roster: Roster, session: int, number: int = 1) -> Sums:
        """The server's side of a session."""
        advances = self.advances(roster, session) if roster.drop_outs else []
        context = sum_context(number, self.params, self.settings.privacy.clip)
        return Sums(roster, session, context, advances)

    def training(self, sums: Sums, name: str, number: int = 1, **changes: Any) -> SiloTask:
        """A silo's task of training in a session."""
        extras: dict[str, Any] = {
            names.SESSION: sums.session,
            names.ROSTER: SentRoster(sums.roster),
            names.PACKETS: SentPackets(sums.packets_for(name)),
        }
        return self.task(names.TRAIN, extras | changes, number)

    def train(self, sums: Sums, name: str, number: int = 1) -> Ring:
        """Let a silo train, and add what it masked."""
        reply = self.workers[name].train(self.training(sums, name, number))
        masked = ring_of(reply.update[SUM])
        sums.add(name, masked)
        return masked

    def open(self, sums: Sums, answered: Sequence[str] | None = None) -> Ring:
        """The sum, opened by those that answered."""
        chosen = tuple(sums.answered() if answered is None else answered)
        if not sums.roster.drop_outs:
            return sums.total()
        task = self.task(names.ASK_OPENING, {names.SESSION: sums.session, names.ANSWERED: chosen})
        return sums.total(
            Opening.from_text(self.workers[name].answer(task).texts[names.OPENING])
            for name in sums.answered()
        )

    def rows(self, name: str) -> int:
        """Rows of training in a silo's ledger."""
        return sum(row.purpose == names.TRAIN for row in self.workers[name].ledger.entries())


def as_integers(vector: Ring) -> Tensor:
    """A ring vector as int64."""
    return torch.from_numpy(vector.view("int64").copy())
