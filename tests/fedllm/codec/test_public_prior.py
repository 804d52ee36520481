"""The prior of public text: what a label changes, whatever labels the text has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedllm.codec.layout import Layout
from fedllm.data.batches import Feature
from fedllm.training.statistics import make_priors, statistics_point
from fedllm.training.tunable import Tunable, initial_params, shared_tunable

Make = Callable[..., Any]
UNITS = [{}, {"privacy.unit": "client", "privacy.noise_by": "server"}]
LOW_RANK = {
    "codec.name": "linear",
    "codec.prior": "low-rank",
    "codec.rank": 8,
    "codec.prior_source": "public",
}


@pytest.fixture(scope="module")
def tunable(tiny_settings: Make) -> Tunable:
    return shared_tunable(tiny_settings())


@pytest.fixture(scope="module")
def features(tunable: Tunable, word_records: Any) -> list[Feature]:
    return tunable.task.features(word_records(64, 5))


@pytest.fixture(scope="module")
def point(tunable: Tunable, tiny_settings: Make) -> dict[str, Tensor]:
    """Initial parameters with an ordinary head whose answers are far from even."""
    params = statistics_point(initial_params(tunable, tiny_settings()), 0)
    params["head.bias"] = torch.tensor([1.5, -1.5])
    return params


def shared_direction(
    tunable: Tunable, point: dict[str, Tensor], features: list[Feature]
) -> tuple[Tensor, Tensor]:
    """The direction of the head's bias (class 1 against class 0), and the layout's block of it."""
    layout = Layout.of(point)
    zeros = {name: torch.zeros_like(value) for name, value in point.items()}
    zeros["head.bias"] = torch.tensor([-1.0, 1.0])
    vector = layout.flatten(zeros)
    return vector / vector.norm(), vector != 0


@pytest.mark.parametrize("unit", UNITS, ids=["example", "client"])
def test_what_all_texts_share_is_not_in_it(
    unit: dict[str, Any],
    tiny_settings: Make,
    tunable: Tunable,
    features: list[Feature],
    point: dict[str, Tensor],
) -> None:
    """Every text has the bias in common. With each class as often in a group, and the answers cancelled,
    its gradient is zero; independent labels would put it first."""
    settings = tiny_settings(**LOW_RANK | unit | {"privacy.clip": 100.0})
    prior = make_priors(settings).of_public_text(tunable, point, features)
    assert prior.energy > 0
    shared, place = shared_direction(tunable, point, features)
    along = (prior.basis @ shared).square() @ prior.basis_variance
    rest = (prior.variance[place]).sum()
    assert float(along + rest) < 1e-9 * prior.energy


@pytest.mark.parametrize("unit", UNITS, ids=["example", "client"])
def test_the_labels_of_the_text_are_not_read(
    unit: dict[str, Any],
    tiny_settings: Make,
    tunable: Tunable,
    features: list[Feature],
    point: dict[str, Tensor],
) -> None:
    settings = tiny_settings(**LOW_RANK | unit)
    first = make_priors(settings).of_public_text(tunable, point, features)
    turned = [replace(feature, target=1 - feature.target) for feature in features]
    second = make_priors(settings).of_public_text(tunable, point, turned)
    assert first.version == second.version


def test_as_many_directions_as_asked_for(
    tiny_settings: Make, tunable: Tunable, features: list[Feature], point: dict[str, Tensor]
) -> None:
    """64 texts of two classes make 32 groups, and so 16 directions at most."""
    ranks = []
    for rank in (4, 12, 30):
        settings = tiny_settings(**LOW_RANK | {"codec.rank": rank})
        ranks.append(len(make_priors(settings).of_public_text(tunable, point, features).basis))
    assert ranks == [4, 12, 16]


def test_too_few_texts_are_an_error(
    tiny_settings: Make, tunable: Tunable, features: list[Feature], point: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match="at least 2 public examples"):
        make_priors(tiny_settings(**LOW_RANK)).of_public_text(tunable, point, features[:1])
