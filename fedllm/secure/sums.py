"""Recover the sum of a session's masked vectors at the server, whichever silos dropped out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedllm.files.bounded_json import shortened
from fedllm.secure import keys, masks, session, shamir
from fedllm.secure.errors import SumLost, SumRefused
from fedllm.secure.member import check_vector
from fedllm.secure.messages import Advance, Opening
from fedllm.secure.roster import Roster
from privacy.secure_sum.ring import Ring


class Sums:
    """The server's side of one session.

    Wrong shares are noticed by the hashes that their dealer sent with its advance, and left out; a dealer whose shares and hashes do not
    restore its secret is named. Not noticed: a silo that masks another vector than it should, or tells two peers two session keys. It
    could as well lie about its own data; the sum is then wrong, and reveals nothing more.
    """

    def __init__(
        self, roster: Roster, session_number: int, context: str, advances: Iterable[Advance] = ()
    ) -> None:
        """Begin a session.

        Args:
            session_number: above those of all silos.
            context: as the silos get it.
            advances: for this session, of the silos that are there; none where nobody may drop out.

        Raises:
            SumRefused: an advance is of another silo or session, is there twice, or lacks a peer.
            SumLost: fewer than k = n - t silos advanced.
        """
        self.roster = roster
        self.session = session_number
        self.context = context
        self._advances: dict[str, Advance] = {}
        for advance in advances:
            self._take(advance)
        self._told = roster.names
        if roster.drop_outs:
            self._told = tuple(sorted(self._advances))
            self._enough(len(self._told), "advanced", self._told)
        self._answered: list[str] = []
        self._total: Ring | None = None

    @property
    def expected(self) -> tuple[str, ...]:
        """The silos that may send a masked vector: those that advanced, or all where nobody may drop out."""
        return self._told

    def packets_for(self, name: str) -> dict[str, bytes]:
        """Return the packets that peers sealed for a silo, by peer; empty where nobody may drop out."""
        self._expect(name)
        return {
            peer: advance.packets[name] for peer, advance in self._advances.items() if peer != name
        }

    def add(self, name: str, masked: Ring) -> None:
        """Add a silo's masked vector; SumRefused if it is of another shape or type, there already, or not expected."""
        self._expect(name)
        check_vector(masked, self.roster)
        if name in self._answered:
            raise SumRefused(f"Expected one masked vector of silo {name!r}, got a second one")
        self._answered.append(name)
        if self._total is None:
            self._total = masked.copy()
        else:
            self._total += masked

    def answered(self) -> list[str]:
        """Return the names, sorted, of the silos that sent a masked vector: those that openings are asked for."""
        return sorted(self._answered)

    def total(self, openings: Iterable[Opening] = ()) -> Ring:
        """Return the sum of the vectors of the silos that answered, modulo the ring's size.

        Args:
            openings: of silos that masked, for :meth:`answered`; none where nobody may drop out.

        Raises:
            SumRefused: an opening is of another silo or session, is there twice, or is of another list of silos.
            SumLost: fewer than k = n - t silos answered or opened, or a silo's shares do not restore its secrets.
        """
        self._enough(len(self._answered), "answered", self._answered)
        assert self._total is not None
        total = self._total.copy()
        if not self.roster.drop_outs:
            return total
        shares = self._checked(openings)
        agreed_on = session.agreement(self.roster, self.session, self.context, self._told)
        weights: dict[tuple[int, ...], dict[int, int]] = {}
        for dealer in self._told:
            secret = self._restore(dealer, shares[dealer], weights)
            if dealer in self._answered:
                masks.add_mask(total, session.self_seed(secret, agreed_on, dealer), -1)
            else:
                self._take_pairs_away(total, dealer, secret, agreed_on)
        return total

    def _take(self, advance: Advance) -> None:
        roster, peers = self.roster, set(self.roster.names)
        if not roster.drop_outs:
            raise SumRefused("Expected no advance where secure.drop_outs = 0, got one")
        roster.member(advance.name)
        if advance.session != self.session or advance.name in self._advances:
            raise SumRefused(
                f"Expected one advance of silo {advance.name!r} for session {self.session}, got one for {advance.session}"
            )
        if set(advance.marks) != peers or set(advance.packets) != peers - {advance.name}:
            raise SumRefused(
                f"Expected shares of silo {advance.name!r} for each silo of the roster"
            )
        self._advances[advance.name] = advance

    def _expect(self, name: str) -> None:
        if name not in self._told:
            raise SumRefused(
                f"Expected a silo that advanced in this session, got {shortened(name)}"
            )

    def _enough(self, number: int, did: str, who: Iterable[str]) -> None:
        if number < self.roster.threshold:
            missing = sorted(set(self.roster.names) - set(who))
            raise SumLost(
                f"Expected at least {self.roster.threshold} of {len(self.roster.names)} silos that {did} in session "
                f"{self.session} (secure.drop_outs={self.roster.drop_outs}), got {number}; missing: {shortened(missing)}"
            )

    def _checked(self, openings: Iterable[Opening]) -> dict[str, dict[int, bytes]]:
        """Return the right shares by dealer and holder's point; a share with another hash is left out."""
        roster, found = self.roster, dict.fromkeys(self._told)
        shares: dict[str, dict[int, bytes]] = {dealer: {} for dealer in found}
        seen: list[str] = []
        for opening in openings:
            holder = opening.name
            self._expect(holder)
            if opening.session != self.session or holder in seen:
                raise SumRefused(
                    f"Expected one opening of silo {holder!r} of session {self.session}, got one of {opening.session}"
                )
            seen.append(holder)
            gone = set(self._told) - set(self._answered)
            if set(opening.seeds) != set(self._answered) or set(opening.keys) != gone:
                raise SumRefused(
                    f"Expected the shares of silo {holder!r} for the silos that answered, got others"
                )
            for kind, part in (("key", opening.keys), ("seed", opening.seeds)):
                for dealer, share in part.items():
                    mark = self._advances[dealer].marks[holder][kind == "seed"]
                    got = session.share_mark(roster, self.session, dealer, holder, kind, share)
                    if got == mark:
                        shares[dealer][roster.point(holder)] = share
        self._enough(len(seen), "opened", seen)
        return shares

    def _restore(
        self,
        dealer: str,
        shares: Mapping[int, bytes],
        weights: dict[tuple[int, ...], dict[int, int]],
    ) -> bytes:
        """Return the self-mask's seed of a silo that answered, or the session's key of one that did not."""
        k = self.roster.threshold
        points = tuple(sorted(shares)[:k])
        if len(points) < k:
            raise SumLost(
                f"Expected at least {k} right shares of silo {dealer!r} in session {self.session}, got {len(points)}: "
                "silos opened other shares than it dealt, or it dealt other shares than it said"
            )
        if points not in weights:
            weights[points] = shamir.weights_at_zero(points)
        advance = self._advances[dealer]
        try:
            secret = shamir.restore({p: shares[p] for p in points}, weights[points])
        except SumRefused as error:
            raise SumLost(f"Silo {dealer!r} in session {self.session}: {error}") from None
        if dealer in self._answered:
            right = (
                session.seed_mark(self.roster, self.session, dealer, secret) == advance.seed_mark
            )
        else:
            right = keys.public_key(secret) == advance.key
        if not right:
            raise SumLost(
                f"Expected that the shares of silo {dealer!r} in session {self.session} restore its secret, got another: "
                "it dealt wrong shares"
            )
        return secret

    def _take_pairs_away(self, total: Ring, gone: str, private: bytes, agreed_on: bytes) -> None:
        """Subtract the masks that silos that answered share with one that did not."""
        own = (gone, self._advances[gone].key)
        for name in self._answered:
            key = self._advances[name].key
            agreed = keys.agree(private, key)
            seed = session.pair_seed(agreed, agreed_on, own, (name, key))
            masks.add_mask(total, seed, -session.sign_of(name, gone))
