"""Measure the cost of making an example's gradient independent of its batch mates.

    python -m simulations.benchmarks.batch_mates_cost [--repeats 15] [--batch 64 --batch 256] [--json OUT]

The clipped gradient sum of one step of MiniLM (float32, one CPU thread, a prefix in three layers, texts of SST-2),
in turn in one process:

- ``before``: groups of similar length, padded to the longest of each group, the library's own mask, padding
  multiplied by zero in the pooling: what an example is computed with depends on its batch mates.
- ``buckets``: each example is padded to the bucket of its own length, the mask is always explicit.
- ``now``: and states at padding are replaced by zeros in every layer, what the silo runs.

Ratios are of the CPU time of steps taken next to each other, on the same examples.
"""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Batch, Feature, collate
from fedllm.models.backbone import load_backbone
from fedllm.settings.experiment import Settings
from fedllm.tasks.base import Params
from fedllm.tasks.encoder_classification import FEATURE_NORM, HeadClassification
from fedllm.training.gradients import clipped_gradient_sum
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from simulations.benchmarks.support import timing, workload

NOW = "now"
BEFORE = "before"
GOAL = 1.05
GROUP_OVERHEAD = 64
"""Cost of starting a group, in tokens, which :func:`similar_lengths` uses for its cuts."""


class Buckets(HeadClassification):
    """Padding to buckets; states at padding are left as they are."""

    def run(self, batch: Batch, **options: Any) -> Any:
        return self.backbone.model(**batch.model_inputs(), **options)


class Before(HeadClassification):
    """Padding to the longest of a group of similar lengths, multiplied by zero."""

    def run(self, batch: Batch, **options: Any) -> Any:
        inputs = batch.model_inputs()
        if bool(inputs["attention_mask"].all()):
            del inputs["attention_mask"]  # the library leaves the mask out
        return self.backbone.model(**inputs, **options)

    def collate(self, features: Sequence[Feature]) -> Batch:
        return collate(features, self.backbone.tokenizer.pad_token_id, self.padding_side)

    def batches(self, features: Sequence[Feature], max_tokens: int) -> list[list[int]]:
        return similar_lengths([len(feature) for feature in features], max_tokens)

    def logits(self, params: Params, batch: Batch) -> Tensor:
        hidden = self.run(batch).last_hidden_state.float()
        mask = batch.attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        pooled = torch.nn.functional.normalize(pooled, dim=-1, eps=1e-6) * FEATURE_NORM
        return torch.einsum("bch,bh->bc", params["head.weight"], pooled) + params["head.bias"]


def similar_lengths(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Groups whose padded tokens plus :data:`GROUP_OVERHEAD` a group are fewest: of all lengths together."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    starts = [k for k in range(len(order)) if k == 0 or lengths[order[k]] != lengths[order[k - 1]]]
    ends = [*starts[1:], len(order)]
    best, cut = [0.0] * (len(starts) + 1), [0] * len(starts)
    for first in reversed(range(len(starts))):
        longest = lengths[order[starts[first]]]
        room = max(1, max_tokens // longest)
        best[first] = float("inf")
        for last in range(first, len(starts)):
            size = ends[last] - starts[first]
            cost = size * longest + GROUP_OVERHEAD * -(-size // room) + best[last + 1]
            if cost < best[first]:
                best[first], cut[first] = cost, last + 1
    groups: list[list[int]] = []
    place = 0
    while place < len(starts):
        members = order[starts[place] : ends[cut[place] - 1]]
        room = max(1, max_tokens // lengths[members[0]])
        groups += [members[i : i + room] for i in range(0, len(members), room)]
        place = cut[place]
    return groups


def variants(settings: Settings, device: torch.device) -> tuple[dict[str, Tunable], Tunable]:
    """The same model with each way of padding, and the one that the silo runs."""
    backbone = load_backbone(settings.model.name, device=device)
    now = make_tunable(settings, backbone)
    made = {}
    for name, kind in ((BEFORE, Before), ("buckets", Buckets)):
        task = copy.copy(now.task)
        task.__class__ = kind
        made[name] = Tunable(backbone, task, now.adapter)
    return made | {NOW: now}, now


def step(
    tunable: Tunable, params: dict[str, Tensor], features: Sequence[Feature], max_tokens: int
) -> None:
    """One clipped gradient sum."""
    clipped_gradient_sum(
        tunable,
        params,
        features,
        clip_norm=0.1,
        scales=dict.fromkeys(params, 1.0),
        max_tokens=max_tokens,
    )


def measure(batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of CPU time of each variant, and its ratio to ``before``, as plain values."""
    device = torch.device("cpu")
    source = workload.model_source("minilm")
    settings = workload.settings_for(
        source,
        "encoder",
        private=True,
        batch_size=batch,
        local_steps=1,
        max_tokens=options.max_tokens,
        prefix_length=2,
        device="cpu",
    )
    tree = settings.model_dump()
    tree["prefix"] |= {"layers": [-3, -2, -1], "init": "random"}
    settings = Settings.model_validate(tree)
    made, now = variants(settings, device)
    params = initial_params(now, settings)
    records, origin = workload.load_texts(20 * batch, options.data)
    features = now.task.features(records)
    draw = random.Random(batch)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for repeat in range(-1, options.repeats):
        chosen = draw.sample(features, batch)
        order = list(made) if repeat % 2 else list(reversed(made))
        for name in order:
            call: Callable[[], None] = partial(step, made[name], params, chosen, options.max_tokens)
            taken = timing.timed(call, device)
            if repeat >= 0:
                seconds[name].append(taken.cpu)
    return {
        "what": f"{source.note}, {origin}, batches of {batch}, micro-batches of {options.max_tokens} tokens",
        "forms": {
            name: {
                "cpu_seconds": asdict(timing.spread(taken)),
                "ratio": asdict(timing.paired_ratio(taken, seconds[BEFORE])),
            }
            for name, taken in seconds.items()
        },
    }


def report(result: dict[str, Any]) -> str:
    """The figures of one batch size as text."""
    rows = []
    for name, form in result["forms"].items():
        ratio = form["ratio"]
        rows.append(
            [
                name,
                f"{form['cpu_seconds']['median'] * 1e3:.1f}",
                f"{ratio['median']:.3f}",
                f"{ratio['low']:.3f} - {ratio['high']:.3f}",
            ]
        )
    table = timing.table(["form", "median ms of CPU time", "ratio", "quartiles"], rows)
    goal = timing.verdict(result["forms"][NOW]["ratio"]["median"], GOAL, at_most=True)
    return f"{result['what']}\n{table}\n{goal}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.benchmarks.batch_mates_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, action="append", help="examples a step")
    parser.add_argument("--repeats", type=int, default=15, help="steps of each form")
    parser.add_argument("--max-tokens", type=int, default=4096, help="tokens of a micro-batch")
    parser.add_argument("--data", default="auto", help="auto, sst2, tweets or random")
    parser.add_argument("--json", metavar="OUT", help="write all measurements to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = []
    for batch in options.batch or (64, 256):
        results.append(measure(batch, options))
        print("\n" + report(results[-1]), flush=True)
    if options.json:
        timing.write_json(options.json, {"batches": results})


if __name__ == "__main__":
    main()
