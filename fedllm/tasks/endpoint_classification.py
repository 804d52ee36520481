"""Classification by a model behind an HTTP endpoint: what is trained lies on this side of it.

Keys and values cannot be sent to an endpoint, so there is no prefix. What its answers become is trained: for
each of P prompts an affine map of the label words' log-probabilities, and the weights of the prompts,

    p(c | x) = sum_p mixture_p softmax_c(scale_p log P(word_c | prompt_p(x)) + bias_pc),

which corrects a model's liking for a word whatever the text (calibration; Zhao et al. 2021, arXiv 2102.09690),
and finds the prompts that it understands. At the start it is the plain mean over the prompts. The endpoint's
answers do not depend on what is trained: each is asked for once. (These few parameters have gradients that could
be computed here. They are trained by the same zeroth-order steps as a prefix, with the same messages and accounts.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.data.labels import label_index
from fedllm.models.endpoint import CompletionEndpoint
from fedllm.settings.sections import TaskSettings
from fedllm.tasks.base import Params, column_values, required
from fedllm.tasks.classification import Classification
from fedllm.tasks.decoder_classification import check_prompt

MIXTURE, SCALE, BIAS = "head.mixture", "head.scale", "head.bias"


@dataclass
class AnsweredBatch(Batch):
    """A batch with the endpoint's answers: (B, P, C) log-probabilities of C words after P prompts."""

    answers: Tensor | None = None


class EndpointClassification(Classification):
    """See the module. Texts are cut to ``task.max_length`` words: the endpoint's tokens are not known here.

    Args:
        settings: labels, label words and columns.
        backbone: what stands for the model (see :class:`fedllm.training.tunable.Remote`).
        endpoint: whom to ask.
        prompts: templates, each with every text column once.

    Raises:
        ValueError: no label words, or a prompt without a column.
    """

    def __init__(
        self,
        settings: TaskSettings,
        backbone: Any,
        endpoint: CompletionEndpoint,
        prompts: Sequence[str],
    ) -> None:
        super().__init__(settings, backbone, 0)
        self.words = list(settings.label_words or ())
        self.endpoint = endpoint
        self.prompts = list(prompts)
        for prompt in self.prompts:
            check_prompt(prompt, settings.text)

    def features(self, records: Sequence[Mapping[str, Any]]) -> list[Feature]:
        """Fill the prompts with the texts, without a request. The ids are the first prompt's bytes."""
        columns = {
            column: [
                " ".join(str(value).split()[: self.settings.max_length])
                for value in column_values(records, column, "task.text")
            ]
            for column in self.settings.text
        }
        targets, _ = label_index(records, self.settings.target, self.labels)
        found = []
        for row, target in enumerate(targets):
            filled = []
            for prompt in self.prompts:
                for column, values in columns.items():
                    prompt = prompt.replace("{" + column + "}", values[row])
                filled.append(prompt)
            ids = list(filled[0].encode())
            found.append(Feature(input_ids=ids, target=target, meta={"prompts": filled}))
        return found

    @property
    def longest(self) -> None:
        """No bound: the endpoint's tokens are not known here."""
        return None

    @property
    def vocabulary(self) -> None:
        """Not known here."""
        return None

    def initial_params(self) -> dict[str, Tensor]:
        count, classes = len(self.prompts), len(self.labels)
        return {
            MIXTURE: torch.zeros(count),
            SCALE: torch.ones(count),
            BIAS: torch.zeros(count, classes),
        }

    def collate(self, features: Sequence[Feature]) -> AnsweredBatch:
        """Ask the endpoint for what it was not asked before.

        Raises:
            EndpointError: it gives no usable answer.
        """
        prompts = [prompt for feature in features for prompt in feature.meta["prompts"]]
        answers = torch.tensor(self.endpoint.word_log_probabilities(prompts, self.words))
        ids = torch.zeros(len(features), 1, dtype=torch.long)
        return AnsweredBatch(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            targets=torch.tensor([feature.target for feature in features]),
            answers=answers.reshape(len(features), len(self.prompts), len(self.words)),
        )

    def batches(self, features: Sequence[Feature], max_tokens: int) -> list[list[int]]:
        """Return one batch: nothing is computed here that would not fit."""
        return [list(range(len(features)))] if features else []

    def logits(self, params: Params, batch: Batch) -> Tensor:
        """Return log-probabilities of the classes, (B, C)."""
        answers = required(getattr(batch, "answers", None), "answers of an endpoint")
        scaled = params[SCALE].unsqueeze(-1) * answers + params[BIAS]
        each = scaled.log_softmax(-1) + params[MIXTURE].log_softmax(-1).unsqueeze(-1)
        return each.logsumexp(-2)
