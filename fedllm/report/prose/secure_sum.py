"""The report's words for sums over silos: what is assumed, and what holds without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedllm.budget.sums.terms import KEYS, PINNED
from fedllm.settings.privacy import SecureSettings
from privacy.guarantee import Adversary
from privacy.ledger.ledger import LedgerEntry

CRYPTOGRAPHY = (
    "ASSUMES that the masks hide all but their sum: a computational assumption (X25519, HKDF-SHA256, AES-256 or ChaCha20, and the "
    "silos' node keys)"
)
RELAYED = "and assumes that the server relays keys honestly, since the silos' configs pin none"


@dataclass(frozen=True)
class SumAssumption:
    """Assumption that a statement about sums over silos rests on.

    Attributes:
        adversary: that the noise was calibrated against.
        text: the assumption, first in the report.
    """

    adversary: Adversary
    text: str


def make_sum_assumption(
    adversary: Adversary, entries: Sequence[LedgerEntry]
) -> SumAssumption | None:
    """Return the assumption of a run whose silos' noise adds up in a sum; None for other runs.

    Args:
        adversary: that the noise was calibrated against.
        entries: rows of the run. Keys count as pinned where each row of training says so.
    """
    if not adversary.sees_sums:
        return None
    keys = {row.details.get(KEYS) for row in entries if row.purpose == "train"}
    text = f"{CRYPTOGRAPHY}." if keys == {PINNED} else f"{CRYPTOGRAPHY}, {RELAYED}."
    return SumAssumption(adversary, text)


def noise_of_a_sum(secure: SecureSettings) -> str:
    """Return who adds the noise of a sum, in words."""
    return (
        "Each silo a share, before its message is masked and leaves it. The server learns the sum over the silos, and the shares add "
        f"up in it. What is counted are the shares of honest silos when {secure.drop_outs} silos are missing and "
        f"{secure.colluding} collude with the server. A silo's own share alone protects it from who breaks the "
        "masks: the figures against the server and against colluding silos that see every message."
    )


EXACT_NOISE = (
    "Each example's clipped vector is rounded to integers, integers are added exactly, and a share of noise is drawn from the discrete "
    "Gaussian itself, by comparisons of random integers: no floating-point number carries noise. That shares add up "
    "costs at most what a Gaussian does (privacy/secure_sum/bound.py has the proof)."
)
"""In the place of the assumption about floating-point noise."""
