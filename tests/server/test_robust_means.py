"""Median, trimmed and norm-clipped mean: what hostile silos can do to them, and the noise that they leave."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from whole_runs import final

from fedllm import messages as names
from fedllm.settings.io import SettingsError
from fedllm.settings.server import ServerSettings
from fedllm.training.tunable import initial_params, shared_tunable
from server.aggregation import Contribution, mean_update
from server.robust.means import (
    combine,
    combine_shares,
    equal_variance,
    rank_variance,
    trimmed,
)

PARAMS = {"head.bias": torch.zeros(3), "prefix": torch.zeros(2, 2)}
RULES = ("mean", "median", "trimmed-mean", "norm-clipped-mean")


def rule(name: str, trim: float = 0.25) -> ServerSettings:
    return ServerSettings(aggregation=name, trim=trim)  # type: ignore[arg-type]


def sent(rows: Any, stds: Any = None) -> list[Contribution]:
    """A contribution of seven numbers for each row."""
    found = []
    for i, row in enumerate(np.asarray(rows, dtype=np.float32)):
        value = torch.from_numpy(row)
        update = {"head.bias": value[:3], "prefix": value[3:].reshape(2, 2)}
        std = None if stds is None else dict.fromkeys(PARAMS, float(stds[i]))
        found.append(Contribution(f"s{i:02}", update, std))
    return found


def flat(update: Any) -> np.ndarray:
    return torch.cat([update["head.bias"], update["prefix"].reshape(-1)]).double().numpy()


@pytest.mark.parametrize(
    ("name", "trim", "silos", "cut"),
    [
        ("mean", 0.25, 8, 0),
        ("norm-clipped-mean", 0.25, 8, 0),
        ("median", 0.25, 8, 3),
        ("median", 0.25, 7, 3),
        ("median", 0.25, 2, 0),
        ("trimmed-mean", 0.25, 8, 2),
        ("trimmed-mean", 0.125, 8, 1),
        ("trimmed-mean", 0.1, 8, 1),
        ("trimmed-mean", 0.3, 10, 3),
        ("trimmed-mean", 0.49, 8, 3),
        ("trimmed-mean", 0.25, 1, 0),
    ],
)
def test_how_many_are_left_out(name: str, trim: float, silos: int, cut: int) -> None:
    assert trimmed(rule(name, trim), silos) == cut


def test_the_mean_is_what_it_was() -> None:
    rows = np.random.default_rng(1).standard_normal((5, 7))
    got, std = combine(rule("mean"), sent(rows, [1.0] * 5), PARAMS)
    expected, told = mean_update(sent(rows, [1.0] * 5), PARAMS, 5)
    assert all(torch.equal(got[n], expected[n]) for n in PARAMS)
    assert std == told


def test_median_and_trimmed_mean_are_numpys() -> None:
    for n in (3, 4, 8, 9):
        rows = np.random.default_rng(n).standard_normal((n, 7)).astype(np.float32)
        got, _ = combine(rule("median"), sent(rows), PARAMS)
        np.testing.assert_allclose(flat(got), np.median(rows, axis=0), rtol=1e-6)
        got, _ = combine(rule("trimmed-mean"), sent(rows), PARAMS)
        cut = trimmed(rule("trimmed-mean"), n)
        np.testing.assert_allclose(
            flat(got), np.sort(rows, 0)[cut : n - cut].mean(0), rtol=1e-5, atol=1e-7
        )


ANY = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(data=st.data(), silos=st.integers(3, 9))
@hypothesis_settings(max_examples=100, deadline=None)
def test_as_many_hostile_silos_as_are_left_out_move_nothing_beyond_the_honest_ones(
    data: st.DataObject, silos: int
) -> None:
    name = data.draw(st.sampled_from(["median", "trimmed-mean"]))
    cut = trimmed(rule(name), silos)
    rows = np.array(
        data.draw(st.lists(st.lists(ANY, min_size=7, max_size=7), min_size=silos, max_size=silos)),
        dtype=np.float32,
    )
    honest = rows[cut:]
    order = data.draw(st.permutations(range(silos)))
    got, _ = combine(rule(name), sent(rows), PARAMS)
    again, _ = combine(rule(name), [sent(rows)[i] for i in order], PARAMS)
    assert all(torch.equal(got[n], again[n]) for n in PARAMS)
    value, honest = flat(got), honest.astype(np.float64)
    assert (value >= honest.min(0) - np.abs(honest.min(0)) * 1e-6).all()
    assert (value <= honest.max(0) + np.abs(honest.max(0)) * 1e-6).all()


@given(scale=st.floats(1.0, 1e30), hostile=st.integers(1, 3))
@hypothesis_settings(max_examples=50, deadline=None)
def test_no_silo_weighs_more_than_the_median_norm(scale: float, hostile: int) -> None:
    rows = np.random.default_rng(2).standard_normal((8, 7))
    bad = rows.copy()
    bad[:hostile] *= scale
    lengths = np.linalg.norm(rows[hostile:], axis=1)
    got, _ = combine(rule("norm-clipped-mean"), sent(bad), PARAMS)
    assert np.linalg.norm(flat(got)) <= lengths.max() * (1 + 1e-5)
    same = [Contribution("s", c.update, None) for c in sent(rows[:1])] * 4
    got, _ = combine(rule("norm-clipped-mean"), same, PARAMS)
    np.testing.assert_allclose(flat(got), rows[0], rtol=1e-5)
    zeros, _ = combine(rule("norm-clipped-mean"), sent(np.zeros((3, 7))), PARAMS)
    assert not flat(zeros).any()


def test_exact_variances_are_the_known_ones() -> None:
    """n = 3 in closed form (Jones 1948), the others from the tables of normal order statistics (Sarhan and
    Greenberg 1962), and the limits of the median and of the mean cut at a quarter."""
    assert equal_variance(3, 1) == pytest.approx(1 - math.sqrt(3) / math.pi, rel=1e-6)
    assert equal_variance(5, 2) == pytest.approx(0.28683, abs=2e-5)
    assert equal_variance(7, 0) == pytest.approx(1 / 7)
    assert 2001 * equal_variance(2001, 1000) == pytest.approx(math.pi / 2, rel=1e-3)
    assert 4000 * equal_variance(4000, 1000) == pytest.approx(1.19518, rel=1e-3)
    for wrong in ((2, 1), (3, -1), (4, 2)):
        with pytest.raises(ValueError, match="2 cut < silos"):
            equal_variance(*wrong)


@pytest.mark.parametrize(("silos", "cut"), [(4, 1), (8, 2), (8, 3), (9, 4), (30, 8)])
def test_exact_variances_are_those_of_samples(silos: int, cut: int) -> None:
    sample = np.sort(np.random.default_rng(silos).standard_normal((60_000, silos)), axis=1)
    found = float(sample[:, cut : silos - cut].mean(1).var())
    assert equal_variance(silos, cut) == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize(
    ("stds", "off"),
    [([1.0] * 6 + [3.0] * 2, 0.12), ([1, 2, 3, 4, 5, 6, 7, 8], 0.3), ([0.7, 1, 1.4] * 3, 0.06)],
)
def test_unequal_noise_is_nearly_right(stds: list[float], off: float) -> None:
    rng = np.random.default_rng(3)
    sample = np.sort(rng.standard_normal((60_000, len(stds))) * np.array(stds), axis=1)
    for cut in (1, 2, (len(stds) - 1) // 2):
        found = float(sample[:, cut : len(stds) - cut].mean(1).var())
        assert rank_variance(stds, cut) == pytest.approx(found, rel=off)


def test_silos_without_noise_have_a_variance_too() -> None:
    assert rank_variance([0.0] * 5, 2) == 0.0
    assert rank_variance([0.0, 0.0, 0.0, 0.0, 1.0], 2) == 0.0
    assert rank_variance([0.0, 1.0, 1.0, 1.0, 1.0], 1) < equal_variance(5, 1)


@pytest.mark.parametrize("name", RULES)
def test_the_noise_that_is_told_is_the_noise_that_is_there(name: str) -> None:
    """What Adam's correction subtracts, from whole updates of noise alone."""
    shape = {"prefix": torch.zeros(40_000)}
    rng = torch.Generator().manual_seed(4)
    found = [
        Contribution(f"s{i}", {"prefix": 1.5 * torch.randn(40_000, generator=rng)}, {"prefix": 1.5})
        for i in range(8)
    ]
    update, std = combine(rule(name), found, shape)
    assert std is not None
    assert float(update["prefix"].std()) == pytest.approx(std["prefix"], rel=0.02)
    unknown = [*found[:-1], Contribution("s7", found[-1].update, None)]
    assert combine(rule(name), unknown, shape)[1] is None


def test_large_updates_are_sorted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(5).standard_normal((5, 7))
    whole, _ = combine(rule("median"), sent(rows), PARAMS)
    monkeypatch.setattr("server.robust.means._CHUNK", 10)
    parts, _ = combine(rule("median"), sent(rows), PARAMS)
    assert all(torch.equal(whole[n], parts[n]) for n in PARAMS)


def test_shares_are_bounded_and_combined_the_same_way() -> None:
    assert combine_shares(rule("mean"), []) == []
    assert combine_shares(rule("mean"), [1e9, -1e9, 0.5, 0.5]) == [0.5]
    assert combine_shares(rule("median"), [0.4, 0.5, 1e9]) == [0.5]
    assert combine_shares(rule("trimmed-mean"), [0.0, 0.4, 0.6, 1.0]) == [pytest.approx(0.5)]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"privacy.unit": "client", "privacy.noise_by": "server"},
            "server.aggregation=mean for privacy.noise_by=server",
        ),
        (
            {
                "privacy.mechanism": "lmo",
                "privacy.noise": '{"family": "laplace", "parameters": {"scale": 1.0}}',
                "server.noise_correction": True,
            },
            "server.noise_correction=false",
        ),
    ],
)
@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
def test_what_does_not_go_together_is_refused(
    name: str, changes: dict[str, Any], named: str, tiny_settings: Any
) -> None:
    with pytest.raises(SettingsError, match=named):
        tiny_settings(**changes, **{"server.aggregation": name})


def test_a_run_takes_the_median(start_run: Any, in_process: Any) -> None:
    sent_rows: list[np.ndarray] = []

    def watch(task: Message, reply: Message) -> Message:
        if names.UPDATE in reply.content:
            record: Any = reply.content[names.UPDATE]
            update = record.to_torch_state_dict()
            sent_rows.append(np.concatenate([update[n].numpy().ravel() for n in sorted(update)]))
        return reply

    changes = {"server.optimizer": "sgd", "server.learning_rate": 1.0, "server.rounds": 1}
    run = start_run("run", **changes, **{"server.aggregation": "median"})
    assert in_process(run, tamper=watch) == "finished"
    start = initial_params(shared_tunable(run.settings()), run.settings())
    after = final(run)
    moved = np.concatenate([(after[n] - start[n]).numpy().ravel() for n in sorted(start)])
    assert len(sent_rows) == 4
    np.testing.assert_allclose(moved, np.median(sent_rows, axis=0), atol=1e-6)
