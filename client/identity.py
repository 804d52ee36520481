"""The node's key as the silo's word among silos, and the peers' keys that its own file pins (``[secure.peers]``).

The key is the one that signs extracts of the ledger (:mod:`fedllm.report.extract.keys`), in a domain of its own. The
keys of the peers do not come from the server: one that puts itself between two silos cannot sign for either of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedllm.report.extract.keys import load_signing_key, node_key_of
from fedllm.secure.signing import signer, verifier


@dataclass(frozen=True)
class NodeIdentity:
    """The node's private key, and public keys of its peers; see :class:`fedllm.silo.identity.Identity`.

    Attributes:
        key: file of the node's private key.
        peers: (name, public key line) of each pinned silo.
    """

    key: Path
    peers: tuple[tuple[str, str], ...] = ()

    @property
    def pins(self) -> bool:
        """True if any peer is pinned: then all of them must be."""
        return bool(self.peers)

    def sign(self, text: str) -> str:
        """Return the signature of a text, hexadecimal; empty where the node has no key.

        Raises:
            KeyProblem: there is one that cannot be used.
        """
        if not self.key.exists():
            return ""
        return signer(load_signing_key(self.key))(text)

    def verify(self, name: str, text: str, signature: str) -> bool:
        """Return True if the signature is the pinned silo's, of this text; False for a silo that is not pinned."""
        pinned = {peer: node_key_of(line) for peer, line in self.peers if peer == name}
        return verifier(pinned)(name, text, signature)
