"""Registry of codec kinds; only registered kinds are built from a server's or a file's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedllm.codec.base import Codec

_BY_NAME: dict[str, type[Codec]] = {}


def register_codec(kind: type[Codec]) -> type[Codec]:
    """Let states name a kind of codec; usable as a decorator.

    Raises:
        ValueError: another kind has the name.
    """
    if _BY_NAME.setdefault(kind.name, kind) is not kind:
        raise ValueError(f"Expected a codec with a name of its own, got {kind.name!r} twice")
    return kind


def codec_from_state(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Codec:
    """The codec that :meth:`Codec.state` described, from anybody.

    Raises:
        ValueError: the state is not one of a codec.
    """
    name = meta.get("name")
    if name not in _BY_NAME:
        raise ValueError(f"Expected a codec of {', '.join(_BY_NAME)}, got name={name!r}")
    try:
        return _BY_NAME[name].from_state(tensors, meta)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"Expected the state of codec {name}: {error!r}") from None


def codec_names(meta: Mapping[str, Any]) -> list[str]:
    """Names of a codec and of what it wraps, outermost first, from the JSON part of its state.

    Raises:
        ValueError: it is not the state of a codec.
    """
    names = []
    part: Any = meta
    while isinstance(part, Mapping):
        names.append(str(part.get("name")))
        part = part.get("inner")
    if not names or any(name not in _BY_NAME for name in names):
        raise ValueError(f"Expected a codec of {', '.join(_BY_NAME)}, got {'/'.join(names)!r}")
    return names
