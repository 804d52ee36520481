"""The attacked client and its adversary's knowledge: model, texts, parameters, gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.data.formats.records import DataError, normalise_text
from fedllm.models.prefix import PREFIX
from fedllm.settings.experiment import Settings
from fedllm.training.gradients import per_example_gradients
from fedllm.training.mechanism import make_mechanism
from fedllm.training.steps import LocalWork, split_like
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from privacy.randomness import generator
from simulations.benchmarks.support import workload

WARM_TEXTS = 400
WARM_STEPS, WARM_BATCH, WARM_RATE = 20, 32, 5e-3
MICRO_BATCH = 2048


@dataclass(frozen=True)
class Scene:
    """One model during training.

    Attributes:
        tunable: backbone and task, known to everybody.
        params: the global parameters of this round, known to everybody.
        features: texts at hand for the experiment; none was used to make ``params``.
        origin: where the texts come from.
    """

    tunable: Tunable
    params: Mapping[str, Tensor]
    features: list[Feature]
    origin: str

    @property
    def dimension(self) -> int:
        """Number of trained coordinates."""
        return sum(value.numel() for value in self.params.values())

    def gradients(self, features: Sequence[Feature]) -> Tensor:
        """Return the gradient of each text's own loss, float32 (n, d), tensors in the order of their names."""
        if not features:
            return torch.zeros(0, self.dimension)
        rows: list[Tensor] = [torch.empty(0)] * len(features)
        for group in self.tunable.task.batches(features, MICRO_BATCH):
            batch = self.tunable.task.collate([features[i] for i in group])
            found = flatten(per_example_gradients(self.tunable, self.params, batch))
            for row, value in zip(group, found, strict=True):
                rows[row] = value
        return torch.stack(rows)

    def prefix_of(self, flat: Tensor) -> Tensor:
        """Return the prefix's part of one flat vector: (layers, 2, heads, positions, head size)."""
        pieces = split_like(flat, self.params)
        return pieces[sorted(self.params).index(PREFIX)]


def flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the tensors with a leading dimension n as (n, d), in the order of their names."""
    return torch.cat([tensors[name].flatten(1) for name in sorted(tensors)], dim=1)


def make_scene(
    *,
    texts: int,
    prefix_length: int,
    seed: int,
    data: str = "auto",
    model: str = "minilm",
    warm_texts: int = WARM_TEXTS,
    warm_steps: int = WARM_STEPS,
) -> Scene:
    """Load the model and distinct texts, and train a few steps on other texts.

    Before the first step the head is zero and so is every gradient of the prefix: there is nothing
    to attack in it. A few steps later there is.

    Args:
        texts: number of distinct texts for the experiment.
        prefix_length: virtual positions in each layer.
        seed: of the choice of texts, and of the warm-up's batches.
        data: "sst2", "tweets", "random", or "auto" for the first of these that is at hand.
        model: embedded name or folder of an encoder.
        warm_texts: number of other texts for the warm-up.
        warm_steps: its steps; 0 leaves the parameters as they start.

    Raises:
        ValueError: too few texts, or an unknown ``data``.
    """
    source = workload.model_source(model)
    settings = workload.settings_for(
        source,
        "encoder",
        private=False,
        batch_size=WARM_BATCH,
        local_steps=max(1, warm_steps),
        max_tokens=MICRO_BATCH,
        prefix_length=prefix_length,
    )
    settings = with_client(settings, optimizer="adam", learning_rate=WARM_RATE)
    tunable = make_tunable(settings)
    records, origin = load_distinct(texts + warm_texts, data, seed)
    features = tunable.task.features(records)
    params = initial_params(tunable, settings)
    if warm_steps > 0:
        rate = min(1.0, WARM_BATCH / max(1, warm_texts))
        mechanism = make_mechanism(settings, sampling_rate=rate, noise_multiplier=0.0)
        streams = partial(generator, seed, "leakage-warm-up")
        warm = mechanism.train(LocalWork(tunable, params, features[texts:], streams))
        params = {name: params[name] + warm.update[name] for name in params}
    return Scene(tunable, params, features[:texts], origin)


def with_client(settings: Settings, **changes: object) -> Settings:
    """Return the same settings with keys of ``client`` changed, checked again."""
    tree = settings.model_dump()
    tree["client"] |= changes
    return Settings.model_validate(tree)


def load_distinct(count: int, data: str, seed: int) -> tuple[list[dict[str, str]], str]:
    """Return ``count`` records whose texts differ, even where case and white space are ignored.

    Raises:
        DataError: the data has fewer (the message of :func:`workload.load_texts`).
    """
    records, origin = workload.load_texts(count + count // 10 + 20, data, seed)
    distinct = list({normalise_text(record["text"]): record for record in records}.values())
    if len(distinct) < count:
        raise DataError(f"Expected {count} distinct texts in {origin}, got {len(distinct)}")
    return distinct[:count], origin
