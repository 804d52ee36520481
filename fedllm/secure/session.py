"""Derive what one session needs on both sides: a silo's secrets, its marks, and the seeds of masks."""

from __future__ import annotations

from dataclasses import dataclass

from fedllm.secure import keys, shamir
from fedllm.secure.messages import MARK_BYTES
from fedllm.secure.roster import Roster


@dataclass(frozen=True)
class Secrets:
    """A silo's secrets of one session.

    Attributes:
        key: X25519 private key of the session, 32 bytes.
        seed: of the self-mask, 32 bytes.
        key_shares, seed_shares: of both, by the order of the roster.
    """

    key: bytes
    seed: bytes
    key_shares: list[bytes]
    seed_shares: list[bytes]


def long_term_key(master: bytes, run: str, name: str) -> bytes:
    """Return a silo's X25519 private key of a run."""
    return keys.derive(master, "long-term key", run, name)


def secrets_of(master: bytes, roster: Roster, session: int, name: str) -> Secrets:
    """Return a silo's secrets of a session, the same at every call: a repeated request gets the same shares."""
    where = (roster.digest, session, name)
    key, seed = (keys.derive(master, what, *where) for what in ("session key", "self-mask"))
    n, k = len(roster.names), roster.threshold
    return Secrets(
        key,
        seed,
        shamir.split(key, n, k, keys.derive(master, "shares of the session key", *where)),
        shamir.split(seed, n, k, keys.derive(master, "shares of the self-mask", *where)),
    )


def seed_mark(roster: Roster, session: int, dealer: str, seed: bytes) -> bytes:
    """Return the hash (32 bytes) by which the server knows a self-mask's seed."""
    return keys.digest("seed", roster.digest, session, dealer, seed)


def share_mark(
    roster: Roster, session: int, dealer: str, holder: str, kind: str, share: bytes
) -> bytes:
    """Return the hash (MARK_BYTES) of a dealer's share of one kind ("key" or "seed") that a holder has."""
    where = (roster.digest, session, dealer, holder, kind)
    return keys.digest("share", *where, share)[:MARK_BYTES]


def agreement(roster: Roster, session: int, context: str, told: tuple[str, ...]) -> bytes:
    """Return the hash of all that silos must agree on, so that their masks cancel.

    Args:
        context: of the session: what the sum is of.
        told: silos that advanced, sorted; all of them where nobody may drop out.
    """
    return keys.digest("agreement", roster.digest, session, context, *told)


def pair_seed(
    agreed: bytes, agreement: bytes, one: tuple[str, bytes], other: tuple[str, bytes]
) -> bytes:
    """Return the seed of the mask of a pair of silos.

    Args:
        agreed: X25519 secret of the pair.
        agreement: :func:`agreement`.
        one, other: names and public keys, in whatever order.
    """
    first, second = sorted((one, other))
    return keys.derive(agreed, "pair mask", agreement, *first, *second)


def sign_of(name: str, peer: str) -> int:
    """Return +1 or -1: the sign of a pair's mask in the vector of `name`."""
    return 1 if name < peer else -1


def self_seed(seed: bytes, agreement: bytes, name: str) -> bytes:
    """Return the seed of a silo's self-mask's expansion."""
    return keys.derive(seed, "self mask", agreement, name)
