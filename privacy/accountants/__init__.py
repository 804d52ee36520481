"""Accountants: each reads a multiset of events and says what it costs, and how far to trust it."""

from __future__ import annotations

from privacy.accountants.base import Accountant, UnsupportedEvent
from privacy.accountants.dominating import DominatingGdpAccountant
from privacy.accountants.gdp import CltGdpAccountant, ExactGdpAccountant
from privacy.accountants.pld import PldAccountant
from privacy.accountants.prv import PrvAccountant
from privacy.accountants.rdp import RdpAccountant
from privacy.vocabulary import Relation

__all__ = ["ACCOUNTANTS", "Accountant", "UnsupportedEvent", "make_accountant"]

ACCOUNTANTS: dict[str, type[Accountant]] = {
    cls.name: cls
    for cls in (
        PldAccountant,
        RdpAccountant,
        PrvAccountant,
        ExactGdpAccountant,
        CltGdpAccountant,
        DominatingGdpAccountant,
    )
}


def make_accountant(name: str, relation: Relation = Relation.ZERO_OUT) -> Accountant:
    """Return the accountant of that name.

    Args:
      name: "pld", "rdp", "prv", "gdp-exact", "gdp-clt" or "gdp-dominating".
      relation: The neighbouring relation of its numbers.

    Raises:
      ValueError: No such accountant.
    """
    if name not in ACCOUNTANTS:
        raise ValueError(f"Expected accountant to be one of {', '.join(ACCOUNTANTS)}, got {name!r}")
    return ACCOUNTANTS[name](relation)
