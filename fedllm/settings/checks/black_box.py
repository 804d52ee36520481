"""Checks of training through a model's outputs alone (``model.access = "black-box"``) against other sections."""

from __future__ import annotations

from fedllm.settings.tree import SettingsTree


def _check_endpoint(settings: SettingsTree) -> None:
    """Whether the settings fit a model behind an endpoint."""
    task = settings.task
    if settings.model.access != "black-box":
        raise ValueError(
            "Expected model.access=black-box for endpoint.url (an endpoint gives no gradients), got "
            f"model.access={settings.model.access}"
        )
    if settings.prefix_length != 0 or settings.adapter.form not in ("prefix", "head"):
        raise ValueError(
            "Expected adapter.form=head (or prefix.length=0) for endpoint.url (no tensor can be sent there; what is "
            f"trained is what its answers become), got adapter.form={settings.adapter.form}, "
            f"prefix.length={settings.prefix.length}"
        )
    if task.kind != "classification" or task.label_words is None:
        raise ValueError(
            "Expected task.kind=classification with task.label_words for endpoint.url, got "
            f"task.kind={task.kind}, task.label_words={task.label_words}"
        )
    if not settings.endpoint.prompts and task.prompt is None:
        raise ValueError("Expected endpoint.prompts or task.prompt for endpoint.url, got neither")


def check_zeroth_order(settings: SettingsTree) -> None:
    """Whether the rest of the settings fits training through outputs alone.

    Raises:
        ValueError: it does not.
    """
    if settings.endpoint.active:
        _check_endpoint(settings)
    if settings.model.access == "white-box":
        return
    if settings.model.checkpointing:
        raise ValueError(
            "Expected model.checkpointing=false for model.access=black-box (no gradient is taken), got "
            "model.checkpointing=true"
        )
    privacy, server = settings.privacy, settings.server
    if settings.codec.active:
        raise ValueError(
            "Expected no codec for model.access=black-box (a silo's message is "
            f"zeroth_order.directions={settings.zeroth_order.directions} numbers a step already), got "
            f"codec.name={settings.codec.name}, codec.bits={settings.codec.bits}"
        )
    if settings.client.optimizer != "sgd":
        raise ValueError(
            "Expected client.optimizer=sgd for model.access=black-box (the server rebuilds the update from "
            f"the numbers of all local steps), got client.optimizer={settings.client.optimizer}"
        )
    if privacy.prefix_scale != 1.0:
        raise ValueError(
            "Expected privacy.prefix_scale=1 for model.access=black-box (what is clipped are differences "
            f"of losses, which belong to no tensor), got privacy.prefix_scale={privacy.prefix_scale}"
        )
    if not noises_numbers(settings):
        return
    if privacy.accountant != "pld":
        raise ValueError(
            "Expected privacy.accountant=pld for noise on single numbers, got "
            f"privacy.accountant={privacy.accountant}"
        )
    several = settings.zeroth_order.directions * settings.client.local_steps > 1
    sampled = privacy.noise_by == "server" and server.sampling == "poisson"
    if sampled and several:
        raise ValueError(
            "Expected zeroth_order.directions=1 and client.local_steps=1, or server.sampling=fixed, for "
            "noise on single numbers with privacy.noise_by=server (no accountant here represents several such "
            f"numbers of one Poisson sample), got zeroth_order.directions={settings.zeroth_order.directions}, "
            f"client.local_steps={settings.client.local_steps}, server.sampling=poisson"
        )


def noises_numbers(settings: SettingsTree) -> bool:
    """Whether each number that training releases gets noise by itself, that of ``privacy.noise``, and is an event
    of its own; else they are one vector with Gaussian noise."""
    privacy = settings.privacy
    black_box = settings.model.access == "black-box" and privacy.mode == "dp"
    return black_box and privacy.mechanism == "lmo"
