"""Check a codec against the settings and the model before it is built or kept.

The settings and the number of trained numbers fix a codec but for what it learned: its kind, its dimensions, the
names and shapes of its tensors. A codec's state comes from a server, and says sizes; here each is compared with the one
that follows, so that a hostile one neither takes memory nor disk beyond that, nor carries anything else along.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from fedllm.codec.autoencoder import CHANNELS
from fedllm.codec.base import compressed_dimension
from fedllm.codec.registry import registered_kind
from fedllm.codec.top_k import TopK
from fedllm.files.bounded_json import shortened
from fedllm.settings.codec import CodecSettings
from fedllm.silo.task_form import ArrayForm

MOST_BYTES = 256 * 2**20
"""Bytes of a codec's tensors at most, whatever the settings."""
_FLOAT, _INT = "<f4", "<i4"
_SEEDS = 1 << 4096


class CodecRefused(ValueError):
    """A codec is not one that the settings can have; the message is a function of task and settings."""


def check_codec_needs(
    meta: Mapping[str, Any],
    forms: Mapping[str, ArrayForm],
    settings: CodecSettings,
    dimension: int,
) -> None:
    """Refuse a codec that is not the one of these settings for so many trained numbers.

    Args:
        meta: the JSON part of its state.
        forms: of its tensors, none of which has been made.
        settings: of the codec.
        dimension: d, of the trained tensors together.

    Raises:
        CodecRefused: another kind or size, another entry or tensor, or more than :data:`MOST_BYTES`.
    """
    if not settings.active:
        raise CodecRefused(
            f"Expected no codec for codec.name={settings.name}, codec.bits={settings.bits}, got one"
        )
    inner = meta
    if settings.bits != 32:
        _same(
            "a codec",
            meta,
            {"name": "quantised", "bits": settings.bits, "inner": meta.get("inner")},
        )
        inner = meta["inner"]
    if not isinstance(inner, Mapping) or inner.get("name") != settings.name:
        got = inner.get("name") if isinstance(inner, Mapping) else inner
        raise CodecRefused(f"Expected a codec for codec.name={settings.name}, got {shortened(got)}")
    needed = _needs(inner, forms, settings, dimension)
    if dict(forms) != needed:
        raise CodecRefused(
            f"Expected a codec {settings.name} with the tensors {_words(needed)}, got {_words(forms)}"
        )
    size = sum(math.prod(shape) * int(kind[-1]) for shape, kind in needed.values())
    if size > MOST_BYTES:
        raise CodecRefused(
            f"Expected a codec of at most {MOST_BYTES} bytes, got one of {size}: raise codec.ratio"
        )


def _needs(
    meta: Mapping[str, Any], forms: Mapping[str, ArrayForm], settings: CodecSettings, d: int
) -> dict[str, ArrayForm]:
    """The tensors of the codec, whose description is checked on the way."""
    outside = registered_kind(settings.name)
    if outside is not None:
        described, needed = outside.form(settings, d)
        _same(f"a codec {settings.name}", meta, described)
        return dict(needed)
    plain = {"name": settings.name, "dimension": d}
    if settings.keeps_all:
        _same(f"a codec {settings.name}", meta, plain)
        return {}
    try:
        k = compressed_dimension(d, settings.ratio)
    except ValueError as error:
        raise CodecRefused(str(error)) from None
    if settings.name == "top-k":
        _same("a codec top-k", meta, plain | {"kept": TopK.of_ratio(d, settings.ratio).kept})
        return {}
    if settings.name == "random-projection":
        _same_but(meta, plain | {"code_dimension": k}, {"seed", "fingerprint"})
        _seed(meta["seed"])
        if not re.fullmatch(r"[0-9a-f]{64}", str(meta["fingerprint"])):
            raise CodecRefused("Expected a fingerprint of 64 hexadecimal digits in a codec")
        return {}
    if settings.name == "linear":
        _same("a codec linear", meta, plain)
        return _linear(forms, k, d)
    return _autoencoder(meta, settings, k, d)


def _linear(forms: Mapping[str, ArrayForm], k: int, d: int) -> dict[str, ArrayForm]:
    shape = forms.get("directions", ((), ""))[0]
    rows, columns = shape if len(shape) == 2 else (-1, -1)
    if not (0 <= rows <= k and 0 <= columns <= d):
        raise CodecRefused(
            f"Expected a codec linear with directions of shape (r, c), r <= {k} and c <= {d}, got "
            f"{shortened(shape)}"
        )
    return {
        "coordinates": ((k - rows,), _INT),
        "directions": ((rows, columns), _FLOAT),
        "support": ((columns,), _INT),
    }


def _autoencoder(
    meta: Mapping[str, Any], settings: CodecSettings, k: int, d: int
) -> dict[str, ArrayForm]:
    _same_but(meta, {"name": settings.name}, {"scale", "shape"})
    scale, shape = meta["scale"], meta["shape"]
    if type(scale) not in (int, float) or not 1e-10 <= scale <= 1e10:
        raise CodecRefused(
            f"Expected a scale from 1e-10 to 1e10 in a codec, got {shortened(scale)}"
        )
    channels = min(CHANNELS, k)
    groups, width = k // channels, settings.width
    sizes = {"dimension": d, "groups": groups, "channels": channels, "width": width}
    if not isinstance(shape, Mapping):
        raise CodecRefused(f"Expected sizes in a codec autoencoder, got {shortened(shape)}")
    _same_but(shape, sizes, {"seed"})
    _seed(shape["seed"])
    n = -(-d // groups)
    blocks = {
        f"{part}.{name}.weight": (size, _FLOAT)
        for part in ("encoding", "decoding")
        for name, size in (("widen", (width, channels, 3)), ("narrow", (channels, width, 3)))
    }
    return blocks | {
        "first": ((groups, n, channels), _FLOAT),
        "last": ((groups, channels, n), _FLOAT),
        "log_spread": ((channels, 1), _FLOAT),
    }


def _seed(seed: Any) -> None:
    if type(seed) is not int or not 0 <= seed < _SEEDS:
        raise CodecRefused(
            f"Expected a seed >= 0 of at most 4096 bits in a codec, got {shortened(seed)}"
        )


def _same(what: str, given: Mapping[str, Any], needed: Mapping[str, Any]) -> None:
    if set(given) != set(needed) or any(
        type(given[key]) is not type(value) or given[key] != value for key, value in needed.items()
    ):
        raise CodecRefused(
            f"Expected {what} described by {dict(needed)}, got {shortened(given, 200)}"
        )


def _same_but(given: Mapping[str, Any], needed: Mapping[str, Any], free: set[str]) -> None:
    if set(given) != set(needed) | free:
        raise CodecRefused(
            f"Expected a codec described by {', '.join(sorted(set(needed) | free))}, got "
            f"{shortened(sorted(given), 200)}"
        )
    _same("a codec", {key: value for key, value in given.items() if key not in free}, needed)


def _words(forms: Mapping[str, ArrayForm]) -> str:
    told = [
        f"{shortened(name)} {shape} {kind}" for name, (shape, kind) in sorted(forms.items())[:8]
    ]
    return "; ".join(told) + ("; ..." if len(forms) > 8 else "") if told else "none"
