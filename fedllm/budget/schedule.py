"""Deal the silos to rounds before training, from public values only."""

from __future__ import annotations

from collections.abc import Sequence

from fedllm.settings.experiment import Settings
from privacy.mechanisms.sampling import poisson_sample
from privacy.randomness import generator


def participation(settings: Settings, names: Sequence[str]) -> list[list[str]]:
    """Return the silos of each round, sorted by name, one list a round.

    With ``server.sampling = "fixed"`` each round has ``max(1, round(fraction * n))`` silos, dealt so
    that no one waits twice while another has not had its turn; the number of rounds of a silo is
    known beforehand, and its noise is calibrated for just these. With ``"poisson"`` each silo is drawn
    by itself with probability ``fraction`` in each round, which amplification at client level needs;
    a round may then be empty.

    For ``privacy.randomness = "os"`` and Poisson sampling the draw must not be predictable from the
    seed, and is made from a secret stream.
    """
    ordered = sorted(names)
    fraction, rounds = settings.server.fraction, settings.server.rounds
    if settings.server.sampling == "poisson" and fraction < 1:
        secret = settings.privacy.mode == "dp" and settings.privacy.randomness == "os"
        rng = generator(None if secret else settings.seed, "participation")
        return [
            [ordered[i] for i in poisson_sample(len(ordered), fraction, rng)] for _ in range(rounds)
        ]
    rng = generator(settings.seed, "participation")
    size = max(1, round(fraction * len(ordered)))
    schedule: list[list[str]] = []
    deck: list[str] = []
    for _ in range(rounds):
        chosen: list[str] = []
        while len(chosen) < size:
            if not deck:
                deck = [ordered[i] for i in rng.permutation(len(ordered))]
            place = next((i for i, name in enumerate(deck) if name not in chosen), None)
            if place is None:
                deck += [ordered[i] for i in rng.permutation(len(ordered))]
                continue
            chosen.append(deck.pop(place))
        schedule.append(sorted(chosen))
    return schedule


def planned_rounds(schedule: Sequence[Sequence[str]], name: str) -> int:
    """Return the number of rounds in which ``name`` takes part."""
    return sum(name in chosen for chosen in schedule)


def is_evaluation_round(settings: Settings, server_round: int) -> bool:
    """Return True if the model is judged after this round: every ``evaluation.every``, and the last one."""
    return server_round % settings.evaluation.every == 0 or server_round == settings.server.rounds


def evaluation_rounds(settings: Settings) -> int:
    """Return the number of evaluations after training rounds in the whole run."""
    rounds = settings.server.rounds
    return sum(is_evaluation_round(settings, r) for r in range(1, rounds + 1))


def planned_evaluation_rounds(settings: Settings) -> int:
    """Return the number of evaluations that a run's plan holds: one each, and the spare ones."""
    return evaluation_rounds(settings) + settings.privacy.spare_rounds


def sampling_rate(settings: Settings, examples: int) -> float:
    """Probability of each example to be in a local step's batch.

    ``client.sampling_rate``, or ``client.batch_size`` over the number of examples, at most 1. The
    latter depends on the number of examples, which is then public (``data.sizes``).

    Raises:
        ValueError: no examples.
    """
    if settings.client.sampling_rate is not None:
        return settings.client.sampling_rate
    if examples < 1:
        raise ValueError(f"Expected at least one training example at the silo, got {examples}")
    return min(1.0, float(settings.client.batch_size or 1) / examples)
