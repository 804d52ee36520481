"""Text generation by an encoder-decoder: the encoder reads the prompt, the decoder writes the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.models.backbone import Backbone
from fedllm.settings.sections import TaskSettings
from fedllm.tasks.base import Params, required
from fedllm.tasks.generation import Generation


class EncoderDecoderGeneration(Generation):
    """Write ``task.target`` for an input that the encoder reads. An example's loss is the mean over its target's tokens.

    A feature holds the prompt and behind it the answer; a micro-batch holds one example (``alone``), so that neither of
    the two has padding.
    """

    def __init__(self, settings: TaskSettings, backbone: Backbone, prefix_length: int) -> None:
        super().__init__(settings, backbone, prefix_length)
        start = backbone.model.config.decoder_start_token_id
        if start is None:
            raise ValueError(
                "Expected a model whose configuration has a decoder_start_token_id for task.kind=generation, got "
                f"none in model.name={backbone.name!r}"
            )
        self.start = int(start)

    @property
    def longest(self) -> int:
        """Public bound on the tokens of a prompt, its end token and its answer."""
        return super().longest + 1

    def features(self, records: Sequence[Mapping[str, Any]]) -> list[Feature]:
        """As of decoders, with an end token behind the prompt too: the encoder reads a whole text."""
        end = self.backbone.tokenizer.eos_token_id
        found = []
        for feature in super().features(records):
            prompt = [*feature.meta["prompt"], end]
            answer = feature.input_ids[len(prompt) - 1 :]
            mask = [0] * len(prompt) + [1] * len(answer)
            meta = feature.meta | {"prompt": prompt}
            found.append(Feature([*prompt, *answer], target_mask=mask, meta=meta))
        return found

    def token_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, answer = self._answer(batch)
        nll = torch.nn.functional.cross_entropy(logits[0], answer[0], reduction="none")
        return nll.sum()[None], torch.full((1,), answer.shape[1], device=nll.device)

    def scores(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, answer = self._answer(batch)
        return logits, torch.full_like(answer, 1 / answer.shape[1], dtype=torch.float32)

    def written(self, tokens: Tensor, prompt: int) -> Tensor:
        return tokens[1:]

    def _answer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits (1, N, V) of the answer's tokens, and these (1, N).

        Raises:
            ValueError: several examples.
        """
        mask = required(batch.target_mask, "target_mask")
        if mask.shape[0] != 1:
            raise ValueError(f"Expected a micro-batch of one example, got {mask.shape[0]}")
        prompt, answer = batch.input_ids.split(
            [int((mask == 0).sum()), int((mask != 0).sum())], dim=1
        )
        start = torch.full_like(answer[:, :1], self.start)
        read = Batch(prompt, torch.ones_like(prompt))
        given = torch.cat([start, answer[:, :-1]], dim=1)
        logits: Tensor = self.run(read, decoder_input_ids=given, use_cache=False).logits
        return logits.float(), answer
