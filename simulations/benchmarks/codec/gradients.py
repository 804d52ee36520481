"""Real gradients for the codecs' figures: what clients would send, and what a server can make itself.

The point of differentiation is a model after some steps of plain training, since an encoder's head
starts at zero, where the prefix has no gradient at all. A *client* is a group of examples, and its
gradient the mean of their clipped gradients. The prefix alone counts, and is clipped to the median
norm that examples of the public text have, which needs no private data. Four sets, all at that one point:

* ``fit``: clients with the task's text (SST-2), for priors from private statistics;
* ``held_out``: other clients with the same text, on which every error is measured;
* ``public``: groups of another text (the embedded tweets);
* ``random_labels``: the same public text, with labels drawn at random.

Kept in the cache folder (``FEDLLM_CACHE``), under a hash of everything that made them.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fedllm.codec.layout import Layout
from fedllm.data.batches import Feature
from fedllm.files import durable
from fedllm.models.backbone import load_backbone
from fedllm.models.embedded import cache_folder
from fedllm.models.prefix import PREFIX
from fedllm.settings.experiment import Settings
from fedllm.training.gradients import gradient_sum, per_example_gradients
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from simulations.benchmarks.support import workload

_UNCLIPPED = 1e6
_VERSION = 4  # part of the cache key: raise it when what is computed changes
Tick = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """Everything that decides the gradients; see :func:`collect`."""

    model: str = "minilm"
    prefix_length: int = 8
    fit: int = 64
    held_out: int = 24
    public: int = 24
    group: int = 64
    steps: int = 20
    seed: int = 0
    data: str = "auto"
    device: str = "auto"


@dataclass(frozen=True)
class Gradients:
    """Gradients [clients, d] over the prefix, the layout, and notes on where they are from.

    Attributes:
        fit_squares: [clients, d], mean over a client's examples of the squared clipped gradient.
        clip: L2 norm of an example's gradient at most.
        notes: model and texts, in words.
    """

    layout: Layout
    fit: Tensor
    fit_squares: Tensor
    held_out: Tensor
    public: Tensor
    random_labels: Tensor
    clip: float
    notes: dict[str, str]


def collect(request: Request, tick: Tick = lambda what: None) -> Gradients:
    """Return the gradients for ``request``, from the cache where they are there.

    Args:
        tick: called after each group of examples, with a word on what is being done.
    """
    source = workload.model_source(request.model)
    key = {"version": _VERSION, "model": source.note, **asdict(request)}
    key["files"] = workload.data_folder().joinpath("sst2").is_dir()
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    file = cache_folder() / f"codec-gradients-{digest}.safetensors"
    if not file.is_file():
        tensors, meta = _compute(request, source, tick)
        file.parent.mkdir(parents=True, exist_ok=True)
        durable.write_bytes(file, save(tensors, metadata={"fedllm": json.dumps(meta)}))
    with safe_open(file, "pt") as opened:
        names = list(opened.keys())
        tensors = {name: opened.get_tensor(name) for name in names}
        meta = json.loads(opened.metadata()["fedllm"])
    return Gradients(
        layout=Layout.from_json(meta["layout"]),
        clip=meta["clip"],
        notes=meta["notes"],
        **tensors,
    )


def groups(request: Request) -> int:
    """Return the number of calls of ``tick`` if nothing is cached."""
    return request.steps + request.fit + request.held_out + 3 * request.public


def local_seconds(request: Request, clients: int = 3) -> float:
    """Measure the CPU seconds of this process for one client's gradient (minimum of a few).

    CPU time, for it is hardly moved by other programs on the machine.
    """
    tunable, settings = _load(request, workload.model_source(request.model))
    params = initial_params(tunable, settings)
    params = {name: value.to(tunable.backbone.device) for name, value in params.items()}
    records, _ = workload.load_texts(clients * request.group, request.data, request.seed)
    features = tunable.task.features(records)
    found = []
    for start in range(0, len(features), request.group):
        chosen = features[start : start + request.group]
        started = time.process_time()
        _clients(tunable, params, chosen, request.group, 1.0, lambda: None)
        found.append(time.process_time() - started)
    return min(found)


def _load(request: Request, source: workload.ModelSource) -> tuple[Tunable, Settings]:
    backbone = load_backbone(source.folder, device=request.device)
    settings = workload.settings_for(
        source,
        backbone.kind,
        private=True,
        batch_size=request.group,
        local_steps=1,
        max_tokens=1024,
        prefix_length=request.prefix_length,
        device=request.device,
    )
    return make_tunable(settings, backbone), settings


def _compute(
    request: Request, source: workload.ModelSource, tick: Tick
) -> tuple[dict[str, Tensor], dict[str, object]]:
    tunable, settings = _load(request, source)
    clients = request.steps + request.fit + request.held_out
    records, text = workload.load_texts(clients * request.group, request.data, request.seed)
    other, other_text = workload.load_texts(
        request.public * request.group, "tweets" if text.startswith("sst2") else "random", 1
    )
    rng = random.Random(request.seed)
    shuffled = [record | {"label": rng.choice(workload.LABELS)} for record in other]
    features = tunable.task.features(records)
    first, last = request.steps * request.group, (request.steps + request.fit) * request.group
    params = _train(tunable, settings, features[:first], request, tick)
    layout = Layout.of({PREFIX: params[PREFIX]})
    public = tunable.task.features(other)
    norms = _clients(
        tunable, params, public, request.group, _UNCLIPPED, lambda: tick("norms of public text")
    )[-1]
    clip = float(norms.median())

    def of(chosen: Sequence[Feature], what: str) -> tuple[Tensor, Tensor, Tensor]:
        return _clients(tunable, params, chosen, request.group, clip, lambda: tick(what))

    fit, fit_squares, _ = of(features[first:last], "clients")
    tensors = {
        "held_out": of(features[last:], "held-out clients")[0],
        "fit": fit,
        "fit_squares": fit_squares,
        "public": of(public, "public text")[0],
        "random_labels": of(tunable.task.features(shuffled), "random labels")[0],
    }
    notes = {"model": source.note, "text": text, "public": other_text}
    return tensors, {
        "layout": layout.to_json(),
        "clip": clip,
        "notes": notes,
    }


def _train(
    tunable: Tunable,
    settings: Settings,
    features: Sequence[Feature],
    request: Request,
    tick: Tick,
) -> dict[str, Tensor]:
    """Return plain Adam from the initial parameters, one group of examples a step."""
    device = tunable.backbone.device
    start = initial_params(tunable, settings)
    params = {name: value.to(device).clone() for name, value in sorted(start.items())}
    optimizer = torch.optim.Adam(list(params.values()), lr=5e-3)
    for step in range(request.steps):
        batch = features[step * request.group : (step + 1) * request.group]
        sums = gradient_sum(tunable, params, batch, max_tokens=settings.client.max_tokens)
        for value, total in zip(params.values(), sums, strict=True):
            value.grad = total / request.group
        optimizer.step()
        tick("warm-up")
    return {name: value.detach() for name, value in params.items()}


def _clients(
    tunable: Tunable,
    params: dict[str, Tensor],
    features: Sequence[Feature],
    group: int,
    clip: float,
    tick: Callable[[], None],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each group of examples the mean of their prefixes' clipped gradients, [groups, d], and the mean of
    the squares of these, [groups, d]; the norms of all examples before clipping."""
    means, squares, norms = [], [], []
    for start in range(0, len(features), group):
        chosen = features[start : start + group]
        parts = []
        for batch in tunable.task.batches(chosen, 1024):
            collated = tunable.task.collate([chosen[i] for i in batch])
            gradients = per_example_gradients(tunable, params, collated)[PREFIX]
            parts.append(gradients.reshape(len(batch), -1).float().cpu())
        rows = torch.cat(parts)
        length = rows.norm(dim=1, keepdim=True)
        rows *= (clip / length.clamp(min=1e-30)).clamp(max=1.0)
        norms.append(length.flatten())
        means.append(rows.mean(0))
        squares.append(rows.square().mean(0))
        tick()
    return torch.stack(means), torch.stack(squares), torch.cat(norms)
