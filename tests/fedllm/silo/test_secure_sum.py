"""A silo's part in a secure sum: what leaves is masked, once a session, after its row, under the roster's plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from summed_silos import SummedSilos

from fedllm import messages as names
from fedllm.budget.local_policy import LimitRefused
from fedllm.secure import masks
from fedllm.silo.extensions.secure_sum import SentPackets, SentRoster
from fedllm.task_errors import TaskRefused
from fedllm.training.sum_share.mechanism import SUM, ring_of
from privacy.secure_sum import ring

Make = Callable[..., Any]
CHOSEN = ("alpha", "beta", "gamma")
SUMS = {"privacy.noise_by": "sum", "client.local_steps": 1, "privacy.spare_rounds": 3}


@pytest.fixture
def silos(tiny_settings: Make, tmp_path: Path) -> SummedSilos:
    """Three silos of which one may be missing."""
    return SummedSilos(tiny_settings(**SUMS, **{"secure.drop_outs": 1}), tmp_path, CHOSEN)


def unmasked(
    silos: SummedSilos, folder: Path, number: int, session: int, chosen: tuple[str, ...]
) -> Any:
    """The sum of what the same silos release in this session, where masks are nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "add_mask", lambda vector, seed, sign=1: None)
        again = SummedSilos(silos.settings, folder, CHOSEN)
        sums = again.begin(again.roster(), session, number)
        return ring.add([again.train(sums, name, number) for name in chosen])


@pytest.mark.parametrize("chosen", [CHOSEN, ("alpha", "gamma")])
def test_the_sum_is_that_of_the_silos_that_answered_to_the_last_bit(
    silos: SummedSilos, tmp_path: Path, chosen: tuple[str, ...]
) -> None:
    sums = silos.begin(silos.roster(), 4)
    for name in chosen:
        silos.train(sums, name)
    total = silos.open(sums)
    np.testing.assert_array_equal(total, unmasked(silos, tmp_path / "bare", 1, 4, chosen))


def test_what_leaves_is_masked_and_its_row_is_there_before(silos: SummedSilos) -> None:
    sums = silos.begin(silos.roster(), 1)
    masked = silos.train(sums, "alpha").view(np.int64).astype(np.float64)
    assert silos.rows("alpha") == 1
    # Integers of a clipped sum are far below 2^52 in size; under a mask they are uniform up to 2^63.
    assert np.median(np.abs(masked)) == pytest.approx(2.0**62, rel=0.3)


def test_a_repeated_round_has_noise_of_its_own(silos: SummedSilos) -> None:
    """Also with seeded randomness: the same shares in sums over other silos would show one silo's integers."""
    roster = silos.roster()
    totals = []
    for session, chosen in ((1, CHOSEN), (2, CHOSEN)):
        sums = silos.begin(roster, session)
        for name in chosen:
            silos.train(sums, name)
        totals.append(silos.open(sums))
    assert silos.rows("beta") == 2
    assert (totals[0] != totals[1]).mean() > 0.99


def test_keys_and_packets_are_no_input_of_the_release(silos: SummedSilos, tmp_path: Path) -> None:
    sums = silos.begin(silos.roster(), 1)
    task = silos.training(sums, "alpha")
    other = SummedSilos(silos.settings, tmp_path / "other", CHOSEN)
    again = other.training(other.begin(other.roster(), 1), "alpha")
    assert again.fingerprint() == task.fingerprint()
    for changed in (
        silos.training(silos.begin(sums.roster, 2), "alpha"),
        silos.training(
            sums, "alpha", **{names.ROSTER: SentRoster(silos.roster(noise_multiplier=0.9))}
        ),
        silos.training(sums, "alpha", **{names.ROSTER: SentRoster(silos.roster(dimension=9))}),
    ):
        assert changed.fingerprint() != task.fingerprint()


def refused(silos: SummedSilos, task: Any, match: str, error: type = TaskRefused) -> None:
    rows = silos.rows("alpha")
    with pytest.raises(error, match=match):
        silos.workers["alpha"].train(task)
    assert silos.rows("alpha") == rows, "nothing is spent for what is refused"


def test_a_session_is_masked_once_whichever_process_answers(silos: SummedSilos) -> None:
    sums = silos.begin(silos.roster(), 3)
    silos.train(sums, "alpha")
    refused(silos, silos.training(sums, "alpha"), "above 3, the last that silo 'alpha' masked")
    earlier = replace(silos.training(sums, "alpha"))
    earlier = replace(earlier, extras={**earlier.extras, names.SESSION: 2})
    refused(silos, earlier, "above 3")
    silos.workers["alpha"] = silos.worker("alpha")  # another process, the same record
    refused(silos, silos.training(sums, "alpha"), "above 3, the last that silo 'alpha' masked")


@pytest.mark.parametrize(
    ("changes", "match", "error"),
    [
        ({"noise_multiplier": 0.79}, "noise multiplier >= 0.8", LimitRefused),
        ({"drop_outs": 0}, r"secure\.drop_outs", TaskRefused),
        ({"bits": 32}, r"secure\.bits", TaskRefused),
    ],
)
def test_a_plan_that_the_silo_does_not_have_is_refused(
    silos: SummedSilos, changes: dict[str, Any], match: str, error: type
) -> None:
    sums = silos.begin(silos.roster(), 1)
    roster = SentRoster(silos.roster(**changes))
    refused(silos, silos.training(sums, "alpha", **{names.ROSTER: roster}), match, error)


def test_another_roster_than_the_first_and_packets_of_others_are_refused(
    silos: SummedSilos, tmp_path: Path
) -> None:
    roster = silos.roster()
    sums = silos.begin(roster, 1)
    other = SummedSilos(silos.settings, tmp_path / "other", CHOSEN)
    theirs = other.roster()
    swapped = replace(roster, members=(*roster.members[:1], theirs.members[1], *roster.members[2:]))
    wrong = silos.training(sums, "alpha", **{names.ROSTER: SentRoster(swapped)})
    refused(silos, wrong, "roster that silo 'alpha' joined")
    packets = SentPackets(other.begin(theirs, 1).packets_for("alpha"))
    refused(
        silos, silos.training(sums, "alpha", **{names.PACKETS: packets}), "packet of silo 'beta'"
    )
    few = SentPackets({})
    refused(silos, silos.training(sums, "alpha", **{names.PACKETS: few}), "at least 1 peers")


def test_a_sum_is_opened_once_and_by_enough(silos: SummedSilos) -> None:
    roster = silos.roster()
    sums = silos.begin(roster, 1)
    opening = {names.SESSION: 1, names.ANSWERED: ("alpha", "gamma")}
    task = silos.task(names.ASK_OPENING, opening)
    alpha = silos.workers["alpha"]
    with pytest.raises(TaskRefused, match="masked last and did not open"):
        alpha.answer(task)
    silos.train(sums, "alpha")
    silos.train(sums, "gamma")
    with pytest.raises(TaskRefused, match="at least 2 silos"):
        alpha.answer(replace(task, extras={**opening, names.ANSWERED: ("alpha",)}))
    alpha.answer(task)
    for again in (task, replace(task, extras={**opening, names.ANSWERED: CHOSEN})):
        with pytest.raises(TaskRefused, match="did not open"):
            silos.worker("alpha").answer(again)


EVALUATED = {
    "evaluation.clients": "private",
    "evaluation.clients_holdout": 0.2,
    "evaluation.clients_noise": 5.0,
    "evaluation.every": 1,
    "secure.drop_outs": 1,
}


def test_nothing_is_released_before_the_roster(tiny_settings: Make, tmp_path: Path) -> None:
    """The plan's row would have another noise than the sums."""
    silos = SummedSilos(tiny_settings(**SUMS, **EVALUATED), tmp_path, CHOSEN)
    worker = silos.workers["beta"]
    with pytest.raises(TaskRefused, match="roster of the run"):
        worker.answer(silos.task(names.EVALUATE, {}))
    assert worker.ledger.entries() == []


def test_an_evaluation_is_planned_with_the_noise_of_the_sums(
    tiny_settings: Make, tmp_path: Path
) -> None:
    silos = SummedSilos(tiny_settings(**SUMS, **EVALUATED), tmp_path, CHOSEN)
    silos.begin(silos.roster(noise_multiplier=1.5), 1)  # which is joined, and no round has been
    worker = silos.workers["beta"]
    worker.answer(silos.task(names.EVALUATE, {}))
    (row,) = worker.ledger.entries()
    assert (row.purpose, row.details["noise_multiplier"]) == ("evaluate", 1.5)
    assert worker.account(3).book.stored_noise() == 1.5


def test_the_masked_vector_is_a_function_of_the_round_it_is_for(silos: SummedSilos) -> None:
    """A silo that was told another round has masks in which nothing cancels."""
    sums = silos.begin(silos.roster(), 1, number=1)
    silos.train(sums, "alpha", number=1)
    silos.train(sums, "beta", number=1)
    reply = silos.workers["gamma"].train(silos.training(sums, "gamma", number=2))
    sums.add("gamma", ring_of(reply.update[SUM]))
    total = ring.decode(silos.open(sums), 64).astype(np.float64)
    assert np.abs(total).max() > 2.0**60
