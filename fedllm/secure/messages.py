"""Carry what silos send for a sum besides the masked vector: advances and openings, as values and as texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedllm.secure import keys, reading, shamir
from fedllm.secure.errors import SumRefused

PACKET_BYTES = keys.KEY_BYTES + 2 * shamir.SHARE_BYTES + 16
"""Bytes of a sealed packet: a session's public key, a share of its private key, a share of the self-mask's seed, and the tag."""
MARK_BYTES = 16
"""Bytes of the hash of a share, by which the server notices a wrong one."""
_LONGEST = 1_000_000
_ADVANCE = ("name", "session", "key", "seed_mark", "packets", "marks")
_OPENING = ("name", "session", "seeds", "keys")


@dataclass(frozen=True)
class Advance:
    """Shares of a silo's secrets of one session, sealed for each peer.

    Attributes:
        name: the silo's.
        session: they are for.
        key: X25519 public key of the session, 32 bytes.
        seed_mark: SHA-256 of the self-mask's seed, 32 bytes.
        packets: by peer, PACKET_BYTES that only it can open.
        marks: by silo (itself among them), hashes of its share of the private key and of its share of the seed, MARK_BYTES each. A share
            is uniform among 2^256, so its hash does not help to guess it.
    """

    name: str
    session: int
    key: bytes
    seed_mark: bytes
    packets: Mapping[str, bytes]
    marks: Mapping[str, tuple[bytes, bytes]]

    def to_text(self) -> str:
        """Return the text that `from_text` reads."""
        packets = {peer: packet.hex() for peer, packet in self.packets.items()}
        marks = {peer: (pair[0] + pair[1]).hex() for peer, pair in self.marks.items()}
        return reading.write(
            {
                "name": self.name, "session": self.session, "key": self.key.hex(),
                "seed_mark": self.seed_mark.hex(), "packets": packets, "marks": marks,
            }
        )  # fmt: skip

    @classmethod
    def from_text(cls, text: object) -> Advance:
        """Read an advance; SumRefused if it is none."""
        value = reading.read_object(text, "an advance", _ADVANCE, length=_LONGEST)
        marks = _by_name(value["marks"], "marks", 2 * MARK_BYTES)
        return cls(
            reading.read_name(value["name"]),
            reading.read_session(value["session"]),
            reading.read_hex(value["key"], "a key", keys.KEY_BYTES),
            reading.read_hex(value["seed_mark"], "a hash", 32),
            _by_name(value["packets"], "packets", PACKET_BYTES),
            {peer: (pair[:MARK_BYTES], pair[MARK_BYTES:]) for peer, pair in marks.items()},
        )


@dataclass(frozen=True)
class Opening:
    """Shares that a silo reveals after a session's masked vectors: one of each other silo's two secrets.

    Attributes:
        name: the silo's.
        session: they are of.
        seeds: by silo that answered, the share of its self-mask's seed.
        keys: by silo that did not, the share of its session's private key.
    """

    name: str
    session: int
    seeds: Mapping[str, bytes]
    keys: Mapping[str, bytes]

    def to_text(self) -> str:
        """Return the text that `from_text` reads."""
        seeds, private = (
            {peer: share.hex() for peer, share in shares.items()}
            for shares in (self.seeds, self.keys)
        )
        return reading.write(
            {"name": self.name, "session": self.session, "seeds": seeds, "keys": private}
        )

    @classmethod
    def from_text(cls, text: object) -> Opening:
        """Read an opening; SumRefused if it is none, or has both shares of one silo."""
        value = reading.read_object(text, "an opening", _OPENING, length=_LONGEST)
        seeds = _by_name(value["seeds"], "shares of seeds", shamir.SHARE_BYTES)
        private = _by_name(value["keys"], "shares of keys", shamir.SHARE_BYTES)
        if set(seeds) & set(private):
            raise SumRefused("Expected one share of each silo in an opening, got both of one")
        name, session = reading.read_name(value["name"]), reading.read_session(value["session"])
        return cls(name, session, seeds, private)


def packets_to_text(packets: Mapping[str, bytes]) -> str:
    """Return the text of the packets for one silo, by sender, that `packets_from_text` reads."""
    return reading.write({"packets": {peer: packet.hex() for peer, packet in packets.items()}})


def packets_from_text(text: object) -> dict[str, bytes]:
    """Read the packets for one silo, by sender; SumRefused if they are none."""
    value = reading.read_object(text, "packets", ("packets",), length=_LONGEST)
    return _by_name(value["packets"], "packets", PACKET_BYTES)


def names_to_text(names: tuple[str, ...] | list[str]) -> str:
    """Return the text of a list of silos (those that answered) that `names_from_text` reads."""
    return reading.write({"names": list(names)})


def names_from_text(text: object) -> tuple[str, ...]:
    """Read a list of different silos; SumRefused if it is none."""
    value = reading.read_object(text, "a list of silos", ("names",), length=_LONGEST)
    return reading.read_names(value["names"])


def _by_name(value: object, what: str, size: int) -> dict[str, bytes]:
    read = reading.read_by_name(value, what)
    return {name: reading.read_hex(item, what, size) for name, item in read.items()}
