"""Text data: sources, labels, holdout, duplicates, and the division among silos."""

from __future__ import annotations

from fedllm.data.duplicates import DuplicateCount, count_duplicates, drop_duplicates
from fedllm.data.formats.hub import load_hub
from fedllm.data.formats.records import (
    DataError,
    Record,
    TextDataset,
    normalise_text,
    require_columns,
    require_text,
)
from fedllm.data.formats.sources import load_file
from fedllm.data.formats.tweets import load_tweets, normalise_tweet, organisation_of
from fedllm.data.holdout import split_holdout, text_hash
from fedllm.data.labels import label_index
from fedllm.data.partition import Partition, partition

__all__ = [
    "DataError",
    "DuplicateCount",
    "Partition",
    "Record",
    "TextDataset",
    "count_duplicates",
    "drop_duplicates",
    "label_index",
    "load_file",
    "load_hub",
    "load_tweets",
    "normalise_text",
    "normalise_tweet",
    "organisation_of",
    "partition",
    "require_columns",
    "require_text",
    "split_holdout",
    "text_hash",
]
