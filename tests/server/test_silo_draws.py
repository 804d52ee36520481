"""Noise by a trusted server, silos drawn by a Poisson sample: the ledger counts what happened, wherever a run is killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Error, Message

import fedllm.budget.round_draws
import server.extensions.central_noise
import server.run
import server.strategy
from fedllm.budget.round_draws import DealtRounds, DrawnRounds, round_draws
from fedllm.run.folder import RunFolder
from fedllm.training.client_update import ClientUpdate
from privacy.accountants import make_accountant
from privacy.events.constructors import gaussian, poisson_sampled
from privacy.events.multiset import multiset
from privacy.ledger.ledger import Ledger
from server.aggregation import Contribution
from server.extensions.central_noise import CentralRelease

Make = Callable[..., Any]
SIGMA, RATE = 0.8, 0.5
TRUSTED = {
    "privacy.unit": "client",
    "privacy.noise_by": "server",
    "privacy.epsilon": None,
    "privacy.noise_multiplier": SIGMA,
    "privacy.randomness": "os",
    "server.sampling": "poisson",
    "server.fraction": RATE,
    "server.rounds": 4,
    "server.checkpoint_every": 3,
    "evaluation.every": 4,
}
NAMES = [f"s{i}" for i in range(8)]


class Killed(BaseException):
    """The process ends here."""


class Watch:
    """Sees each draw of silos and each release of a noisy sum, and kills once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, point: str = "", at: int = 0) -> None:
        self.point, self.at = point, at
        self.draw: tuple[float, ...] = ()
        self.released: list[tuple[tuple[float, ...], bytes]] = []
        self._seen: Counter[str] = Counter()
        noise, spend, save = (
            ClientUpdate.add_noise,
            server.extensions.central_noise.spend_together,
            server.run.save_checkpoint,
        )
        exchange = server.strategy.exchange

        def sample(count: int, rate: float, rng: Any) -> np.ndarray:
            uniform = rng.random(count)
            self.draw = tuple(uniform)
            return np.flatnonzero(uniform < rate)

        def add(*args: Any) -> Any:
            self.passed("row is there")
            value = noise(*args)
            self.released.append((self.draw, value.numpy().tobytes()))
            self.passed("noise is added")
            return value

        def record(*args: Any, **options: Any) -> Any:
            self.passed("replies are there")
            return spend(*args, **options)

        def keep(*args: Any) -> Any:
            self.passed("before the checkpoint")
            found = save(*args)
            self.passed("after the checkpoint")
            return found

        def send(*args: Any, **options: Any) -> Any:
            self.passed("silos are drawn")
            return exchange(*args, **options)

        monkeypatch.setattr(fedllm.budget.round_draws, "poisson_sample", sample)
        monkeypatch.setattr(ClientUpdate, "add_noise", add)
        monkeypatch.setattr(server.extensions.central_noise, "spend_together", record)
        monkeypatch.setattr(server.run, "save_checkpoint", keep)
        monkeypatch.setattr(server.strategy, "exchange", send)

    def passed(self, point: str) -> None:
        self._seen[point] += 1
        if point == self.point and self._seen[point] == self.at:
            raise Killed(point)

    def truth(self, rate: float = RATE) -> Counter[Any]:
        """Each draw is one Poisson sample, whatever number of different values were released of it."""
        values: dict[tuple[float, ...], set[bytes]] = {}
        for draw, value in self.released:
            values.setdefault(draw, set()).add(value)
        return Counter(
            poisson_sampled(rate, (gaussian(SIGMA),) * len(found)) for found in values.values()
        )


def outsider(run: RunFolder) -> Counter[Any]:
    with Ledger(run.ledger_path, read_only=True) as ledger:
        parties = {entry.party for entry in ledger.entries()}
        found = [ledger.spent("outsider", party=party) for party in sorted(parties)]
    assert len(parties) == 4
    assert all(events == found[0] for events in found), "everybody could have been drawn"
    return found[0]


def epsilon(events: Counter[Any]) -> float:
    return float(make_accountant("pld").epsilon(events, 1e-5))


KILLS = [
    ("silos are drawn", 2),
    ("replies are there", 2),
    ("row is there", 2),
    ("noise is added", 2),
    ("noise is added", 3),
    ("before the checkpoint", 1),
    ("after the checkpoint", 1),
]


@pytest.mark.parametrize(("point", "at"), KILLS)
def test_the_ledger_is_the_truth_wherever_a_run_is_killed(
    point: str, at: int, start_run: Make, in_process: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Afterwards two rounds may have been released twice, each of two draws: independent samples."""
    watch = Watch(monkeypatch, point, at)
    run = start_run("run", **TRUSTED)
    with pytest.raises(Killed):
        in_process(run)
    assert in_process(RunFolder.open(run.path)) == "finished"
    truth, counted = watch.truth(), outsider(run)
    unused = Counter({poisson_sampled(RATE, (gaussian(SIGMA),)): int(point == "row is there")})
    assert counted == multiset(truth) + multiset(+unused)
    assert epsilon(counted) == pytest.approx(epsilon(truth + +unused), abs=0)
    assert run.read_json("schedule.json")["rounds"] is None, "a file could replay a draw"


@pytest.mark.parametrize("point", ["row is there", "noise is added", "before the checkpoint"])
def test_a_seeded_run_repeats_its_draws_and_bits_and_is_counted_once(
    point: str, start_run: Make, in_process: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded = TRUSTED | {"privacy.randomness": "seeded"}
    watch = Watch(monkeypatch, point, 1 if point == "before the checkpoint" else 2)
    run = start_run("run", **seeded)
    with pytest.raises(Killed):
        in_process(run)
    assert in_process(RunFolder.open(run.path)) == "finished"
    assert len(watch.released) > 4 - (point == "row is there")
    assert len(set(watch.released)) == 4, "a repeated round is the same release"
    assert outsider(run) == multiset(watch.truth())
    assert epsilon(outsider(run)) == epsilon(watch.truth())


def test_a_seeded_round_with_other_replies_is_a_second_release_of_one_draw(
    start_run: Make, in_process: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after round 1; the second time a silo of it does not answer. Later rounds have other parameters,
    and so other draws."""
    rate = 0.9  # the chance of an empty first round is 1e-4
    seeded = TRUSTED | {"privacy.randomness": "seeded", "server.max_failures": 1.0}
    seeded |= {"server.fraction": rate}
    watch = Watch(monkeypatch, "noise is added", 1)
    run = start_run("run", **seeded)
    with pytest.raises(Killed):
        in_process(run)

    def lost(task: Message, reply: Message) -> Message | None:
        if task.metadata.message_type == "train" and task.metadata.group_id == "1":
            return Message(Error(1, "lost"), reply_to=task)
        return reply

    assert in_process(RunFolder.open(run.path), lost) == "finished"
    truth = watch.truth(rate)
    twice = poisson_sampled(rate, (gaussian(SIGMA), gaussian(SIGMA)))
    once = poisson_sampled(rate, (gaussian(SIGMA),))
    assert truth == {twice: 1, once: 3}
    assert outsider(run) == multiset({once: 4, gaussian(SIGMA): 1})
    assert epsilon(outsider(run)) >= epsilon(truth) > epsilon(Counter({once: 5}))


# -- by hand -----------------------------------------------------------------------------------------


PARAMS = {"prefix": torch.zeros(3, 5)}


def central_release(settings: Any, folder: Any, run: str = "r") -> CentralRelease:
    ledger = Ledger(folder / "ledger.sqlite")
    return CentralRelease(
        settings, run=run, silos=NAMES, draws=round_draws(settings, NAMES), ledger=ledger
    )


def replies(count: int) -> list[Contribution]:
    one = {name: torch.full_like(value, 0.01) for name, value in PARAMS.items()}
    return [Contribution(name, one, None) for name in NAMES[:count]]


@pytest.mark.parametrize("randomness", ["seeded", "os"])
def test_two_releases_of_one_draw_never_cost_less_than_they_do(
    randomness: str, tiny_settings: Make, tmp_path: Any
) -> None:
    settings = tiny_settings(**TRUSTED | {"privacy.randomness": randomness})
    trusted = central_release(settings, tmp_path)
    with pytest.raises(ValueError, match="Expected a draw of the silos"):
        trusted.release(1, replies(2), PARAMS)
    trusted.draws.silos(1, PARAMS)
    trusted.release(1, replies(2), PARAMS)
    trusted.release(1, replies(3), PARAMS)
    if randomness == "seeded":  # a new process: known from the ledger
        trusted = central_release(settings, tmp_path)
        trusted.draws.silos(1, PARAMS)
        trusted.release(1, replies(3), PARAMS)
    trusted.draws.silos(2, PARAMS)
    trusted.release(2, replies(3), PARAMS)
    spent = trusted.accounts["s0"].ledger.spent("outsider", party="s0")
    once = poisson_sampled(RATE, (gaussian(SIGMA),))
    assert spent == multiset({once: 2, gaussian(SIGMA): 1})
    assert trusted.accounts["s0"].settings.server.fraction == RATE


def draws_of(draws: Any, rounds: Sequence[int], params: Any = PARAMS) -> list[tuple[str, ...]]:
    return [tuple(draws.silos(r, params)) for r in rounds]


def test_draws_are_poisson_samples_and_seeded_ones_depend_on_all_that_a_round_does(
    tiny_settings: Make,
) -> None:
    seeded = tiny_settings(**TRUSTED | {"privacy.randomness": "seeded"})
    fresh = DrawnRounds(tiny_settings(**TRUSTED), NAMES)
    found = draws_of(fresh, [1] * 4000)
    for name in NAMES:  # standard deviation 32
        assert abs(sum(name in row for row in found) - 2000) < 180
    assert len(set(found)) == 256
    rounds = range(1, 100)
    first = draws_of(DrawnRounds(seeded, NAMES), rounds)
    assert draws_of(DrawnRounds(seeded, NAMES), rounds) == first
    others = [
        DrawnRounds(tiny_settings(**TRUSTED | {"privacy.randomness": "seeded"} | change), NAMES)
        for change in ({"seed": 99}, {"privacy.clip": 0.11}, {"privacy.noise_multiplier": 2.0})
    ]
    moved = {"prefix": torch.ones(3, 5)}
    for other in [
        *(draws_of(o, rounds) for o in others),
        draws_of(DrawnRounds(seeded, NAMES), rounds, moved),
    ]:
        assert sum(a == b for a, b in zip(first, other, strict=True)) < 8


def test_which_rounds_are_dealt_beforehand(tiny_settings: Make) -> None:
    """Where the choice of silos is no part of the mechanism, each silo's own rounds are known."""
    assert isinstance(round_draws(tiny_settings(**TRUSTED), NAMES, [["s0"]]), DrawnRounds)
    for change in (
        {"privacy.noise_by": "client"},
        {"server.sampling": "fixed"},
        {"server.fraction": 1.0},
    ):
        draws = round_draws(tiny_settings(**TRUSTED | change), NAMES)
        assert isinstance(draws, DealtRounds)
        assert [draws.silos(r, PARAMS) for r in (1, 2, 3, 4)] == draws.rows
        assert sum(draws.planned(name) for name in NAMES) == sum(map(len, draws.rows))
    dealt = round_draws(tiny_settings(**TRUSTED | {"server.sampling": "fixed"}), NAMES, [["s0"]])
    assert dealt.rows == [["s0"]]


def test_a_working_silo_does_not_decide_whether_a_round_is_kept(tiny_settings: Make) -> None:
    """Else a round would be kept more often with it, and it would be in kept rounds more often than drawn."""
    fresh = DrawnRounds(tiny_settings(**TRUSTED), NAMES)
    assert {fresh.share_of(asked) for asked in range(9)} == {4.0}
