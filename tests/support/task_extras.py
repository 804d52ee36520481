"""What an honest server sends beside the parameters of a task, by the settings."""

from __future__ import annotations

from typing import Any

from fedllm import messages as names
from fedllm.settings.experiment import Settings
from fedllm.silo.extensions.factory import make_silo_extensions

HONEST: dict[str, Any] = {
    names.CLIP: 0.5,
    names.DIRECTIONS: "0" * 32,
    names.CODEC_VERSION: "0" * 64,
    names.CANDIDATES: [0, 1],
}


def fields_beside(kind: str, settings: Settings) -> dict[str, Any]:
    """The plain extras of a task of this kind; the codec is one that nobody has."""
    forms = [extension.brings(kind) for extension in make_silo_extensions(settings)]
    return {name: HONEST[name] for form in forms for name in form.fields}


def tensors_beside(kind: str, settings: Settings) -> set[str]:
    """The records of tensors of a task of this kind."""
    forms = [extension.brings(kind) for extension in make_silo_extensions(settings)]
    return {name for form in forms for name in form.tensors}


def is_asked(kind: str, settings: Settings) -> bool:
    """Whether the settings ask the silos for tasks of this kind."""
    extensions = make_silo_extensions(settings)
    return kind in (names.TRAIN, names.QUERY) or any(kind in each.requests() for each in extensions)
