"""LoRA's first factor at random or in the principal directions of public text: which one trains better under noise.

    python -m simulations.benchmarks.adapters.first_factors [--form ffa-lora --form lora] [--rank 4] [--seeds 2]

One model in one place on SST-2, with the clipped sums of training under privacy and Gaussian noise of the strength that
the mean of 8 silos of 256 examples has at noise multiplier 1: multiplier 8 ** 0.5 on 2,048 examples. Public text: the
embedded tweets. Judged on training examples that are left out; the validation set is not read.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedllm.data.formats.tweets import load_tweets
from fedllm.models.adapters.lora import LoraAdapter
from fedllm.models.adapters.principal import principal_factors
from fedllm.training.gradients import clipped_gradient_sum
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from simulations.benchmarks.adapters.accuracy import Arm, Bench
from simulations.benchmarks.adapters.tasks import TASKS

TWEETS, CLIP, MULTIPLIER_A_BATCH = 1000, 0.5, 8**0.5 / 2048
HEAD_RATE = 2e-2


def with_principal(tunable: Tunable, params: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return the parameters with first factors from public text."""
    texts = [{"text": str(r["text"]), "label": "0"} for r in load_tweets().records]
    chosen = random.Random(seed).sample(texts, TWEETS)
    task, adapter = tunable.without_reuse().task, tunable.adapter
    assert isinstance(adapter, LoraAdapter)
    features = task.features(chosen)
    batches = [task.collate([features[i] for i in g]) for g in task.batches(features, 2048)]
    return params | principal_factors(adapter, batches, task.run)


def trained(
    bench: Bench, arm: Arm, init: str, seed: int, rate: float, options: argparse.Namespace
) -> dict[str, float]:
    """Train with noise; return the metrics on the training examples that are left out."""
    settings = bench.task.settings(
        bench.source.folder, False, arm.adapter(bench.backbone.n_layers)
    ).model_copy(update={"seed": seed})
    tunable = make_tunable(settings, bench.backbone)
    params = initial_params(tunable, settings)
    if init == "principal":
        params = with_principal(tunable, params, seed)
    records = random.Random(seed).sample(bench.pool, options.examples)
    features = tunable.task.features(records)
    part, leaves = tunable.part(params)
    names = sorted(leaves)
    values = [leaves[name].clone() for name in names]
    optimizer = torch.optim.Adam(
        [
            {"params": [value], "lr": HEAD_RATE if name.startswith("head.") else rate}
            for name, value in zip(names, values, strict=True)
        ]
    )
    rng, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    steps = int(options.passes * len(features) / options.batch)
    order = np.concatenate([rng.permutation(len(features)) for _ in range(int(options.passes) + 1)])
    for step in range(steps):
        chosen = [features[i] for i in order[step * options.batch : (step + 1) * options.batch]]
        found = clipped_gradient_sum(
            part,
            dict(zip(names, values, strict=True)),
            chosen,
            clip_norm=CLIP,
            scales=dict.fromkeys(names, 1.0),
            max_tokens=4096,
        )
        for value, total in zip(values, found.sums, strict=True):
            drawn = torch.randn(total.shape, generator=noise) * CLIP * MULTIPLIER_A_BATCH
            value.grad = total / options.batch + drawn
        optimizer.step()
    judge = tunable.task.features(bench.held_out)
    return tunable.evaluate(params | dict(zip(names, values, strict=True)), judge, 2048)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each form, start and rate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--form", action="append", choices=["lora", "ffa-lora"])
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--rate", action="append", type=float)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--examples", type=int, default=8192)
    parser.add_argument("--passes", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    options.judged = None
    torch.set_num_threads(1)
    bench = Bench(TASKS["sst2"], "minilm", options)
    print("| form | first factor | rate | held-out loss | held-out accuracy |")
    print("| --- | --- | --- | --- | --- |")
    for form in options.form or ["ffa-lora", "lora"]:
        for rate in options.rate or [2e-3, 5e-3]:
            for init in ("random", "principal"):
                arm = Arm(form, 1 / 3, options.rank)
                found = [
                    trained(bench, arm, init, seed, rate, options)
                    for seed in range(1000, 1000 + options.seeds)
                ]
                loss, accuracy = (
                    statistics.fmean(each[what] for each in found) for what in ("loss", "accuracy")
                )
                print(
                    f"| {form} | {init} | {rate:g} | {loss:.3f} | {100 * accuracy:.1f} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
