"""All inputs that determine the value of one release, as plain values and digests.

Seeded noise is a function of the fingerprint, and the ledger counts a fingerprint once. So the same noise
never meets two values, provided that two different values never have the same inputs: whatever can change a
bit of the value belongs here. Three things are not here. The source code: its version stands for it, so that a
seeded run repeats its bits after a change of a comment. The answers of a completion endpoint, which no one
can name beforehand. The order of atomic additions on a GPU. A value that is repeated across one of these may
differ, and then two values carry one noise; ``privacy.randomness = "os"`` has no such limits.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy
import safetensors
import tokenizers
import torch
import transformers

from fedllm import __version__
from fedllm.budget.release_id import Fingerprinted
from fedllm.models.backbone import Backbone
from fedllm.models.footprint.spread import placement_of
from fedllm.models.precision import require_full_precision


@dataclass(frozen=True, kw_only=True)
class ReleaseInputs(Fingerprinted):
    """The inputs of one release.

    Attributes:
        task: fingerprint of the task: what is asked for, and all that the server sent with it
            (:class:`fedllm.silo.task.SiloTask`).
        silo, examples, settings: whose; digests of its tokenised examples and of the settings with the seed.
        weights, dtype, model_config, tokenizer: the frozen model; the dtype that ``auto`` became.
        device, machine: where it computes (what ``auto`` became), and what else there changes a rounding.
        planned_rounds, sampling_rate, noise_multiplier: the mechanism; the noise depends on the silo's history.
    """

    task: str
    silo: str
    examples: str
    settings: str
    weights: str
    dtype: str
    model_config: str
    tokenizer: str
    device: str
    machine: str
    planned_rounds: int
    sampling_rate: float
    noise_multiplier: float


def model_inputs(backbone: Backbone | Any) -> dict[str, str]:
    """Return the fields of a frozen model and of the device where it is."""
    if not isinstance(backbone, Backbone):  # behind an endpoint
        told = {"weights": "", "dtype": "", "model_config": "", "tokenizer": ""}
        return told | {"device": str(backbone.device)}
    config = backbone.model.config
    plain = json.dumps([config.to_dict(), config._attn_implementation], sort_keys=True, default=str)
    return {
        "weights": backbone.weights_digest,
        "dtype": _format(backbone),
        "model_config": hashlib.sha256(plain.encode()).hexdigest(),
        "tokenizer": backbone.tokenizer_digest,
        "device": _place(backbone),
    }


def _format(backbone: Backbone) -> str:
    """Number format and, where there is one, quantization."""
    how = backbone.quantization
    return str(backbone.dtype) if how == "none" else f"{backbone.dtype} {how}"


def _place(backbone: Backbone) -> str:
    """The device, and where there are several, which module is where."""
    placed = placement_of(backbone.model)
    return " ".join([_device(backbone.device), *([json.dumps(placed)] if placed else [])])


def machine(backbone: Backbone | Any) -> str:
    """Return the causes of other roundings, apart from the device: versions, instructions, threads, precisions."""
    require_full_precision(backbone.onednn)  # as for all that is computed, whatever was set before
    found = {
        **_versions(),
        "threads": torch.get_num_threads(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if getattr(backbone, "quantization", "none") == "4bit":
        found["bitsandbytes"] = version("bitsandbytes")
    return json.dumps(found, sort_keys=True)


@lru_cache
def _versions() -> dict[str, str]:
    modules = (torch, transformers, tokenizers, safetensors, numpy)
    versions = {module.__name__: str(module.__version__) for module in modules}
    capability = torch.backends.cpu.get_cpu_capability()
    return versions | {"fedllm": __version__, "cpu": f"{platform.machine()} {capability}"}


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    return f"cuda {torch.cuda.get_device_name(device)}"
