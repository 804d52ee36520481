"""Classification by a causal language model: label words at the end of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.data.labels import label_index
from fedllm.models.backbone import Backbone
from fedllm.settings.sections import TaskSettings
from fedllm.tasks.base import Params, Task, column_values
from fedllm.tasks.classification import Classification
from fedllm.tasks.open_end import label_word_ids, open_ended


class LabelWordClassification(Classification):
    """Scores of the classes are the model's logits of each label word's first token after the prompt.

    Nothing is trained but the prefix. The prompt's own words are kept whole and the text is cut.
    """

    padding_side = "left"

    def __init__(self, settings: TaskSettings, backbone: Backbone, prefix_length: int) -> None:
        super().__init__(settings, backbone, prefix_length)
        if settings.prompt is None or settings.label_words is None:
            raise ValueError(
                "Expected task.prompt and task.label_words for classification by the decoder "
                f"model.name={backbone.name!r}, got task.prompt={settings.prompt!r}, "
                f"task.label_words={settings.label_words!r}"
            )
        self.prompt = settings.prompt
        check_prompt(self.prompt, settings.text)
        words = label_word_ids(backbone.tokenizer, settings.label_words)
        self.word_ids = torch.tensor(words, device=backbone.device)

    @property
    def longest(self) -> int:
        """Public bound on the tokens of a prompt."""
        return longest_prompt(self)

    def features(self, records: Sequence[Mapping[str, Any]]) -> list[Feature]:
        prompts = prompt_tokens(self, records)
        targets, _ = label_index(records, self.settings.target, self.labels)
        return [
            Feature(input_ids=ids, target=target)
            for ids, target in zip(prompts, targets, strict=True)
        ]

    def initial_params(self) -> dict[str, Tensor]:
        return {}

    def logits(self, params: Params, batch: Batch) -> Tensor:
        """Return the scores of the label words, (B, C)."""
        out = self.run(batch, use_cache=False, logits_to_keep=1).logits
        return out[:, -1, self.word_ids].float()


def check_prompt(prompt: str, columns: Sequence[str]) -> None:
    """Refuse a prompt that does not hold each text column once.

    Raises:
        ValueError: a column is missing from the prompt, or stands there twice.
    """
    for column in columns:
        if prompt.count("{" + column + "}") != 1:
            raise ValueError(
                f"Expected {{{column}}} once in task.prompt (it is one of task.text), "
                f"got task.prompt={prompt!r}"
            )


def longest_prompt(task: Task) -> int:
    """Return the maximum number of tokens that :func:`prompt_tokens` gives: ``task.max_length``, or the length of the
    template with one token per column if that is larger. It depends only on the settings and the tokenizer."""
    return max(task.settings.max_length, _wording(task) + len(task.settings.text) + 1)


def _wording(task: Task) -> int:
    """Return the tokens of the prompt's own words."""
    settings, tokenizer = task.settings, task.backbone.tokenizer
    return sum(
        len(tokenizer(piece, add_special_tokens=False)["input_ids"])
        for piece, is_column in _split_prompt(_prompt(settings), settings.text)
        if not is_column
    )


def _prompt(settings: TaskSettings) -> str:
    return settings.prompt or "{" + settings.text[0] + "}"


def prompt_tokens(task: Task, records: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Return the prompt with its columns filled in, as tokens, one list a record of at most :func:`longest_prompt`;
    no end token behind it.

    The columns are cut, not the wording: each to its equal share of what ``task.max_length`` leaves. Where a
    cut text has more tokens once it is joined to the wording, its share is lowered until it fits.

    Raises:
        DataError: a record lacks a column.
    """
    settings, tokenizer = task.settings, task.backbone.tokenizer
    columns = {
        column: [str(value) for value in column_values(records, column, "task.text")]
        for column in settings.text
    }
    pieces = _split_prompt(_prompt(settings), settings.text)
    whole = max(1, (settings.max_length - _wording(task) - 1) // len(settings.text))
    most = longest_prompt(task)

    def filled(row: int, share: int) -> str:
        return "".join(
            _cut(tokenizer, columns[piece][row], share) if is_column else piece
            for piece, is_column in pieces
        )

    prompts = open_ended(tokenizer, [filled(row, whole) for row in range(len(records))])
    for row, ids in enumerate(prompts):
        share = whole
        while len(ids) > most and share > 0:
            share = max(0, min(share - 1, share - (len(ids) - most) // len(settings.text)))
            (ids,) = open_ended(tokenizer, [filled(row, share)])
        prompts[row] = ids[-most:]  # what is left of a wording that joins badly: its end counts
    return prompts


def _split_prompt(prompt: str, columns: Sequence[str]) -> list[tuple[str, bool]]:
    pieces: list[tuple[str, bool]] = [(prompt, False)]
    for column in columns:
        split: list[tuple[str, bool]] = []
        for piece, is_column in pieces:
            if is_column or "{" + column + "}" not in piece:
                split.append((piece, is_column))
                continue
            before, after = piece.split("{" + column + "}", 1)
            split += [(before, False), (column, True), (after, False)]
        pieces = split
    return [(piece, is_column) for piece, is_column in pieces if piece]


def _cut(tokenizer: Any, text: str, tokens: int) -> str:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return text if len(ids) <= tokens else str(tokenizer.decode(ids[:tokens]))
