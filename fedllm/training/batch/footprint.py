"""Estimate of the memory of one micro-batch beside the weights, from shapes alone, for each adapter.

Three parts add up:

* **Kept** for the backward pass, by the layers from the lowest trained one on: of each token about 7 hidden vectors and 2
  feed-forward vectors (3 where the feed-forward part is gated), a row of the attention mask, and what the adapter's own
  products keep. With checkpointing one hidden vector a layer, and one layer whole.
* **Copies**: one of each trained tensor an example, its gradient, and with a perturbation the first gradient and the
  perturbation. For matrices whose gradients are known by their factors: inputs and outputs' gradients of each token instead.
* **Passing**: what a layer's computation holds besides what is kept, forward and backward; an unpacked matrix of a
  quantised layer; the sums.

The factors were counted in what PyTorch saves and mended by ``python -m simulations.benchmarks.memory``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedllm.models.adapters.base import Adapter
from fedllm.models.adapters.bitfit import SCALE, BitfitAdapter
from fedllm.models.adapters.lora import A, B, LoraAdapter, factor_name
from fedllm.models.adapters.tape import Kind
from fedllm.models.adapters.weights import WeightsAdapter
from fedllm.models.footprint.quantise import quantised_sizes
from fedllm.tasks.decoder_classification import LabelWordClassification
from fedllm.tasks.generation import Generation
from fedllm.training.ghost.choice import recorded_names
from fedllm.training.tunable import Tunable

_HIDDEN, _PLAIN, _GATED = 7, 2, 3
_FLOAT = 4
_ID = 2
"""Float32 numbers in the room of a token's id."""
_BLOCKS = 2 * 2**26
"""Most bytes of float64 that the norms of factors take (:mod:`fedllm.training.ghost.factors`)."""
_FIXED = 42 * 2**20
"""Bytes of small tensors and of libraries, for any shape."""


@dataclass(frozen=True)
class Numbers:
    """Sizes that the memory of a micro-batch depends on, besides its shape.

    Attributes:
        item: bytes of a number in the model's format.
        hidden, wide, gated: size of the states and of the feed-forward part, and whether that is gated.
        layers: that keep something: from the lowest trained one on.
        prefix: positions of a prefix.
        adapter_layers: that the adapter changes.
        adapter_bytes: that the adapter's products keep of each token, over all layers.
        inputs, outputs: of each token, numbers of the recorded factors, over all matrices.
        copied: trained numbers with a copy an example.
        shared: trained numbers without one.
        perturbed: each example has a point of its own.
        checkpointing: layers keep their inputs alone.
        unpacked: bytes of the largest matrix that is unpacked where it is multiplied.
        scores: bytes of the scores of the vocabulary for one token.
        scored: how many tokens of an example have scores: "none", "one" or "all".
    """

    item: int
    hidden: int
    wide: int
    gated: bool
    layers: int
    prefix: int
    adapter_layers: int
    adapter_bytes: int
    inputs: int
    outputs: int
    copied: int
    shared: int
    perturbed: bool
    checkpointing: bool
    unpacked: int
    scores: int
    scored: str


def micro_batch_bytes(numbers: Numbers, rows: int, tokens: int) -> int:
    """Return the estimate for ``rows`` examples of ``tokens`` padded tokens each."""
    every = rows * tokens * _FLOAT
    # While the backward pass records the outputs' gradients, it gives back what was kept.
    kept = max(kept_bytes(numbers, rows, tokens), every * numbers.outputs)
    recorded = every * numbers.inputs
    if numbers.inputs:
        recorded += min(_BLOCKS, 2 * every * (numbers.hidden + numbers.wide))
    passing = passing_bytes(numbers, rows, tokens)
    return _FIXED + kept + recorded + copied_bytes(numbers, rows) + passing


def kept_bytes(numbers: Numbers, rows: int, tokens: int) -> int:
    """Return the bytes that automatic differentiation keeps of the layers and of the loss."""
    every = rows * tokens
    feed = (_GATED if numbers.gated else _PLAIN) * numbers.wide
    each = (_HIDDEN * numbers.hidden + feed + tokens + numbers.prefix) * numbers.item
    prefix = 2 * rows * numbers.prefix * numbers.hidden * numbers.item
    own = every * numbers.adapter_bytes / max(1, numbers.adapter_layers)
    layer = every * each + prefix
    if numbers.checkpointing and numbers.layers:
        kept = numbers.layers * every * numbers.hidden * numbers.item + layer + own
    else:
        kept = numbers.layers * layer + numbers.adapter_layers * own
    scored = {"none": 0, "one": rows, "all": every}[numbers.scored]
    return int(kept + scored * numbers.scores)


def copied_bytes(numbers: Numbers, rows: int) -> int:
    """Return the bytes of the copies of trained tensors, and of the sums of those without."""
    copies = 5 if numbers.perturbed else 2.5  # copy, gradient, and a part of the latter's squares
    return int(rows * numbers.copied * _FLOAT * copies + 2.5 * numbers.shared * _FLOAT)


def passing_bytes(numbers: Numbers, rows: int, tokens: int) -> int:
    """Return the bytes that live within the computation of a layer only."""
    feed = (3 if numbers.gated else 2) * numbers.wide
    return int(rows * tokens * (4 * numbers.hidden + feed) * _FLOAT + 2 * numbers.unpacked)


def numbers_of_model(
    tunable: Tunable,
    server_round: int | None,
    max_tokens: int,
    *,
    by_example: bool,
    perturbed: bool,
) -> Numbers:
    """Return the numbers of a model with its adapter and task.

    Args:
        server_round: decides which tensors are trained (1-based).
        max_tokens: of a micro-batch; decides whether factors are recorded in the place of copies.
        by_example: gradients are needed one by one, so that none is known by its factors.
        perturbed: each example has a point of its own.
    """
    backbone, adapter, task = tunable.backbone, tunable.adapter, tunable.task
    config = backbone.model.config.get_text_config()
    item = torch.empty((), dtype=backbone.dtype).element_size()
    params = trained(tunable, server_round)
    recorded = frozenset() if by_example else recorded_names(tunable, params, max_tokens)
    recorded |= adapter.shared & params.keys()
    sizes = {name: value.numel() for name, value in params.items()}
    vocabulary = int(getattr(config, "vocab_size", 0))
    scored = "all" if isinstance(task, Generation) else "none"
    if isinstance(task, LabelWordClassification):
        scored = "one"
    lowest = adapter.first_layer(backbone.n_layers)
    matrices = quantised_sizes(backbone.model)
    factors = _factor_sizes(adapter, recorded)
    return Numbers(
        item=item,
        hidden=backbone.hidden_size,
        wide=_wide(config, backbone.hidden_size),
        gated=any("gate" in module for module, _ in backbone.model.named_modules()),
        layers=max(0, backbone.n_layers - lowest),
        prefix=adapter.positions,
        adapter_layers=max(1, len(adapter.layers)),
        adapter_bytes=_adapter_bytes(adapter, params, recorded, item),
        inputs=factors[0],
        outputs=factors[1],
        copied=sum(size for name, size in sizes.items() if name not in recorded),
        shared=sum(size for name, size in sizes.items() if name in recorded),
        perturbed=perturbed,
        checkpointing=task.checkpointing,
        unpacked=max((rows * columns for rows, columns in matrices), default=0) * (_FLOAT + item),
        scores=vocabulary
        * (2 * item + 3 * _FLOAT),  # in the model's format, in float32 with two copies
        scored=scored,
    )


def trained(tunable: Tunable, server_round: int | None) -> dict[str, torch.Tensor]:
    """Return the tensors that a round trains, without their numbers."""
    fixed = tunable.adapter.fixed(server_round)
    shapes = dict(tunable.adapter.shapes())
    shapes |= {name: tuple(value.shape) for name, value in tunable.task.initial_params().items()}
    return {
        name: torch.empty(shape, device="meta")
        for name, shape in shapes.items()
        if name not in fixed
    }


def _wide(config: object, hidden: int) -> int:
    found = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return int(found or 4 * hidden)


def _adapter_bytes(
    adapter: Adapter, params: Mapping[str, torch.Tensor], recorded: frozenset[str], item: int
) -> int:
    """Bytes that the adapter's products keep of one token, over all layers."""
    total = 0
    if isinstance(adapter, LoraAdapter):
        for target in adapter.targets:
            if factor_name(target, A) in params.keys() - recorded:
                total += _FLOAT * target.inputs
            total += _FLOAT * adapter.rank
    if isinstance(adapter, BitfitAdapter):
        scales = Counter(SCALE in shift.parts for shift in adapter.shifts)[True]
        size = max((shift.size for shift in adapter.shifts if SCALE in shift.parts), default=0)
        total += 2 * _FLOAT * scales * size
    return total


def _factor_sizes(adapter: Adapter, recorded: frozenset[str]) -> tuple[int, int]:
    """Numbers of one token in the recorded inputs and outputs' gradients of all matrices.

    The scores of the vocabulary are counted with the loss.
    """
    inputs = outputs = 0
    if isinstance(adapter, LoraAdapter):
        for target in adapter.targets:
            if factor_name(target, A) in recorded:
                inputs, outputs = inputs + target.inputs, outputs + adapter.rank
            if factor_name(target, B) in recorded:
                inputs, outputs = inputs + adapter.rank, outputs + target.outputs
    if isinstance(adapter, WeightsAdapter):
        scores = adapter.model.get_output_embeddings()
        for parameter in adapter.parameters:
            for place in parameter.places if parameter.tensor in recorded else ():
                one, two = parameter.shape[:2]
                if place.use is Kind.LOOKUP:
                    inputs, outputs = inputs + _ID, outputs + two
                elif adapter.model.get_submodule(place.module) is not scores:
                    by_output = place.use is Kind.LINEAR
                    inputs, outputs = (
                        inputs + (two if by_output else one),
                        outputs + (one if by_output else two),
                    )
    return inputs, outputs
