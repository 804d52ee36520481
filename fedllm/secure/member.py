"""Take a silo's part in the sums of one run: introduce, join, advance, mask, open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fedllm.files.bounded_json import shortened
from fedllm.secure import keys, masks, packets, reading, session
from fedllm.secure.errors import SumRefused
from fedllm.secure.messages import Advance, Opening
from fedllm.secure.record import Record, State
from fedllm.secure.roster import Introduction, Roster
from privacy.secure_sum.ring import Ring

Sign = Callable[[str], str]
"""Sign a text with the silo's node key; return the signature."""
Verify = Callable[[str, str, str], bool]
"""Return True if a text has the signature of a silo's pinned key: (silo's name, text, signature)."""


class Member:
    """One silo's side of the sums of one run.

    All state is in the durable record: a new object on the same folder continues where another one ended. Every method either does its
    whole work, with the record on the disk before anything is returned, or raises SumRefused and changes nothing.
    """

    def __init__(
        self,
        name: str,
        run: str,
        folder: Path,
        sign: Sign | None = None,
        verify: Verify | None = None,
    ) -> None:
        """Keep the arguments; nothing is read or written yet.

        Args:
            name: the silo's.
            run: the run's id; each run has its own key and record.
            folder: of the record, made with mode 0700 if missing.
            sign: signs introductions with the node's key; None: they carry no signature.
            verify: checks the signatures of peers by pinned keys; None: the server is trusted to relay the peers' own keys.
        """
        self.name = reading.read_name(name)
        self.run = run
        self._record = Record(folder, run, name)
        self._sign = sign
        self._verify = verify

    def introduce(self) -> Introduction:
        """Return the silo's public key of the run, signed, and the last session that it masked."""
        state = self._record.read()
        key = keys.public_key(session.long_term_key(state.master, self.run, self.name))
        plain = Introduction(self.run, self.name, key, state.masked)
        if self._sign is None:
            return plain
        return Introduction(
            self.run, self.name, key, state.masked, self._sign(plain.signed_text)
        )  # fmt: skip

    @property
    def roster(self) -> Roster | None:
        """The roster that the silo joined, also before a restart; None before it did."""
        state = self._record.read()
        return None if state.roster is None else Roster.from_text(state.roster)

    def join(self, roster: Roster) -> None:
        """Fix the roster of the run, durably; joining the same one again changes nothing.

        The caller checks what is the silo's to say about the plan (t, m, z, d) before.

        Raises:
            SumRefused: it is of another run, lacks this silo or has another key of it, a peer's signature is not of its pinned key, or the
                silo joined another roster of this run.
        """
        if roster.run != self.run:
            raise SumRefused(
                f"Expected a roster of the run {self.run!r}, got {shortened(roster.run)}"
            )
        with self._record.change() as change:
            state = change.state
            own = keys.public_key(session.long_term_key(state.master, self.run, self.name))
            if roster.member(self.name).key != own:
                raise SumRefused(
                    f"Expected the key of silo {self.name!r} in the roster, got another: was its record lost?"
                )
            for member in roster.members if self._verify is not None else ():
                assert self._verify is not None
                if member.name != self.name and not self._verify(
                    member.name, member.signed_text, member.signature
                ):
                    raise SumRefused(
                        f"Expected the key of silo {member.name!r} signed by the key pinned for it, got another signature"
                    )
            if state.roster is not None:
                if Roster.from_text(state.roster).digest != roster.digest:
                    raise SumRefused(
                        f"Expected the roster that silo {self.name!r} joined for the run {self.run!r}, got another"
                    )
                return
            change.keep(state.joined(roster.to_text()))

    def advance(self, session_number: int) -> Advance:
        """Return the silo's secrets of a session, shared among all and sealed for each peer; the same ones if asked again.

        Raises:
            SumRefused: nobody may drop out (t = 0), the silo did not join, or masked this session or a later one already.
        """
        number = reading.read_session(session_number)
        state = self._record.read()
        roster = self._joined(state)
        if not roster.drop_outs:
            raise SumRefused("Expected secure.drop_outs > 0 for an advance, got drop_outs=0")
        state.after_mask(number, {})
        own = session.secrets_of(state.master, roster, number, self.name)
        public = keys.public_key(own.key)
        long_term = session.long_term_key(state.master, self.run, self.name)
        sealed, marks = {}, {}
        for member, key_share, seed_share in zip(
            roster.members, own.key_shares, own.seed_shares, strict=True
        ):
            peer = member.name
            marks[peer] = (
                session.share_mark(roster, number, self.name, peer, "key", key_share),
                session.share_mark(roster, number, self.name, peer, "seed", seed_share),
            )
            if peer != self.name:
                text = packets.packed(public, key_share, seed_share)
                agreed = keys.agree(long_term, member.key)
                sealed[peer] = packets.seal(agreed, roster.digest, number, self.name, peer, text)
        mark = session.seed_mark(roster, number, self.name, own.seed)
        return Advance(self.name, number, public, mark, sealed, marks)

    def mask(
        self, session_number: int, packets_by_peer: Mapping[str, bytes], vector: Ring, context: str
    ) -> Ring:
        """Return the vector under the session's masks; the record then says that the session is masked.

        Args:
            session_number: above the last one.
            packets_by_peer: the packets that peers sealed for this silo; empty where nobody may drop out.
            vector: [d] of the roster's ring, the silo's share of the noise in it; it is not changed.
            context: what the sum is of (round, model, settings), the same at all silos, else nothing cancels.

        Raises:
            SumRefused: the session is not above the last, a packet is not its sender's for this session, fewer than k = n - t silos
                advanced, or the vector has another shape or type than the roster says.
        """
        number = reading.read_session(session_number)
        given = dict(reading.read_by_name(packets_by_peer, "packets"))
        with self._record.change() as change:
            roster = self._joined(change.state)
            check_vector(vector, roster)
            after = change.state.after_mask(number, {})
            masked, shares = self._masked(after, roster, number, given, vector, context)
            change.keep(change.state.after_mask(number, shares))
        return masked

    def require_ready(self, session_number: int, packets_by_peer: Mapping[str, bytes]) -> None:
        """Check all that `mask` checks but the vector, and change nothing: for use before a vector is made.

        Raises:
            SumRefused: as :meth:`mask`.
        """
        number = reading.read_session(session_number)
        given = dict(reading.read_by_name(packets_by_peer, "packets"))
        state = self._record.read()
        roster = self._joined(state)
        state.after_mask(number, {})
        self._masked(state, roster, number, given, np.zeros(0, dtype=f"uint{roster.bits}"), "")

    def open(self, session_number: int, answered: Sequence[str]) -> Opening:
        """Return this silo's shares of the seeds of silos that answered, and of the session's keys of those that did not.

        The record then says that the session is opened, and forgets the shares.

        Args:
            session_number: the last session that this silo masked.
            answered: names of the silos whose masked vectors the server holds.

        Raises:
            SumRefused: the session is another or was opened before, fewer than k = n - t silos answered, or one among them had not
                advanced.
        """
        number = reading.read_session(session_number)
        names = reading.read_names(answered)
        with self._record.change() as change:
            state = change.state
            roster = self._joined(state)
            if not roster.drop_outs:
                raise SumRefused("Expected secure.drop_outs > 0 for an opening, got drop_outs=0")
            after = state.after_open(number)
            if len(names) < roster.threshold:
                raise SumRefused(
                    f"Expected at least {roster.threshold} silos that answered, got {len(names)}"
                )
            strangers = set(names) - set(state.shares)
            if strangers:
                raise SumRefused(
                    f"Expected silos that advanced, got {shortened(sorted(strangers))} among those that answered"
                )
            change.keep(after)
        seeds = {peer: pair[1] for peer, pair in state.shares.items() if peer in names}
        private = {peer: pair[0] for peer, pair in state.shares.items() if peer not in names}
        return Opening(self.name, number, seeds, private)

    def _joined(self, state: State) -> Roster:
        if state.roster is None:
            raise SumRefused(
                f"Expected that silo {self.name!r} joined a roster of the run {self.run!r} before"
            )
        return Roster.from_text(state.roster)

    def _masked(
        self,
        state: State,
        roster: Roster,
        number: int,
        given: Mapping[str, object],
        vector: Ring,
        context: str,
    ) -> tuple[Ring, dict[str, tuple[bytes, bytes]]]:
        """Return the vector under the session's masks, and the shares of the peers' secrets that came for it."""
        long_term = session.long_term_key(state.master, self.run, self.name)
        if roster.drop_outs:
            return self._double(roster, number, state.master, long_term, given, vector, context)
        if given:
            raise SumRefused("Expected no packets where secure.drop_outs = 0, got some")
        return self._single(roster, number, long_term, vector, context), {}

    def _single(
        self, roster: Roster, number: int, long_term: bytes, vector: Ring, context: str
    ) -> Ring:
        """Mask for a sum of all silos: pairwise masks under the long-term keys."""
        agreed_on = session.agreement(roster, number, context, roster.names)
        own, masked = roster.member(self.name), vector.copy()
        for peer in roster.members:
            if peer.name != self.name:
                agreed = keys.agree(long_term, peer.key)
                seed = session.pair_seed(
                    agreed, agreed_on, (own.name, own.key), (peer.name, peer.key)
                )
                masks.add_mask(masked, seed, session.sign_of(self.name, peer.name))
        return masked

    def _double(
        self,
        roster: Roster,
        number: int,
        master: bytes,
        long_term: bytes,
        given: Mapping[str, object],
        vector: Ring,
        context: str,
    ) -> tuple[Ring, dict[str, tuple[bytes, bytes]]]:
        """Mask for a sum that survives drop-outs: pairwise masks under the session's keys, and a self-mask."""
        if self.name in given or len(given) + 1 < roster.threshold:
            raise SumRefused(
                f"Expected packets of at least {roster.threshold - 1} peers, got those of {shortened(sorted(given))}"
            )
        own = session.secrets_of(master, roster, number, self.name)
        place = roster.point(self.name) - 1
        shares = {self.name: (own.key_shares[place], own.seed_shares[place])}
        publics = {}
        for peer, packet in given.items():
            agreed = keys.agree(long_term, roster.member(peer).key)
            if not isinstance(packet, bytes):
                raise SumRefused(f"Expected bytes of silo {peer!r}, got {shortened(packet)}")
            text = packets.unseal(agreed, roster.digest, number, peer, self.name, packet)
            publics[peer], key_share, seed_share = packets.unpacked(text)
            shares[peer] = (key_share, seed_share)
        agreed_on = session.agreement(roster, number, context, tuple(sorted(shares)))
        public, masked = keys.public_key(own.key), vector.copy()
        for peer, key in publics.items():
            agreed = keys.agree(own.key, key)
            seed = session.pair_seed(agreed, agreed_on, (self.name, public), (peer, key))
            masks.add_mask(masked, seed, session.sign_of(self.name, peer))
        masks.add_mask(masked, session.self_seed(own.seed, agreed_on, self.name))
        return masked, shares


def check_vector(vector: Ring, roster: Roster) -> None:
    """Refuse a vector of another type or length than the roster says, with SumRefused."""
    wanted = np.dtype(f"uint{roster.bits}")
    if not isinstance(vector, np.ndarray) or vector.dtype != wanted:
        raise SumRefused(f"Expected a vector of {wanted}, got {getattr(vector, 'dtype', None)}")
    if vector.shape != (roster.dimension,):
        raise SumRefused(f"Expected {roster.dimension} entries, got the shape {vector.shape}")
