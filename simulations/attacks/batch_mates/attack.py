"""A hostile server's attack on clipping: parameters that make examples' gradients depend on their batch mates.

    python -m simulations.attacks.batch_mates.attack [--model bert ...] [--dtype float32 ...] [--batches 1000] [--json OUT]

The ledger counts a step as a Gaussian mechanism whose sum moves by at most one clipping norm when one example is
left out. For batch after batch this command draws parameters as a hostile server would, runs the silo's own code
(:func:`fedllm.training.gradients.clipped_gradient_sum`) with and without one example, and reports the largest movement in
clipping norms, and the largest movement of the count of right answers, which a private evaluation takes as 1.

Parameters, in turn: a plain point; a huge head and prefix; a prefix slot that only padding attends to and whose value
overflows there (:mod:`simulations.attacks.batch_mates.padding`); a huge head at whose boundary the examples lie, so that
rounding decides their gradients. Examples: texts of random words, or texts alike, one of them longer. Within the silo's limits (``client.parameter_norm``), or
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

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.training.gradients import clipped_gradient_sum, per_example_gradients
from fedllm.training.tunable import Tunable, initial_params
from simulations.attacks.batch_mates import padding as padding_poison
from simulations.attacks.batch_mates.architectures import (
    ARCHITECTURES,
    random_records,
    tiny_tunable,
)

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
    """Return the largest movements that ``batches`` hostile batches cause."""
    settings, tunable = tiny_tunable(architecture, getattr(torch, dtype), task)
    start = initial_params(tunable, settings)
    draw = random.Random(f"{architecture} {dtype} {task}")
    worst, answers, by = 0.0, 0, ""
    for number in range(batches):
        kind, params = hostile_params(start, draw, number, unchecked)
        alike = kind == "poison" and draw.random() < 0.8
        records = alike_records(draw) if alike else any_records(draw)
        features = tunable.task.features(records)
        longest = max(range(len(features)), key=lambda i: len(features[i]))
        leave = longest if alike else draw.choice([longest, 0])
        if kind == "boundary":
            params = on_the_boundary(tunable, params, features, draw, unchecked)
        if kind == "poison":
            params = within(poisoned(tunable, params, features, draw, unchecked), start, unchecked)
        found = movement(tunable, params, features, leave)
        if found > worst:
            worst, by = found, kind
        if task == "classification":
            answers = max(answers, answers_moved(tunable, params, features, leave))
    return Movement(architecture, task, dtype, batches, worst, answers, by)


def movement(
    tunable: Tunable, params: Mapping[str, Tensor], features: Sequence[Feature], leave: int
) -> float:
    """Return the change of the clipped sum without one example, in clipping norms."""
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
    """Return the change of the count of correct answers without one example."""
    rest = [feature for i, feature in enumerate(features) if i != leave]
    full, less = (
        round(tunable.evaluate(params, chosen, MAX_TOKENS)["accuracy"] * len(chosen))
        for chosen in (features, rest)
    )
    return abs(full - less)


def any_records(draw: random.Random) -> list[dict[str, str]]:
    """Return the texts of random words."""
    return random_records(hostile_lengths(draw), draw.randrange(2**30))


def alike_records(draw: random.Random) -> list[dict[str, str]]:
    """Make eighteen texts of the same few words and one label, and one that is one to three words longer."""
    words = [record["text"] for record in random_records([1] * 3, draw.randrange(2**30))]
    length, label = draw.randrange(2, 14), draw.choice("ab")
    return [
        {"text": " ".join(draw.choice(words) for _ in range(count)), "label": label}
        for count in [length] * 18 + [length + draw.randrange(1, 4)]
    ]


def hostile_lengths(draw: random.Random) -> list[int]:
    """Return the words of a batch's texts: alike but for one, or any."""
    count = draw.randrange(3, 20)
    if draw.random() < 0.5:
        usual = draw.choice(SHORT)
        return [usual] * (count - 1) + [usual + draw.randrange(1, 24)]
    return [draw.choice(SHORT) for _ in range(count - 1)] + [draw.randrange(2, 46)]


def hostile_params(
    start: Mapping[str, Tensor],
    draw: random.Random,
    number: int,
    unchecked: bool,
) -> tuple[str, dict[str, Tensor]]:
    """Return a kind of parameters and one draw of it; within the silo's limits unless ``unchecked``."""
    rng = torch.Generator().manual_seed(draw.randrange(2**62))
    moved = {n: v + 0.3 * torch.randn(v.shape, generator=rng) for n, v in start.items()}
    kind = ("plain", "huge", "poison", "boundary")[number % 4]
    if kind == "huge":
        exponent = draw.uniform(0, 12.0 if unchecked else 3.9)
        for name, value in moved.items():
            size = 10**exponent * max(1.0, float(start[name].norm()))
            moved[name] = value * size / float(value.norm())
    return kind, moved


def poisoned(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    draw: random.Random,
    unchecked: bool,
) -> dict[str, Tensor]:
    """Return ``params`` with a slot for the padding; among several, one at which examples have no finite gradient."""
    found = dict(params)
    for _ in range(4):
        size = 3e38 if unchecked else 10 ** draw.uniform(2, 4)
        tried = padding_poison.poison(tunable, params, features, draw, size)
        if tried is None:
            break
        found = tried
        grads = per_example_gradients(tunable, tried, tunable.task.collate(features))
        if not all(bool(value.isfinite().all()) for value in grads.values()):
            break
    return found


def within(
    params: Mapping[str, Tensor], start: Mapping[str, Tensor], unchecked: bool
) -> dict[str, Tensor]:
    """Return parameters scaled down to the silo's limit where they are beyond it, unless ``unchecked``."""
    if unchecked:
        return dict(params)
    bounds = {n: LIMIT * max(1.0, float(v.norm())) for n, v in start.items()}
    return {n: v * min(1.0, 0.99 * bounds[n] / float(v.norm())) for n, v in params.items()}


def on_the_boundary(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: Sequence[Feature],
    draw: random.Random,
    unchecked: bool,
) -> dict[str, Tensor]:
    """Return a huge head at whose decision boundary most of the examples lie: rounding alone decides their gradients.

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
    for model in options.model or ("bert", "roberta", "llama", "llama-wide", "gpt2"):
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
