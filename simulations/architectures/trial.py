"""Try the adapters on one family: what trains, whose rows are equal, and whether the frozen trunk is reused."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.models.backbone import Backbone, make_backbone
from fedllm.settings.adapter import Form
from fedllm.settings.experiment import Settings
from fedllm.training.gradients import per_example_gradients
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from simulations.architectures.families import Family, tiny_model
from simulations.attacks.batch_mates.architectures import (
    random_records,
    tiny_settings,
    tiny_tokenizer,
)

FORMS: tuple[str, ...] = get_args(Form)
LENGTHS = (3, 5, 3, 6, 5, 3)
"""Words of the examples: some share a length, and so a micro-batch."""
_MAX_TOKENS = 512


@dataclass(frozen=True)
class Trial:
    """Findings of one family.

    Attributes:
        grouping: how examples share a micro-batch (:mod:`fedllm.models.grouping`).
        refused: by form, why it does not train; None: it does.
        difference: largest difference of an example's LoRA gradient alone and among others, over its norm.
        reuse: why the frozen trunk is not reused; None: it is.
    """

    grouping: str
    refused: dict[str, str | None]
    difference: float
    reuse: str | None


@lru_cache(maxsize=64)
def tiny_backbone(family: Family) -> Backbone:
    """Return the family's tiny model, ready to be trained."""
    return make_backbone(tiny_model(family), tiny_tokenizer(family.kind), family.kind, family.name)


def tiny_tunable(
    family: Family, form: str, task: str | None = None, **sections: Any
) -> tuple[Settings, Tunable]:
    """Return the family's tiny model with an adapter.

    Args:
        task: "classification" or "generation"; None: what the family is for.
        sections: further settings by section.

    Raises:
        ValueError: the form is refused.
    """
    backbone = tiny_backbone(family)
    wanted = task or ("classification" if family.kind == "encoder" else "generation")
    settings = tiny_settings(backbone, wanted, form, **sections)
    return settings, make_tunable(settings, backbone)


def at_random(tunable: Tunable, settings: Settings) -> tuple[Tunable, dict[str, Tensor]]:
    """Return the model of the first round, and all tensors that it trains, at a random point."""
    rng = torch.Generator().manual_seed(1)
    start = initial_params(tunable, settings)
    moved = {n: v + 0.05 * torch.randn(v.shape, generator=rng) for n, v in start.items()}
    return tunable.part(moved, 1)


def features_of(tunable: Tunable) -> list[Feature]:
    """Return the examples of a trial."""
    return tunable.task.features(random_records(list(LENGTHS), 3))


def gradients(
    tunable: Tunable, params: Mapping[str, Tensor], features: Sequence[Feature]
) -> list[dict[str, Tensor]]:
    """Return each example's gradient, computed in the micro-batches that training makes."""
    rows: list[dict[str, Tensor]] = [{} for _ in features]
    for group in tunable.task.batches(features, _MAX_TOKENS):
        batch = tunable.task.collate([features[i] for i in group])
        found = per_example_gradients(tunable, params, batch)
        for place, row in enumerate(group):
            rows[row] = {name: value[place] for name, value in found.items()}
    return rows


def flat(row: Mapping[str, Tensor]) -> Tensor:
    """Return one example's gradient as one vector."""
    return torch.cat([row[name].flatten() for name in sorted(row)])


def try_family(family: Family) -> Trial:
    """Try all forms on one family that transformers knows."""
    backbone = tiny_backbone(family)
    refused = {form: _refusal(family, form) for form in FORMS}
    difference = mates_difference(family, "lora")
    return Trial(backbone.grouping, refused, difference, _reuse_refusal(family))


def mates_difference(family: Family, form: str) -> float:
    """Return the largest difference of an example's gradient alone and among others, over its norm; 0: equal bits."""
    settings, tunable = tiny_tunable(family, form)
    tunable, params = at_random(tunable, settings)
    features = features_of(tunable)
    among = gradients(tunable, params, features)
    worst = 0.0
    for feature, row in zip(features, among, strict=True):
        (alone,) = gradients(tunable, params, [feature])
        if not torch.equal(flat(alone), flat(row)):
            off = (flat(alone) - flat(row)).norm() / flat(alone).norm()
            worst = max(worst, float(off))
    return worst


def _refusal(family: Family, form: str) -> str | None:
    """Return why a form does not train the family; None: every example has a gradient that is finite and not zero."""
    try:
        settings, tunable = tiny_tunable(family, form)
    except ValueError as error:
        return _plain(str(error), family)
    tunable, params = at_random(tunable, settings)
    for row in gradients(tunable, params, features_of(tunable)):
        if not bool(flat(row).isfinite().all()) or not bool(flat(row).any()):
            raise AssertionError(f"{form} of {family.name}: a gradient of zero, or not finite")
    return None


class _Messages(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage())


def _reuse_refusal(family: Family) -> str | None:
    """Return why the states below the last layer are not kept; None: they are, and gradients are the same bits."""
    log, messages = logging.getLogger("fedllm"), _Messages()
    log.addHandler(messages)
    propagated, log.propagate = log.propagate, False
    try:
        settings, tunable = tiny_tunable(
            family, "lora", adapter={"layers": [-1]}, model={"reuse": "memory", "reuse_gib": 0.01}
        )
    finally:
        log.removeHandler(messages)
        log.propagate = propagated
    if tunable.task.trunk is None:
        found = [text for text in messages.kept if "model.reuse" in text]
        return found[0].rpartition("Error: ")[2] if found else "its layers are one, used many times"
    tunable, params = at_random(tunable, settings)
    features = features_of(tunable)
    expected = gradients(tunable.without_reuse(), params, features)
    for _ in range(2):
        for row, own in zip(gradients(tunable, params, features), expected, strict=True):
            if not torch.equal(flat(row), flat(own)):
                raise AssertionError(f"Reuse changes the gradients of {family.name}")
    return None


def _plain(message: str, family: Family) -> str:
    """Return the reason alone, without names and numbers of the tiny model."""
    text = " ".join(message.split()).removeprefix("settings: ")
    text = text.partition("has no such limit): ")[2] or text.replace(repr(family.name), "...")
    text = (
        re.sub(r" in layer \d+ \(\w+\)| in \w+$|= \[\(.*\]", "", text)
        .replace(", got (heads, key size, value size, causal)", ", got several")
        .rstrip()
    )
    text = re.sub(r"(the encoder-decoder) (\w+|model=\.\.\.)(?=,|$)", r"\1", text)
    known = re.search(r"normalisations for adapter\.form=\S+ got (\S+) of (\w+) \(", text)
    if known:
        own = ".".join(known[1].split(".")[-2:])
        return f"Expected linear maps, embeddings and normalisations alone, got `{own}` of `{known[2]}`"
    return re.sub(r"; \w+ computes its own", "; the model computes its own", text)
