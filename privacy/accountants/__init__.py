"""Accountants: compute the privacy cost of a multiset of events, and state how far each may be trusted."""

from __future__ import annotations

from privacy.accountants.base import Accountant, UnsupportedEvent
from privacy.accountants.dominating import DominatingGdpAccountant
from privacy.accountants.gdp import CltGdpAccountant, ExactGdpAccountant
from privacy.accountants.pld import PldAccountant
from privacy.accountants.rdp import RdpAccountant
from privacy.guarantee import Relation

__all__ = ["ACCOUNTANTS", "Accountant", "UnsupportedEvent", "make_accountant"]

ACCOUNTANTS: dict[str, type[Accountant]] = {
    cls.name: cls
    for cls in (
        PldAccountant,
        RdpAccountant,
        ExactGdpAccountant,
        CltGdpAccountant,
        DominatingGdpAccountant,
    )
}

_REMOVED = {
    "prv": " (removed: the truncation of its numbers is not proven; pld is proven, and tighter)"
}


def make_accountant(name: str, relation: Relation = Relation.ZERO_OUT) -> Accountant:
    """Return the accountant of that name.

    Args:
      name: "pld", "rdp", "gdp-exact", "gdp-clt" or "gdp-dominating".
      relation: The neighbouring relation of its numbers.

    Raises:
      ValueError: No such accountant.
    """
    if name not in ACCOUNTANTS:
        known = ", ".join(ACCOUNTANTS)
        raise ValueError(
            f"Expected accountant to be one of {known}, got {name!r}{_REMOVED.get(name, '')}"
        )
    return ACCOUNTANTS[name](relation)
