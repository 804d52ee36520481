"""Fixed shapes (``client.max_batch``): what they need, what does not go with them, and their events' size."""

from __future__ import annotations

from fedllm.settings.tree import SettingsTree


def check_fixed_shape(settings: SettingsTree) -> None:
    """Check that a step of fixed shape is one truncated, sampled Gaussian mechanism, and nothing else leaves.

    Raises:
        ValueError: it is not, or it is not proven; the message names both settings.
    """
    most, privacy, client = settings.client.max_batch, settings.privacy, settings.client
    if most is None:
        return
    sized = (
        "the event's number of records is public, and follows from batch_size and the sampling rate"
    )
    one = "a step is accounted as one Gaussian mechanism on gradients"
    work = "its own work depends on the data"
    refused = {
        f"privacy.mode={privacy.mode}": (privacy.mode != "dp", "privacy.mode=dp", one),
        f"privacy.unit={privacy.unit}": (
            privacy.unit != "example",
            "privacy.unit=example",
            "it truncates samples of examples",
        ),
        f"data.sizes={settings.data.sizes}": (
            settings.data.sizes != "public",
            "data.sizes=public",
            sized,
        ),
        f"client.sampling_rate={client.sampling_rate}": (
            client.sampling_rate is not None,
            "no client.sampling_rate",
            sized,
        ),
        "a sampling_rate in privacy.silos": (
            any(own.sampling_rate is not None for own in privacy.silos.values()),
            "none",
            sized,
        ),
        f"privacy.accountant={privacy.accountant}": (
            privacy.accountant != "pld",
            "privacy.accountant=pld",
            "no other one represents the truncated sample",
        ),
        f"privacy.mechanism={privacy.mechanism}": (
            privacy.mechanism != "gaussian",
            "privacy.mechanism=gaussian",
            one,
        ),
        f"clipping.form={settings.clipping.form}": (
            settings.clipping.form != "fixed",
            "clipping.form=fixed",
            "the count of norms beside a truncated sum is not proven",
        ),
        f"model.reuse={settings.model.reuse}": (
            settings.model.reuse != "off",
            "model.reuse=off",
            "a step is shorter for examples that were drawn before",
        ),
        f"awp.form={settings.awp.form}": (
            settings.awp.form == "batch",
            "another awp.form",
            "a raw sum of the truncated sample has no guarantee",
        ),
        f"codec.noise={settings.codec.noise}": (
            settings.codec.active and settings.codec.noise == "in-code",
            "codec.noise=before-encoding",
            one,
        ),
        f"codec.prior_source={settings.codec.prior_source}": (
            settings.codec.asks_silos,
            "a codec that asks the silos for nothing",
            work,
        ),
        f"layers.form={settings.layers.form}": (
            settings.layers.asks_silos,
            "a choice of layers that asks the silos for nothing",
            work,
        ),
        f"evaluation.clients={settings.evaluation.clients}": (
            settings.evaluation.by_silos,
            "evaluation.clients=off",
            work,
        ),
        f"teacher.kind={settings.teacher.kind}": (
            settings.teacher.kind == "nonprivate",
            "another teacher",
            work,
        ),
        f"model.access={settings.model.access}": (
            settings.model.access != "white-box",
            "model.access=white-box",
            one,
        ),
    }
    for got, (asked, expected, why) in refused.items():
        if asked:
            raise ValueError(f"Expected {expected} for client.max_batch ({why}), got {got}")
    sizes = [client.batch_size, *(own.batch_size for own in privacy.silos.values())]
    for size in filter(None, sizes):
        if most < size:
            raise ValueError(
                f"Expected client.max_batch >= {size}, the expected size of a batch, got "
                f"client.max_batch={most}"
            )


def records_of(settings: SettingsTree, sampling_rate: float) -> int:
    """Return the number of a silo's examples, by its sampling rate batch_size / n; exact for a rate below 1.

    Args:
        settings: the silo's own (``Settings.for_silo``).
    """
    return round(float(settings.client.batch_size or 1) / sampling_rate)
