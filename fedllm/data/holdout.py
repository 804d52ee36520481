"""A holdout whose membership is a function of each example alone.

Where an example goes must not depend on the other examples: a permutation of the whole data set
lets one example added or removed move others between training and evaluation data, and then
neighbouring data sets differ in more than one record. A keyed hash of the example's own text has no
such effect, and keeps copies of one text on one side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from fedllm.data.formats.records import (
    DataError,
    Record,
    TextDataset,
    normalise_text,
    require_columns,
)

_UNIT = 2.0**-53


def text_hash(record: Record, columns: Sequence[str], seed: int) -> float:
    """Return a number in [0, 1) made from the normalised text of ``columns`` and ``seed`` alone.

    Keyed BLAKE2b (RFC 7693), 53 bits. Values that are not strings are hashed as JSON. 128 bits of
    the seed are used.
    """
    parts = [
        normalise_text(value)
        if isinstance(value := record[column], str)
        else json.dumps(value, sort_keys=True, ensure_ascii=False)
        for column in columns
    ]
    digest = hashlib.blake2b(
        json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass"),
        digest_size=8,
        key=(seed % 2**128).to_bytes(16, "little"),
        person=b"fedllm-holdout",
    ).digest()
    return (int.from_bytes(digest, "little") >> 11) * _UNIT


def split_holdout(
    dataset: TextDataset,
    fraction: float,
    seed: int,
    by_text_hash: bool = True,
    *,
    columns: Sequence[str] = ("text",),
) -> tuple[TextDataset, TextDataset]:
    """Divide ``dataset`` into (train, holdout), both in the original order.

    By default an example is held out where :func:`text_hash` of its ``columns`` is below
    ``fraction``: the share held out is ``fraction`` in expectation (over distinct texts), and an
    example's side depends on its own text and the seed only. With ``by_text_hash=False`` exactly
    round(fraction * n) examples are drawn at random instead; then sides depend on the number of
    examples, and copies of a text can fall on both.

    Raises DataError for ``fraction`` outside [0, 1), a missing column, or an empty side.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"Expected 0 <= fraction < 1 for a holdout, got fraction={fraction}")
    if by_text_hash:
        require_columns(dataset, columns)
        held = [text_hash(record, columns, seed) < fraction for record in dataset.records]
    else:
        count = round(fraction * len(dataset))
        drawn = np.random.default_rng(seed).permutation(len(dataset))[:count]
        chosen = set(drawn.tolist())
        held = [row in chosen for row in range(len(dataset))]
    train = dataset.select((row for row, out in enumerate(held) if not out), dataset.name)
    holdout = dataset.select(
        (row for row, out in enumerate(held) if out), f"{dataset.name}/holdout"
    )
    if not len(train) or (fraction > 0 and not len(holdout)):
        raise DataError(
            f"Expected examples on both sides of the holdout of {dataset.name}, got {len(train)} "
            f"for training and {len(holdout)} held out with fraction={fraction}"
        )
    return train, holdout
