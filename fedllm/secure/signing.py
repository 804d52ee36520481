"""Make the callables that sign introductions with a node's key and verify them by pinned keys."""

from __future__ import annotations

from collections.abc import Mapping

from fedllm.report.extract.keys import SUM, NodeKey, SigningKey
from fedllm.secure.member import Sign, Verify


def signer(key: SigningKey) -> Sign:
    """Return the callable that signs a text as an introduction to secure sums."""
    return lambda text: key.sign(SUM, text)


def verifier(pinned: Mapping[str, NodeKey]) -> Verify:
    """Return the callable that tells if a silo signed an introduction; a silo without a pinned key did not."""

    def verify(name: str, text: str, signature: str) -> bool:
        key = pinned.get(name)
        return key is not None and key.verifies(SUM, text, signature)

    return verify
