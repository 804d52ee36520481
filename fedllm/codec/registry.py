"""Registry of codec kinds; only registered kinds are built from a server's or a file's state.

A codec of another package is added with :func:`register_codec`, and used by its name as ``codec.name``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedllm.codec.base import Codec
from fedllm.codec.prior import Prior
from fedllm.settings.codec import CodecSettings
from fedllm.settings.kinds import CODECS, CodecFacts

Form = tuple[tuple[int, ...], str]
"""Shape of a tensor, and its number format as numpy writes it (``<f4``)."""


@dataclass(frozen=True)
class CodecKind:
    """A kind of codec of another package.

    Attributes:
        codec: the class, whose ``name`` is the value of ``codec.name``.
        make: of the settings, the dimension d, the prior (None unless ``facts.prior``) and the public seed.
        form: of the settings and d: the JSON part that :meth:`Codec.state` has, and the forms of its tensors. A silo
            refuses any other state before it makes a tensor of it.
        facts: what the settings must know of it.
    """

    codec: type[Codec]
    make: Callable[[CodecSettings, int, Prior | None, int], Codec]
    form: Callable[[CodecSettings, int], tuple[Mapping[str, Any], Mapping[str, Form]]]
    facts: CodecFacts


_CLASSES: dict[str, type[Codec]] = {}
_KINDS: dict[str, CodecKind] = {}


def register_codec(kind: CodecKind) -> Callable[[], None]:
    """Add a kind of codec to this process.

    Returns:
        A function that takes it away again.

    Raises:
        ValueError: there is one of that name.
    """
    name = kind.codec.name
    CODECS.add(name, kind.facts)
    add_class(kind.codec)
    _KINDS[name] = kind

    def forget() -> None:
        CODECS.remove(name)
        _CLASSES.pop(name, None)
        _KINDS.pop(name, None)

    return forget


def add_class(codec: type[Codec]) -> None:
    """Let states name a class of codec.

    Raises:
        ValueError: another class has the name.
    """
    if _CLASSES.setdefault(codec.name, codec) is not codec:
        raise ValueError(f"Expected a codec with a name of its own, got {codec.name!r} twice")


def registered_kind(name: str) -> CodecKind | None:
    """Return the kind of another package with this name; None for the package's own."""
    return _KINDS.get(name)


def codec_from_state(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Codec:
    """Return the codec that :meth:`Codec.state` described, from anybody.

    Raises:
        ValueError: the state is not one of a codec.
    """
    name = meta.get("name")
    if name not in _CLASSES:
        raise ValueError(f"Expected a codec of {', '.join(_CLASSES)}, got name={name!r}")
    try:
        return _CLASSES[name].from_state(tensors, meta)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"Expected the state of codec {name}: {error!r}") from None


def codec_names(meta: Mapping[str, Any]) -> list[str]:
    """Return the names of a codec and of what it wraps, outermost first, from the JSON part of its state.

    Raises:
        ValueError: it is not the state of a codec.
    """
    names = []
    part: Any = meta
    while isinstance(part, Mapping):
        names.append(str(part.get("name")))
        part = part.get("inner")
    if not names or any(name not in _CLASSES for name in names):
        raise ValueError(f"Expected a codec of {', '.join(_CLASSES)}, got {'/'.join(names)!r}")
    return names
