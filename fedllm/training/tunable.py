"""A frozen backbone with its trainable adapter and head, for one task."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature
from fedllm.kept import Kept
from fedllm.models.adapters.base import Adapter
from fedllm.models.adapters.factory import initial_tensors, make_adapter
from fedllm.models.adapters.plain import HeadAlone, PrefixAdapter
from fedllm.models.adapters.tape import Tape
from fedllm.models.backbone import Backbone, shared_backbone, still_kept, was_given_up
from fedllm.models.endpoint import CompletionEndpoint, endpoint_url
from fedllm.models.footprint import recompute
from fedllm.models.generation import generate
from fedllm.models.grouping import Grouping
from fedllm.models.precision import require_full_precision
from fedllm.models.prefix import PrefixSpec
from fedllm.settings.experiment import Settings
from fedllm.tasks import Task, make_task, task_kind
from fedllm.tasks.base import expand_params, with_fillers
from fedllm.tasks.endpoint_classification import EndpointClassification
from fedllm.tasks.generation import Generation
from fedllm.tasks.positions import check_positions
from fedllm.tasks.reuse import make_trunk
from fedllm.training.batch.rows import rows_limit


@dataclass(frozen=True)
class Remote:
    """Stand-in for a backbone behind an HTTP endpoint: a name, and the device of the trained tensors."""

    name: str
    kind: str = "endpoint"
    max_positions: int | None = None
    grouping: Grouping = "padded"
    onednn: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Tunable:
    """A frozen model with its trained part: named float32 tensors.

    Attributes:
        backbone: the frozen language model.
        task: losses and metrics.
        adapter: what is trained of the backbone.
        fixed: tensors of the adapter that are not trained in this round, on the backbone's device; see :meth:`part`.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        adapter: Adapter,
        fixed: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.backbone = backbone
        self.task = task
        self.adapter = adapter
        self.fixed = dict(fixed or {})

    @property
    def spec(self) -> PrefixSpec | None:
        """Shape and layers of the prefix; None where none is trained."""
        return self.adapter.spec if isinstance(self.adapter, PrefixAdapter) else None

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the layers that the adapter changes, ascending."""
        return self.adapter.layers

    def with_task(self, task: Task) -> Tunable:
        """Return the same model with another form of its task."""
        return Tunable(self.backbone, task, self.adapter, self.fixed)

    def without_reuse(self) -> Tunable:
        """Return the same model, computed from the first layer on each time."""
        task = copy.copy(self.task)
        task.trunk = None
        return self.with_task(task)

    def keep(self, layers: Sequence[int]) -> Tunable:
        """Return the model whose adapter has these layers alone.

        Raises:
            ValueError: a layer that the adapter does not have.
        """
        kept = self.adapter.keep(layers)
        names = kept.shapes().keys()
        fixed = {name: value for name, value in self.fixed.items() if name in names}
        return Tunable(self.backbone, self.task, kept, fixed)

    def part(
        self, params: Mapping[str, Tensor], server_round: int | None = None
    ) -> tuple[Tunable, dict[str, Tensor]]:
        """Divide all tensors that travel into those that a round trains, and a model that holds the others.

        Args:
            params: all tensors, without a batch dimension.
            server_round: the round (1-based); None divides them into those that some round trains and the others.

        Returns:
            The model of the round, and the tensors that it trains.
        """
        fixed = self.adapter.fixed(server_round)
        if not fixed:
            return self, dict(params)
        device = self.backbone.device
        held = {n: params[n].to(device=device, dtype=torch.float32) for n in sorted(fixed)}
        trained = {name: value for name, value in params.items() if name not in fixed}
        return Tunable(self.backbone, self.task, self.adapter, held), trained

    @contextmanager
    def adapted(
        self,
        params: Mapping[str, Tensor],
        batch: Batch | None = None,
        tape: Tape | None = None,
    ) -> Iterator[None]:
        """Let the model compute with ``params`` in its adapter; products of matrices in full precision.

        Args:
            params: one copy for each row of the batch, or one for all with a leading dimension of 1.
            batch: what is to be computed; None: one copy for all.
            tape: see :meth:`fedllm.models.adapters.base.Adapter.scope`.
        """
        require_full_precision(self.backbone.onednn)
        rows, tokens = (1, 0) if batch is None else batch.input_ids.shape
        shape = None if batch is None else (int(rows), int(tokens))
        with self.adapter.scope({**params, **self.fixed}, shape, tape):
            yield

    def expanded(self, params: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
        """Give each tensor a leading batch dimension without copying, but those that all examples share: their gradient
        is not to be summed over copies."""
        shared = self.adapter.shared
        own = {name: value for name, value in params.items() if name not in shared}
        return expand_params(own, size) | {n: v for n, v in params.items() if n in shared}

    def losses(
        self, params: Mapping[str, Tensor], batch: Batch, tape: Tape | None = None
    ) -> Tensor:
        """Loss of each example, (B,) float32; ``params`` each with a leading dimension B.

        Those of the adapter may come without it: all examples share them.

        Args:
            tape: see :meth:`fedllm.models.adapters.base.Adapter.scope`.
        """
        params = self._rows(params, batch)
        with self.adapted(params, batch, tape):
            return self.task.losses(params, batch)[: len(batch)]

    def _rows(self, params: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The tensors with rows for the batch's fillers, but those that all examples share."""
        if not batch.fillers:
            return dict(params)
        shapes = self.adapter.shapes()
        whole = {
            name: value[0] if value.dim() > len(shapes[name]) and value.stride(0) == 0 else value
            for name, value in params.items()
            if name in self.adapter.shared or (name in shapes and value.dim() == len(shapes[name]))
        }
        own = {name: value for name, value in params.items() if name not in whole}
        return with_fillers(own, batch) | whole

    def scores(self, params: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """The model's answers, see :meth:`fedllm.tasks.base.Task.scores`; ``params`` as in
        :meth:`losses`."""
        params = self._rows(params, batch)
        with self.adapted(params, batch):
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
        with self.adapted(expand_params(params, 1)):
            return self.task.evaluate(params, batches)

    @torch.no_grad()
    def write(
        self, params: Mapping[str, Tensor], prompts: Sequence[list[int]], max_new_tokens: int
    ) -> list[str]:
        """The model's greedy continuation of each prompt (token ids), as text.

        Raises:
            ValueError: the task is no generation.
        """
        if not isinstance(self.task, Generation):
            raise ValueError(f"Expected a generation task, got {type(self.task).__name__}")
        backbone, stops = self.backbone, self.task.stops
        moved = {name: value.to(backbone.device) for name, value in params.items()}
        texts = []
        for prompt in prompts:
            ids = torch.tensor([prompt], device=backbone.device)
            with self.adapted(expand_params(moved, 1)):
                out = generate(
                    backbone,
                    ids,
                    torch.ones_like(ids),
                    offset=self.adapter.positions,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    **({} if stops is None else {"eos_token_id": stops}),
                    pad_token_id=backbone.tokenizer.pad_token_id,
                )
            new = self.task.written(out[0], len(prompt))
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
            quantization=model.quantization,
            device_map=model.device_map,
        )
    adapter = make_adapter(settings, backbone)
    task = make_task(settings.task, backbone, adapter.positions)
    if not adapter.shapes() and not task.initial_params():
        raise ValueError(
            f"Expected an adapter for {type(task).__name__} (it has no head to train), got adapter.form="
            f"{settings.adapter.form}, prefix.length={settings.prefix.length}, "
            f"prefix.layers={settings.prefix.layers}"
        )
    task.rows_limit = rows_limit(adapter, task.initial_params(), by_example=settings.one_by_one)
    check_positions(settings, backbone, task, adapter.positions)
    if settings.model.checkpointing:
        recompute.install(backbone.model)
        task.checkpointing = True
    _check_fixed_shape(settings, backbone)
    task.trunk = make_trunk(settings.model, task, adapter.first_layer(backbone.n_layers))
    return Tunable(backbone, task, adapter)


def _check_fixed_shape(settings: Settings, backbone: Backbone) -> None:
    """Refuse steps of a fixed shape for a model that cannot be padded to it.

    Raises:
        ValueError: it cannot.
    """
    if settings.client.max_batch is not None and backbone.grouping != "padded":
        raise ValueError(
            f"Expected no client.max_batch for model.name={backbone.name!r}, whose micro-batches cannot be padded to one "
            f"shape without mixing examples or padding into an example, got client.max_batch={settings.client.max_batch}"
        )


MOST_TUNABLES = 8
"""Models with a task and a prefix that a process keeps, those of models that it does not keep left out."""
_shared = Kept[str, Tunable](MOST_TUNABLES)


def shared_tunable(settings: Settings) -> Tunable:
    """The frozen model with its task, for the same model, task and prefix shape once, while it is kept."""
    parts = (settings.model, settings.task, settings.adapter, settings.prefix, settings.endpoint)
    key = "\n".join([str(settings.one_by_one), *(part.model_dump_json() for part in parts)])
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
    return Tunable(remote, task, HeadAlone())


def task_size(tunable: Tunable) -> int:
    """Numbers that travel from server to silo together, by their shapes. Makes no tensor of an adapter."""
    size = sum(math.prod(shape) for shape in tunable.adapter.shapes().values())
    return size + sum(value.numel() for value in tunable.task.initial_params().values())


def trained_size(tunable: Tunable) -> int:
    """Numbers that the first round trains, which is the length of an update."""
    fixed, shapes = tunable.adapter.fixed(1), tunable.adapter.shapes()
    return task_size(tunable) - sum(math.prod(shapes[name]) for name in fixed)


def initial_params(tunable: Tunable, settings: Settings) -> dict[str, Tensor]:
    """The tensors that travel, before training, float32 on the CPU, a function of the settings alone."""
    params = tunable.task.initial_params()
    params |= initial_tensors(
        tunable.adapter, settings.prefix, settings.seed, tunable.backbone, settings.task.phrase
    )
    return {name: params[name].float().cpu() for name in sorted(params)}
