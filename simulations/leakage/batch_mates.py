"""A hostile server's attack on clipping: parameters that make examples' gradients depend on their batch mates.

    python -m simulations.leakage.batch_mates [--model bert ...] [--dtype float32 ...] [--batches 1000] [--json OUT]

The ledger counts a step as a Gaussian mechanism whose sum moves by at most one clipping norm when one example is
left out. For batch after batch this command draws parameters as a hostile server would, runs the silo's own code
(:func:`fedllm.gradients.clipped_gradient_sum`) with and without one example, and reports the largest movement in
clipping norms, and the largest movement of the count of right answers, which a private evaluation takes as 1.

Parameters, in turn: a plain point; a huge head and prefix; a prefix slot that only padding attends to, found by
search on public random texts, whose value overflows there; a huge head at whose boundary the examples lie, so that
rounding decides their gradients. Within the silo's limits (``client.parameter_norm``), or
with ``--unchecked`` far beyond them and not finite, as if the silo did not refuse them.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedllm import attention
from fedllm.gradients import clipped_gradient_sum, per_example_gradients
from fedllm.inputs import Batch, Feature
from fedllm.tasks.base import expand_params
from fedllm.tunable import PREFIX, Tunable, initial_params
from simulations.leakage.tiny_architectures import ARCHITECTURES, random_records, tiny_tunable

CLIP = 0.1
LIMIT = 1e4
MAX_TOKENS = 4096
SHORT = range(2, 22)


@dataclass(frozen=True)
class Movement:
    """The largest movements over all batches of one model.

    Attributes:
        clipping_norms: of the clipped sum, by one example.
        answers: of the count of right answers, by one example.
        by: kind of parameters of the largest movement of the sum.
    """

    model: str
    task: str
    dtype: str
    batches: int
    clipping_norms: float
    answers: int
    by: str


def attack(
    architecture: str, dtype: str, batches: int, *, task: str = "classification", unchecked: bool
) -> Movement:
    """The largest movements that ``batches`` hostile batches cause."""
    settings, tunable = tiny_tunable(architecture, getattr(torch, dtype), task)
    start = initial_params(tunable, settings)
    draw = random.Random(f"{architecture} {dtype} {task}")
    poison = poisoned(tunable, start, draw, 3e38 if unchecked else 0.9 * LIMIT)
    worst, answers, by = 0.0, 0, ""
    for number in range(batches):
        kind, params = hostile_params(start, poison, draw, number, unchecked)
        features = tunable.task.features(
            random_records(hostile_lengths(draw), draw.randrange(2**30))
        )
        if kind == "boundary":
            params = on_the_boundary(tunable, params, features, draw, unchecked)
        leave = draw.choice([max(range(len(features)), key=lambda i: len(features[i])), 0])
        found = movement(tunable, params, features, leave)
        if found > worst:
            worst, by = found, kind
        if task == "classification":
            answers = max(answers, answers_moved(tunable, params, features, leave))
    return Movement(architecture, task, dtype, batches, worst, answers, by)


def movement(
    tunable: Tunable, params: Mapping[str, Tensor], features: Sequence[Feature], leave: int
) -> float:
    """How far the clipped sum moves without one example, in clipping norms."""
    rest = [feature for i, feature in enumerate(features) if i != leave]
    full, less = (
        clipped_gradient_sum(
            tunable,
            params,
            chosen,
            clip_norm=CLIP,
            scales=dict.fromkeys(params, 1.0),
            max_tokens=MAX_TOKENS,
        ).sums
        for chosen in (features, rest)
    )
    squares = sum(
        float((a.double() - b.double()).square().sum()) for a, b in zip(full, less, strict=True)
    )
    return float(squares**0.5 / CLIP)


def answers_moved(
    tunable: Tunable, params: Mapping[str, Tensor], features: Sequence[Feature], leave: int
) -> int:
    """How far the count of right answers moves without one example."""
    rest = [feature for i, feature in enumerate(features) if i != leave]
    full, less = (
        round(tunable.evaluate(params, chosen, MAX_TOKENS)["accuracy"] * len(chosen))
        for chosen in (features, rest)
    )
    return abs(full - less)


def hostile_lengths(draw: random.Random) -> list[int]:
    """Words of a batch's texts: alike but for one, or any."""
    count = draw.randrange(3, 20)
    if draw.random() < 0.5:
        usual = draw.choice(SHORT)
        return [usual] * (count - 1) + [usual + draw.randrange(1, 24)]
    return [draw.choice(SHORT) for _ in range(count - 1)] + [draw.randrange(2, 46)]


def hostile_params(
    start: Mapping[str, Tensor],
    poison: Mapping[str, Tensor],
    draw: random.Random,
    number: int,
    unchecked: bool,
) -> tuple[str, dict[str, Tensor]]:
    """A kind of parameters and one draw of it; within the silo's limits unless ``unchecked``."""
    rng = torch.Generator().manual_seed(draw.randrange(2**62))
    moved = {n: v + 0.3 * torch.randn(v.shape, generator=rng) for n, v in start.items()}
    kind = ("plain", "huge", "poison", "boundary")[number % 4]
    if kind == "huge":
        exponent = draw.uniform(0, 12.0 if unchecked else 3.9)
        for name, value in moved.items():
            size = 10**exponent * max(1.0, float(start[name].norm()))
            moved[name] = value * size / float(value.norm())
    if kind == "poison":
        moved |= {PREFIX: poison[PREFIX]}
    return kind, moved


def on_the_boundary(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    draw: random.Random,
    unchecked: bool,
) -> dict[str, Tensor]:
    """A huge head at whose decision boundary most of the examples lie: rounding alone decides their gradients.

    The adversary knows the examples, as differential privacy allows it to. At a head of zeros an example's gradient
    is a multiple of its features, so that a head orthogonal to them is found by projection.
    """
    at = {n: torch.zeros_like(v) if n.startswith("head") else v for n, v in params.items()}
    if "head.weight" not in at:
        return dict(params)
    rng = torch.Generator().manual_seed(draw.randrange(2**62))
    size = at["head.weight"].shape[1]
    rows = [
        per_example_gradients(tunable, at, tunable.task.collate([feature]))["head.weight"][0, 0]
        for feature in features[: size - 2]
    ]
    basis = torch.linalg.qr(torch.stack(rows).double().T)[0]
    normal = torch.randn(size, generator=rng).double()
    normal -= basis @ (basis.T @ normal)
    normal *= 10 ** draw.uniform(2, 12 if unchecked else 3.9) / float(normal.norm())
    head = torch.zeros_like(at["head.weight"])
    head[0], head[1] = normal.float() / 2**0.5, -normal.float() / 2**0.5
    return at | {"head.weight": head}


def poisoned(
    tunable: Tunable, start: Mapping[str, Tensor], draw: random.Random, size: float
) -> dict[str, Tensor]:
    """Parameters with a prefix slot that padding attends to and tokens do not, with values of ``size`` (within the
    limits: a norm of ``size``): at the best of the slots that are tried, padded public texts have no finite
    gradient and unpadded ones do."""
    features = tunable.task.features(random_records([6] * 6 + [22], 1))
    same, mixed = tunable.task.collate(features[:6]), tunable.task.collate(features)
    queries = recorded_queries(tunable, start, mixed)
    is_padding = (mixed.attention_mask == 0)[:, None].expand(queries[0].shape[:3])
    best, found = -1.0, dict(start)
    prefix = start[PREFIX]
    layers, _, heads, _, width = prefix.shape
    for trial in range(60 * layers):
        layer, head = trial % layers, draw.randrange(heads)
        share = queries[layer].shape[1] // heads
        chosen = slice(head * share, (head + 1) * share)
        asked = queries[layer][:, chosen].reshape(-1, width)
        padding = is_padding[:, chosen].reshape(-1)
        rng = torch.Generator().manual_seed(draw.randrange(2**62))
        weights = torch.where(padding, 1.0, torch.rand(len(padding), generator=rng))
        goal = torch.where(padding, 1.0, -1.0) * weights
        key = torch.linalg.lstsq(asked * weights[:, None], goal[:, None]).solution[:, 0]
        moved = prefix.clone()
        moved[layer, 0, head, 0] = key / key.norm() * 10 ** draw.uniform(1, 3)
        moved[layer, 1, head, 0] = size if size > 1e30 else size / width**0.5
        params = dict(start) | {PREFIX: moved}
        for name, value in params.items():
            if name != PREFIX:
                params[name] = value + 0.1 * torch.randn(value.shape, generator=rng)
        alone = _finite(tunable, params, same)
        among = _finite(tunable, params, mixed)[:6]
        score = float((alone & ~among).sum()) + 0.1 * float(alone.sum())
        if score > best:
            best, found = score, params
    return found


def recorded_queries(tunable: Tunable, params: Mapping[str, Tensor], batch: Batch) -> list[Tensor]:
    """The queries of every layer for public texts, each (B, heads, T, width)."""
    seen: list[Tensor] = []
    inner = attention.sdpa_attention_forward

    def recording(module: Any, query: Tensor, *args: Any, **options: Any) -> Any:
        seen.append(query.detach().float())
        return inner(module, query, *args, **options)

    attention.sdpa_attention_forward = recording
    try:
        with torch.no_grad():
            tunable.losses(expand_params(params, len(batch.input_ids)), batch)
    finally:
        attention.sdpa_attention_forward = inner
    return seen


def _finite(tunable: Tunable, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
    grads = per_example_gradients(tunable, params, batch)
    rows = [value.flatten(1).isfinite().all(1) for value in grads.values()]
    return torch.stack(rows).all(0)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the attack on each model and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", choices=ARCHITECTURES)
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16", "float16"))
    parser.add_argument(
        "--task", choices=("classification", "generation"), default="classification"
    )
    parser.add_argument("--batches", type=int, default=1000, help="hostile batches of each model")
    parser.add_argument(
        "--unchecked", action="store_true", help="parameters beyond the silo's limits"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows = []
    for model in options.model or ("bert", "roberta", "llama", "gpt2"):
        for dtype in options.dtype or ("float32", "bfloat16"):
            row = attack(
                model, dtype, options.batches, task=options.task, unchecked=options.unchecked
            )
            rows.append(asdict(row))
            print(
                f"{row.model:14s} {row.task} {row.dtype:9s} {row.batches} batches: at most "
                f"{row.clipping_norms:.3f} clipping norms ({row.by}), {row.answers} answers",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
