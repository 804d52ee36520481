"""Text generation by a causal language model: the loss is on the target's tokens alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.metrics import corpus_bleu, perplexity, rouge_l
from fedllm.models.backbone import Backbone
from fedllm.settings.sections import TaskSettings
from fedllm.tasks.base import Params, Task, column_values, mean_of, required
from fedllm.tasks.decoder_classification import check_prompt, longest_prompt, prompt_tokens


class Generation(Task):
    """Write ``task.target`` for an input. An example's loss is the mean over its target's tokens.

    A target may be a list of references: the first is trained on, all are scored against.
    """

    padding_side = "left"
    stops: list[int] | None = None
    """Tokens that end a text; None: as the model's own configuration says."""

    def __init__(self, settings: TaskSettings, backbone: Backbone, prefix_length: int) -> None:
        super().__init__(settings, backbone, prefix_length)
        if backbone.tokenizer.eos_token_id is None:
            raise ValueError(
                "Expected an end token (eos_token) in the tokenizer for task.kind=generation, which ends each "
                f"answer, got none in that of model.name={backbone.name!r}"
            )
        if settings.prompt is not None:
            check_prompt(settings.prompt, settings.text)

    @property
    def longest(self) -> int:
        """Public bound on the tokens of a prompt with its answer."""
        return longest_prompt(self) + self.settings.max_length

    def features(self, records: Sequence[Mapping[str, Any]]) -> list[Feature]:
        tokenizer = self.backbone.tokenizer
        references = [
            [str(text) for text in value] if isinstance(value, list | tuple) else [str(value)]
            for value in column_values(records, self.settings.target, "task.target")
        ]
        features = []
        for prompt, refs in zip(prompt_tokens(self, records), references, strict=True):
            answer = tokenizer(" " + refs[0].strip(), add_special_tokens=False)["input_ids"]
            answer = [*answer[: self.settings.max_length - 1], tokenizer.eos_token_id]
            features.append(
                Feature(
                    input_ids=[*prompt, *answer],
                    target_mask=[0] * len(prompt) + [1] * len(answer),
                    meta={"prompt": prompt, "references": refs},
                )
            )
        return features

    def initial_params(self) -> dict[str, Tensor]:
        return {}

    def written(self, tokens: Tensor, prompt: int) -> Tensor:
        """Return what was written (N,), of all tokens that the model returns for a prompt of so many tokens."""
        return tokens[prompt:]

    def token_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the sum of the negative log-likelihoods and number of the target tokens, each (B,)."""
        logits, _ = self._predictions(batch)
        keep, length = logits.shape[1], batch.input_ids.shape[1]
        # The last prediction is of a token that is not there; it is left out below.
        targets = batch.input_ids.roll(-1, dims=1)[:, -keep:]
        nll = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.reshape(-1), reduction="none"
        ).view(-1, keep)[:, :-1]
        # Summed over the example's own padded length, so that the order of the sum is the same whatever
        # the longest target of the batch.
        nll = torch.nn.functional.pad(nll, (length - keep + 1, 0))
        mask = required(batch.target_mask, "target_mask")
        return nll.masked_fill(mask == 0, 0.0).sum(1), mask.sum(1)

    def _predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits (B, N, V) at the last N tokens, which predict N - 1 tokens and one that is not there; and
        which of the N - 1 count, (B, N - 1).

        N is one more than there are tokens from the first that counts on, or the whole length where shapes are fixed.
        """
        counted = required(batch.target_mask, "target_mask")
        length = counted.shape[1]
        fixed = self.shapes.tokens is not None
        keep = length if fixed else min(length, length + 1 - int(counted.argmax(1).min()))
        logits = self.run(batch, use_cache=False, logits_to_keep=keep).logits.float()
        return logits, counted[:, -keep + 1 :].float()

    def losses(self, params: Params, batch: Batch) -> Tensor:
        nll, count = self.token_losses(batch)
        return nll / count.clamp(min=1)

    def scores(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, mask = self._predictions(batch)
        return logits[:, :-1], mask / mask.sum(1, keepdim=True).clamp(min=1)

    def evaluate(self, params: Params, batches: Sequence[Batch]) -> dict[str, float]:
        loss, nll, tokens, examples = 0.0, 0.0, 0, 0
        for batch in batches:
            sums, counts = (value[: len(batch)] for value in self.token_losses(batch))
            loss += float((sums / counts.clamp(min=1)).sum())
            nll += float(sums.sum())
            tokens += int(counts.sum())
            examples += len(counts)
        return {
            "loss": mean_of(loss, examples),
            "perplexity": perplexity(nll, tokens),
            "examples": float(examples),
        }

    def score(self, texts: Sequence[str], features: Sequence[Feature]) -> dict[str, float]:
        """Compute BLEU and ROUGE-L of generated texts against all references of their features."""
        references = [feature.meta["references"] for feature in features]
        return {"bleu": corpus_bleu(texts, references), "rouge_l": rouge_l(texts, references)}
