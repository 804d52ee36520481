"""Fix who takes part in the sums of a run, under which keys, and the plan that they agree on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from fedllm.files.bounded_json import shortened
from fedllm.secure import keys, reading
from fedllm.secure.errors import SumRefused

_INTRODUCTION = ("run", "name", "key", "session", "signature")
_ROSTER = ("run", "members", "drop_outs", "colluding", "bits", "noise_multiplier", "dimension")
_LONGEST_SIGNATURE = 400
_LONGEST_RUN = 400


@dataclass(frozen=True)
class Introduction:
    """A silo's word before the first sum of a run: its public key, signed with its node's key.

    Attributes:
        run: the run that the key is for.
        name: the silo's.
        key: X25519 public key of 32 bytes, of this run alone.
        session: the last session that the silo masked; the next one is higher. 0: none.
        signature: of `signed_text`, empty without a node's key.
    """

    run: str
    name: str
    key: bytes
    session: int = 0
    signature: str = ""

    def __post_init__(self) -> None:
        """Check the fields; SumRefused."""
        _check_run(self.run)
        reading.read_name(self.name)
        reading.read_session(self.session, 0)
        if not isinstance(self.key, bytes) or len(self.key) != keys.KEY_BYTES:
            raise SumRefused(f"Expected a key of 32 bytes of silo {shortened(self.name)}")
        if not isinstance(self.signature, str) or len(self.signature) > _LONGEST_SIGNATURE:
            raise SumRefused(
                f"Expected a signature of at most {_LONGEST_SIGNATURE} characters of silo {shortened(self.name)}"
            )

    @property
    def signed_text(self) -> str:
        """The text that the signature is of: run, name and key."""
        return reading.write({"run": self.run, "name": self.name, "key": self.key.hex()})

    def to_text(self) -> str:
        """Return the text that `from_text` reads."""
        return reading.write(self._plain())

    @classmethod
    def from_text(cls, text: object) -> Introduction:
        """Read an introduction; SumRefused if it is none."""
        return cls._read(reading.read_object(text, "an introduction", _INTRODUCTION, length=10_000))

    def _plain(self) -> dict[str, object]:
        return {
            "run": self.run, "name": self.name, "key": self.key.hex(),
            "session": self.session, "signature": self.signature,
        }  # fmt: skip

    @classmethod
    def _read(cls, value: object) -> Introduction:
        if not isinstance(value, dict) or set(value) != set(_INTRODUCTION):
            raise SumRefused(
                f"Expected an introduction with the fields {', '.join(_INTRODUCTION)}, got {shortened(value)}"
            )
        key = reading.read_hex(value["key"], "a key", keys.KEY_BYTES)
        return cls(value["run"], value["name"], key, value["session"], value["signature"])


@dataclass(frozen=True)
class Roster:
    """The silos of a run's sums and the plan that they share, fixed for the whole run.

    Its digest is in every key that is derived: silos that were given different rosters get masks in which nothing cancels.

    Attributes:
        run: the run.
        members: one introduction a silo, sorted by name. Sessions and signatures in them are not in the digest.
        drop_outs: t, the number of silos that may be missing in a sum.
        colluding: m, the number of silos that may tell the server all they know.
        bits: sums are taken modulo 2^bits; 32 or 64.
        noise_multiplier: z, common to all silos: of the noise that honest shares add up to.
        dimension: d, entries of every vector.

    Raises:
        SumRefused: a value is out of range, a name or a key is there twice, or 2 t >= n - m (then k = n - t silos could open both
            secrets of one silo).
    """

    run: str
    members: tuple[Introduction, ...]
    drop_outs: int
    colluding: int
    bits: int
    noise_multiplier: float
    dimension: int

    def __post_init__(self) -> None:
        """Check the plan."""
        _check_run(self.run)
        names = [member.name for member in self.members]
        if not 2 <= len(names) <= reading.MOST_SILOS or names != sorted(set(names)):
            raise SumRefused(
                f"Expected a roster of 2 to {reading.MOST_SILOS} silos, sorted, each once, got {shortened(names)}"
            )
        if any(member.run != self.run for member in self.members):
            raise SumRefused(
                f"Expected keys for the run {shortened(self.run)}, got one for another"
            )
        if len({member.key for member in self.members}) != len(names):
            raise SumRefused("Expected a different key for each silo, got one key twice")
        n = len(names)
        reading.read_whole(self.drop_outs, "secure.drop_outs", 0, n)
        reading.read_whole(self.colluding, "secure.colluding", 0, n)
        if 2 * self.drop_outs >= n - self.colluding:
            raise SumRefused(
                "Expected 2 * secure.drop_outs < silos - secure.colluding, got "
                f"drop_outs={self.drop_outs}, silos={n}, colluding={self.colluding}"
            )
        if isinstance(self.bits, bool) or self.bits not in (32, 64):
            raise SumRefused(f"Expected secure.bits of 32 or 64, got {shortened(self.bits)}")
        noise = self.noise_multiplier
        if type(noise) is not float or not (math.isfinite(noise) and noise > 0):
            raise SumRefused(f"Expected a finite noise_multiplier > 0, got {shortened(noise)}")
        reading.read_whole(self.dimension, "dimension", 1, 2**40)

    @classmethod
    def make(
        cls,
        introductions: Iterable[Introduction],
        *,
        drop_outs: int,
        colluding: int,
        bits: int,
        noise_multiplier: float,
        dimension: int,
    ) -> Roster:
        """Return the roster of introductions, in whatever order; SumRefused as the class."""
        members = tuple(sorted(introductions, key=lambda member: member.name))
        if not members:
            raise SumRefused("Expected introductions of at least 2 silos, got none")
        return cls(
            members[0].run, members, drop_outs, colluding, bits, float(noise_multiplier), dimension
        )  # fmt: skip

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The silos' names, sorted."""
        return tuple(member.name for member in self.members)

    @property
    def threshold(self) -> int:
        """k = n - t: silos that must answer, and shares that restore a secret."""
        return len(self.members) - self.drop_outs

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all that the silos agree on: run, names, keys and plan."""
        members = [part for member in self.members for part in (member.name, member.key)]
        plan = (self.drop_outs, self.colluding, self.bits, self.noise_multiplier.hex())
        return keys.digest("roster", self.run, *plan, self.dimension, *members)

    def point(self, name: str) -> int:
        """Return the point, 1 to n, of a silo in Shamir's scheme; SumRefused for another name."""
        self.member(name)
        return self._points[name]

    def member(self, name: str) -> Introduction:
        """Return the introduction of a silo; SumRefused for another name."""
        if name not in self._points:
            raise SumRefused(f"Expected a silo of the roster, got {shortened(name)}")
        return self.members[self._points[name] - 1]

    @cached_property
    def _points(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names, 1)}

    def to_text(self) -> str:
        """Return the text that `from_text` reads."""
        members = [member._plain() for member in self.members]
        return reading.write(
            {
                "run": self.run, "members": members, "drop_outs": self.drop_outs,
                "colluding": self.colluding, "bits": self.bits,
                "noise_multiplier": self.noise_multiplier, "dimension": self.dimension,
            }
        )  # fmt: skip

    @classmethod
    def from_text(cls, text: object) -> Roster:
        """Read a roster; SumRefused if it is none."""
        value = reading.read_object(text, "a roster", _ROSTER, length=2_000_000)
        if not isinstance(value["members"], list):
            raise SumRefused(f"Expected a list of members, got {shortened(value['members'])}")
        members = tuple(Introduction._read(item) for item in value["members"])
        return cls(**(value | {"members": members}))


def _check_run(run: object) -> None:
    if not isinstance(run, str) or not 1 <= len(run) <= _LONGEST_RUN:
        raise SumRefused(
            f"Expected a run's id of 1 to {_LONGEST_RUN} characters, got {shortened(run)}"
        )
