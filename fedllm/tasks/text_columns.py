"""Several text columns as one input of an encoder: the first text, and all others as the second.

The rule: one column is the tokenizer's own call on it, two columns are its own call on the pair. From three on
the first column is the first text, and the others, in order, are the second, the tokenizer's separator between
them. Where that is too long, the columns with most tokens are cut, all to one length, so that none is left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any


def encoded_texts(tokenizer: Any, columns: Sequence[Sequence[str]], max_length: int) -> Any:
    """Tokenize each record's columns, truncated to ``max_length`` tokens.

    Args:
        columns: one sequence a column, each with a text a record.

    Returns:
        lists of a number a token by name: ``input_ids``, and ``token_type_ids`` where the tokenizer has them.
    """
    texts = [list(column) for column in columns]
    if len(texts) > 2:
        first, *rest = texts
        joined = [_fitting(tokenizer, row, max_length) for row in zip(first, *rest, strict=True)]
        separator = f" {tokenizer.sep_token} " if tokenizer.sep_token else " "
        texts = [[row[0] for row in joined], [separator.join(row[1:]) for row in joined]]
    return tokenizer(*texts, truncation=True, max_length=max_length)


def _fitting(tokenizer: Any, row: Sequence[str], max_length: int) -> list[str]:
    """Return the texts of one record, the longest cut until all fit together."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in row]
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - max(0, len(row) - 2)
    most = max(map(len, ids))
    while most > 1 and sum(min(len(each), most) for each in ids) > room:
        most -= 1
    return [
        text if len(each) <= most else str(tokenizer.decode(each[:most]))
        for text, each in zip(row, ids, strict=True)
    ]


def reads_segments(model: Any) -> bool:
    """Return True if a model tells the first text from the second: it takes ``token_type_ids``, and more than one."""
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return False
    kinds = getattr(model.config, "type_vocab_size", None)
    return kinds is None or int(kinds) > 1
