"""Accounts of many silos in one ledger: record one round of all of them in one transaction."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from fedllm.budget.account import SiloAccount
from fedllm.budget.silo_plan import Proposal, recorded_anew
from privacy.budget import BudgetExceeded
from privacy.ledger.ledger import LedgerEntry


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
    together = list(accounts)
    if not together:
        return {}
    ledger = together[0].ledger
    return recorded_anew(lambda: _spend(together, server_round, key, statistics), ledger)


def _spend(
    accounts: Sequence[SiloAccount], server_round: int, key: str, statistics: bool
) -> dict[SiloAccount, BudgetExceeded]:
    by_party = {account.party: account for account in accounts}
    ledger = next(iter(by_party.values())).ledger
    plans = {name: _plan(account) for name, account in by_party.items()}
    templates: dict[Any, LedgerEntry] = {}
    entries = []
    proposals: dict[str, Proposal | None] = {}
    refused: dict[SiloAccount, BudgetExceeded] = {}
    for name, account in by_party.items():
        try:
            proposals[name] = account.proposal()
        except BudgetExceeded as error:
            refused[account] = error
    if refused:
        return refused
    for name, account in by_party.items():
        if plans[name] not in templates:
            templates[plans[name]] = (
                account.statistics_entry(key)
                if statistics
                else account.training_entry(server_round, key)
            )
        proposal = proposals[name]
        if proposal is not None:
            entries.append(proposal.entry)
        entries.append(dataclasses.replace(templates[plans[name]], party=name))

    def admit(new: Sequence[LedgerEntry]) -> None:  # while no other process can write
        answers: dict[Any, BudgetExceeded | None] = {}
        histories = ledger.histories()
        for party in dict.fromkeys(entry.party for entry in new):
            proposal = proposals[party]
            fixed = None if proposal is None else proposal.plan.text
            same = (plans[party], fixed, histories.get(party))
            if same not in answers:
                answers[same] = _ask(by_party[party], server_round, statistics, proposal)
            answer = answers[same]
            if answer is not None:
                refused[by_party[party]] = answer
        if refused:
            raise _Refused

    with contextlib.suppress(_Refused):
        ledger.extend(entries, admit)
    return refused


def _plan(account: SiloAccount) -> tuple[Any, ...]:
    """Return all that an answer of the budgets, and a row, depend on, in addition to the history and the party."""
    return (account.run, account.rounds, *account.details().values())


def _ask(
    account: SiloAccount, server_round: int, statistics: bool, proposal: Proposal | None
) -> BudgetExceeded | None:
    try:
        if statistics:
            account.admit_statistics(proposal)
        else:
            account.admit_training(server_round, proposal)
    except BudgetExceeded as error:
        return error
    return None
