"""Secure sums at a silo (``privacy.noise_by = "sum"``): the round's integers leave under masks that cancel in the sum.

The server learns the sum over the silos that answered, and of each silo's integers nothing else: the protocol is
:mod:`fedllm.secure`, what is released :mod:`fedllm.training.sum_share`. Before the first round the silo says its key and
the noise multiplier that its own ledger asks for; the roster that comes back fixes keys, plan and the common multiplier for
the whole run, in the silo's durable record beside its ledger.

Guarantee: what leaves is one masked vector a session, after its row; where ``secure.drop_outs`` > 0 also, once a session,
shares of the secrets that open the sum of those that answered. Requests for keys and shares read no data and release
nothing of them. A session is masked once and opened once, whatever a server asks for and whichever process answers.

A task's keys and packets are not in the fingerprint of its release: no integer depends on them
(:class:`fedllm.budget.release_id.Fingerprinted`). Session and plan are: a repeated round has a session of its own, and
with it noise of its own and a row of its own, also with seeded randomness. The same shares in two sums over different silos
would show a silo's integers under its own share alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from fedllm import messages as names
from fedllm.budget.account import SiloAccount
from fedllm.budget.release_id import Fingerprinted, params_digest
from fedllm.budget.sums.terms import SumTerms
from fedllm.secure.errors import SumRefused
from fedllm.secure.member import Member
from fedllm.secure.messages import names_from_text, packets_from_text
from fedllm.secure.reading import read_session
from fedllm.secure.roster import Roster
from fedllm.settings.privacy import SecureSettings
from fedllm.silo.extensions.base import Answer, Exchange, Respond, SiloExtension, SiloRun
from fedllm.silo.task import SiloTask
from fedllm.silo.task_form import Read, TaskForm
from fedllm.task_errors import TaskRefused
from fedllm.training.steps import LocalResult
from fedllm.training.sum_share.mechanism import SUM, ring_of, tensor_of

FOLDER = "sums"
"""Folder of the silo's durable records, beside its ledger."""


@dataclass(frozen=True)
class SentRoster(Fingerprinted):
    """A roster as it came with a task: of its inputs the plan counts, keys and signatures do not."""

    roster: Roster

    def fingerprint(self) -> str:
        """Return the digest of names and plan."""
        roster = self.roster
        plan = (roster.drop_outs, roster.colluding, roster.bits, roster.dimension)
        return _Plan(roster.names, plan, roster.noise_multiplier).fingerprint()


@dataclass(frozen=True)
class _Plan(Fingerprinted):
    names: tuple[str, ...]
    numbers: tuple[int, ...]
    noise_multiplier: float


@dataclass(frozen=True)
class SentPackets(Fingerprinted):
    """The peers' packets as they came with a task: no release depends on them."""

    packets: Mapping[str, bytes]

    def fingerprint(self) -> str:
        """Return the same text for all."""
        return type(self).__name__


@contextmanager
def _refusing() -> Iterator[None]:
    """Pass on a refusal of the protocol, whose message is a function of public values, as the task's."""
    try:
        yield
    except SumRefused as error:
        raise TaskRefused(str(error)) from error


def _reader(read: Any) -> Read:
    """Return the reader of a field by a function of its value."""

    def value_of(name: str, value: Any) -> Any:
        with _refusing():
            return read(value)

    return value_of


_SESSION: dict[str, Read] = {names.SESSION: _reader(read_session)}
_ROSTER: dict[str, Read] = {names.ROSTER: _reader(lambda text: SentRoster(Roster.from_text(text)))}
_PACKETS: dict[str, Read] = {
    names.PACKETS: _reader(lambda text: SentPackets(packets_from_text(text)))
}
_ANSWERED: dict[str, Read] = {names.ANSWERED: _reader(names_from_text)}


def sum_context(server_round: int, params: Mapping[str, Any], clip: float) -> str:
    """Return what a sum is of, as its masks are bound to it: round, parameters as they travelled, clipping norm.

    Silos that were told different ones get masks in which nothing cancels.
    """
    return f"{server_round}/{params_digest(params)}/{clip.hex()}"


class SecureSum(SiloExtension):
    """Introduces the silo, joins the roster, masks what is released, and opens its share of a sum.

    Args:
        secure: ``[secure]``.
    """

    def __init__(self, secure: SecureSettings) -> None:
        self.secure = secure

    def join(self, run: SiloRun) -> None:
        super().join(run)
        identity = run.identity
        self.member = Member(
            run.silo.name,
            run.run,
            run.ledger.path.parent / FOLDER,
            None if identity is None else identity.sign,
            identity.verify if identity is not None and identity.pins else None,
        )
        self._pins = identity is not None and identity.pins

    # -- tasks -----------------------------------------------------------------------------------

    def brings(self, kind: str) -> TaskForm:
        if kind == names.TRAIN:
            return TaskForm({**_SESSION, **_ROSTER, **_PACKETS})
        if kind == names.ASK_ADVANCE:
            return TaskForm({**_SESSION, **_ROSTER})
        return TaskForm({**_SESSION, **_ANSWERED} if kind == names.ASK_OPENING else {})

    def admit(self, task: SiloTask, account: SiloAccount) -> None:
        """Join the roster of a task of training, and give the account the common noise before it plans anything.

        Raises:
            LimitRefused: a roster with less noise than this silo's size and ledger ask for, or with other terms than those
                of the plan in its ledger.
            TaskRefused: another roster than that of the run, or one that the settings do not allow; a session that is not
                above the last, or packets that are not those of the peers.
        """
        if task.kind == names.ASK_INTRODUCTION:
            return
        with _refusing():
            if task.kind != names.TRAIN:
                roster = self.member.roster
                if roster is None:
                    raise TaskRefused(
                        f"Expected the roster of the run {self.run.run} before a {task.kind} task, got none"
                    )
                self._fit(roster, account)
                return
            roster = task.extras[names.ROSTER].roster
            self._fit(roster, account)
            self.member.join(roster)
            packets = task.extras[names.PACKETS].packets
            self.member.require_ready(task.extras[names.SESSION], packets)

    def _fit(self, roster: Roster, account: SiloAccount) -> None:
        """Check the roster's plan, and let the account count and release what it says."""
        self._check_plan(roster)
        entries = roster.dimension - account.mechanism.adaptive
        silos, noise = len(roster.names), roster.noise_multiplier
        account.join_sum(SumTerms(silos, entries, noise, pinned=self._pins))

    def _check_plan(self, roster: Roster) -> None:
        secure = self.secure
        wanted = (secure.drop_outs, secure.colluding, secure.bits)
        got = (roster.drop_outs, roster.colluding, roster.bits)
        if got != wanted:
            raise TaskRefused(
                "Expected the roster with secure.drop_outs, secure.colluding and secure.bits of the settings, "
                f"{wanted}, got {got}"
            )

    # -- a round of training ---------------------------------------------------------------------

    def seal(self, task: SiloTask, result: LocalResult) -> LocalResult:
        """Return the result with its integers under the masks of the task's session, which is used up then."""
        clip = task.extras.get(names.CLIP, self.run.settings.privacy.clip)
        context = sum_context(task.round, task.params, clip)
        with _refusing():
            masked = self.member.mask(
                task.extras[names.SESSION],
                task.extras[names.PACKETS].packets,
                ring_of(result.update[SUM]),
                context,
            )
        return replace(result, update={SUM: tensor_of(masked)})

    def reply(self, task: SiloTask, result: LocalResult) -> Answer:
        if not self.secure.drop_outs:
            return Answer()
        return self._advance(task.extras[names.SESSION] + 1)

    # -- other tasks -----------------------------------------------------------------------------

    def requests(self) -> Mapping[str, Respond]:
        return {names.ASK_INTRODUCTION: self.introduce}

    def introduce(self, task: SiloTask, account: SiloAccount) -> Answer:
        """Say the silo's key of the run, the noise multiplier that it asks for, and whether it knows its peers' keys."""
        with _refusing():
            text = self.member.introduce().to_text()
        numbers = {
            names.NOISE_MULTIPLIER: account.noise_multiplier,
            names.PINNED: float(self._pins),
        }
        return Answer(numbers=numbers, texts={names.INTRODUCTION: text})

    def exchanges(self) -> Mapping[str, Exchange]:
        if not self.secure.drop_outs:
            return {}
        return {names.ASK_ADVANCE: self.advance, names.ASK_OPENING: self.open}

    def advance(self, task: SiloTask) -> Answer:
        """Join the roster, and deal the shares of a session's secrets to the peers."""
        roster = task.extras[names.ROSTER].roster
        self._check_plan(roster)
        with _refusing():
            self.member.join(roster)
        return self._advance(task.extras[names.SESSION])

    def _advance(self, session: int) -> Answer:
        with _refusing():
            return Answer(texts={names.ADVANCE: self.member.advance(session).to_text()})

    def open(self, task: SiloTask) -> Answer:
        """Open a session's sum, once: this silo's share of each peer's self-mask, or of its key where it is missing."""
        with _refusing():
            opening = self.member.open(task.extras[names.SESSION], task.extras[names.ANSWERED])
        return Answer(texts={names.OPENING: opening.to_text()})
