"""A silo's key among silos: sign what it says of itself, and verify what others say by keys that it knows itself."""

from __future__ import annotations

from typing import Protocol


class Identity(Protocol):
    """A silo's own key, and the keys of its peers; compared by value."""

    @property
    def pins(self) -> bool:
        """True if the silo knows its peers' keys itself; else they are what the server relays."""
        ...

    def sign(self, text: str) -> str:
        """Return the signature of a text, hexadecimal; empty where the silo has no key."""
        ...

    def verify(self, name: str, text: str, signature: str) -> bool:
        """Return True if the signature is that of the peer ``name``, of this text, by the key that is pinned."""
        ...
