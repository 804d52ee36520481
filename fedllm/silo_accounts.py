"""The accounts of many silos in one ledger: one round of all of them, in one transaction."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from fedllm.silo_account import SiloAccount
from privacy.budget import BudgetExceeded
from privacy.ledger import LedgerEntry


class _Refused(Exception):
    """A budget refuses: nothing is recorded."""


def spend_together(
    accounts: Iterable[SiloAccount], server_round: int, key: str, *, statistics: bool = False
) -> dict[SiloAccount, BudgetExceeded]:
    """Record one round of training for several parties, durably: a row for each, or none at all.

    With ``statistics`` it is their statistics before training (round 0) instead.

    Silos with the same mechanism, targets and history are asked for once.

    Args:
        accounts: of different parties, in one run and one open ledger.
        server_round: the round.
        key: as for :meth:`SiloAccount.spend_training`.

    Returns:
        Those whose budget refuses, with why. Where there are any, nothing was recorded.

    Raises:
        LedgerError: the rows could not be written.
    """
    by_party = {account.party: account for account in accounts}
    if not by_party:
        return {}
    ledger = next(iter(by_party.values())).ledger
    plans = {name: _plan(account) for name, account in by_party.items()}
    templates: dict[Any, LedgerEntry] = {}
    entries = []
    for name, account in by_party.items():
        if plans[name] not in templates:
            templates[plans[name]] = (
                account.statistics_entry(key)
                if statistics
                else account.training_entry(server_round, key)
            )
        entries.append(dataclasses.replace(templates[plans[name]], party=name))
    refused: dict[SiloAccount, BudgetExceeded] = {}

    def admit(new: Sequence[LedgerEntry]) -> None:  # while no other process can write
        answers: dict[Any, BudgetExceeded | None] = {}
        histories = ledger.histories()
        for entry in new:
            same = (plans[entry.party], histories.get(entry.party))
            if same not in answers:
                answers[same] = _ask(by_party[entry.party], server_round, statistics)
            answer = answers[same]
            if answer is not None:
                refused[by_party[entry.party]] = answer
        if refused:
            raise _Refused

    with contextlib.suppress(_Refused):
        ledger.extend(entries, admit)
    return refused


def _plan(account: SiloAccount) -> tuple[Any, ...]:
    """All that an answer of the budgets, and a row, depend on beside the history and the party."""
    return (account.run, account.rounds, *account.details().values())


def _ask(account: SiloAccount, server_round: int, statistics: bool) -> BudgetExceeded | None:
    try:
        if statistics:
            account.admit_statistics()
        else:
            account.admit_training(server_round)
    except BudgetExceeded as error:
        return error
    return None
