"""Hostile codecs: of other sizes, with other tensors, with numbers at which arithmetic ends, described by lies."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fedllm import messages as names
from fedllm.codec.autoencoder import Autoencoder, Network, Shape
from fedllm.codec.base import compressed_dimension, state_digest
from fedllm.codec.linear import Linear
from fedllm.codec.random_projection import RandomProjection
from fedllm.codec.top_k import TopK
from fedllm.training.tunable import shared_tunable, trained_size

from .honest import settings_for
from .silo import HostedSilo

State = tuple[dict[str, Any], Any]
"""Tensors, and what is said of them."""
ChangeState = Callable[[dict[str, Any], dict[str, Any]], Any]
RATIO = 4.0


def honest_states(silo: HostedSilo) -> dict[str, tuple[dict[str, Any], State]]:
    """Settings and state of one codec of each kind, for the tiny model."""
    settings = settings_for(silo, names.SEND_CODEC)
    d = trained_size(shared_tunable(settings))
    k = compressed_dimension(d, RATIO)
    rows = torch.linalg.qr(torch.randn(d, 3, generator=torch.Generator().manual_seed(1))).Q.T
    rows[:, : k - 3] = 0.0
    rows = torch.linalg.qr(rows.T).Q.T.contiguous()
    rows[:, : k - 3] = 0.0
    shape = Shape(d, k // 16, 16, 8, 3)
    codecs = {
        "top-k": TopK.of_ratio(d, RATIO),
        "random-projection": RandomProjection(d, k, 3),
        "linear": Linear(d, torch.arange(k - 3), rows),
        "autoencoder": Autoencoder(shape, 0.1, Network(shape)),
    }
    return {
        name: ({"codec.name": name, "codec.ratio": RATIO, "codec.width": 8}, codec.state())
        for name, codec in codecs.items()
    }


def hostile_states(name: str) -> Iterator[tuple[str, ChangeState]]:
    """What is wrong with a codec of this kind, and the change of its tensors and description in place."""
    yield "20 MB of a foreign tensor", lambda t, m: t.update(more=torch.zeros(5_000_000))
    yield "17 foreign tensors", lambda t, m: t.update({f"m{i}": torch.zeros(1) for i in range(17)})
    yield "a foreign entry", lambda t, m: m.update(more=1)
    yield "a foreign entry of 60 kB", lambda t, m: m.update(more="a" * 60_000)
    yield "no name", lambda t, m: m.pop("name")
    yield "another name", lambda t, m: m.update(name="none")
    yield "an unknown name", lambda t, m: m.update(name="os.system")
    yield "nested in another", lambda t, m: m.update(inner=dict(m), name="quantised", bits=8)
    if name != "autoencoder":
        for what, value in {
            "of one more": "+1",
            "of 10^12": 10**12,
            "of 0": 0,
            "of -1": -1,
            "of 0.5": 0.5,
            "of truth": True,
            "of text": "x",
            "of nothing": None,
        }.items():
            yield f"dimension {what}", _dimension(value)
    if name == "top-k":
        for value in (0, -1, 10**12, 1, "x"):
            yield f"{value} kept", lambda t, m, v=value: m.update(kept=v)
    if name == "random-projection":
        yield "a longer code", lambda t, m: m.update(code_dimension=m["code_dimension"] + 1)
        yield "a seed below zero", lambda t, m: m.update(seed=-1)
        yield "a seed as text", lambda t, m: m.update(seed="3")
        yield "a seed of 4,000 digits", lambda t, m: m.update(seed=int("9" * 4000))
        yield "another seed", lambda t, m: m.update(seed=4)
        yield "another fingerprint", lambda t, m: m.update(fingerprint="0" * 64)
        yield "no fingerprint", lambda t, m: m.update(fingerprint=None)
    if name == "linear":
        changes: dict[str, Callable[[torch.Tensor], Any]] = {
            "NaN": lambda v: v * math.nan,
            "infinite": lambda v: v + math.inf,
            "of 1e38": lambda v: v * 1e38,
            "twice as long": lambda v: v * 2,
            "equal": lambda v: v[:1].repeat(len(v), 1),
            "float64": lambda v: v.double(),
            "0-d": lambda v: torch.tensor(1.0),
            "empty": lambda v: v[:0],
            "fewer": lambda v: v[:1],
            "transposed": lambda v: v.T.contiguous(),
        }
        for what, change in changes.items():
            yield f"directions {what}", _tensor("directions", change)
        for part in ("coordinates", "support"):
            yield f"{part} out of order", _tensor(part, lambda v: v.flip(0))
            yield f"{part} beyond", _tensor(part, lambda v: v + 10**6)
            yield f"{part} below zero", _tensor(part, lambda v: v - 10**6)
            yield f"{part} missing", lambda t, m, p=part: t.pop(p)
            yield f"{part} of int64", _tensor(part, lambda v: v.long())
    if name == "autoencoder":
        for part in ("dimension", "groups", "channels", "width"):
            for value in (0, -1, 10**9, 0.5, "x"):
                yield f"{part} {value}", lambda t, m, p=part, v=value: m["shape"].update({p: v})
        for value in (0.0, -1.0, 1e-300, 1e300, "x", None, math.inf):
            yield f"scale {value}", lambda t, m, v=value: m.update(scale=v)
        yield "weights of 1e38", _tensor("first", lambda v: v * 0 + 1e38)
        yield "weights of 1e5", _tensor("first", lambda v: v * 0 + 1e5)
        yield "weights NaN", _tensor("last", lambda v: v * math.nan)
        yield "sizes as a list", lambda t, m: m.update(shape=[1, 2])
        yield "a tensor missing", lambda t, m: t.pop("log_spread")


def with_state(parts: dict[str, Any], tensors: dict[str, Any], meta: Any) -> None:
    """Put a codec's state into a task that brings one, under its own hash where it has one."""
    text = meta if isinstance(meta, str) else json.dumps(meta)
    parts[names.CODEC] = tensors
    parts[names.CONFIG][names.CODEC_META] = text
    try:
        parts[names.CONFIG][names.CODEC_VERSION] = state_digest(tensors, meta)
    except ValueError:
        parts[names.CONFIG][names.CODEC_VERSION] = "0" * 64


def _tensor(name: str, change: Callable[[torch.Tensor], Any]) -> ChangeState:
    return lambda tensors, meta: tensors.update({name: change(tensors[name])})


def _dimension(value: Any) -> ChangeState:
    def change(tensors: dict[str, Any], meta: dict[str, Any]) -> None:
        meta["dimension"] = meta["dimension"] + 1 if value == "+1" else value

    return change
