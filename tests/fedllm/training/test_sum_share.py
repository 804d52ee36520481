"""A silo's share of a sum: its integers, its noise, its event, and the mean that is read from the sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fedllm.codec.random_projection import RandomProjection
from fedllm.data.batches import Feature
from fedllm.training.encoding import Encoding
from fedllm.training.gradients import clipped_gradient_sum, gradient_scales
from fedllm.training.mechanism import make_mechanism
from fedllm.training.steps import LocalWork, Tally, plain_update
from fedllm.training.sum_share.mechanism import SUM, SumShare, ring_of, tensor_of, with_shares
from fedllm.training.tunable import Tunable, initial_params, shared_tunable
from privacy.accountants import make_accountant
from privacy.events.constructors import dp_sgd, gaussian
from privacy.events.kinds import DiscreteGaussianSumDpEvent
from privacy.mechanisms.clipping import clip_vector
from privacy.randomness import generator
from privacy.secure_sum import ring
from tests.support.tiny_tunables import shaken

Make = Callable[..., Any]
SUMMED = {
    "privacy.noise_by": "sum",
    "privacy.noise_multiplier": 1.3,
    "privacy.clip": 0.4,
    "client.local_steps": 1,
    "client.batch_size": 5,
    "client.learning_rate": 0.5,
}
CLIENT = SUMMED | {"privacy.unit": "client", "client.local_steps": 2}
COUNTED = {"clipping.form": "adaptive", "clipping.count_share": 0.2}


@pytest.fixture(scope="module")
def tunable(tiny_settings: Make) -> Tunable:
    return shared_tunable(tiny_settings())


@pytest.fixture(scope="module")
def features(tunable: Tunable, word_records: Any) -> list[Feature]:
    return tunable.task.features(word_records(12, 3))


@pytest.fixture(scope="module")
def params(tunable: Tunable, tiny_settings: Make) -> dict[str, Tensor]:
    return shaken(initial_params(tunable, tiny_settings()))


def size(params: dict[str, Tensor]) -> int:
    return sum(value.numel() for value in params.values())


def mechanism(settings: Any, params: dict[str, Tensor], silos: int = 3, rate: float = 1.0) -> Any:
    made = make_mechanism(
        settings, sampling_rate=rate, noise_multiplier=settings.privacy.noise_multiplier
    )
    assert isinstance(made, SumShare)
    found = made.among(silos, size(params))
    return found.at_clip(settings.privacy.clip) if found.adaptive else found


def work(tunable: Tunable, params: dict[str, Tensor], features: list[Feature], *seed: Any) -> Any:
    return LocalWork(
        tunable, params, features, lambda purpose, step: generator(5, *seed, purpose, step)
    )


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("extra", [{}, COUNTED, {"privacy.prefix_scale": 0.25}])
@pytest.mark.parametrize("base", [SUMMED, CLIENT])
def test_the_mean_of_a_sum_is_that_of_clipped_updates_and_its_noise(
    base: Any, extra: Any, bits: int, tunable: Tunable, params: Any, features: Any, tiny_settings: Make
) -> None:  # fmt: skip
    """Compare with the mean by other code; what is left over has the standard deviation that is promised."""
    if base is CLIENT and "privacy.prefix_scale" in extra:
        pytest.skip("unit client has no prefix_scale")
    settings = tiny_settings(**base | extra | {"secure.bits": bits})
    one = mechanism(settings, params)
    silos = [features[:4], features[4:8], features[8:]]
    left = []
    std = one.mean_std(params, 3)
    scales = gradient_scales(settings.privacy.prefix_scale, params)
    for draw in range(8):
        messages = [
            one.train(work(tunable, params, f, draw, i)).update[SUM] for i, f in enumerate(silos)
        ]
        assert {m.dtype for m in messages} == {torch.int32 if bits == 32 else torch.int64}
        mean = one.read(ring.add(map(ring_of, messages)), 3, params)
        expected = {name: torch.zeros_like(value) for name, value in params.items()}
        for i, found in enumerate(silos):
            if base is CLIENT:
                update = plain_update(
                    work(tunable, params, found, draw, i), one.plan, 1.0, Tally(), None
                )
                flat = torch.cat([update[n].reshape(-1) for n in sorted(update)])
                flat, _, _ = clip_vector(flat, one.clip)
                pieces = flat.split([params[n].numel() for n in sorted(params)])
            else:
                total = clipped_gradient_sum(
                    tunable, params, found, clip_norm=one.clip, scales=scales, max_tokens=4096
                )
                pieces = [v.reshape(-1) * -0.5 / 5 for v in total.sums]
            for name, piece in zip(sorted(params), pieces, strict=True):
                expected[name] += piece.reshape(params[name].shape) / scales[name] / 3
        for name in params:
            left.append(((mean.update[name] - expected[name]) / std[name]).reshape(-1))
    found = torch.cat(left).double().numpy()
    freedom = found.size
    assert 1e-6 < stats.chi2.cdf((found**2).sum(), freedom) < 1 - 1e-6
    assert abs(found.mean()) < 6 / math.sqrt(freedom)


@pytest.mark.parametrize("base", [SUMMED, CLIENT])
def test_the_count_tells_the_share_of_short_records(
    base: Any, tunable: Tunable, params: Any, features: Any, tiny_settings: Make
) -> None:
    """With hardly any noise the share below is exact: none for a tiny norm, all for a large one."""
    for clip, share in ((1e-5, 0.0), (1e5, 1.0)):
        settings = tiny_settings(
            **base | COUNTED | {"privacy.noise_multiplier": 0.01, "privacy.clip": clip, "client.batch_size": 4}
        )  # fmt: skip
        one = mechanism(settings, params)
        silos = [features[:4], features[4:8], features[8:]]
        messages = [one.train(work(tunable, params, f, i)).update[SUM] for i, f in enumerate(silos)]
        below = one.read(ring.add(map(ring_of, messages)), 3, params).below
        assert below == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("rate", [1.0, 0.1])
@pytest.mark.parametrize("changes", [{}, COUNTED, {"secure.colluding": 2}, {"secure.drop_outs": 1}])
def test_a_round_costs_at_most_the_gaussian_that_was_calibrated_and_hardly_less(
    rate: float, changes: Any, params: Any, tiny_settings: Make
) -> None:
    settings = tiny_settings(**SUMMED | changes)
    one = mechanism(settings, params, silos=8, rate=rate)
    [(event, count)] = one.events(1).items()
    assert count == 1
    pld = make_accountant("pld")
    cost = pld.epsilon({event: 20}, 1e-5)
    calibrated = pld.epsilon({dp_sgd(rate, 1.3, 1) if rate < 1 else gaussian(1.3): 20}, 1e-5)
    assert 0.98 * calibrated < cost <= calibrated
    assert pld.epsilon({with_shares(event, 1): 20}, 1e-5) > 1.5 * cost


def test_the_event_does_not_move_with_the_clipping_norm(params: Any, tiny_settings: Make) -> None:
    one = mechanism(tiny_settings(**SUMMED | COUNTED), params)
    assert len({tuple(one.at_clip(clip).events(1)) for clip in (1e-6, 0.3, 1.0, 77.7, 1e6)}) == 1


def test_messages_keep_the_bits_of_the_ring() -> None:
    for bits, kind in ((32, np.uint32), (64, np.uint64)):
        vector = np.array([0, 1, 2 ** (bits - 1), 2**bits - 1], dtype=kind)
        assert np.array_equal(ring_of(tensor_of(vector)), vector)
    with pytest.raises(ValueError, match="int32 or int64"):
        ring_of(torch.zeros(3))


def test_nothing_is_made_before_the_silos_are_known(
    tunable: Tunable, params: Any, features: Any, tiny_settings: Make
) -> None:
    settings = tiny_settings(**SUMMED)
    bare = make_mechanism(settings, sampling_rate=1.0, noise_multiplier=1.3)
    with pytest.raises(ValueError, match="Expected the number of silos"):
        bare.events(1)
    with pytest.raises(ValueError, match="Expected the number of silos"):
        bare.train(work(tunable, params, features))
    with pytest.raises(ValueError, match="as the silos agreed on"):
        bare.among(3, size(params) + 1).train(work(tunable, params, features))  # type: ignore[attr-defined]


@pytest.mark.parametrize("extra", [{}, COUNTED, {"privacy.prefix_scale": 0.25}])
@pytest.mark.parametrize("codec", [False, True])
def test_one_example_moves_a_silo_s_integers_by_at_most_the_sensitivity(
    extra: Any, codec: bool, tunable: Tunable, params: Any, features: Any, tiny_settings: Make
) -> None:
    """Over neighbouring data sets of real gradients, with and without noise in the code; the bound is nearly attained."""
    changes = SUMMED | extra | {"privacy.clip": 1e-3, "privacy.noise_multiplier": 1e-3}
    settings = tiny_settings(**changes)
    one = mechanism(settings, params)
    encoding = None
    if codec:
        if one.adaptive:
            pytest.skip("no codec with adaptive clipping")
        coded = tiny_settings(**changes | {"codec.name": "random-projection", "codec.noise": "in-code", "codec.ratio": 4.0})  # fmt: skip
        made = RandomProjection(size(params), size(params) // 4, 3)
        encoding = Encoding.of(made, "1", coded, params)
        one = one.among(3, made.code_dimension)
    # hardly any noise would be a fine grid; the sensitivity is in steps, so any noise will do
    plan = one.shares

    def integers(chosen: list[Feature]) -> np.ndarray:
        local = replace(work(tunable, params, chosen, 0), encoding=encoding)
        vector, count = one._example(local, Tally(), plan)
        tail = [] if one.count_share is None else [count * one._count_steps]
        return np.append(vector.numpy(), np.array(tail, dtype=np.int64)).astype(float)

    whole = integers(features)
    moved = [
        float(np.linalg.norm(whole - integers(features[:i] + features[i + 1 :])))
        for i in range(len(features))
    ]
    assert max(moved) <= plan.sensitivity
    assert min(moved) > 0.95 * plan.sensitivity


@pytest.mark.parametrize(("t", "m"), [(0, 0), (1, 0), (1, 2)])
def test_the_share_is_what_the_event_says(t: int, m: int, params: Any, tiny_settings: Make) -> None:
    """Computed again from first principles: norm of one record over the grid's step, and the honest shares' noise."""
    settings = tiny_settings(**SUMMED | {"secure.drop_outs": t, "secure.colluding": m})
    one = mechanism(settings, params, silos=9)
    [event] = one.events(1)
    assert isinstance(event, DiscreteGaussianSumDpEvent)
    assert event.shares == 9 - t - m
    assert event.sensitivity >= 2.0**-one.shares.exponent + math.sqrt(size(params))
    assert event.sigma == one.shares.sigma
    assert event.sigma * math.sqrt(event.shares) / event.sensitivity >= 1.3
    assert one.shares.largest * 9 + 50 * one.shares.sigma < 2**63


def test_epsilon_is_never_below_that_of_the_sum_of_shares_in_numbers(tiny_settings: Make) -> None:
    """One number, three silos: the hockey-stick divergence of the very distribution of the sum, by convolution."""
    settings = tiny_settings(**SUMMED | {"privacy.noise_multiplier": 1.0})
    one = make_mechanism(settings, sampling_rate=1.0, noise_multiplier=1.0).among(3, 1)  # type: ignore[attr-defined]
    plan = one.shares
    x = np.arange(-10 * plan.sigma, 10 * plan.sigma + 1)
    share = np.exp(-((x / plan.sigma) ** 2) / 2)
    share /= share.sum()
    total = np.convolve(np.convolve(share, share), share)
    shift = math.floor(plan.sensitivity)
    there, here = np.append(total, np.zeros(shift)), np.append(np.zeros(shift), total)
    for delta in (1e-3, 1e-6):
        stated = make_accountant("pld").epsilon(one.events(1), delta)
        assert np.maximum(there - math.exp(stated) * here, 0).sum() <= delta
        assert np.maximum(there - math.exp(stated * 0.97) * here, 0).sum() > delta


def test_sampling_amplifies_at_the_silo_s_own_rate(params: Any, tiny_settings: Make) -> None:
    for rate in (0.5, 0.01):
        [event] = mechanism(tiny_settings(**SUMMED), params, rate=rate).events(1)
        assert event.sampling_probability == rate
    [event] = mechanism(tiny_settings(**CLIENT), params, rate=0.01).events(1)
    assert isinstance(event, DiscreteGaussianSumDpEvent)  # a silo's update is in every sum
