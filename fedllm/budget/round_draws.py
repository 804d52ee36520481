"""Choose the silos of a round: dealt before training, or drawn when the round begins.

Amplification by Poisson sampling of silos (noise by a trusted server) holds for a draw that is used for one
release. A round can be released twice: the run is killed after the release and before its checkpoint. So
nothing is drawn beforehand and no file holds a draw: a repeated round draws again, and its two releases are two
independent Poisson samples, as the ledger counts them. With seeded randomness a draw is a function of all that
the round depends on before its replies, so that a repeated round gives the same bits; where its replies differ
from the first time, the draw's name in the ledger tells that it was released before (:mod:`server.extensions.central_noise`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedllm.budget.release_id import Fingerprinted, params_digest, settings_digest
from fedllm.budget.schedule import participation
from fedllm.settings.experiment import Settings
from privacy.mechanisms.sampling import poisson_sample
from privacy.randomness import generator


def draws_afresh(settings: Settings) -> bool:
    """Return True if the sampling of silos is part of the privacy mechanism."""
    privacy, server = settings.privacy, settings.server
    central = privacy.mode == "dp" and privacy.noise_by == "server"
    return central and server.sampling == "poisson" and server.fraction < 1


class DealtRounds:
    """The silos of each round, known before training; no one's privacy rests on the choice.

    Attributes:
        rows: names by round.
        rounds: number of rounds.
        draw: empty.
    """

    def __init__(self, rows: Sequence[Sequence[str]]) -> None:
        self.rows = [list(row) for row in rows]
        self.rounds = len(rows)
        self.draw = ""

    def silos(self, server_round: int, params: Mapping[str, Tensor]) -> list[str]:
        """Return the silos of a round."""
        return self.rows[server_round - 1]

    def planned(self, name: str) -> int:
        """Return the number of rounds in which a silo takes part."""
        return sum(name in row for row in self.rows)

    def share_of(self, asked: int) -> float:
        """Return the number of silos that failures are a share of."""
        return asked


@dataclass(frozen=True, kw_only=True)
class DrawInputs(Fingerprinted):
    """All that a seeded draw depends on: what the round depends on before its replies."""

    server_round: int
    settings: str
    params: str
    silos: tuple[str, ...]


class DrawnRounds:
    """Poisson samples of the silos, each made when its round begins and kept nowhere.

    Attributes:
        rows: None; there are none beforehand.
        rounds: number of rounds.
        draw: name of the last draw; a nonce, which tells nothing of it. Empty before the first.
    """

    rows = None

    def __init__(self, settings: Settings, names: Sequence[str]) -> None:
        self.settings = settings
        self.names = sorted(names)
        self.rounds = settings.server.rounds
        self.draw = ""

    def silos(self, server_round: int, params: Mapping[str, Tensor]) -> list[str]:
        """Draw each silo by itself with probability ``server.fraction``; may give none."""
        settings = self.settings
        if settings.privacy.randomness == "seeded":
            self.draw = DrawInputs(
                server_round=server_round,
                settings=settings_digest(settings),
                params=params_digest(params),
                silos=tuple(self.names),
            ).fingerprint()
        else:
            self.draw = os.urandom(32).hex()
        seed = settings.seed if settings.privacy.randomness == "seeded" else None
        rng = generator(seed, "participation", self.draw)
        chosen = poisson_sample(len(self.names), settings.server.fraction, rng)
        return [self.names[i] for i in chosen]

    def planned(self, name: str) -> int:
        """Return the number of rounds that count for a silo: all, being left out is part of the mechanism."""
        return self.rounds

    def share_of(self, asked: int) -> float:
        """Return the expected number of silos in a round.

        Were failures a share of the drawn, a draw with one more working silo would be kept more often, and the
        silos of a round that was kept would no longer be a Poisson sample. This way a working silo does not
        change whether a round is kept, and one that fails adds nothing to its sum.
        """
        return max(1.0, self.settings.server.fraction * len(self.names))


RoundDraws = DealtRounds | DrawnRounds


def round_draws(
    settings: Settings, names: Sequence[str], saved: Sequence[Sequence[str]] | None = None
) -> RoundDraws:
    """Return the rounds' silos.

    Args:
        saved: the dealt rounds of a run that continues; not used where the silos are drawn.
    """
    if draws_afresh(settings):
        return DrawnRounds(settings, names)
    return DealtRounds(participation(settings, names) if saved is None else saved)
