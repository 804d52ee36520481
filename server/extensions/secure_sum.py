"""Secure sums on the server (``privacy.noise_by = "sum"``): a roster for the run, a session for each round, the sum of a round.

Before the first round each silo says its key and the noise multiplier that its own ledger asks for. The roster, with the largest
of these, is in the run folder before any silo sees it, and a run that is resumed has the same. A round is a session: the
silos mask their integers, and what the server adds up is the sum over those that answered. Where ``secure.drop_outs`` > 0
each silo has dealt shares of its secrets before (with its last reply, or asked for where that is missing), and those that answered
open the sum in a second, small exchange. A round that is repeated is another session.

Guarantee: of the silos' releases the server learns the sum, which costs what their ledgers say against "sum-only"; all that
follows is post-processing. What a server with other code could learn is the silos' part (:mod:`fedllm.silo.extensions.secure_sum`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import ConfigRecord, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedllm import messages as names
from fedllm.budget.sums.terms import SumTerms
from fedllm.codec.base import Spec
from fedllm.codec.downlink import decode_params
from fedllm.run.folder import RunFolder
from fedllm.secure.errors import SumLost, SumRefused
from fedllm.secure.messages import Advance, names_to_text, packets_to_text
from fedllm.secure.roster import Roster
from fedllm.secure.sums import Sums
from fedllm.silo.extensions.secure_sum import sum_context
from fedllm.training.mechanism import make_mechanism
from fedllm.training.sum_share.mechanism import SUM, SumShare, ring_of
from privacy.secure_sum import ring
from privacy.secure_sum.ring import Ring
from server.aggregation import Contribution, MeanUpdate, UpdateRefused, check_update
from server.extensions.base import Asking, Extras, RoundExtension, Tensors
from server.extensions.codec import EncodedUpdates
from server.nodes.exchange import exchange
from server.replies import Item, Replies, ReplyRefused, RunStopped, sort_replies
from server.replies.sums import (
    LONGEST,
    Introduced,
    advance_of,
    read_advance,
    read_introduction,
    read_opening,
)
from server.replies.training import TrainingForm, TrainingReply
from server.replies.unusable import record_unusable
from server.robust.sum_law import sum_limit
from server.robust.update_law import FALSE_REFUSALS, UpdateLaw
from server.run_state import BudgetSpent

FILE = "secure.json"
"""Of the run folder: the roster, and the last session that was begun."""
_TENSORS = {32: torch.int32, 64: torch.int64}
T = TypeVar("T")


class SecureSums(RoundExtension):
    """Keeps the roster, and turns the masked integers of a round into their mean.

    Args:
        folder: of the run; it keeps the roster and the last session.
        codec: where the silos sum codes; else None.
    """

    def __init__(self, folder: RunFolder, codec: EncodedUpdates | None) -> None:
        self.folder = folder
        self.codec = codec
        self.session = 0
        self.sums: Sums | None = None
        self._roster: Roster | None = None
        self._advances: dict[str, Advance] = {}
        self._grid: Grid | None = None

    @property
    def roster(self) -> Roster:
        """The roster of the run, from :meth:`after_restore` on."""
        if self._roster is None:
            raise ValueError("Expected the roster of the run, got a call before it was made")
        return self._roster

    def _made(self, noise_multiplier: float) -> SumShare:
        """A silo's mechanism as the server knows it: what a sum depends on is public."""
        settings = self.run.settings
        made = make_mechanism(settings, sampling_rate=1.0, noise_multiplier=noise_multiplier)
        if not isinstance(made, SumShare):
            raise ValueError(f"Expected a mechanism whose releases can be summed, got {made}")
        return made

    @property
    def mechanism(self) -> SumShare:
        """The mechanism of a sum, at the round's clipping norm."""
        roster = self.roster
        made = self._made(roster.noise_multiplier)
        made = made.among(len(roster.names), roster.dimension - made.adaptive)
        return made.at_clip(self.run.clip if made.adaptive else None)

    # -- before the rounds -----------------------------------------------------------------------

    def after_restore(self, grid: Grid) -> None:
        """Hear the silos' keys; make the roster of a new run, or hold them against that of a run that began.

        Raises:
            RunStopped: a silo does not introduce itself, or too few are left.
            Stopped: the run was asked to stop.
        """
        saved = self.folder.read_json(FILE, None)
        found = self._introduced(grid, begun=saved is not None)
        if saved is None:
            self._roster = self._make(found)
        else:
            self._roster = Roster.from_text(saved["roster"])
            self.session = int(saved["session"])
            for name in sorted(found):
                known = name in self.roster.names and self.roster.member(name).key
                if found.get(name) and found[name].said.key != known:
                    self.run.left[name] = (
                        "its key is not that of the run's roster: its record of sums was lost"
                    )
        self.session = max([self.session, *(each.said.session for each in found.values())])
        pinned = sorted(name for name, each in found.items() if each.pinned)
        roster, adaptive = self.roster, self._made(1.0).adaptive
        numbers = roster.dimension - adaptive
        self.run.spending.terms = SumTerms(len(roster.names), numbers, roster.noise_multiplier)
        before = {} if saved is None else saved
        self._save({**before, "roster": self.roster.to_text(), "pinned": pinned})

    def _make(self, found: dict[str, Introduced]) -> Roster:
        """The roster of the silos that introduced themselves, with the largest noise that one of them asks for."""
        settings, run = self.run.settings, self.run
        found = self._heard(found)
        noise = max(each.noise_multiplier for each in found.values())
        numbers = sum(value.numel() for value in run.trainable.values())
        if self.codec is not None:
            numbers = self.codec.encoding.codec.code_dimension
        try:
            made = self._made(noise).among(len(found), numbers)
            return Roster.make(
                [each.said for each in found.values()],
                drop_outs=settings.secure.drop_outs,
                colluding=settings.secure.colluding,
                bits=settings.secure.bits,
                noise_multiplier=noise,
                dimension=made.entries,
            )
        except ValueError as error:
            raise RunStopped(str(error)) from None

    def _heard(self, found: dict[str, Introduced]) -> dict[str, Introduced]:
        """Leave out the silos that ask for so much noise that it would drown all (``server.max_noise_ratio``)."""
        asked = {name: each.noise_multiplier for name, each in found.items()}
        ratio, median = (
            self.run.settings.server.max_noise_ratio,
            statistics.median_high(asked.values()),
        )
        for name, noise in asked.items():
            if noise > ratio * median:
                self.run.left[name] = (
                    f"Expected noise at most server.max_noise_ratio={ratio:g} times the median silo's, got "
                    f"{noise / median:.3g} times (noise-multiplier {noise:g}): all silos of a sum have the largest"
                )
        return {name: each for name, each in found.items() if asked[name] <= ratio * median}

    def _introduced(self, grid: Grid, begun: bool) -> dict[str, Introduced]:
        """What the silos that take part say of themselves; in a run that began some may be missing for now."""
        run = self.run
        chosen = [name for name in sorted(run.nodes) if name not in run.left]
        tasks = run.tasks(
            names.ASK_INTRODUCTION, chosen, run.finished_rounds, run.arrays(), ConfigRecord()
        )
        given = run.settings.privacy.noise_multiplier or 1.0

        def read(name: str, content: RecordDict) -> tuple[str, Introduced]:
            return name, read_introduction(name, content, run.run_id, given)

        found = self._ask(grid, chosen, tasks, read, "the introduction to secure sums")
        missing = found.failed + found.refused
        if missing and not begun:
            raise RunStopped(
                f"Expected the keys of all silos before the first sum, {_why(missing)}"
            )
        if not found.accepted:
            raise RunStopped(f"No silo introduced itself; {_why(missing + found.left)}")
        return dict(found.accepted)

    def _ask(
        self,
        grid: Grid,
        chosen: Sequence[str],
        tasks: Sequence[Any],
        read: Callable[[str, RecordDict], T],
        what: str,
    ) -> Replies[T]:
        """The silos' replies to one request; who leaves is noted, and who fails is recorded."""
        run = self.run
        timeout = run.settings.server.timeout
        replies = exchange(grid, tasks, timeout=timeout, stop=run.stop)
        found = sort_replies(chosen, replies, read, timeout)
        record_unusable(run.emit, run.finished_rounds, what, found)
        run.left |= {item["silo"]: item["reason"] for item in found.left}
        return found

    def _save(self, content: dict[str, Any]) -> None:
        self.folder.write_json(FILE, {**content, "session": self.session})

    # -- tasks -----------------------------------------------------------------------------------

    def before_round(self, grid: Grid) -> None:
        """Begin a session: its number is on disk, and the advances of all silos that are there are known.

        Raises:
            BudgetSpent: so many silos left that no sum can be opened.
            RunStopped: so many are away.
            Stopped: the run was asked to stop.
        """
        run, roster = self.run, self.roster
        self._grid = grid
        staying = [name for name in roster.names if name in run.nodes and name not in run.left]
        if len(staying) < roster.threshold:
            raise self._stop()(
                f"{len(staying)} of the {len(roster.names)} silos of the secure sums can still take part, fewer than the "
                f"{roster.threshold} that a sum needs (secure.drop_outs={roster.drop_outs}); {_why(self._gone())}"
            )
        self.session += 1
        self._save(self.folder.read_json(FILE))
        if roster.drop_outs:
            self._complete(grid, staying)

    def _complete(self, grid: Grid, staying: Sequence[str]) -> None:
        """Ask those silos for an advance that sent none with their last reply."""
        run, session = self.run, self.session
        held = self._advances.items()
        self._advances = {n: a for n, a in held if n in staying and a.session == session}
        lacking = [name for name in staying if name not in self._advances]
        if not lacking:
            return
        fields = ConfigRecord({names.SESSION: session, names.ROSTER: self.roster.to_text()})
        tasks = run.tasks(names.ASK_ADVANCE, lacking, run.finished_rounds, None, fields)

        def read(name: str, content: RecordDict) -> Advance:
            return read_advance(name, content, session)

        found = self._ask(grid, lacking, tasks, read, "the shares for a secure sum")
        self._advances |= {advance.name: advance for advance in found.accepted}

    def prepare_tasks(self, asking: Asking) -> None:
        """Begin the sum of a round, at the parameters as the silos receive them.

        Raises:
            RunStopped: too few silos advanced, or one advanced what is no advance.
        """
        if asking.kind != MessageType.TRAIN or asking.arrays is None:
            return
        run = self.run
        sent = decode_params(asking.arrays.to_torch_state_dict(), run.settings.codec.downlink)
        context = sum_context(asking.server_round, sent, run.clip)
        try:
            self.sums = Sums(self.roster, self.session, context, self._advances.values())
        except (SumLost, SumRefused) as error:
            raise RunStopped(str(error)) from None

    def taking_part(self, silos: Sequence[str], server_round: int) -> list[str]:
        """Return those of the silos whose advance is there: what another one masked would be in no sum."""
        roster = self.roster
        known = self._advances if roster.drop_outs else roster.names
        return [name for name in silos if name in known]

    def task_extras(self, asking: Asking, silo: str) -> Extras:
        if asking.kind != MessageType.TRAIN or self.sums is None:
            return Extras()
        packets = packets_to_text(self.sums.packets_for(silo))
        return Extras(
            fields={
                names.SESSION: self.session,
                names.ROSTER: self.roster.to_text(),
                names.PACKETS: packets,
            }
        )

    # -- replies ---------------------------------------------------------------------------------

    def reply_form(self, form: TrainingForm) -> TrainingForm:
        roster = self.roster
        spec: Spec = {SUM: ((roster.dimension,), _TENSORS[roster.bits])}
        told = {**form.told, names.ADVANCE: LONGEST} if roster.drop_outs else form.told
        return replace(form, update=spec, noisy=(), told=told)

    def update_like(self, like: Tensors) -> Tensors:
        return {}

    def read(self, silo: str, reply: TrainingReply) -> TrainingReply:
        """The reply with its masked integers among its records: there is no update to look at.

        Raises:
            ReplyRefused: another noise multiplier than that of the roster, or no advance for the next session.
        """
        if reply.noise_multiplier != self.roster.noise_multiplier:
            raise ReplyRefused(
                f"Expected the noise-multiplier {self.roster.noise_multiplier!r} of the roster, got "
                f"{reply.noise_multiplier!r}"
            )
        if self.roster.drop_outs:  # good for the next session, whatever becomes of this reply
            text = reply.told[names.ADVANCE]
            self._advances[silo] = advance_of(silo, text, self.session + 1)
        return replace(reply, update={}, records={**reply.records, SUM: reply.update})

    def limit(self, law: UpdateLaw) -> None:
        return None

    def require(self, found: Replies[Contribution]) -> None:
        """Refuse to go on where too few masked integers are there to open their sum.

        Raises:
            BudgetSpent: those that are missing have left the run.
            RunStopped: others are missing.
        """
        roster = self.roster
        if len(found.accepted) >= roster.threshold:
            return
        missing = found.failed + found.refused + found.left + self._gone()
        raise self._stop(len(found.left))(
            f"The sum of session {self.session} is lost: {len(found.accepted)} of {len(roster.names)} silos answered, "
            f"{roster.threshold} are needed (secure.drop_outs={roster.drop_outs}); {_why(missing)}. Nothing else is lost: "
            "`fedllm resume` repeats the round in a session of its own"
        )

    def _gone(self) -> list[Item]:
        """The silos of the roster that have left the run, or are not there."""
        run, away = self.run, "its node is not there"
        gone = [name for name in self.roster.names if name in run.left or name not in run.nodes]
        return [{"silo": name, "reason": run.left.get(name, away)} for name in gone]

    def _stop(self, leaving: int = 0) -> type[RunStopped]:
        """The error for a sum that cannot be: the budget's end where too many have left for good."""
        left = leaving + sum(name in self.run.left for name in self.roster.names)
        return BudgetSpent if left > self.roster.drop_outs else RunStopped

    # -- the model -------------------------------------------------------------------------------

    def combine(
        self, server_round: int, accepted: Sequence[Contribution], like: Tensors
    ) -> MeanUpdate:
        """Return the mean of the silos that answered, from their sum alone.

        Raises:
            RunStopped: the sum cannot be opened, or is longer than one of honest silos.
            Stopped: the run was asked to stop.
        """
        sums = self.sums
        if sums is None:
            raise ValueError("Expected a sum that was begun with the round's tasks, got none")
        try:
            for contribution in accepted:
                sums.add(contribution.silo, ring_of(contribution.records[SUM][SUM]))
            total = sums.total(self._openings(sums))
        except (SumLost, SumRefused) as error:
            raise RunStopped(f"{error}; `fedllm resume` repeats the round") from None
        self.sums = None  # it is opened: nothing is added any more
        return self._mean(server_round, total, sums.answered())

    def _openings(self, sums: Sums) -> list[Any]:
        """The openings of the silos that answered; none where nobody may be missing."""
        if not self.roster.drop_outs or self._grid is None:
            return []
        run, answered, session = self.run, sums.answered(), self.session
        fields = ConfigRecord({names.SESSION: session, names.ANSWERED: names_to_text(answered)})
        tasks = run.tasks(names.ASK_OPENING, answered, run.finished_rounds + 1, None, fields)

        def read(name: str, content: RecordDict) -> Any:
            return read_opening(name, content, session)

        return self._ask(self._grid, answered, tasks, read, "the opening of a secure sum").accepted

    def _mean(self, server_round: int, total: Ring, answered: Sequence[str]) -> MeanUpdate:
        run, mechanism = self.run, self.mechanism
        self._check_length(mechanism, total, answered)
        params = run.tunable.part(run.model.params, server_round)[1]
        encoding = None if self.codec is None else self.codec.encoding
        found = mechanism.read(total, len(answered), params, encoding)
        try:
            check_update(found.update, params, run.settings.server.max_update_norm)
        except UpdateRefused as error:
            raise RunStopped(f"The mean of session {self.session}: {error}") from None
        std = mechanism.mean_std(params, len(answered))
        shares = {} if found.below is None else {names.BELOW: [found.below]}
        return MeanUpdate(found.update, std, shares)

    def _check_length(self, mechanism: SumShare, total: Ring, answered: Sequence[str]) -> None:
        """Refuse a sum that is longer than those of honest silos are (:mod:`server.robust.sum_law`).

        Raises:
            RunStopped: it is.
        """
        run, plan = self.run, mechanism.shares
        parts = [(run.settings.for_silo(n).client, run.sizes.get(n)) for n in answered]
        limit = sum_limit(mechanism, parts, run.settings.server.rounds)
        steps = ring.decode(total, plan.bits).astype(np.float64)
        length = float(np.linalg.norm(steps)) * 2.0**plan.exponent
        if limit is not None and length > limit:
            raise RunStopped(
                f"Expected a sum of norm at most {limit:.6g} clipping norms, which {len(answered)} honest silos exceed "
                f"with probability below {FALSE_REFUSALS:g} in all rounds together, got {length:.6g}: one of "
                f"{', '.join(answered)} masked what no honest silo does; under masks nobody sees which"
            )

    def after_move(
        self,
        params: dict[str, Tensor],
        mean: MeanUpdate,
        counted: Sequence[Contribution],
        server_round: int,
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Tell the number of silos in the round's sum."""
        return params, {
            "in_sum": float(len(counted)),
            "silos_of_sum": float(len(self.roster.names)),
        }


def _why(missing: Sequence[Item]) -> str:
    """Return who is missing, and why, in words."""
    told = "; ".join(f"{item['silo']}: {item['reason']}" for item in missing)
    return f"missing: {told or 'nobody that was asked'}"
