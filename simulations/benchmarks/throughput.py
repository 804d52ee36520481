"""Throughput of private local training (examples/s) against the baseline.

    python -m simulations.benchmarks.throughput [--model minilm --model smollm2] [--json OUT]

Every client does one round of local DP-SGD on its share of SST-2: ours, then the baseline
(:mod:`simulations.benchmarks.baseline`) with padding to ``max_length`` and to the batch's
longest example; next client, in the other order; and so on. Same model, prefix length, expected
batch, Poisson rate, number of steps, clipping norm, noise multiplier, optimiser, dtype and threads.

The clocks hold, on our side: loading the model once, tokenising each client's examples once, all
local steps. On the other side, for each client: loading model and tokenizer, tokenising, all local
steps. Neither side's clock holds Flower's messages, the server, the ledger or the calibration of
noise. With one round (``--rounds 1``) our one load and tokenisation count in full against us.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.models.backbone import load_backbone
from fedllm.models.loading.placement import resolve_device, resolve_dtype
from fedllm.settings.experiment import Settings
from fedllm.training.mechanism import make_mechanism
from fedllm.training.steps import LocalWork
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from privacy.mechanisms.sampling import poisson_sample
from privacy.randomness import RandomSource, generator
from simulations.benchmarks import baseline as assembly
from simulations.benchmarks.step_cost import each_model
from simulations.benchmarks.steps import sizes
from simulations.benchmarks.support import timing, workload

GOAL = 3.0
OURS = "fedllm"
PADDINGS: dict[str, assembly.Padding] = {
    "assembly, max_length": "max_length",
    "assembly, longest": "longest",
}
RATES = ("examples_per_second", "examples_per_second_training")
# local steps of a client and round; the more there are, the less reloading weighs
LOCAL_STEPS = {("minilm", "cpu"): 2, ("smollm2", "cpu"): 1}


class Federation:
    """The clients' examples and what both sides have in common.

    Args:
        model: minilm, smollm2, a folder or a hub id.
        options: the command line.
    """

    def __init__(self, model: str, options: argparse.Namespace) -> None:
        self.device = resolve_device(options.device)
        self.source = workload.model_source(model)
        batch, tokens = sizes(model, self.device)
        self.batch_size: int = options.batch or batch
        self.max_tokens: int = options.max_tokens or tokens
        where = "cpu" if self.device.type == "cpu" else "cuda"
        self.local_steps: int = options.local_steps or LOCAL_STEPS.get((model, where), 8)
        self.prefix_length: int = options.prefix_length
        self.max_length: int = options.max_length
        count = options.clients * options.examples
        records, self.origin = workload.load_texts(count, options.data)
        self.clients = [
            records[start : start + options.examples] for start in range(0, count, options.examples)
        ]
        self.rate = min(1.0, self.batch_size / options.examples)

    def settings(self, kind: str) -> Settings:
        """Return the settings of our side."""
        return workload.settings_for(
            self.source,
            kind,
            private=True,
            batch_size=self.batch_size,
            local_steps=self.local_steps,
            max_tokens=self.max_tokens,
            prefix_length=self.prefix_length,
            max_length=self.max_length,
            device=str(self.device),
        )

    def choice(self, settings: Settings, kind: str) -> assembly.Choice:
        """Return the same for the assembly."""
        return assembly.Choice(
            folder=self.source.folder,
            kind=kind,
            prefix_length=self.prefix_length,
            max_length=self.max_length,
            batch_size=self.batch_size,
            local_steps=self.local_steps,
            clip=settings.privacy.clip,
            noise_multiplier=float(settings.privacy.noise_multiplier or 1.0),
            learning_rate=settings.client.learning_rate,
            dtype=resolve_dtype("auto", self.device),
            device=self.device,
        )


class Side:
    """Seconds and examples of one side, client by client."""

    def __init__(self) -> None:
        self.load: list[float] = []
        self.tokenise: list[float] = []
        self.train: list[float] = []
        self.examples: list[int] = []
        self.tokens: list[int] = []

    def rates(self, *, load: bool) -> dict[str, float]:
        """Return examples/s over all clients, with and without loading (and tokenising) in the measured time."""
        seconds = sum(self.train) + ((sum(self.load) + sum(self.tokenise)) if load else 0.0)
        return {"examples": sum(self.examples) / seconds, "tokens": sum(self.tokens) / seconds}

    def figures(self) -> dict[str, Any]:
        """Return all measurements as plain values."""
        each = [n / s for n, s in zip(self.examples, self.train, strict=True)]
        return {
            "load": self.load,
            "tokenise": self.tokenise,
            "train": self.train,
            "examples": self.examples,
            "padded_tokens": self.tokens,
            "examples_per_second": self.rates(load=True)["examples"],
            "examples_per_second_training": self.rates(load=False)["examples"],
            "training_by_client": asdict(timing.spread(each)),
        }


def our_client(
    tunable: Tunable,
    params: dict[str, Tensor],
    features: Sequence[Feature],
    settings: Settings,
    rate: float,
    labels: tuple[int, int],
) -> int:
    """Run one client's local steps by our code; return the number of drawn examples."""
    noise = float(settings.privacy.noise_multiplier or 0.0)
    mechanism = make_mechanism(settings, sampling_rate=rate, noise_multiplier=noise)

    def streams(purpose: str, step: int) -> RandomSource:
        return generator(0, purpose, step, *labels)

    return mechanism.train(LocalWork(tunable, params, features, streams)).examples


def measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return all figures of one model, as plain values."""
    federation = Federation(model, options)
    device = federation.device
    absent = assembly.missing()
    paddings = {} if absent else PADDINGS
    sides = {name: Side() for name in (OURS, *paddings)}

    loaded = timing.timed(lambda: load_backbone(federation.source.folder, device=device), device)
    backbone = loaded.result
    settings = federation.settings(backbone.kind)
    tunable = make_tunable(settings, backbone)
    tokenised = timing.timed(
        lambda: [tunable.task.features(records) for records in federation.clients], device
    )
    sides[OURS].load.append(loaded.wall)
    sides[OURS].tokenise.append(tokenised.wall)
    params = {n: v.to(device) for n, v in initial_params(tunable, settings).items()}
    choice = federation.choice(settings, backbone.kind)

    def ours(number: int, turn: int) -> None:
        features = tokenised.result[number]
        call = partial(
            our_client, tunable, params, features, settings, federation.rate, (number, turn)
        )
        done = timing.timed(call, device)
        sides[OURS].train.append(done.wall)
        sides[OURS].examples.append(done.result)
        sides[OURS].tokens.append(
            _padded_tokens(tunable, features, federation, done.result, number, turn)
        )

    def theirs(name: str, number: int, turn: int) -> None:
        torch.manual_seed(1000 * turn + number)  # Opacus samples from torch's generator
        done = assembly.train_client(choice, federation.clients[number], paddings[name])
        for part in ("load", "tokenise", "train", "examples", "tokens"):
            getattr(sides[name], part).append(getattr(done, part))

    turns: list[Callable[[int, int], None]] = [ours]
    turns += [partial(theirs, name) for name in paddings]
    for turn in range(options.rounds):
        for number in range(len(federation.clients)):
            for call in turns if number % 2 == 0 else reversed(turns):
                call(number, turn)
    return _result(federation, sides, absent, options)


def _padded_tokens(
    tunable: Tunable,
    features: Sequence[Feature],
    federation: Federation,
    drawn: int,
    number: int,
    turn: int,
) -> int:
    """Return the tokens, padding included, of the micro-batches that our side last trained on."""
    total, seen = 0, 0
    for step in range(federation.local_steps):
        rng = generator(0, "sample", step, number, turn)
        batch = [features[i] for i in poisson_sample(len(features), federation.rate, rng)]
        seen += len(batch)
        for group in tunable.task.batches(batch, federation.max_tokens):
            total += len(group) * max(len(batch[i]) for i in group)
    if seen != drawn:
        raise RuntimeError(f"Expected to count the {drawn} examples trained on, got {seen}")
    return total


def _result(
    federation: Federation,
    sides: dict[str, Side],
    absent: str | None,
    options: argparse.Namespace,
) -> dict[str, Any]:
    figures = {name: side.figures() for name, side in sides.items()}
    ours = figures[OURS]
    ratios = {
        name: {
            "all": ours["examples_per_second"] / value["examples_per_second"],
            "training": ours["examples_per_second_training"]
            / value["examples_per_second_training"],
            "training_by_client": asdict(
                timing.paired_ratio(
                    [n / s for n, s in zip(ours["examples"], ours["train"], strict=True)],
                    [n / s for n, s in zip(value["examples"], value["train"], strict=True)],
                )
            ),
        }
        for name, value in figures.items()
        if name != OURS
    }
    return {
        "model": federation.source.note,
        "data": federation.origin,
        "clients": len(federation.clients),
        "examples_each": options.examples,
        "rounds": options.rounds,
        "local_steps": federation.local_steps,
        "expected_batch": federation.batch_size,
        "max_tokens": federation.max_tokens,
        "max_length": federation.max_length,
        "prefix_length": federation.prefix_length,
        "missing_packages": absent,
        "sides": figures,
        "ratios": ratios,
    }


def report(result: dict[str, Any]) -> str:
    """Return the figures of one model as text."""
    lines = [
        f"{result['model']}, {result['data']}: {result['clients']} clients of "
        f"{result['examples_each']} examples, {result['rounds']} round(s) of "
        f"{result['local_steps']} steps, expected batch {result['expected_batch']}, "
        f"prefix length {result['prefix_length']}, max_length {result['max_length']}, our "
        f"micro-batches {result['max_tokens']} tokens"
    ]
    header = ["side", "examples", "tokens each", "load s", "tokenise s", "train s"]
    header += ["examples/s", "in training"]
    rows = []
    for name, side in result["sides"].items():
        tokens = sum(side["padded_tokens"]) / max(1, sum(side["examples"]))
        parts = [sum(side[part]) for part in ("load", "tokenise", "train")]
        row = [name, str(sum(side["examples"])), f"{tokens:.1f}", *(f"{s:.2f}" for s in parts)]
        row += [f"{side[key]:.2f}" for key in RATES]
        rows.append(row)
    lines.append(timing.table(header, rows))
    for name, ratio in result["ratios"].items():
        goal = ""
        if PADDINGS[name] == "max_length":
            goal = ", " + timing.verdict(ratio["all"], GOAL, at_most=False)
        spread = ratio["training_by_client"]
        lines.append(f"fedllm / ({name}): {ratio['all']:.2f}{goal}")
        lines.append(
            f"    loading and tokenising taken out of both: {ratio['training']:.2f} (client by "
            f"client: median {spread['median']:.2f}, quartiles {spread['low']:.2f} - "
            f"{spread['high']:.2f})"
        )
    if result["missing_packages"]:
        lines.append(f"The assembly was left out: not installed: {result['missing_packages']}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog="python -m simulations.benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--model", action="append", help="minilm, smollm2, a folder, a hub id")
    made.add_argument("--clients", type=int, default=8)
    made.add_argument("--examples", type=int, default=1024, help="examples of each client")
    made.add_argument("--rounds", type=int, default=1)
    made.add_argument("--local-steps", type=int, help="steps of a client and round")
    made.add_argument("--batch", type=int, help="expected size of a Poisson batch")
    made.add_argument("--max-tokens", type=int, help="tokens of our micro-batches")
    made.add_argument("--prefix-length", type=int, default=8)
    made.add_argument(
        "--max-length", type=int, default=workload.MAX_LENGTH, help="tokens kept (and padded to)"
    )
    made.add_argument("--data", default="auto", help="auto, sst2, tweets or random")
    made.add_argument("--device", default="auto")
    made.add_argument("--threads", type=int, default=1, help="CPU threads")
    made.add_argument("--json", metavar="OUT", help="write all measurements to this file")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = parser().parse_args(arguments)
    logging.getLogger("opacus").setLevel(logging.ERROR)
    each_model(options, measure, report)


if __name__ == "__main__":
    main()
