"""A server's request to a silo as one typed value: every input of the answer that the server decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedllm.budget.release_id import Fingerprinted
from fedllm.messages import TRAIN


@dataclass(frozen=True)
class SiloTask(Fingerprinted):
    """One task of one round.

    Its fingerprint covers every field, and is part of the key of seeded noise
    (:class:`fedllm.budget.release_inputs.ReleaseInputs`): two tasks that differ in anything never meet the same noise.

    Attributes:
        params: the global parameters, float32.
        round: the round; 0 before the first one.
        planned_rounds: rounds in which the silo is planned to take part.
        extras: what optional parts of the run bring along, by its name in the message (:mod:`fedllm.messages`): plain
            values, and tensors by name.
        kind: what is asked for; the message's type.

    >>> import torch
    >>> task = SiloTask({"head": torch.zeros(2)}, 1, 3)
    >>> task.fingerprint() == SiloTask({"head": torch.zeros(2)}, 1, 3, {"clip": 0.5}).fingerprint()
    False
    """

    params: Mapping[str, Tensor]
    round: int = 0
    planned_rounds: int = 0
    extras: Mapping[str, Any] = field(default_factory=dict)
    kind: str = TRAIN
