"""Checks of the adapter against other sections."""

from __future__ import annotations

from fedllm.settings.tree import SettingsTree


def check_adapter(settings: SettingsTree) -> None:
    """Refuse settings that have no meaning for the adapter's form.

    Raises:
        ValueError: both settings are named.
    """
    adapter = settings.adapter
    _check_start(settings)
    if adapter.form == "prefix":
        if adapter.layers != "all":
            raise ValueError(
                f"Expected prefix.layers for adapter.form=prefix, got adapter.layers={list(adapter.layers)}"
            )
        return
    if settings.privacy.prefix_scale != 1.0:
        raise ValueError(
            f"Expected privacy.prefix_scale=1 for adapter.form={adapter.form} (there is no prefix), got "
            f"privacy.prefix_scale={settings.privacy.prefix_scale}"
        )
    if adapter.form == "head" and settings.task.facts.writes:
        raise ValueError(
            f"Expected an adapter.form other than head for task.kind={settings.task.kind} (it has no head), got "
            "adapter.form=head"
        )
    if adapter.whole_weights:
        _check_whole_weights(settings)
    if adapter.form == "rolora" and settings.codec.active:
        raise ValueError(
            "Expected no codec for adapter.form=rolora (a codec is made for the tensors of one round, and rounds "
            f"train different ones), got codec.name={settings.codec.name}, codec.bits={settings.codec.bits}"
        )
    refused = {
        f"teacher.kind={settings.teacher.kind}": settings.teacher.kind != "none",
        f"server.averaging={settings.server.averaging}": settings.server.averaging > 0,
    }
    for got, asked in refused.items():
        if adapter.form == "fedsvd" and asked:
            raise ValueError(
                "Expected teacher.kind=none and server.averaging=0 for adapter.form=fedsvd (the factors of two rounds "
                f"have different bases, so that their mean means nothing; use ffa-lora), got {got}"
            )


def _check_whole_weights(settings: SettingsTree) -> None:
    """Refuse what needs a copy of the trained tensors an example."""
    form, codec, layers = settings.adapter.form, settings.codec, settings.layers
    for name in ("quantization", "device_map"):
        got = getattr(settings.model, name)
        if got != "none":
            raise ValueError(
                f"Expected model.{name}=none for adapter.form={form} (it trains the matrices themselves), got "
                f"model.{name}={got}"
            )
    by_example = settings.privacy.unit == "example"
    own_ascent = layers.form in ("private", "private-top-k") and layers.measure == "ascent"
    scored = layers.form != "none" and (own_ascent or layers.measure == "example-ascent")
    refused = {
        f"codec.noise=before-encoding or privacy.unit=client, got codec.name={codec.name} with codec.noise=in-code "
        "(a code is made of each example's gradient)": by_example
        and codec.active
        and codec.noise == "in-code",
        f"awp.form=none or batch, got awp.form={settings.awp.form} (each example has a point of its own)": (
            settings.awp.form == "per-example"
        ),
        f"layers.measure=random (or ascent with layers.form=public), got layers.form={layers.form} with "
        f"layers.measure={layers.measure} (each example has an ascent of its own)": scored,
    }
    for words, asked in refused.items():
        if asked:
            expected, _, got = words.partition(", got ")
            raise ValueError(
                f"Expected {expected} for adapter.form={form} (copies of whole weights, one an example, do not fit), "
                f"got {got}"
            )


def _check_start(settings: SettingsTree) -> None:
    adapter = settings.adapter
    if adapter.init == "random":
        return
    if not adapter.low_rank:
        raise ValueError(
            f"Expected a LoRA form for adapter.init={adapter.init}, got adapter.form={adapter.form}"
        )
    if settings.public.source == "none":
        raise ValueError(
            f"Expected public.source for adapter.init={adapter.init}: public text that the server has, got "
            "public.source=none"
        )
