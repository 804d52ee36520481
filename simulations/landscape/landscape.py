"""Loss landscapes of several checkpoints on one scale: along shared, filter-normalised directions.

Li et al. 2018, "Visualizing the loss landscape of neural nets": L(w0 + a u) and L(w0 + a u + b v), with
each filter of u and v scaled to the norm of the same filter of w0 (filters:
:mod:`simulations.landscape.objective`). At a = 1 every key and value vector of the prefix has been moved by its own
norm, whatever the checkpoint's scale.

**Shared directions.** The random directions are drawn for each layer of the *model* by a separate stream, and
a checkpoint takes those of its layers. So checkpoints whose prefix is on other layers (a sparse prefix)
move along the same directions where they have layers in common, by the same relative length
everywhere; a dropped layer has no prefix that could move. Prefix length and model must agree.

**The sharpest direction** is each checkpoint's own: the top eigenvector of the Hessian in
filter-normalised coordinates, made as long as a random direction (the root of the number of filters).
A random direction in thousands of dimensions sees the mean curvature; this one sees the largest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.files.durable import json_bytes, write_bytes
from fedllm.models.backbone import Backbone
from fedllm.models.prefix import PREFIX
from fedllm.training.tunable import Tunable
from privacy.randomness import generator
from simulations.landscape.checkpoints import MeasuredOn, Subject, kept_layers
from simulations.landscape.objective import (
    Objective,
    filter_count,
    filter_norms,
    flatten,
    make_objective,
)
from simulations.landscape.sharpness import hutchinson_trace, m_sharpness, top_eigenvalue

Advance = Callable[[], None]


@dataclass(frozen=True)
class Plan:
    """Parameters of the measurement, the same for every checkpoint.

    Attributes:
        grid: points of an axis, odd (the middle one is the checkpoint).
        span: the axis goes from -span to span; 1 is each filter's own norm.
        two_d: measure a plane too, of a random direction and a second one.
        second: the plane's second direction: "random", shared by all, or "sharpest", each
            checkpoint's own (with ``sharpness``).
        tensors: "prefix" alone varies, or "all" trained tensors.
        sharpness: measure eigenvalues, trace, m-sharpness and the sharpest direction (needs gradients).
        products: Hessian-vector products of a power iteration, at most.
        probes: random vectors of the trace.
        group: m of m-sharpness.
        rho: radius of m-sharpness, L2 norm of the step in the weights.
        radius: radius relative to the norm of the tensors that vary.
        max_tokens: padded tokens of a micro-batch; None: by the model's size (:func:`tokens_that_fit`).
        seed: of directions, probes and starting vectors.
    """

    grid: int = 11
    span: float = 1.0
    two_d: bool = True
    second: str = "random"
    tensors: str = "prefix"
    sharpness: bool = True
    products: int = 40
    probes: int = 16
    group: int = 16
    rho: float = 0.05
    radius: float = 0.05
    max_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("grid", self.grid >= 3 and self.grid % 2 == 1, "odd and at least 3"),
            ("span", math.isfinite(self.span) and self.span > 0, "above 0"),
            (
                "second",
                self.second == "random" or (self.second == "sharpest" and self.sharpness),
                "random, or sharpest where sharpness is measured",
            ),
            ("tensors", self.tensors in ("prefix", "all"), "prefix or all"),
            ("products", self.products >= 1, "at least 1"),
            ("probes", self.probes >= 2, "at least 2"),
            ("group", self.group >= 1, "at least 1"),
            ("rho", math.isfinite(self.rho) and self.rho > 0, "above 0"),
            ("radius", math.isfinite(self.radius) and self.radius > 0, "above 0"),
        ):
            if not good:
                raise ValueError(
                    f"Expected {name} to be {wanted}, got {name}={getattr(self, name)}"
                )

    @property
    def axis(self) -> list[float]:
        """The places on an axis, symmetric around an exact 0."""
        half = self.grid // 2
        return [self.span * step / half for step in range(-half, half + 1)]

    def steps(self, examples: int) -> int:
        """Return the number of calls of ``advance`` that one checkpoint takes at most."""
        total = self.grid + (self.grid**2 if self.two_d else 0)
        if self.sharpness:
            total += 2 * self.products + self.probes + 2 * (examples // self.group) + self.grid
        return total


def tokens_that_fit(backbone: Backbone) -> int:
    """Return the padded tokens of a micro-batch whose graph of second derivatives takes about a gigabyte.

    A token's graph grows with layers and hidden size; MiniLM bears 2,048 tokens, SmolLM2-135M 273.
    """
    return max(64, min(2048, 2048 * 6 * 384 // (backbone.n_layers * backbone.hidden_size)))


def random_direction(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    layers: Sequence[int],
    names: Sequence[str],
    seed: int,
    axis: int,
) -> Tensor:
    """Return a shared random direction in filter-normalised coordinates, (d,): each filter has norm 1.

    Each layer's part (and each other tensor's) is drawn by a separate stream, so that checkpoints
    with a layer in common get the same numbers there.

    Args:
        layers: layer numbers of the prefix's first dimension.
        names: the tensors that vary, in the order of the flat coordinates.
        axis: 0 or 1.
    """
    drawn = {}
    for name in names:
        shape = tuple(params[name].shape)
        if name == PREFIX:
            rows = [
                generator(seed, "landscape", axis, name, layer).standard_normal(shape[1:])
                for layer in layers
            ]
            value = np.stack(rows)
        else:
            value = generator(seed, "landscape", axis, name).standard_normal(shape)
        tensor = torch.from_numpy(value)
        drawn[name] = tensor / tensor.norm(dim=-1, keepdim=True) if tensor.ndim > 1 else 0 * tensor
    return flatten(drawn, names).to(device=tunable.backbone.device, dtype=torch.float32)


class Grids:
    """Expensive values in a JSON file that grows as they are found; existing values are not computed again.

    Args:
        path: the file; its folder is made.
        every: values between two writes; :meth:`save` writes the rest.
    """

    def __init__(self, path: Path, every: int = 8) -> None:
        self.path = path
        self.every = every
        self.fresh = 0
        self.values: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                self.values = dict(found) if isinstance(found, dict) else {}
            except (OSError, ValueError):
                self.values = {}  # made again: it is a cache

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the value under ``name``, computed where it is not there yet."""
        if name not in self.values:
            self.values[name] = compute()
            self.fresh += 1
            if self.fresh >= self.every:
                self.save()
        return self.values[name]

    def save(self) -> None:
        """Write what is new."""
        if self.fresh:
            write_bytes(self.path, json_bytes(self.values))
            self.fresh = 0


def measure(
    subject: Subject,
    tunable: Tunable,
    data: MeasuredOn,
    plan: Plan,
    cache: Path,
    advance: Advance = lambda: None,
) -> dict[str, Any]:
    """Measure landscape and sharpness of one checkpoint.

    Interrupted, it continues where it stopped: what was found is in a file below ``cache`` that is named
    after everything the values depend on.

    Returns:
        Plain values: ``label``, ``run``, ``round``, ``layers``, ``norm``, ``filters``, ``dimension``,
        ``axis``, ``metrics`` (the task's, at the checkpoint), ``curves`` (``random`` and, with
        sharpness, ``sharpest``: one mean loss a place on the axis), ``plane`` (rows: first direction;
        None without ``plan.two_d``), ``second``, ``sharpness`` (None without ``plan.sharpness``).

    Raises:
        ValueError: no prefix in the checkpoint while ``plan.tensors`` is "prefix", too few examples, or
            a loss that is not finite at the checkpoint itself.
    """
    names = [PREFIX] if plan.tensors == "prefix" else sorted(subject.params)
    if PREFIX in names and PREFIX not in subject.params:
        raise ValueError(
            f"Expected a checkpoint with a prefix for tensors=prefix, got {subject.label} with "
            f"{', '.join(sorted(subject.params))}; tensors=all measures these"
        )
    params = {name: value.to(tunable.backbone.device) for name, value in subject.params.items()}
    features = tunable.task.features(data.records)
    layers = kept_layers(subject, tunable)
    tokens = plan.max_tokens or tokens_that_fit(tunable.backbone)
    objective = make_objective(tunable, params, features, over=names, max_tokens=tokens)
    scaled = objective.rescaled(filter_norms(params, names))
    store = Grids(cache / f"{_key(subject, tunable, features, plan, names, layers)}.json")
    filters = filter_count(params, names)
    try:
        metrics = store.get("metrics", lambda: tunable.evaluate(params, features, tokens))
        if not math.isfinite(metrics["loss"]):
            raise ValueError(f"Expected a finite loss of {subject.label}, got {metrics['loss']}")
        first, second = (
            random_direction(tunable, params, layers, names, plan.seed, axis) for axis in (0, 1)
        )
        curves = {"random": _curve(scaled, first, plan, store, "random", advance)}
        sharpness = None
        if plan.sharpness:
            sharpness, vector = _sharpness(
                objective, scaled, tunable, params, features, names, plan, store, advance
            )
            longest = vector.to(first) * math.sqrt(filters)
            curves["sharpest"] = _curve(scaled, longest, plan, store, "sharpest", advance)
            if plan.second == "sharpest":
                second = longest
            sharpness["curvature_sharpest"] = sharpness.pop("relative_eigenvalue") * filters
        plane = None
        if plan.two_d:
            plane = [
                [
                    _value(
                        scaled,
                        a * first + b * second,
                        store,
                        f"plane {plan.second} {a!r} {b!r}",
                        advance,
                    )
                    for b in plan.axis
                ]
                for a in plan.axis
            ]
    finally:
        store.save()
    return {
        "label": subject.label,
        "run": str(subject.path),
        "round": subject.round,
        "layers": list(layers),
        "norm": float(objective.point.norm()),
        "filters": filters,
        "dimension": objective.point.numel(),
        "axis": plan.axis,
        "metrics": metrics,
        "curves": curves,
        "plane": plane,
        "second": plan.second,
        "sharpness": sharpness,
    }


def _value(objective: Objective, shift: Tensor, store: Grids, name: str, advance: Advance) -> float:
    found = float(store.get(name, lambda: objective.value(shift)))
    advance()
    return found


def _curve(
    objective: Objective, direction: Tensor, plan: Plan, store: Grids, name: str, advance: Advance
) -> list[float]:
    return [_value(objective, a * direction, store, f"{name} {a!r}", advance) for a in plan.axis]


def _sharpness(
    objective: Objective,
    scaled: Objective,
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    names: Sequence[str],
    plan: Plan,
    store: Grids,
    advance: Advance,
) -> tuple[dict[str, Any], Tensor]:
    """Return the numbers, and the sharpest direction in filter-normalised coordinates (norm 1)."""
    tokens = plan.max_tokens or tokens_that_fit(tunable.backbone)
    groups = [
        make_objective(tunable, params, features[i : i + plan.group], over=names, max_tokens=tokens)
        for i in range(0, len(features) - plan.group + 1, plan.group)
    ]
    if not groups:
        raise ValueError(
            f"Expected at least group={plan.group} examples (m of m-sharpness), got {len(features)}"
        )

    def eigenvalue(target: Objective) -> dict[str, Any]:
        with target.hessian(2 * tokens) as product:
            found = top_eigenvalue(
                product,
                target.scales,
                products=plan.products,
                seed=plan.seed,
                advance=advance,
            )
        kept = {"vector": found.vector.tolist()} if target is scaled else {}
        return {
            "value": found.value,
            "residual": found.residual,
            "converged": found.converged,
            **kept,
        }

    def trace() -> list[float]:
        with objective.hessian(2 * tokens) as product:
            return list(
                hutchinson_trace(
                    product, objective.scales, probes=plan.probes, seed=plan.seed, advance=advance
                )
            )

    plain = store.get("eigenvalue", lambda: eigenvalue(objective))
    store.save()
    relative = store.get("relative eigenvalue", lambda: eigenvalue(scaled))
    store.save()
    mean, error = store.get("trace", trace)
    norm = float(objective.point.norm())
    rises = {}
    for name, size in (("rho", plan.rho), ("radius", plan.radius * norm)):
        compute = partial(m_sharpness, groups, size, advance)
        rises[name] = store.get(f"m-sharpness {name}", compute)
    found = {
        "eigenvalue": plain["value"],
        "eigenvalue_residual": plain["residual"],
        "eigenvalue_converged": plain["converged"],
        "relative_eigenvalue": relative["value"],
        "trace": mean,
        "trace_error": error,
        "trace_per_coordinate": mean / objective.dimension,
        "m": plan.group,
        "rho": plan.rho,
        "m_sharpness": rises["rho"][0],
        "m_sharpness_error": rises["rho"][1],
        "radius": plan.radius,
        "relative_m_sharpness": rises["radius"][0],
        "relative_m_sharpness_error": rises["radius"][1],
    }
    return found, torch.tensor(relative["vector"], dtype=torch.float32)


def _key(
    subject: Subject,
    tunable: Tunable,
    features: Sequence[Feature],
    plan: Plan,
    names: Sequence[str],
    layers: Sequence[int],
) -> str:
    """Return the digest of everything that the values depend on, but the grid: a finer grid reuses the points."""
    digest = hashlib.sha256()
    measured = asdict(plan)
    for unused in ("grid", "span", "two_d", "second", "sharpness"):
        measured.pop(unused)
    settings = subject.settings
    head = {
        "plan": measured,
        "names": list(names),
        "layers": list(layers),
        "model": tunable.backbone.weights_digest,
        "task": settings.task.model_dump(mode="json"),
        "examples": [
            [f.input_ids, f.target, f.target_mask, f.values, f.token_targets] for f in features
        ],
    }
    digest.update(json.dumps(head, sort_keys=True).encode("utf-8"))
    for name, value in sorted(subject.params.items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
