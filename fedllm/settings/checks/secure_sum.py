"""Checks of secure aggregation (``privacy.noise_by = "sum"``) against other sections."""

from __future__ import annotations

from fedllm.settings.privacy import SecureSettings
from fedllm.settings.tree import SettingsTree

SEVERAL_STEPS = (
    "between local steps a silo's own share alone protects, and a later gradient depends on every example through the "
    "steps before: the sum's noise does not cover the round"
)
"""Reason for one step a round with unit example; tests/fedllm/training/test_two_steps.py has numbers."""


def check_secure_sum(settings: SettingsTree) -> None:
    """Check that the sum that is released is the one that is accounted.

    Raises:
        ValueError: it is not; the message names the setting and the value.
    """
    if settings.privacy.noise_by != "sum":
        _check_unused(settings.secure, settings.privacy.noise_by)
        return
    example = settings.privacy.unit == "example"
    client, server, codec = settings.client, settings.server, settings.codec
    # what was set: (whether it is refused, what is expected instead, why)
    refused: dict[str, tuple[bool, str, str]] = {
        f"model.access={settings.model.access}": (
            settings.model.access != "white-box",
            "model.access=white-box",
            "the numbers along random directions have no sum under a mask yet",
        ),
        f"privacy.mechanism={settings.privacy.mechanism}": (
            settings.privacy.mechanism != "gaussian",
            "privacy.mechanism=gaussian",
            "shares of discrete Gaussian noise are what a sum is accounted with",
        ),
        f"server.aggregation={server.aggregation}": (
            server.aggregation != "mean",
            "server.aggregation=mean",
            "the server sees no single update",
        ),
        f"server.fraction={server.fraction:g}": (
            server.fraction < 1,
            "server.fraction=1",
            "a silo that is not drawn adds no share",
        ),
        f"server.sampling={server.sampling}": (
            server.sampling != "fixed",
            "server.sampling=fixed",
            "a silo that is not drawn adds no share",
        ),
        f"layers.form={settings.layers.form}": (
            settings.layers.form != "none",
            "layers.form=none",
            "the silos fix the vector's length before the first round",
        ),
        f"awp.form={settings.awp.form}": (
            example and settings.awp.form == "batch",
            "awp.form=none or per-example",
            "gradients at a point of the whole batch have no bounded sensitivity",
        ),
        f"client.local_steps={client.local_steps}": (
            example and client.local_steps != 1,
            "client.local_steps=1",
            SEVERAL_STEPS,
        ),
        f"client.optimizer={client.optimizer}": (
            example and client.optimizer != "sgd",
            "client.optimizer=sgd",
            "a step of Adam is not linear in the gradient, and the server learns the sum of gradients",
        ),
        f"client.max_batch={client.max_batch}": (
            example and client.max_batch is not None,
            "no client.max_batch",
            "no bound is proven for a truncated sample with discrete noise",
        ),
        f"adapter.form={settings.adapter.form}": (
            example and settings.adapter.whole_weights,
            "another adapter.form",
            "an example's gradient is rounded to integers, and of whole weights only its factors are known",
        ),
        f"codec.name={codec.name}": (
            codec.active and codec.name not in ("none", "linear", "random-projection"),
            "codec.name=none, linear or random-projection",
            "the code of a sum is the sum of codes for a linear codec only",
        ),
        f"codec.noise={codec.noise} with codec.name={codec.name}": (
            codec.active and codec.noise != "in-code",
            "codec.noise=in-code",
            "the integers that are summed are the code, with its noise",
        ),
        f"codec.prior_source={codec.prior_source} with codec.name={codec.name}": (
            codec.active and codec.asks_silos,
            "codec.prior_source=public",
            "the silos fix the code's length before they release anything",
        ),
        f"codec.bits={codec.bits}": (
            codec.active and codec.bits != 32,
            "codec.bits=32",
            "the code is sent as integers of secure.bits bits",
        ),
    }
    for got, (asked, expected, why) in refused.items():
        if asked:
            raise ValueError(f"Expected {expected} for privacy.noise_by=sum ({why}), got {got}")
    for name, own in settings.privacy.silos.items():
        if own.batch_size is not None:
            raise ValueError(
                "Expected no batch_size of its own for a silo with privacy.noise_by=sum (the sum has one divisor; "
                f"sampling_rate may differ), got privacy.silos.{name}.batch_size={own.batch_size}"
            )


def _check_unused(secure: SecureSettings, noise_by: str) -> None:
    """Refuse values of [secure] where nothing is summed under masks."""
    if secure != SecureSettings():
        given = ", ".join(f"secure.{k}={v}" for k, v in secure.model_dump().items())
        raise ValueError(
            f"Expected privacy.noise_by=sum for [secure], got privacy.noise_by={noise_by} with {given}"
        )
