"""Tokenise a text that continues: leave out the end tokens that the tokenizer appends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedllm.models.embedded import ModelError

_PROBE = "the"


def open_ended(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return token ids of each text, with the tokenizer's tokens before it and without those after it.

    A label word or an answer follows; behind an end token the model would be asked for the next text.
    """
    found = [list(ids) for ids in tokenizer(list(texts))["input_ids"]] if texts else []
    behind = end_tokens(tokenizer)
    return [ids[: len(ids) - behind] for ids in found]


def end_tokens(tokenizer: Any) -> int:
    """Return the number of tokens that a tokenizer puts behind every text."""
    bare = list(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(_PROBE)["input_ids"])
    if not bare:
        return 0
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return len(whole) - start - len(bare)
    return 0


def label_word_ids(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Return the first token of each label word.

    Raises:
        ModelError: a word without a token, or one that the tokenizer does not know.
        ValueError: two words with the same first token.
    """
    ids: list[int] = []
    for word in words:
        tokens = tokenizer(word, add_special_tokens=False)["input_ids"]
        if not len(tokens):
            raise ModelError(
                f"Expected a token in each of task.label_words, got none in {word!r} of {list(words)}"
            )
        ids.append(int(tokens[0]))
    unknown = tokenizer.unk_token_id
    if unknown in ids and unknown not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        raise ModelError(
            "Expected words that the tokenizer knows in task.label_words, got "
            f"{words[ids.index(unknown)]!r}, which begins with the token for unknown text"
        )
    if len(set(ids)) != len(ids):
        raise ValueError(
            "Expected label words that differ in their first token, got "
            f"task.label_words={tuple(words)} with first tokens {ids}"
        )
    return ids
