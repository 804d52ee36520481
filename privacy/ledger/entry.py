"""Ledger entry: one release influenced by private data, with the event each adversary sees."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from dp_accounting.dp_event import DpEvent

from privacy.events.multiset import flattened, multiset
from privacy.events.serialization import canonical, event_from_json, event_to_json
from privacy.guarantee import Adversary, Unit
from privacy.ledger.error import LedgerError
from privacy.ledger.limits import (
    MOST_DETAILS,
    MOST_NAME,
    MOST_VIEWS,
    read_json,
    require_length,
)

JsonScalar = str | int | float | bool | None


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no spaces, and no NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse_views(text: str) -> dict[str, DpEvent]:
    """Read the views column: adversary -> event; ValueError if it is not one."""
    return dict((_views_cached if len(text) <= _SMALL else _views_of)(text))


def _views_of(text: str) -> dict[str, DpEvent]:
    read = read_json("views", text, MOST_VIEWS)
    for event in read.values():
        read_json("a view", event, MOST_VIEWS)
    return {Adversary(name): event_from_json(event) for name, event in read.items()}


_SMALL = 8192  # characters of views that are kept once they were read
_views_cached = lru_cache(maxsize=4096)(_views_of)


def parse_details(text: str) -> dict[str, JsonScalar]:
    """Read the details column; ValueError if it is not one."""
    read = read_json("details", text, MOST_DETAILS)
    if not isinstance(read, dict) or any(isinstance(v, dict | list) for v in read.values()):
        raise ValueError("Expected details of JSON scalars")
    return read


def _read_views(views: tuple[tuple[str, DpEvent], ...]) -> tuple[dict[str, DpEvent], str]:
    """Validate views; in canonical form, and as the text of the views column."""
    found: dict[str, DpEvent] = {Adversary(name): canonical(event) for name, event in views}
    for required in ("server", "outsider"):
        if required not in found:
            raise ValueError(f'Expected views for "server" and "outsider", got {sorted(found)}')
    return found, canonical_json({str(name): event_to_json(e) for name, e in found.items()})


_read_views_cached = lru_cache(maxsize=4096)(_read_views)


@lru_cache(maxsize=4096)
def _write_details(details: tuple[tuple[str, type, JsonScalar], ...]) -> str:
    return canonical_json({name: value for name, _, value in details})


def view_events(text: str, adversary: str) -> tuple[tuple[DpEvent, int], ...]:
    """Return the multiset of events that an adversary sees in a row with this views column.

    Raises:
      LedgerError: No view of an adversary at least as strong.
      ValueError: The text is no views column.
    """
    return (_events_cached if len(text) <= _SMALL else _events_of)(text, adversary)


def _events_of(text: str, adversary: str) -> tuple[tuple[DpEvent, int], ...]:
    return tuple(flattened(choose_view(parse_views(text), adversary)).items())


_events_cached = lru_cache(maxsize=4096)(_events_of)


def choose_view(views: Mapping[str, DpEvent], adversary: str) -> DpEvent:
    """Return the view of an adversary, or of the weakest stronger one; LedgerError if there is none."""
    wanted = adversary if isinstance(adversary, Adversary) else Adversary(adversary)
    if wanted in views:
        return views[wanted]
    able = [name for name in views if Adversary(name).strength >= wanted.strength]
    if not able:
        raise LedgerError(
            f"Expected a view for adversary {wanted!r} or a stronger one, got views {sorted(views)}"
        )
    return views[min(able, key=lambda name: Adversary(name).strength)]


@dataclass(frozen=True)
class LedgerEntry:
    """One release that private data influenced.

    Attributes:
      run: The run that makes it.
      party: Whose data: a silo's name, or "server" for what concerns all clients together.
      unit: Whose presence the event protects.
      purpose: "train", "evaluate", "example-count", ...
      round: The federated round, >= 0.
      key: Names this one release within (run, party). Appending the same key and content again is
        no new row. A key may be used again only for the *same* noisy value (seeded noise); a
        repetition with fresh noise is a new release and needs a new key.
      views: Adversary -> the event as that adversary sees it; "server" and "outsider" required.
      details: JSON scalars worth keeping (clip norm, assumptions).
      id, time, hash: Given by the ledger; None before. Not compared.
    """

    run: str
    party: str
    unit: Unit
    purpose: str
    round: int
    key: str
    views: Mapping[str, DpEvent]
    details: Mapping[str, JsonScalar] = field(default_factory=dict)
    id: int | None = field(default=None, compare=False)
    time: str | None = field(default=None, compare=False)
    hash: str | None = field(default=None, compare=False)
    _views_text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Validate and canonicalise; ValueError names the field and the value."""
        for name in ("run", "party", "purpose", "key"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"Expected {name} to be non-empty text, got {name}={value!r}")
            if len(value) > MOST_NAME:
                require_length(name, value, MOST_NAME)
        if isinstance(self.round, bool) or not isinstance(self.round, int) or self.round < 0:
            raise ValueError(f"Expected a whole round >= 0, got round={self.round!r}")
        object.__setattr__(self, "unit", Unit(self.unit))
        given = tuple(self.views.items())
        try:
            views, text = _read_views_cached(given)
        except TypeError:  # an event that cannot be hashed before it is canonical
            views, text = _read_views(given)
        object.__setattr__(self, "views", dict(views))
        object.__setattr__(self, "_views_text", text)
        if len(text) > MOST_VIEWS:
            require_length("views", text, MOST_VIEWS)
        for name, value in self.details.items():
            scalar = value is None or isinstance(value, (str, int, float, bool))
            if not isinstance(name, str) or not scalar:
                raise ValueError(f"Expected details of JSON scalars, got {name!r}={value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"Expected finite numbers in details, got {name}={value}")
        object.__setattr__(self, "details", dict(self.details))

    def view(self, adversary: str) -> DpEvent:
        """Return the event as this adversary sees it, or as the weakest stronger one does.

        Raises:
          LedgerError: The entry holds no view of an adversary at least as strong.
        """
        try:
            return choose_view(self.views, adversary)
        except LedgerError as error:
            raise LedgerError(f"Entry {self.run}/{self.party}/{self.key}: {error}") from None

    def content(self) -> dict[str, Any]:
        """Return the fields that are hashed and compared: all but id, time and hash.

        Raises:
          LedgerError: The details are too long for a row.
        """
        details = _write_details(tuple((n, type(v), v) for n, v in self.details.items()))
        if len(details) > MOST_DETAILS:
            require_length("details", details, MOST_DETAILS)
        return {
            "run": self.run,
            "party": self.party,
            "unit": self.unit.value,
            "purpose": self.purpose,
            "round": self.round,
            "key": self.key,
            "views": self._views_text,
            "details": details,
        }


def require_same_unit(units: Iterable[Unit]) -> None:
    """Raise LedgerError if there are entries of several privacy units."""
    found = set(units)
    if len(found) > 1:
        raise LedgerError(
            f"Expected entries of one privacy unit, got {sorted(found)}: they do not compose"
        )


def composed(entries: Iterable[LedgerEntry], adversary: str) -> Counter[DpEvent]:
    """Return the multiset of events that an adversary sees in these entries.

    An entry without a view for the adversary falls back to the weakest stronger one, never to a
    weaker one. Entries of several parties are composed as if on the same data, which is safe.

    Raises:
      LedgerError: Entries of several units, or an entry without a view that is strong enough.
    """
    chosen = list(entries)
    require_same_unit(entry.unit for entry in chosen)
    total: Counter[DpEvent] = Counter()
    for entry in chosen:
        total.update(multiset(entry.view(adversary)))
    return total
