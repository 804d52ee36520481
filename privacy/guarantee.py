"""Terms of a guarantee: unit, neighbouring relation, adversary.

The null record. Under zero-out one record is replaced by the null record, and the number of records stays.
The null record contributes nothing to any release: it is sampled like any other, adds the zero vector to each
sum of vectors, zero to each count, and zero to each utility of a choice.

Where each record is sampled by its own draw (Poisson sampling, or no sampling), the null record changes
nothing for the others. So a mechanism has on data with the null record the same distribution of outputs as on
the data without it, with the same sampling rates, divisors and noise. These are public here and no function of
the data, so each proof for add-or-remove-one, which compares the two data sets at fixed rates and divisors,
proves zero-out with the same pair of distributions and the same epsilon.

Where the sample is cut to a largest size (truncated Poisson sampling, `events.constructors.truncated_sgd`), this does
not hold: the null record takes a place in the sample that another record has without it. Each relation then has a
proof of its own: zero-out `privacy.accountants.losses.truncated`, add-or-remove-one and replace-one the bounds of
dp_accounting (arXiv 2508.15089).

The reverse fails always: where somebody learns the number of records, two data sets that differ in it are sent
apart with certainty, and no epsilon holds for adding or removing one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import dp_accounting


class Unit(StrEnum):
    """Privacy unit: the protected entity, one training record or all records of one silo."""

    EXAMPLE = "example"
    CLIENT = "client"


class Relation(StrEnum):
    """Neighbouring relation of data sets; the module defines the null record.

    * zero-out: one record is replaced by the null record; the number of records is the same, and public.
    * add-or-remove-one: one data set has one record more. Only where no one learns the number of records.
    * replace-one: one record is replaced by any other; a contribution moves by twice its bound.
    """

    ZERO_OUT = "zero-out"
    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    REPLACE_ONE = "replace-one"

    @property
    def dp_accounting(self) -> dp_accounting.NeighboringRelation:
        """The same relation in dp_accounting's vocabulary."""
        return {
            Relation.ZERO_OUT: dp_accounting.NeighboringRelation.REPLACE_SPECIAL,
            Relation.ADD_OR_REMOVE_ONE: dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
            Relation.REPLACE_ONE: dp_accounting.NeighboringRelation.REPLACE_ONE,
        }[self]

    @property
    def doubles(self) -> bool:
        """True if a contribution of norm at most C moves a sum by up to 2 C, and not C."""
        return self is Relation.REPLACE_ONE

    def implies(self, other: Relation) -> bool:
        """Return True if a proof for this relation is one for the other, with the same epsilon.

        Add-or-remove-one implies zero-out (see the module; of truncated samples with an epsilon of its own, which
        an accountant gives that is asked for zero-out). Nothing else is implied here.
        """
        return self is other or (self is Relation.ADD_OR_REMOVE_ONE and other is Relation.ZERO_OUT)

    def describe(self, unit: Unit, party: str = "client") -> str:
        """Describe the difference between two neighbours in words; `party` names a client."""
        subject, null, number = (
            ("one training example", "an empty one", "the number of examples")
            if unit is Unit.EXAMPLE
            else (f"all data of one {party}", "no data", "the set of participants")
        )
        if self is Relation.ZERO_OUT:
            return f"{subject} replaced by {null}, {number} being public"
        if self is Relation.ADD_OR_REMOVE_ONE:
            return f"{subject} added or removed, {number} being secret"
        other = "another" if unit is Unit.EXAMPLE else "other data"
        return f"{subject} replaced by {other}"


_KINDS = {"outsider": 0, "sum-only": 1, "server": 2, "colluding": 2}
"""Kinds of adversaries, with their rank; within one the number of silos that it controls decides."""


class Adversary(str):
    """Adversary and its view: "outsider", "sum-only", "sum-only:m", "server" or "colluding:m".

    An outsider sees only the released final model. "sum-only" is a server that learns of each release in training the sum over
    the silos alone, as secure aggregation promises; sum-only:m learns this and controls m >= 1 of the clients, whose noise
    it knows. The server sees every message; colluding:m sees every message and controls m >= 1 of the clients. A string, so
    that it serves as a key; construction validates and canonicalises.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Adversary:
        """Parse the name of an adversary; ValueError if it is none."""
        if text in ("outsider", "sum-only", "server"):
            return super().__new__(cls, text)
        kind, _, number = str(text).partition(":")
        known = kind in ("sum-only", "colluding")
        if known and number.isascii() and number.isdigit() and int(number) >= 1:
            return super().__new__(cls, f"{kind}:{int(number)}")
        raise ValueError(
            'Expected adversary "outsider", "sum-only", "sum-only:m", "server" or "colluding:m" with m >= 1, '
            f"got {text!r}"
        )

    @property
    def colluders(self) -> int:
        """Number of clients the adversary controls."""
        return int(self.partition(":")[2] or 0)

    @property
    def strength(self) -> tuple[int, int]:
        """Greater for anyone who sees more: outsider < sum-only < sum-only:1 < ... < server < colluding:1 < ...

        A server that sees every message knows more than one that learns sums, however many clients this one controls: a
        client's own message is at least as private in a sum as alone.
        """
        return _KINDS[self.partition(":")[0]], self.colluders

    @property
    def sees_sums(self) -> bool:
        """True if the adversary learns of training the sums over clients alone."""
        return self.partition(":")[0] == "sum-only"

    def describe(self) -> str:
        """Return the adversary in words."""
        if self == "outsider":
            return "an outsider who sees only the released final model"
        if self == "sum-only":
            return "a server that learns only sums over the clients"
        if self == "server":
            return "a server that sees every message"
        plural = "clients" if self.colluders > 1 else "client"
        seen = "learns only sums over the clients" if self.sees_sums else "sees every message"
        return f"an adversary that {seen} and controls {self.colluders} other {plural}"


OUTSIDER = Adversary("outsider")
SUM_ONLY = Adversary("sum-only")
SERVER = Adversary("server")


@dataclass(frozen=True)
class Guarantee:
    """One privacy number with its unit, relation, adversary, delta and accountant.

    Attributes:
      epsilon: >= 0, may be infinite.
      delta: 0 <= delta <= 1.
      unit: Whose presence is protected.
      relation: What makes two data sets neighbours.
      adversary: Against whom.
      accountant: Name of the accountant that computed epsilon.
      bound: Whether the accountant's number is a proven upper bound.
      mu: The Gaussian differential privacy parameter, where the accountant has one.
      note: Anything a reader must know.
    """

    epsilon: float
    delta: float
    unit: Unit
    relation: Relation
    adversary: Adversary
    accountant: str
    bound: bool
    mu: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        """Validate; ValueError names the field."""
        if math.isnan(self.epsilon) or self.epsilon < 0:
            raise ValueError(f"Expected epsilon >= 0, got epsilon={self.epsilon}")
        if not 0 <= self.delta <= 1:
            raise ValueError(f"Expected 0 <= delta <= 1, got delta={self.delta}")
        object.__setattr__(self, "unit", Unit(self.unit))
        object.__setattr__(self, "relation", Relation(self.relation))
        object.__setattr__(self, "adversary", Adversary(self.adversary))

    def sentence(self) -> str:
        """State the guarantee, or that there is none, in one sentence or two."""
        subject = "one training example" if self.unit is Unit.EXAMPLE else "all data of one client"
        whom = self.adversary.describe()
        note = f" {self.note}" if self.note else ""
        if math.isinf(self.epsilon):
            return f"No privacy is guaranteed for {subject} against {whom} (epsilon = inf).{note}"
        verb = "Guaranteed" if self.bound else "Estimated, not guaranteed (an approximation)"
        mu = f", mu = {self.mu:.4g}" if self.mu is not None else ""
        # An epsilon is printed rounded up: the printed number must hold as well.
        shown = math.ceil(self.epsilon * 1000 - 1e-9) / 1000
        return (
            f"{verb}: epsilon = {shown:g} at delta = {self.delta:g}{mu} for {subject} "
            f"(neighbouring relation {self.relation.value}: {self.relation.describe(self.unit)}) "
            f"against {whom}, "
            f"by the {self.accountant} accountant.{note}"
        )
