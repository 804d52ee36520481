"""A release before its row, and after it: tried without data first, answered whatever the data do.

Before anything is spent a release of *no* data is made, and thrown away: a function of the task, the settings, the
model and throw-away noise. What a server sent that would make the release fail, or leave numbers that are not finite
(a clipping norm of 1e300, a codec that overflows), makes that one fail as well, while the ledger has no row yet.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.task_errors import TaskFailed, TaskRefused
from fedllm.training.steps import Streams
from privacy.randomness import RandomSource, generator

Released = TypeVar("Released")
Note = Callable[[str, Exception], None]
"""``note(what, error)`` keeps an error at the silo."""


@lru_cache(maxsize=256)
def _unused(purpose: str, step: int) -> RandomSource:
    return generator(0, "release of no data", purpose, step)


def throwaway_streams(purpose: str, step: int) -> RandomSource:
    """Return public randomness for a discarded release; no other stream uses it."""
    return copy.deepcopy(_unused(purpose, step))


def try_without_data(release: Callable[[Streams], object], note: Note) -> None:
    """Make a release of no data, to see that there is one; call before the row is written.

    Args:
        release: with these streams and no data.

    Raises:
        TaskFailed: it raises; why is in the silo's own log.
        TaskRefused: a number in it is not finite.
    """
    try:
        made = release(throwaway_streams)
    except Exception as error:
        note("a task raised without any data, before its row", error)
        raise TaskFailed from error
    bad = sorted(_not_finite(made))
    if bad:
        raise TaskRefused(
            "Expected settings, tensors and codec with which a release of no data is finite, got others in "
            + ", ".join(bad)
        )


def answered(
    release: Callable[[list[Feature]], Released],
    features: list[Feature],
    *,
    private: bool,
    note: Note,
) -> Released:
    """Return ``release`` of these features or, if that raises, of none.

    Guarantee: after the row is written, under privacy, whether there is an answer, and its form, do not
    depend on the data. An example that raises is contained where it is computed (:mod:`fedllm.training.batch.contained`),
    within the sensitivity. What still raises here is no single example's fault. It is answered by a
    release of no data, noise and all: of its value nothing is proven. What raises without any data is
    no function of them.

    Raises:
        TaskFailed: it raises without data too, or there is no privacy to keep.
    """
    try:
        return release(features)
    except Exception as error:
        note("a task raised after its row was written", error)
        if not private:
            raise TaskFailed from error
    try:
        return release([])
    except Exception as error:
        note("a task raised without any data", error)
        raise TaskFailed from error


def _not_finite(made: object) -> set[str]:
    """Return the names of the numbers and tensors of what leaves that are not finite. Counts of a silo's own log may
    be NaN."""
    bad = set()
    left: list[tuple[str, Any]] = [("the answer", made)]
    while left:
        name, value = left.pop()
        if isinstance(value, Tensor):
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                bad.add(name)
        elif isinstance(value, float | int):
            if not math.isfinite(value):
                bad.add(name)
        elif isinstance(value, Mapping):
            left += [(str(key), part) for key, part in value.items()]
        elif isinstance(value, tuple):
            left += [(name, part) for part in value]
        elif dataclasses.is_dataclass(value):
            left += [(leaf, getattr(value, leaf)) for leaf in ("update", "noise_std", "below")]
    return bad
