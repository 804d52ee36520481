"""A silo's share of a sum: its integers, its noise, its event, and the mean that is read from the sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.training.gradients import clipped_gradient_sum, gradient_scales
from fedllm.training.mechanism import make_mechanism
from fedllm.training.steps import LocalWork, Tally, plain_update
from fedllm.training.sum_share.mechanism import SUM, SumShare, ring_of, tensor_of, with_shares
from fedllm.training.tunable import Tunable, initial_params, shared_tunable
from privacy.accountants import make_accountant
from privacy.events.constructors import dp_sgd, gaussian
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
