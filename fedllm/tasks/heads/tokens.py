"""A tag for each word (token classification), by a linear head on an encoder's state of the word's first token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.data.record_forms import RecordError, tags_of, words_of
from fedllm.metrics import tag_scores
from fedllm.models.backbone import Backbone
from fedllm.settings.sections import TaskSettings
from fedllm.tasks.base import PUBLIC_WORD, Params, column_values, expand_params, mean_of, required
from fedllm.tasks.heads.pooled import FEATURE_NORM, PooledHead
from fedllm.tasks.text_columns import reads_segments


class TokenTags(PooledHead):
    """An example's loss is the mean of the cross-entropies of its words' tags.

    Words are joined by blanks and tokenised as one text. A word's tag is that of its first token; a word beyond
    ``task.max_length`` tokens, or one that the tokenizer leaves out, has none. Each state is scaled to one norm, as for
    the pooled head.

    Raises:
        ValueError: the tokenizer does not tell where in the text a token is.
    """

    def __init__(self, settings: TaskSettings, backbone: Backbone, prefix_length: int) -> None:
        super().__init__(settings, backbone, prefix_length)
        self.labels = list(settings.labels or ())
        if not getattr(backbone.tokenizer, "is_fast", False):
            raise ValueError(
                f"Expected a fast tokenizer for task.kind={settings.kind} (it tells which token is of which word), got "
                f"that of model.name={backbone.name!r}"
            )

    def features(self, records: Sequence[Mapping[str, Any]]) -> list[Feature]:
        inputs = column_values(records, self.settings.text[0], "task.text")
        targets = column_values(records, self.settings.target, "task.target")
        features = []
        for row, (value, target) in enumerate(zip(inputs, targets, strict=True)):
            try:
                words = words_of(value)
                tags = tags_of(target, self.labels)
                if len(words) != len(tags):
                    raise ValueError(f"{len(words)} words with {len(tags)} tags")
            except ValueError as error:
                raise RecordError(str(error), row) from error
            features.append(self._feature(words, tags))
        return features

    def _feature(self, words: Sequence[str], tags: Sequence[int]) -> Feature:
        backbone = self.backbone
        encoded = backbone.tokenizer(
            " ".join(words),
            truncation=True,
            max_length=self.settings.max_length,
            return_offsets_mapping=True,
        )
        ids = list(encoded["input_ids"])
        firsts = first_tokens(words, encoded["offset_mapping"])
        mask, classes = [0] * len(ids), [0] * len(ids)
        for word, token in firsts.items():
            mask[token], classes[token] = 1, tags[word]
        segments = encoded.get("token_type_ids") if reads_segments(backbone.model) else None
        return Feature(
            ids,
            target_mask=mask,
            segments=None if segments is None else list(segments),
            meta={"words": list(words), "firsts": [firsts.get(i) for i in range(len(words))]},
            token_targets=classes,
        )

    def public_record(self) -> dict[str, Any]:
        return {self.settings.text[0]: [PUBLIC_WORD], self.settings.target: [self.labels[0]]}

    def probe(self, ids: list[int]) -> Feature:
        classes = [place % len(self.labels) for place in range(len(ids))]
        return Feature(ids, target_mask=[0] + [1] * (len(ids) - 1), token_targets=classes)

    def logits(self, params: Params, batch: Batch) -> Tensor:
        """Return the scores of the tags at each token, (B, T, C) float32; zeros in place of padding's states."""
        hidden = self.run(batch).last_hidden_state.float()
        hidden = hidden.masked_fill(batch.attention_mask.unsqueeze(-1) == 0, 0.0)
        states = torch.nn.functional.normalize(hidden, dim=-1, eps=1e-6) * FEATURE_NORM
        # No product of matrices, whose kernel may depend on the number of rows; one tag at a time, to hold (B, T, H) once.
        each = [
            (states * weight.unsqueeze(1)).sum(-1) for weight in params["head.weight"].unbind(1)
        ]
        return torch.stack(each, dim=-1) + params["head.bias"].unsqueeze(1)

    def losses(self, params: Params, batch: Batch) -> Tensor:
        counted = required(batch.target_mask, "target_mask")
        nll = torch.nn.functional.cross_entropy(
            self.logits(params, batch).transpose(1, 2),
            required(batch.token_targets, "token_targets"),
            reduction="none",
        )
        return nll.masked_fill(counted == 0, 0.0).sum(1) / counted.sum(1).clamp(min=1)

    def scores(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        counted = required(batch.target_mask, "target_mask").float()
        return self.logits(params, batch), counted / counted.sum(1, keepdim=True).clamp(min=1)

    def answers(
        self, params: Params, batch: Batch, features: Sequence[Feature]
    ) -> list[dict[str, Any]]:
        """Return ``words``, and ``tags`` of each example: one a word, None for a word that was cut off."""
        chosen = self.logits(params, batch)[: len(batch)].argmax(-1).tolist()
        return [
            {
                "words": feature.meta["words"],
                "tags": [
                    None if i is None else self.labels[row[i]] for i in feature.meta["firsts"]
                ],
            }
            for row, feature in zip(chosen, features, strict=True)
        ]

    def evaluate(self, params: Params, batches: Sequence[Batch]) -> dict[str, float]:
        """Compute loss, the share of words with the right tag, and precision, recall and F1 of entities (IOB2)."""
        truth: list[list[str]] = []
        predicted: list[list[str]] = []
        loss = 0.0
        for batch in batches:
            rows = expand_params(params, len(batch.input_ids))
            loss += float(self.losses(rows, batch)[: len(batch)].sum())
            chosen = self.logits(rows, batch).argmax(-1)
            counted = required(batch.target_mask, "target_mask").bool()
            wanted = required(batch.token_targets, "token_targets")
            for row in range(len(batch)):
                predicted.append([self.labels[i] for i in chosen[row][counted[row]].tolist()])
                truth.append([self.labels[i] for i in wanted[row][counted[row]].tolist()])
        return {
            "loss": mean_of(loss, len(truth)),
            **tag_scores(predicted, truth, self.labels),
            "examples": float(len(truth)),
        }


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Return the first token of each word that has one.

    Args:
        words: joined by one blank each.
        offsets: where in that text each token begins and ends; (0, 0) for tokens that are no part of it.
    """
    found: dict[int, int] = {}
    word, begin = 0, 0
    for token, (start, stop) in enumerate(offsets):
        if stop <= start:
            continue
        while word < len(words) and begin + len(words[word]) <= start:
            begin += len(words[word]) + 1
            word += 1
        inner, at = word, begin
        if inner < len(words) and stop <= at:
            continue  # the blank before the word, as a token
        # A token over several words is the first of each.
        while inner < len(words) and at < stop:
            found.setdefault(inner, token)
            at += len(words[inner]) + 1
            inner += 1
    return found
