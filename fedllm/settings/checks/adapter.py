"""Checks of the adapter against other sections."""

from __future__ import annotations

from fedllm.settings.tree import SettingsTree


def check_adapter(settings: SettingsTree) -> None:
    """Refuse settings that have no meaning for the adapter's form.

    Raises:
        ValueError: both settings are named.
    """
    adapter = settings.adapter
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
    if adapter.form == "head" and settings.task.kind == "generation":
        raise ValueError(
            "Expected an adapter.form other than head for task.kind=generation (it has no head), got "
            "adapter.form=head"
        )
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
