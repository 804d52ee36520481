"""Release ids: the key under which the ledger counts a release once, with digests of its inputs.

The ledger counts a key once. Two releases must have two keys, and a repetition that gives the very same noisy value
may have the first one's. All that a value depends on is in :mod:`fedllm.budget.release_inputs`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.settings.experiment import Settings


def params_digest(params: Mapping[str, Tensor]) -> str:
    """Return SHA-256 over names, types, shapes and values, to the last bit."""
    digest = hashlib.sha256()
    for name in sorted(params):
        value = params[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def release_key(settings: Settings, purpose: str, server_round: int, digest: str) -> str:
    """Return the name of one release within (run, silo).

    With seeded randomness the same round at the same ``digest`` (of all that the value depends on) gives the
    same noisy value, so a repetition (after a crash) has the same key and is not counted twice. With the
    operating system's entropy a repetition is a new release: a nonce makes its key new.
    """
    nonce = "" if settings.privacy.randomness == "seeded" else f"/{os.urandom(16).hex()}"
    return f"{purpose}/{server_round}/{digest[:32]}{nonce}"


def settings_digest(settings: Settings) -> str:
    """Return SHA-256 of what the value of a release depends on: not of names, places or resources."""
    without: dict[str, Any] = {
        "name": True,
        "simulation": True,
        "output": True,
        "data": True,  # the examples themselves are digested, see features_digest
        "model": {"device"},
        "privacy": {"ledger", "colluding"},
        "public": True,  # the server's
    }
    if not settings.layers.asks_silos:
        # Of a choice by public text a silo sees the layers of the adapter alone. Scores of the silos' own are in
        # the plan that the noise is calibrated for.
        without["layers"] = True
    plain = settings.model_dump(mode="json", exclude=without)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def features_digest(features: Sequence[Feature]) -> str:
    """Return SHA-256 of a silo's tokenised examples, with all their fields."""
    digest = hashlib.sha256()
    for feature in features:
        row = dataclasses.asdict(feature)
        digest.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
    return digest.hexdigest()


class Fingerprinted:
    """Base of a frozen dataclass of str, int, float, bool, None and tensors, of tuples and mappings of them, and of
    other such classes."""

    def fingerprint(self) -> str:
        """Return SHA-256 of the class's name and of each field's name, type and value; floats and tensors to the last
        bit.

        Raises:
            TypeError: a field holds anything else.
        """
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        values = {field.name: getattr(self, field.name) for field in fields}
        named = [[name, value] for name, value in zip(values, _plain(values.values()), strict=True)]
        text = json.dumps([type(self).__name__, named])
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value is None or isinstance(value, bool | str):
            found.append(value)
        elif isinstance(value, int):
            found.append(["int", str(value)])
        elif isinstance(value, float):
            found.append(["float", value.hex()])
        elif isinstance(value, Fingerprinted):
            found.append(["object", value.fingerprint()])
        elif isinstance(value, tuple):
            found.append(["tuple", _plain(value)])
        elif isinstance(value, Tensor):
            found.append(["tensor", params_digest({"": value})])
        elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            names = sorted(value)
            plain = _plain(value[name] for name in names)
            found.append(["mapping", [list(pair) for pair in zip(names, plain, strict=True)]])
        else:
            raise TypeError(
                "Expected str, int, float, bool, None, tensors, Fingerprinted, and tuples or mappings of them, got "
                f"{type(value).__name__}"
            )
    return found
