"""Check that an extract covers its silo's releases, as far as the server knows them.

The server counts the events that a silo told of with its updates: T, in the server's view. The extract holds the rows of
the run, R, and the run's plan, P; a silo that keeps its events sends neither. Multisets are compared as a ledger
does: each mechanism at most as often, with at most as much noise (:func:`privacy.run_plan.outside`), and at most as
many releases without a guarantee.

T is in the server's view of a run whose silos add the noise. A silo with a ledger of its own takes part in no other run
(:meth:`fedllm.budget.local_policy.LocalPolicy.check_kind`). With noise by the server T would be in the outsider's view,
and no extract would cover it.

* The silo answered when the run had ended. T must be within R. Where events are kept, the epsilon that the silo
  states must be at least what T costs.
* It did not answer: its last extract may be of before some of its releases. Where T is within R, none is missing that
  the server received. Otherwise T must be within R and P together, and what is missing must be counted: every finite
  epsilon in the account is that of the whole plan, or the budget that was held over all runs on the ledger. The
  epsilon of the rows is less than what was released, and does not count. Where events are kept, the epsilon of the
  rows counts only on a ledger without other runs, where it can be compared with what T costs.
* The server did not come to its end, and T is not known: every finite epsilon must be that of the whole plan or budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol

from dp_accounting.dp_event import DpEvent

from fedllm.report.accounting import Accounts, Figure, Multiset, SiloAccounting
from fedllm.report.extract.statement import ExtractError
from fedllm.report.extract.store import Expected
from fedllm.report.held import FILTER
from privacy.accountants import ACCOUNTANTS
from privacy.events.multiset import is_private
from privacy.events.serialization import event_from_json
from privacy.guarantee import SERVER, Adversary
from privacy.run_plan import outside

SAME = 1e-6
"""Relative difference up to which two epsilons agree: far above round-off, far below what matters."""
LEFT_OUT = "its extract leaves out releases, or states more noise, than it told the server of with its updates"
LAGGING = (
    "its last extract is of before releases that it told the server of with its updates, and what it states is neither "
    "the epsilon of its whole plan nor a budget"
)
UNKNOWN = (
    "the run has not come to its end at the server, so that nothing tells what the silo released after its last extract, "
    "and what that states is neither the epsilon of its whole plan nor a budget"
)


class Sent(Protocol):
    """Content of an extract about its run."""

    def planned(self, adversary: str) -> Multiset | None:
        """Return the events with a guarantee that the run's plan holds; None without a plan."""
        ...

    def released(self, adversary: str) -> Multiset | None:
        """Return the events of the run's rows; None if the silo keeps them."""
        ...


def check_told(
    expected: Expected,
    silo: SiloAccounting,
    sent: Sent,
    accounts: Accounts,
    against: Adversary = SERVER,
) -> None:
    """Check that an extract covers what its silo released; the module says when it does.

    Args:
        silo: the account that the report would state of the silo.
        against: in whose view the server counted what it was told.

    Raises:
        ExtractError: it does not.
    """
    told = None if expected.told is None else _read(expected.told)
    released = sent.released(against)
    if told is not None and released is not None:
        if _within(released, told):
            return
        if expected.final or not _within(Multiset((sent.planned(against) or {}) | released), told):
            raise ExtractError(LEFT_OUT)
    if told is not None and expected.final:
        _check_cost(silo, silo.headline(against), against, told, accounts)
        return
    compared = told is not None and released is None and not silo.other_rows
    for adversary in silo.figures:
        if not compared and not _counts_all(silo, adversary, sent):
            raise ExtractError(UNKNOWN if told is None else LAGGING)
        held = silo.held.get(adversary)
        if told is None or Adversary(adversary).strength < against.strength:
            continue
        if released is None or (held is not None and held.accountant == FILTER):
            _check_cost(silo, silo.stated(adversary), adversary, told, accounts)


def _counts_all(silo: SiloAccounting, adversary: str, sent: Sent) -> bool:
    """Return True if a silo's epsilon includes future releases of its run, not only its rows."""
    if math.isinf(silo.stated(adversary).epsilon_or_inf):
        return True
    held = silo.held.get(adversary)
    if held is not None:
        return held.epsilon is not None
    planned = sent.planned(adversary)
    return planned is not None and planned == sent.released(adversary)


def _check_cost(
    silo: SiloAccounting, stated: Figure, adversary: str, told: Multiset, accounts: Accounts
) -> None:
    by = silo.headline(adversary).accountant
    if silo.reasons[adversary] or stated.epsilon is None or by not in ACCOUNTANTS:
        return
    cost = accounts.figure(by, told)
    if cost is not None and cost.epsilon_or_inf > stated.epsilon * (1 + SAME) + SAME:
        raise ExtractError(
            f"its extract states epsilon = {stated.epsilon:.6g}, less than the {cost.epsilon_or_inf:.6g} of the "
            "releases that it told the server of with its updates"
        )


def _within(room: Mapping[DpEvent, int], events: Mapping[DpEvent, int]) -> bool:
    return outside(room, events) is None and _raw(events) <= _raw(room)


def _raw(events: Mapping[DpEvent, int]) -> int:
    return sum(count for event, count in events.items() if not is_private(event))


def _read(told: Iterable[tuple[str, int]]) -> Multiset:
    found: Multiset = Multiset()
    try:
        for text, count in told:
            found[event_from_json(text)] += count
    except (ValueError, RecursionError) as error:
        raise ExtractError(f"what it told of its releases cannot be read: {error}") from None
    return found
