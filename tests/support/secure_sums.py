"""Silos and a server of secure sums, for tests: honest sessions with drop-outs, and what a malicious server computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fedllm.secure import keys, masks, session, shamir
from fedllm.secure.errors import SumRefused
from fedllm.secure.member import Member, Sign, Verify
from fedllm.secure.messages import Advance, Opening
from fedllm.secure.roster import Roster
from fedllm.secure.sums import Sums

STAGES = ("advance", "mask", "lost", "late", "open")
"""Where a silo drops out: it sends no advance; is not there to mask; its masked vector is lost, and it is gone, or is there to open;
it answers, and does not open."""


class Silos:
    """n silos that joined one roster, each with a folder of its own."""

    def __init__(
        self,
        folder: Path,
        n: int,
        t: int = 0,
        m: int = 0,
        *,
        bits: int = 64,
        dimension: int = 5,
        signs: Mapping[str, Sign] | None = None,
        verify: Verify | None = None,
    ) -> None:
        self.folder, self.signs, self.verify = folder, signs or {}, verify
        self.names = [f"silo-{place:03d}" for place in range(n)]
        self.members = {name: self.again(name) for name in self.names}
        self.roster = Roster.make(
            [member.introduce() for member in self.members.values()],
            drop_outs=t, colluding=m, bits=bits, noise_multiplier=1.25, dimension=dimension,
        )  # fmt: skip
        for member in self.members.values():
            member.join(self.roster)

    def again(self, name: str) -> Member:
        """The silo after a restart."""
        return Member(name, "run-1", self.folder / name, self.signs.get(name), self.verify)

    def vectors(self, seed: int = 1) -> dict[str, np.ndarray]:
        rng, bits = np.random.default_rng(seed), self.roster.bits
        size = self.roster.dimension
        return {name: rng.integers(0, 2**bits, size, f"uint{bits}") for name in self.names}

    def advances(self, number: int, names: Iterable[str] | None = None) -> list[Advance]:
        if not self.roster.drop_outs:
            return []
        return [self.members[name].advance(number) for name in names or self.names]

    def run(
        self,
        number: int,
        vectors: Mapping[str, np.ndarray],
        gone: Mapping[str, str] | None = None,
        context: str = "round",
    ) -> tuple[np.ndarray, list[str]]:
        """One honest session; `gone` says at which of STAGES a silo drops out. Returns the sum and who is in it."""
        gone = gone or {}
        there = [name for name in self.names if gone.get(name) != "advance"]
        sums = Sums(self.roster, number, context, self.advances(number, there))
        for name in there:
            if gone.get(name) == "mask":
                continue
            packets = sums.packets_for(name)
            masked = self.members[name].mask(number, packets, vectors[name], context)
            if gone.get(name) not in ("lost", "late"):
                sums.add(name, masked)
        answered = sums.answered()
        openers = [name for name in there if gone.get(name) in (None, "late")]
        openings: list[Opening] = []
        if self.roster.drop_outs and len(answered) >= self.roster.threshold:
            openings = [self.members[name].open(number, answered) for name in openers]
        return sums.total(openings), answered


def plain_sum(vectors: Mapping[str, np.ndarray], names: Iterable[str]) -> np.ndarray:
    """The sum of some silos' vectors, modulo the ring's size, by whole numbers of any size."""
    parts = [vectors[name] for name in names]
    size = 2 ** (8 * parts[0].dtype.itemsize)
    whole = [sum(int(part[i]) for part in parts) % size for i in range(parts[0].size)]
    return np.array(whole, parts[0].dtype)


class Knowing:
    """What a malicious server of one session computes from all that silos sent it, without following the protocol."""

    def __init__(
        self, silos: Silos, number: int, advances: Sequence[Advance], context: str = "round"
    ):
        self.silos, self.roster, self.number, self.context = silos, silos.roster, number, context
        self.advances = {advance.name: advance for advance in advances}
        self.told: dict[str, tuple[str, ...]] = {}
        self.masked: dict[str, np.ndarray] = {}
        self.shares: dict[str, dict[str, dict[int, bytes]]] = {
            kind: {name: {} for name in silos.names} for kind in ("key", "seed")
        }

    def mask(self, name: str, told: Iterable[str], vector: np.ndarray) -> None:
        """Tell a silo that these silos advanced, and take its masked vector."""
        packets = {peer: self.advances[peer].packets[name] for peer in told if peer != name}
        self.told[name] = tuple(sorted({*told, name}))
        self.masked[name] = self.silos.members[name].mask(
            self.number, packets, vector, self.context
        )

    def open(self, name: str, answered: Iterable[str]) -> None:
        """Tell a silo that these silos answered, and take its shares."""
        self.take(self.silos.members[name].open(self.number, sorted(answered)))

    def take(self, opening: Opening) -> None:
        point = self.roster.point(opening.name)
        for kind, part in (("seed", opening.seeds), ("key", opening.keys)):
            for dealer, share in part.items():
                self.shares[kind][dealer][point] = share

    def collude(self, name: str) -> None:
        """Take all shares that a colluding silo was dealt, of every silo."""
        for dealer in self.silos.names:
            own = self.secrets(dealer)
            place = self.roster.point(name)
            self.shares["key"][dealer][place] = own.key_shares[place - 1]
            self.shares["seed"][dealer][place] = own.seed_shares[place - 1]

    def secrets(self, name: str) -> session.Secrets:
        """A silo's true secrets, from its own record: for what colluders know, and to see what the server did not learn."""
        master = self.silos.members[name]._record.read().master
        return session.secrets_of(master, self.roster, self.number, name)

    def secret(self, kind: str, dealer: str) -> bytes | None:
        """A secret of a silo, if enough shares of it are known; checked by the public key or hash of the advance."""
        shares, k = self.shares[kind][dealer], self.roster.threshold
        if len(shares) < k:
            return None
        points = sorted(shares)[:k]
        found = shamir.restore({p: shares[p] for p in points}, shamir.weights_at_zero(points))
        advance = self.advances[dealer]
        if kind == "key":
            assert keys.public_key(found) == advance.key
        else:
            mark = session.seed_mark(self.roster, self.number, dealer, found)
            assert mark == advance.seed_mark
        return found

    def unmasked(self, told: tuple[str, ...], among: Iterable[str]) -> np.ndarray:
        """The sum of masked vectors of silos told the same, less every mask the server can compute."""
        among = list(among)
        agreed_on = session.agreement(self.roster, self.number, self.context, told)
        total = masks_zero(self.roster)
        for name in among:
            total += self.masked[name]
            seed = self.secret("seed", name)
            if seed is not None:
                masks.add_mask(total, session.self_seed(seed, agreed_on, name), -1)
            for peer in set(told) - set(among):
                self._pair_away(total, name, peer, agreed_on)
        return total

    def _pair_away(self, total: np.ndarray, name: str, peer: str, agreed_on: bytes) -> None:
        mine, theirs = self.advances[name].key, self.advances[peer].key
        for private, public in (
            (self.secret("key", peer), mine),
            (self.secret("key", name), theirs),
        ):
            if private is not None:
                agreed = keys.agree(private, public)
                seed = session.pair_seed(agreed, agreed_on, (name, mine), (peer, theirs))
                masks.add_mask(total, seed, -session.sign_of(name, peer))
                return


def masks_zero(roster: Roster) -> np.ndarray:
    return np.zeros(roster.dimension, f"uint{roster.bits}")


def refused(call: object, *args: object) -> str:
    """The message of a refusal; fails if there is none."""
    try:
        call(*args)  # type: ignore[operator]
    except SumRefused as error:
        return str(error)
    raise AssertionError("Expected a refusal, got an answer")
