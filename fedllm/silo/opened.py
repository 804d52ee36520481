"""Open a silo's data for a model: check and tokenise every record once, before any ledger row."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedllm.data.batches import Feature
from fedllm.data.formats.records import BadRows, TextDataset
from fedllm.data.record_forms import RecordError
from fedllm.data.silos import Silo
from fedllm.data.usable_rows import checked, usable_rows
from fedllm.tasks.base import Task

log = logging.getLogger("fedllm.silo")


@dataclass(frozen=True)
class OpenedSilo:
    """A silo's usable records and their features.

    Guarantee: each record is text that the tokenizer takes, with a known class, at least one token, no token
    outside the embedding and no more tokens than the task's public bound (``Task.longest``). Which records
    are usable is decided for each by itself.
    """

    silo: Silo
    train: list[Feature]
    held_out: list[Feature]

    @property
    def left_out(self) -> list[str]:
        """Return the records dropped from the silo's data and the reasons, for the silo's own log."""
        return list(dict.fromkeys((*self.silo.train.left_out, *self.silo.held_out.left_out)))


_opened_before: dict[str, tuple[Silo, str, Task, OpenedSilo]] = {}


def open_silo_data(silo: Silo, rule: BadRows, task: Task) -> OpenedSilo:
    """Check and tokenise a silo's records; the last result for the same silo, rule and task is kept.

    Args:
        rule: ``data.bad_rows``.

    Raises:
        DataError: a record cannot be used and ``data.bad_rows`` is ``refuse``, or no record is left.
    """
    known = _opened_before.get(silo.name)
    if known is not None and known[0] is silo and known[1] == rule and known[2] is task:
        return known[3]
    opened = _open(silo, rule, task)
    _opened_before[silo.name] = (silo, rule, task, opened)
    return opened


def _open(silo: Silo, rule: BadRows, task: Task) -> OpenedSilo:
    train, train_features = _opened(silo.train, rule, task)
    held_out, held_out_features = silo.held_out, list[Feature]()
    if len(silo.held_out):
        held_out, held_out_features = _opened(silo.held_out, rule, task)
    return OpenedSilo(Silo(silo.name, train, held_out), train_features, held_out_features)


def _opened(dataset: TextDataset, rule: BadRows, task: Task) -> tuple[TextDataset, list[Feature]]:
    dataset = checked(dataset, task.settings.columns, rule)
    try:
        features = task.features(dataset.records)
        bounds = (task.longest, task.vocabulary)
        if not any(feature_fault(feature, *bounds) for feature in features):
            return dataset, features
    except Exception:  # some record's: found below, each by itself
        log.debug("the tokenizer raised", exc_info=True)
    dataset = usable_rows(dataset, lambda record: model_fault(record, task), rule)
    return dataset, task.features(dataset.records)


def model_fault(record: Mapping[str, Any], task: Task) -> str | None:
    """Return the reason why the model cannot process a record, or None if it can."""
    try:
        (feature,) = task.features([record])
    except RecordError as error:
        return error.fault
    except Exception as error:
        return f"the tokenizer raises {type(error).__name__}"
    return feature_fault(feature, task.longest, task.vocabulary)


def feature_fault(feature: Feature, longest: int | None, vocabulary: int | None) -> str | None:
    """Return the reason why the model cannot process a tokenised record, or None if it can."""
    if not len(feature):
        return "no token"
    if longest is not None and len(feature) > longest:
        return f"more than {longest} tokens after cutting"
    if vocabulary is not None and not all(0 <= token < vocabulary for token in feature.input_ids):
        return f"a token that the model's {vocabulary} embeddings do not have"
    return None
