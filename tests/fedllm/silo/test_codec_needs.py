"""The codecs that are made here fit their settings; any other state is refused before a tensor of it is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedllm.codec import make_codec
from fedllm.codec.layout import Layout
from fedllm.codec.prior import Prior, prior_from_gradients
from fedllm.codec.store import MOST_STORED, codec_from_store, keep_in_store
from fedllm.settings.codec import CodecSettings
from fedllm.silo.codec_needs import MOST_BYTES, CodecRefused, check_codec_needs

PARAMS = {"head": torch.zeros(2, 16), "prefix": torch.zeros(2, 2, 4, 2, 4)}
LAYOUT = Layout.of(PARAMS)
D = LAYOUT.dimension
SETTINGS = [
    {"name": "none", "bits": 8},
    {"name": "fp16"},
    {"name": "int8"},
    {"name": "top-k", "ratio": 4.0},
    {"name": "random-projection", "ratio": 4.0},
    {"name": "random-projection", "ratio": 4.0, "bits": 4},
    {"name": "linear", "ratio": 4.0, "prior": "layerwise"},
    {"name": "linear", "ratio": 4.0, "prior": "low-rank"},
    {"name": "linear", "ratio": 1.0, "prior": "coordinate", "bits": 16},
    {"name": "autoencoder", "ratio": 4.0, "steps": 1, "width": 4},
    {"name": "autoencoder", "ratio": 16.0, "steps": 1, "width": 4, "bits": 8},
]


def forms(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {n: (tuple(t.shape), t.numpy().dtype.str) for n, t in tensors.items()}


def prior(settings: CodecSettings) -> Prior:
    rows = torch.randn(6, D, generator=torch.Generator().manual_seed(4))
    return prior_from_gradients(settings.prior, LAYOUT, rows, rank=settings.rank)


def made(changes: dict[str, Any]) -> tuple[CodecSettings, Any]:
    settings = CodecSettings(**changes)
    return settings, make_codec(settings, LAYOUT, prior(settings), 3)


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_what_is_made_here_fits_and_nothing_more(changes: dict[str, Any]) -> None:
    settings, codec = made(changes)
    tensors, meta = codec.state()
    check_codec_needs(meta, forms(tensors), settings, D)
    for wrong_meta, wrong_forms, dimension in (
        (meta | {"more": 1}, forms(tensors), D),
        (meta, forms(tensors) | {"more": ((5_000_000,), "<f4")}, D),
        (meta, forms(tensors), D + 1),
        ({}, forms(tensors), D),
        (meta | {"name": "none"}, forms(tensors), D),
    ):
        with pytest.raises(CodecRefused):
            check_codec_needs(wrong_meta, wrong_forms, settings, dimension)
    for name in tensors:
        for wrong in (((1,), "<f4"), (forms(tensors)[name][0], "<f8")):
            with pytest.raises(CodecRefused):
                check_codec_needs(meta, forms(tensors) | {name: wrong}, settings, D)


def test_sizes_are_counted_before_anything_is_made() -> None:
    wide = CodecSettings(name="autoencoder", ratio=4.0, width=10**9)
    _, codec = made(SETTINGS[9])
    tensors, meta = codec.state()
    shapes = forms(tensors)
    for part in ("encoding", "decoding"):
        shapes[f"{part}.widen.weight"] = ((10**9, 16, 3), "<f4")
        shapes[f"{part}.narrow.weight"] = ((16, 10**9, 3), "<f4")
    meta["shape"]["width"] = 10**9
    with pytest.raises(CodecRefused, match=f"at most {MOST_BYTES} bytes"):
        check_codec_needs(meta, shapes, wide, D)


def test_where_no_codec_is_asked_for_none_is_taken() -> None:
    with pytest.raises(CodecRefused, match=r"Expected no codec for codec\.name=none"):
        check_codec_needs({"name": "none", "dimension": D}, {}, CodecSettings(), D)


def test_the_store_takes_a_codec_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedllm.codec.base import state_digest

    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path))
    _, codec = made(SETTINGS[1])
    tensors, meta = codec.state()
    more = tensors | {"more": torch.zeros(5_000_000)}
    with pytest.raises(ValueError, match="and nothing else"):
        keep_in_store(more, meta, state_digest(more, meta))
    _, linear = made(SETTINGS[6])
    tensors, meta = linear.state()
    huge = tensors | {"coordinates": torch.full_like(tensors["coordinates"].float(), 1e38)}
    with pytest.raises(ValueError, match="norm at most 100000"):
        keep_in_store(huge, meta, state_digest(huge, meta))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_last_used_codecs_are_kept_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedllm.codec import store as codec_store
    from fedllm.codec.random_projection import RandomProjection

    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path))
    codecs = [RandomProjection(40, 10, seed) for seed in range(MOST_STORED + 3)]
    for codec in codecs:
        keep_in_store(*codec.state(), codec.version)
    assert len(list(tmp_path.rglob("*.safetensors"))) == MOST_STORED
    monkeypatch.setattr(codec_store, "_loaded", {})
    assert codec_from_store(codecs[-1].version).version == codecs[-1].version
    with pytest.raises(codec_store.CodecMissing):
        codec_from_store(codecs[0].version)
