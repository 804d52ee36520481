"""A frozen backbone with its trainable prefix and head, for one task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.kept import Kept
from fedllm.models.attention import prefix_scope
from fedllm.models.backbone import Backbone, shared_backbone, still_kept, was_given_up
from fedllm.models.endpoint import CompletionEndpoint, endpoint_url
from fedllm.models.precision import require_full_precision
from fedllm.models.prefix import PREFIX, PrefixSpec, generate, init_from_phrase, init_random
from fedllm.settings.experiment import Settings
from fedllm.settings.sections import PrefixSettings
from fedllm.tasks import Task, make_task, task_kind
from fedllm.tasks.base import expand_params, with_fillers
from fedllm.tasks.endpoint_classification import EndpointClassification
from fedllm.tasks.generation import Generation
from fedllm.tasks.positions import check_positions
from privacy.randomness import generator


@dataclass(frozen=True)
class Remote:
    """Stand-in for a backbone behind an HTTP endpoint: a name, and the device of the trained tensors."""

    name: str
    kind: str = "endpoint"
    max_positions: int | None = None
    onednn: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Tunable:
    """A frozen model with its trained part: named float32 tensors.

    Attributes:
        backbone: the frozen language model.
        task: losses and metrics.
        spec: shape and layers of the prefix, or None where only a head is trained.
    """

    def __init__(self, backbone: Backbone, task: Task, spec: PrefixSpec | None) -> None:
        self.backbone = backbone
        self.task = task
        self.spec = spec

    @contextmanager
    def with_prefix(self, params: Mapping[str, Tensor]) -> Iterator[None]:
        """Put the prefix of ``params`` (one for each example of the batch, or one for all with a
        leading dimension of 1) in front of every chosen layer; products of matrices in full precision."""
        require_full_precision(self.backbone.onednn)
        if self.spec is None:
            yield
            return
        with prefix_scope(self.backbone.model, params[PREFIX], self.spec.layers):
            yield

    def losses(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Loss of each example, (B,) float32; ``params`` each with a leading dimension B."""
        params = with_fillers(params, batch)
        with self.with_prefix(params):
            return self.task.losses(params, batch)[: len(batch)]

    def scores(self, params: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """The model's answers, see :meth:`fedllm.tasks.base.Task.scores`; ``params`` as in
        :meth:`losses`."""
        params = with_fillers(params, batch)
        with self.with_prefix(params):
            scores, weights = self.task.scores(params, batch)
        return scores[: len(batch)], weights[: len(batch)]

    @torch.no_grad()
    def evaluate(
        self, params: Mapping[str, Tensor], features: Sequence[Feature], max_tokens: int
    ) -> dict[str, float]:
        """Metrics of the task over ``features``.

        Raises:
            ValueError: no features.
        """
        params = {name: value.to(self.backbone.device) for name, value in params.items()}
        groups = self.task.batches(features, max_tokens)
        batches = [self.task.collate([features[i] for i in group]) for group in groups]
        with self.with_prefix(expand_params(params, 1)):
            return self.task.evaluate(params, batches)

    @torch.no_grad()
    def write(
        self, params: Mapping[str, Tensor], prompts: Sequence[list[int]], max_new_tokens: int
    ) -> list[str]:
        """The model's greedy continuation of each prompt (token ids), as text.

        Raises:
            ValueError: the task is no generation.
        """
        if not isinstance(self.task, Generation) or self.spec is None:
            raise ValueError(f"Expected a generation task, got {type(self.task).__name__}")
        backbone = self.backbone
        prefix = params[PREFIX].to(backbone.device)
        texts = []
        for prompt in prompts:
            ids = torch.tensor([prompt], device=backbone.device)
            out = generate(
                backbone,
                self.spec,
                prefix,
                ids,
                torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=backbone.tokenizer.pad_token_id,
            )
            new = out[0, len(prompt) :]
            texts.append(str(backbone.tokenizer.decode(new, skip_special_tokens=True)).strip())
        return texts

    def writing_metrics(
        self, params: Mapping[str, Tensor], features: Sequence[Feature], max_new_tokens: int
    ) -> dict[str, float]:
        """BLEU and ROUGE-L of greedy texts.

        Raises:
            ValueError: the task is no generation.
        """
        prompts = [feature.meta["prompt"] for feature in features]
        texts = self.write(params, prompts, max_new_tokens)
        if not isinstance(self.task, Generation):
            raise ValueError(f"Expected a generation task, got {type(self.task).__name__}")
        return self.task.score(texts, features)


def prefix_layers(settings: PrefixSettings, n_layers: int) -> tuple[int, ...]:
    """Layer numbers that carry a prefix, ascending.

    Raises:
        ValueError: a number outside the model, or twice.
    """
    if settings.layers == "all":
        return tuple(range(n_layers))
    layers = [layer + n_layers if layer < 0 else layer for layer in settings.layers]
    if any(not 0 <= layer < n_layers for layer in layers) or len(set(layers)) != len(layers):
        raise ValueError(
            f"Expected distinct prefix.layers between {-n_layers} and {n_layers - 1}, "
            f"got prefix.layers={list(settings.layers)}"
        )
    return tuple(sorted(layers))


def make_tunable(settings: Settings, backbone: Backbone | None = None) -> Tunable:
    """Load the backbone (once a process; where none is given) and set task and prefix shape.

    Raises:
        ValueError: settings that do not fit the model; the setting is named.
    """
    if settings.endpoint.active:
        return _behind_an_endpoint(settings)
    if backbone is None:
        model = settings.model
        backbone = shared_backbone(
            model.name,
            kind=task_kind(settings.task),
            dtype=model.dtype,
            device=model.device,
            revision=model.revision,
            gguf_file=model.gguf_file,
        )
    layers = prefix_layers(settings.prefix, backbone.n_layers)
    spec = None
    if settings.prefix.length > 0 and layers:
        spec = PrefixSpec(settings.prefix.length, layers, backbone.kv_heads, backbone.head_dim)
    task = make_task(settings.task, backbone, settings.prefix.length if spec else 0)
    if spec is None and not task.initial_params():
        raise ValueError(
            f"Expected prefix.length > 0 and at least one layer for {type(task).__name__} (it has no "
            f"head to train), got prefix.length={settings.prefix.length}, "
            f"prefix.layers={settings.prefix.layers}"
        )
    check_positions(settings, backbone, task, settings.prefix.length if spec else 0)
    return Tunable(backbone, task, spec)


MOST_TUNABLES = 8
"""Models with a task and a prefix that a process keeps, those of models that it does not keep left out."""
_shared = Kept[str, Tunable](MOST_TUNABLES)


def shared_tunable(settings: Settings) -> Tunable:
    """The frozen model with its task, for the same model, task and prefix shape once, while it is kept."""
    key = "\n".join(
        part.model_dump_json()
        for part in (settings.model, settings.task, settings.prefix, settings.endpoint)
    )
    _shared.drop(lambda tunable: was_given_up(tunable.backbone))
    found = _shared.get(key, lambda: make_tunable(settings))
    still_kept(found.backbone)
    _shared.drop(lambda tunable: tunable is not found and was_given_up(tunable.backbone))
    return found


def _behind_an_endpoint(settings: Settings) -> Tunable:
    named = settings.endpoint
    endpoint = CompletionEndpoint(
        endpoint_url(named.url), model=named.model, top=named.top, timeout=named.timeout
    )
    remote: Any = Remote(named.model or named.url)
    prompts = named.prompts or (settings.task.prompt or "",)
    task = EndpointClassification(settings.task, remote, endpoint, prompts)
    return Tunable(remote, task, None)


def trained_size(settings: Settings, tunable: Tunable) -> int:
    """Trained numbers together: of the prefix by its shape, of a head by its classes. Makes no tensor of a prefix."""
    spec, size = tunable.spec, 0
    if spec is not None:
        size = 2 * len(spec.layers) * spec.length * spec.kv_heads * spec.head_dim
    return size + sum(value.numel() for value in tunable.task.initial_params().values())


def initial_params(tunable: Tunable, settings: Settings) -> dict[str, Tensor]:
    """The trainable tensors before training, float32 on the CPU, a function of the settings alone."""
    params = tunable.task.initial_params()
    if tunable.spec is not None:
        if settings.prefix.init == "phrase":
            prefix = init_from_phrase(tunable.backbone, tunable.spec, settings.prefix.phrase)
        else:
            rng = generator(settings.seed, "prefix-init")
            prefix = init_random(tunable.spec, settings.prefix.init_std, rng)
        params[PREFIX] = prefix
    return {name: params[name].float().cpu() for name in sorted(params)}
