"""A model that gives losses and nothing else: no gradients, no activations kept.

What :mod:`fedllm.training.zeroth_order` trains through. :class:`LocalForwardOnly` is a model on this machine whose
prefix (and head) is moved; it stands for a model whose owner lets keys and values in and outputs out.
:class:`HttpForwardOnly` is a model behind a completion endpoint, where only what its answers become can be moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.tasks.base import expand_params
from fedllm.tasks.endpoint_classification import AnsweredBatch, EndpointClassification
from fedllm.training.tunable import Tunable


class ForwardOnly(Protocol):
    """Losses of examples at given parameters."""

    @property
    def device(self) -> torch.device:
        """Device on which the parameters are needed."""
        ...

    def batches(self, features: Sequence[Feature], max_tokens: int) -> Iterator[Any]:
        """Yield the examples in micro-batches, each example once; each is what :meth:`losses` takes."""
        ...

    def losses(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """Return the loss of each example of a micro-batch at ``params``, (B,) float32, on the CPU or :attr:`device`.

        Each depends on its own example and ``params`` alone: per-example clipping stands on that.
        """
        ...


class LocalForwardOnly:
    """A model on this machine, run in inference mode: autograd keeps nothing.

    Args:
        tunable: the frozen model with its task.
    """

    def __init__(self, tunable: Tunable) -> None:
        self.tunable = tunable

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.tunable.backbone.device

    def batches(self, features: Sequence[Feature], max_tokens: int) -> Iterator[Batch]:
        """Yield micro-batches of similar length, at most ``max_tokens`` padded tokens each."""
        for group in self.tunable.task.batches(features, max_tokens):
            yield self.tunable.task.collate([features[i] for i in group])

    @torch.no_grad()
    def losses(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """See :meth:`ForwardOnly.losses`; ``params`` without batch dimension."""
        return self.tunable.losses(expand_params(params, len(batch)), batch).float()


class HttpForwardOnly:
    """A model behind an HTTP endpoint (:mod:`fedllm.models.endpoint`); each example is requested once.
    :mod:`fedllm.tasks.endpoint_classification` defines the trained parameters.

    Args:
        task: with the endpoint.
    """

    device = torch.device("cpu")

    def __init__(self, task: EndpointClassification) -> None:
        self.task = task

    def batches(self, features: Sequence[Feature], max_tokens: int) -> Iterator[AnsweredBatch]:
        """Yield all examples at once, with their answers.

        Raises:
            EndpointError: the endpoint gives no usable answer.
        """
        for group in self.task.batches(features, max_tokens):
            yield self.task.collate([features[i] for i in group])

    @torch.no_grad()
    def losses(self, params: Mapping[str, Tensor], batch: AnsweredBatch) -> Tensor:
        """See :meth:`ForwardOnly.losses`."""
        return self.task.losses(expand_params(params, len(batch)), batch)


def forward_only(tunable: Tunable) -> ForwardOnly:
    """Return a tunable model's view as a black box."""
    if isinstance(tunable.task, EndpointClassification):
        return HttpForwardOnly(tunable.task)
    return LocalForwardOnly(tunable)
