"""A silo's signed statement about its ledger: an extract about one run, and the ledger's head by itself.

Both are texts (canonical JSON) that are signed as they are. A text is parsed only after its signature was verified,
and even then within limits: a registered node may be hostile.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedllm.budget.limits import MOST_MECHANISMS
from fedllm.files.durable import plain
from fedllm.report.accounting import Figure
from privacy.events.views import MOST_COLLUDING
from privacy.guarantee import Adversary

LONGEST = 256 * 1024
"""Characters of an extract at most."""
LONGEST_HEAD = 4096
"""Characters of a head at most."""
MOST_SET_ASIDE = 16
"""Heads that adoptions set aside, in a signed head: the last ones."""
MOST_ROWS = 100_000
"""Ledger rows that an extract lists at most, written out."""
MOST_USES = 10_000_000
"""Uses of mechanisms that these rows hold at most."""
MOST_ADVERSARIES = 4 + 2 * MOST_COLLUDING
"""Adversaries that an extract speaks of at most: outsider, server, and those who collude, who see sums or every message."""
MOST_DISTINCT = 2 * MOST_MECHANISMS
"""Different mechanisms in its rows at most, and in its plan: twice what the server counts of a silo in a run."""

Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=2000)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Event = Annotated[str, Field(min_length=2, max_length=4000)]
Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$")]
Infinite = Literal["Infinity"]
Cost = Annotated[float, Field(ge=0)] | Infinite
Delta = Annotated[float, Field(ge=0, lt=1)]


class ExtractError(ValueError):
    """A text is no extract or head that can be used; the message says why."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class FigureItem(_Part):
    """One accountant's result; see :class:`fedllm.report.accounting.Figure`."""

    accountant: Name
    epsilon: Cost | None
    bound: bool
    mu: Cost | None = None
    note: Text = ""

    def figure(self) -> Figure:
        """Return the statement as a figure of the report."""
        return Figure(
            self.accountant, _number(self.epsilon), self.bound, _number(self.mu), self.note
        )

    @classmethod
    def of(cls, figure: Figure) -> FigureItem:
        """Make one of a report's figure."""
        return cls(
            accountant=figure.accountant,
            epsilon=plain(figure.epsilon),
            bound=figure.bound,
            mu=plain(figure.mu),
            note=figure.note[:2000],
        )


class AccountItem(_Part):
    """The cost of all of the ledger's rows against one adversary.

    Attributes:
        figures: of what was released so far.
        held: what holds where that is not it: the run's plan, or the budget that a filter kept.
        reasons: why there is no guarantee; empty if there is one.
    """

    figures: tuple[FigureItem, ...] = Field(max_length=16)
    held: FigureItem | None = None
    reasons: tuple[Text, ...] = Field((), max_length=50)


class BudgetItem(_Part):
    """The silo's own budget over all runs, and what its plans have taken of it.

    Attributes:
        spent: epsilon of all plans and releases together, composed as if fixed beforehand, by the budget's
            accountant at its delta; None if it cannot be accounted.
        left: epsilon less spent. A later plan may take less: a filter decides (:mod:`privacy.plan_filter`).
    """

    epsilon: Annotated[float, Field(gt=0)] | Infinite
    delta: Delta
    unit: Name
    relation: Name
    accountant: Name
    spent: Cost | None
    left: Cost | None


class RowsItem(_Part):
    """Rows of the run that differ in their rounds alone.

    Attributes:
        rounds: ranges [first, last] of rounds with one row each; a second row of a round is in another range.
        views: adversary to event (:mod:`privacy.events.serialization`).
        details: what the rows tell of relation, randomness and mechanism.
    """

    purpose: Name
    rounds: tuple[tuple[Count, Count], ...] = Field(min_length=1, max_length=20_000)
    views: dict[Name, Event] = Field(min_length=1, max_length=MOST_ADVERSARIES)
    details: dict[Name, Text | float | int | bool | None] = Field(max_length=32)

    @property
    def number(self) -> int:
        """Number of rows."""
        return sum(last - first + 1 for first, last in self.rounds)


class PlanItem(_Part):
    """The run's plan as its row in the ledger holds it (:meth:`privacy.run_plan.RunPlan.details`)."""

    plan: Annotated[str, Field(max_length=100_000)]
    budgets: Annotated[str, Field(max_length=100_000)]


class HeadItem(_Part):
    """The last row of a ledger: its number (rows are numbered from 1), and its hash."""

    rows: Count
    hash: Hash


class Head(_Part):
    """A ledger's head at a moment, whichever run; signed by itself, for it comes back with each task.

    Attributes:
        set_aside: heads that the silo's people set aside (:mod:`privacy.ledger.adoption`): the ledger need not hold them.
    """

    format: Literal["fedllm-ledger-head"] = "fedllm-ledger-head"
    version: Literal[1] = 1
    silo: Name
    made: Moment
    ledger: HeadItem
    set_aside: tuple[HeadItem, ...] = Field((), max_length=MOST_SET_ASIDE)


class Extract(_Part):
    """A silo's statement about its ledger for the report of one run.

    Attributes:
        silo, run, made: whose it is, of which run, and when it was made (UTC, the silo's clock).
        made_by: version of the program.
        ledger: head of the chain of hashes when it was made. It stands for all rows up to it.
        rows_of_run: rows of this run, its plan not counted.
        other_runs, rows_of_other_runs: what else the ledger holds about this silo; counted in ``account``.
        unit, relation, delta: what ``account`` is stated for.
        account: adversary to what all rows about this silo cost, of all runs.
        seeded: whether any noise came from a seed.
        budget: the silo's own, and what is left of it.
        adoptions: one sentence for each time that the silo's people went on deliberately with a ledger that was
            refused, the last ones; what was released before and is not in it is counted nowhere.
        plan: of the run; None if there is none, or the silo keeps its events.
        events: the run's rows; None if the silo keeps them.
    """

    format: Literal["fedllm-ledger-extract"] = "fedllm-ledger-extract"
    version: Literal[1] = 1
    silo: Name
    run: Name
    made: Moment
    made_by: Name
    ledger: HeadItem
    rows_of_run: Count
    other_runs: Count
    rows_of_other_runs: Count
    unit: Name
    relation: Name
    delta: Delta
    account: dict[Name, AccountItem] = Field(min_length=2, max_length=MOST_ADVERSARIES)
    seeded: bool
    budget: BudgetItem | None
    adoptions: tuple[Text, ...] = Field((), max_length=MOST_SET_ASIDE)
    plan: PlanItem | None
    events: tuple[RowsItem, ...] | None = Field(max_length=5000)

    @property
    def shared(self) -> bool:
        """True if other runs are on the ledger: then this run's events are a part of what ``account`` is about."""
        return bool(self.other_runs or self.rows_of_other_runs)

    @model_validator(mode="after")
    def _check(self) -> Extract:
        for name in self.account:
            Adversary(name)
        if not {"server", "outsider"} <= set(self.account):
            raise ValueError("Expected an account against server and outsider")
        if self.events is not None:
            if any(last < first for item in self.events for first, last in item.rounds):
                raise ValueError("Expected ranges [first, last] of rounds with first <= last")
            listed = sum(item.number for item in self.events)
            if listed > MOST_ROWS:
                raise ValueError(f"Expected at most {MOST_ROWS} rows, got {listed}")
            if listed != self.rows_of_run:
                raise ValueError(f"Expected {self.rows_of_run} rows of the run, got {listed}")
        counted = self.rows_of_run + self.rows_of_other_runs
        if counted > self.ledger.rows:
            raise ValueError(f"Expected at most {self.ledger.rows} rows in all, got {counted}")
        runs, rows = self.other_runs, self.rows_of_other_runs
        if runs > rows or (rows and not runs):
            raise ValueError(
                f"Expected a row at least of each other run, got {rows} of {runs} runs"
            )
        return self


Statement = TypeVar("Statement", Extract, Head)


def text_of(statement: Extract | Head) -> str:
    """Return a statement as canonical JSON: what is signed."""
    return json.dumps(
        statement.model_dump(mode="json"),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    )


def parse(kind: type[Statement], text: str) -> Statement:
    """Read a statement, within limits.

    Raises:
        ExtractError: it is too long, no JSON, or not a statement of this kind; the message names the field.
    """
    longest = LONGEST if kind is Extract else LONGEST_HEAD
    what = "an extract" if kind is Extract else "a head"
    if len(text) > longest:
        raise ExtractError(f"Expected {what} of at most {longest} characters, got {len(text)}")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:100]
        raise ExtractError(
            f"Expected {what} of a ledger, got {place or 'a text'}: {first['msg']}"
        ) from None


def _number(value: float | str | None) -> float | None:
    return math.inf if value == "Infinity" else None if value is None else float(value)


def printable(text: str) -> str:
    """Return a silo's text so that the report may quote it: one line, without double quotes, not long."""
    return "".join(c if c.isprintable() else " " for c in text).replace('"', "'")[:500]
