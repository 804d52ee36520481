"""Secure aggregation in the settings: what does not fit is refused in one line that names setting and value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedllm.settings.io import SettingsError
from fedllm.training.mechanism import make_mechanism
from fedllm.training.sum_share.mechanism import SumShare

Make = Callable[..., Any]
SUM = {"privacy.noise_by": "sum", "client.local_steps": 1}
CLIENT = {"privacy.noise_by": "sum", "privacy.unit": "client"}
LINEAR = {"codec.name": "linear", "codec.noise": "in-code", "codec.prior_source": "public"}


@pytest.mark.parametrize(
    "good",
    [
        SUM,
        CLIENT | {"client.local_steps": 3, "client.optimizer": "adam"},
        SUM | {"secure.drop_outs": 2, "secure.colluding": 1, "secure.bits": 32},
        SUM | LINEAR,
        SUM | {"codec.name": "random-projection", "codec.noise": "in-code"},
        SUM | {"clipping.form": "adaptive", "privacy.prefix_scale": 0.5},
        SUM | {"awp.form": "per-example"},
        SUM | {"privacy.accountant": "rdp"},
        CLIENT | {"privacy.relation": "replace-one"},
    ],
)
def test_what_a_sum_can_do(good: dict[str, Any], tiny_settings: Make) -> None:
    settings = tiny_settings(**good)
    made = make_mechanism(settings, sampling_rate=0.5, noise_multiplier=1.0)
    assert isinstance(made, SumShare)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (SUM | {"client.local_steps": 2}, "client.local_steps=2"),
        (SUM | {"client.optimizer": "adam"}, "client.optimizer=adam"),
        (SUM | {"client.max_batch": 32, "privacy.accountant": "pld"}, "client.max_batch=32"),
        (SUM | {"awp.form": "batch"}, "awp.form=batch"),
        (SUM | {"adapter.form": "full"}, "adapter.form=full"),
        (SUM | {"server.fraction": 0.5}, "server.fraction=0.5"),
        (CLIENT | {"server.sampling": "poisson"}, "server.sampling=poisson"),
        (SUM | {"server.aggregation": "median"}, "server.aggregation=median"),
        (SUM | {"model.access": "black-box"}, "model.access=black-box"),
        (
            SUM | {"privacy.mechanism": "lmo", "privacy.noise": '{"family": "gaussian"}'},
            "privacy.mechanism=lmo",
        ),
        (SUM | {"layers.form": "private", "layers.keep": 1}, "layers.form=private"),
        (SUM | {"codec.name": "top-k"}, "codec.name=top-k"),
        (SUM | {"codec.name": "autoencoder", "codec.prior_source": "public"}, "codec.name=autoencoder"),
        (SUM | {"codec.name": "fp16"}, "codec.name=fp16"),
        (SUM | {"codec.name": "random-projection"}, "codec.noise=before-encoding"),
        (SUM | LINEAR | {"codec.prior_source": "private"}, "codec.prior_source=private"),
        (SUM | LINEAR | {"codec.bits": 8}, "codec.bits=8"),
        (SUM | {"privacy.silos": {"alpha": {"batch_size": 3}}}, "privacy.silos.alpha.batch_size=3"),
        ({"secure.drop_outs": 1}, "secure.drop_outs=1"),
    ],
)  # fmt: skip
def test_what_is_no_sum_is_refused_by_name(
    changes: dict[str, Any], named: str, tiny_settings: Make
) -> None:
    with pytest.raises(SettingsError, match="Expected") as error:
        tiny_settings(**changes)
    assert named in str(error.value)
    assert "privacy.noise_by" in str(error.value)


@pytest.mark.parametrize(
    "changes", [{"secure.bits": 16}, {"secure.drop_outs": -1}, {"secure.colluding": -1}]
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], tiny_settings: Make) -> None:
    with pytest.raises(SettingsError, match=next(iter(changes))):
        tiny_settings(**SUM | changes)


def test_a_silo_may_have_its_own_rate_and_targets(tiny_settings: Make) -> None:
    own = {"alpha": {"sampling_rate": 0.1, "epsilon": 1.0}}
    assert tiny_settings(**SUM | {"privacy.silos": own}).for_silo("alpha").privacy.epsilon == 1.0


@pytest.mark.parametrize(("silos", "t", "m"), [(1, 0, 0), (3, 0, 2), (4, 2, 0), (8, 3, 2)])
def test_too_few_silos_are_refused(silos: int, t: int, m: int, tiny_settings: Make) -> None:
    settings = tiny_settings(**SUM | {"secure.drop_outs": t, "secure.colluding": m})
    made = make_mechanism(settings, sampling_rate=0.5, noise_multiplier=1.0)
    with pytest.raises(ValueError, match=r"secure\.(colluding|drop_outs)"):
        made.among(silos, 100)  # type: ignore[attr-defined]
