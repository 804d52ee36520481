"""Keep slow values by key: a cache of the last used ones, up to a number."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """At most ``most`` values; the one that was not used for longest goes first.

    What goes is no longer found here, and nothing is done to it: anyone who uses it still has it, and its memory is
    given back when no one does.

    Example:
        >>> kept = Kept[str, int](2)
        >>> [kept.get(key, lambda: len(key)) for key in ("a", "bb", "a", "ccc")]
        [1, 2, 1, 3]
        >>> "a" in kept, "bb" in kept
        (True, False)
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """Return the value of a key, made by one thread at a time where it is not here."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            value = self._values[key] = make()
            while len(self._values) > self.most:
                self._values.popitem(last=False)
            return value

    def drop(self, unwanted: Callable[[Value], bool]) -> None:
        """Forget the values of which this is true."""
        with self._lock:
            for key in [key for key, value in self._values.items() if unwanted(value)]:
                del self._values[key]

    def touch(self, value: object) -> bool:
        """Count this very value as used now; whether it is here."""
        with self._lock:
            found = next((key for key, kept in self._values.items() if kept is value), None)
            if found is None:
                return False
            self._values.move_to_end(found)
            return True

    def holds(self, value: object) -> bool:
        """Return True if this very value is here."""
        with self._lock:
            return any(value is kept for kept in self._values.values())

    def __contains__(self, key: Key) -> bool:
        with self._lock:
            return key in self._values

    def __len__(self) -> int:
        return len(self._values)
