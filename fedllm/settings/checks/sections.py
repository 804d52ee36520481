"""Checks that involve several sections of the settings."""

from __future__ import annotations

from fedllm.settings.kinds import TEACHERS
from fedllm.settings.tree import SettingsTree


def check_relation(settings: SettingsTree) -> None:
    """Whether the neighbouring relation is one that the run can prove.

    Add-or-remove-one needs a number of records that nobody learns. At unit example that is
    ``data.sizes = "private"``: no size is sent, the sampling rate and the divisor are settings, and what
    counts examples (evaluation by the silos, adaptive clipping) carries noise. At unit client it is never so:
    the names of the silos are public and in the report, the server sees who answers, and with noise by the
    server the sum is divided by the expected number of silos, which moves with their number.

    Raises:
        ValueError: it is none.
    """
    privacy = settings.privacy
    if privacy.mode != "dp":
        return
    if privacy.relation == "replace-one" and privacy.unit == "example":
        raise ValueError(
            "Expected privacy.relation=zero-out for privacy.unit=example (amplification by Poisson "
            "sampling is stated for it), got privacy.relation=replace-one"
        )
    if privacy.relation != "add-or-remove-one":
        return
    if privacy.unit == "client":
        raise ValueError(
            "Expected privacy.relation=zero-out (or replace-one) for privacy.unit=client (who takes part is "
            "public, so no epsilon holds for adding or removing a silo; zero-out has the same numbers), got "
            "privacy.relation=add-or-remove-one"
        )
    if settings.data.sizes == "public":
        raise ValueError(
            "Expected privacy.relation=zero-out (the default; the same numbers) or data.sizes=private: with "
            "data.sizes=public the number of examples is known, and no epsilon holds for adding or removing "
            "one; got privacy.relation=add-or-remove-one"
        )


def check_flatness(settings: SettingsTree) -> None:
    """Whether what [awp], [layers] and [teacher] need is there.

    Raises:
        ValueError: it is not.
    """
    if settings.model.access == "black-box":
        _check_without_gradients(settings)
    if settings.awp.form != "none":
        _check_perturbation(settings)
    needs_public = {
        "layers.form=public": settings.layers.form == "public",
        f"teacher.kind={settings.teacher.kind}": TEACHERS[settings.teacher.kind].public,
        "teacher.distillation > 0": settings.teacher.kind != "none"
        and settings.teacher.distillation > 0,
    }
    for setting, needed in needs_public.items():
        if needed and settings.public.source == "none":
            raise ValueError(
                f"Expected public.source for {setting}: public text that the server has, got "
                "public.source=none"
            )
    if settings.public.source in ("files", "hub") and settings.public.path is None:
        raise ValueError(
            f"Expected public.path for public.source={settings.public.source}, got none"
        )
    _check_public(settings)
    _check_layers(settings)


def _check_layers(settings: SettingsTree) -> None:
    """Whether the choice of layers fits model, noise and codec."""
    layers = settings.layers
    if layers.form == "none":
        return
    form = settings.adapter.form
    if form == "head" or (form == "prefix" and settings.prefix.length == 0):
        raise ValueError(
            f"Expected prefix.length > 0 or another adapter.form for layers.form={layers.form} (there are no layers "
            f"to choose among), got adapter.form={form}, prefix.length={settings.prefix.length}"
        )
    chosen = settings.adapter_layers
    if chosen != "all" and layers.keep > len(chosen):
        named = "prefix.layers" if form == "prefix" else "adapter.layers"
        raise ValueError(
            f"Expected layers.keep <= {len(chosen)}, the number of {named}, "
            f"got layers.keep={layers.keep}"
        )
    if layers.after > 0 and settings.codec.active:
        raise ValueError(
            "Expected layers.after=0 with a codec (it is made for the prefix's shape, before the first "
            f"round), got layers.after={layers.after} with codec.name={settings.codec.name}, "
            f"codec.bits={settings.codec.bits}"
        )
    if (
        layers.asks_silos
        and settings.privacy.mode == "dp"
        and settings.privacy.noise_by == "server"
    ):
        raise ValueError(
            "Expected layers.form=public for privacy.noise_by=server (silos that add no noise release "
            f"no scores of their own), got layers.form={layers.form}"
        )
    if settings.layers.after >= settings.server.rounds:
        raise ValueError(
            f"Expected layers.after < server.rounds={settings.server.rounds}, "
            f"got layers.after={settings.layers.after}"
        )


def _check_public(settings: SettingsTree) -> None:
    """Whether [public] fits the task."""
    public, task = settings.public, settings.task
    if public.source == "none":
        return
    if public.text is not None and len(public.text) != len(task.text):
        raise ValueError(
            f"Expected as many public.text columns as task.text ({', '.join(task.text)}), got "
            f"public.text={', '.join(public.text)}"
        )
    if not task.has_classes and public.labels:
        raise ValueError(
            f"Expected no public.labels for task.kind={task.kind} (there are no classes), got "
            f"{', '.join(public.labels)}"
        )
    unknown = sorted(set(public.labels.values()) - set(task.labels or ()))
    if unknown:
        raise ValueError(
            f"Expected classes among task.labels ({', '.join(task.labels or ())}) as values of "
            f"public.labels, got {', '.join(unknown)}"
        )


def _check_perturbation(settings: SettingsTree) -> None:
    """Whether there is something to perturb."""
    awp = settings.awp
    form = settings.adapter.form
    if (form == "head" or (form == "prefix" and settings.prefix.length == 0)) and not awp.head:
        raise ValueError(
            f"Expected prefix.length > 0, another adapter.form or awp.head=true for awp.form={awp.form} (there is "
            f"nothing to perturb), got adapter.form={form}, prefix.length={settings.prefix.length}, awp.head=false"
        )


def _check_without_gradients(settings: SettingsTree) -> None:
    """What works through the model's outputs alone, and what does not."""
    needs = {
        f"awp.form={settings.awp.form}": (
            settings.awp.form != "none",
            "the perturbation and the step are gradients of the model; use awp.form=none",
        ),
        f"layers.measure={settings.layers.measure}": (
            settings.layers.form != "none" and settings.layers.measure != "random",
            "one ascent step is a gradient; layers.measure=random needs losses alone",
        ),
        f"teacher.kind={settings.teacher.kind}": (
            TEACHERS[settings.teacher.kind].gradients,
            "this teacher is trained by gradients; teacher.kind=ema needs none",
        ),
        "teacher.distillation > 0": (
            settings.teacher.kind != "none" and settings.teacher.distillation > 0,
            "distillation differentiates the model's outputs; teacher.strength needs no gradient",
        ),
    }
    for setting, (asked, why) in needs.items():
        if asked:
            raise ValueError(
                f"Expected model.access=white-box for {setting} ({why}), got model.access=black-box"
            )


def check_codec(settings: SettingsTree) -> None:
    """Whether codec, privacy and optimiser fit together.

    Raises:
        ValueError: they do not.
    """
    if not settings.codec.active:
        return
    codec, privacy = settings.codec, settings.privacy
    dp = privacy.mode == "dp"
    in_code = dp and codec.noise == "in-code"
    if in_code and privacy.unit == "example" and settings.client.optimizer != "sgd":
        raise ValueError(
            "Expected client.optimizer=sgd for codec.noise=in-code with privacy.unit=example (the "
            "code that is sent is the sum of the steps' noisy codes, which moves the weights only "
            f"under SGD), got client.optimizer={settings.client.optimizer}"
        )
    if codec.asks_silos and dp and privacy.noise_by == "server" and codec.prior == "low-rank":
        raise ValueError(
            "Expected codec.prior=layerwise, factored or coordinate, or codec.prior_source=public, for "
            "privacy.noise_by=server (directions are found in the releases of single silos, and a "
            "trusted server releases one sum), got codec.prior=low-rank with "
            "codec.prior_source=private"
        )


def check_clipping(settings: SettingsTree) -> None:
    """Whether what is released beside the counts can be accounted together with them.

    Raises:
        ValueError: it cannot; the message names both settings.
    """
    if settings.clipping.form == "fixed":
        return
    privacy = settings.privacy
    refused = {
        f"privacy.mechanism={privacy.mechanism}": (
            privacy.mechanism != "gaussian",
            "privacy.mechanism=gaussian",
            "sum and count are one Gaussian mechanism together",
        ),
        f"codec.name={settings.codec.name}, codec.bits={settings.codec.bits}": (
            settings.codec.active,
            "no codec",
            "it is made for one clipping norm",
        ),
        "model.access=black-box": (
            settings.model.access == "black-box",
            "model.access=white-box",
            "there are no gradients whose norms could be counted",
        ),
    }
    for got, (asked, expected, why) in refused.items():
        if asked:
            raise ValueError(f"Expected {expected} for clipping.form=adaptive ({why}), got {got}")


def check_server(settings: SettingsTree) -> None:
    """Whether aggregation, noise and optimiser fit together.

    Raises:
        ValueError: they do not.
    """
    server, privacy = settings.server, settings.privacy
    if server.aggregation == "mean" or privacy.mode == "none":
        return
    if privacy.noise_by == "server":
        raise ValueError(
            "Expected server.aggregation=mean for privacy.noise_by=server (the noise is made for a sum to which "
            "each silo adds at most privacy.clip; one silo may move a median or the clipping of the others by "
            f"more), got server.aggregation={server.aggregation}"
        )
    by_rank = server.aggregation in ("median", "trimmed-mean")
    if by_rank and server.noise_correction and privacy.mechanism != "gaussian":
        raise ValueError(
            "Expected server.noise_correction=false, server.aggregation=mean or privacy.mechanism=gaussian (what a "
            "median leaves of other noise is not known here), got server.noise_correction=true, "
            f"server.aggregation={server.aggregation}, privacy.mechanism={privacy.mechanism}"
        )
