"""What privacy costs in one step: time and peak memory, against the same step without privacy.

    python -m simulations.benchmark.dp_tax [--model minilm --model smollm2] [--json OUT]

Four steps of the same batch, cut into the same micro-batches, measured in turn in one process:

* ``plain``: gradient sum and SGD, the code of ``privacy.mode = "none"``;
* ``private``: per-example gradients, clipping, noise and SGD, the code of unit "example";
* ``peft``: PEFT's PREFIX_TUNING on the same model, mean loss and SGD;
* ``opacus``: the same wrapped by Opacus' GradSampleModule and DPOptimizer (what PrivacyEngine makes).

Poisson sampling is left out of all four: the batch is fixed. Memory is the peak of a process of its
own for each step: resident memory on a CPU (the model included in ``peak``, not in ``step``, which
is peak less what was in use with the model loaded), allocated device memory on CUDA.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedllm.inputs import Feature
from fedllm.local_training import train_locally
from fedllm.models import load_backbone, resolve_device, resolve_dtype
from fedllm.settings import Settings
from fedllm.tunable import Tunable, initial_params, make_tunable
from privacy.randomness import generator
from simulations.benchmark import obvious_assembly as assembly
from simulations.benchmark import timing, workload
from simulations.benchmark.step_command import MODELS, begin, each_model, step_parser

TIME_GOAL, MEMORY_GOAL = 1.05, 1.15
OURS, BASELINE = ("plain", "private"), ("peft", "opacus")
# expected batch size and tokens of a micro-batch; on a CPU small micro-batches save padding (256 was
# the best of 64 ... 4096 for both models), on a GPU large ones fill the device
SIZES = {
    ("minilm", "cpu"): (64, 256),
    ("smollm2", "cpu"): (32, 256),
    ("minilm", "cuda"): (1024, 32768),
    ("smollm2", "cuda"): (256, 16384),
}
MEMORY_STEPS = 3


@dataclass(frozen=True)
class Step:
    """One step on the fixed batch, and the model that it runs."""

    call: Callable[[], Any]
    model: nn.Module


def sizes(model: str, device: torch.device) -> tuple[int, int]:
    """Batch size and micro-batch tokens for a model on a device."""
    return SIZES.get((model, "cpu" if device.type == "cpu" else "cuda"), (32, 1024))


class Bench:
    """One model, one batch, and the steps on it."""

    def __init__(self, model: str, options: argparse.Namespace) -> None:
        self.device = resolve_device(options.device)
        self.source = workload.model_source(model)
        batch, tokens = sizes(model, self.device)
        self.batch_size = options.batch or batch
        self.max_tokens = options.max_tokens or tokens
        self.prefix_length = options.prefix_length
        self.records, self.origin = workload.load_texts(self.batch_size, options.data)

    def steps(self, names: Sequence[str]) -> dict[str, Step]:
        """The steps by name; each has a model of its own, ours share one."""
        backbone = load_backbone(self.source.folder, device=self.device)
        private, plain = (self.settings(backbone.kind, p) for p in (True, False))
        tunable = make_tunable(private, backbone)
        features = tunable.task.features(self.records)
        made: dict[str, Step] = {}
        for name in names:
            if name == "plain":
                made[name] = our_step(tunable, features, plain)
            elif name == "private":
                made[name] = our_step(tunable, features, private)
            else:
                made[name] = self._assembly_step(name == "opacus", tunable, features)
        return made

    def alone(self, name: str) -> Step:
        """One step with no other model in memory (for its peak memory).

        For the baseline our model makes the batch, so that it is the same one, and is let go.
        """
        if name in OURS:
            return self.steps([name])[name]
        backbone = load_backbone(self.source.folder, device=self.device)
        tunable = make_tunable(self.settings(backbone.kind, True), backbone)
        features = tunable.task.features(self.records)
        tunable.backbone = tunable.task.backbone = replace(backbone, model=None)
        del backbone
        return self._assembly_step(name == "opacus", tunable, features)

    def settings(self, kind: str, private: bool) -> Settings:
        """One local step on the whole batch, with privacy or without."""
        return workload.settings_for(
            self.source,
            kind,
            private=private,
            batch_size=self.batch_size,
            local_steps=1,
            max_tokens=self.max_tokens,
            prefix_length=self.prefix_length,
            device=str(self.device),
        )

    def _assembly_step(self, private: bool, tunable: Tunable, features: list[Feature]) -> Step:
        backbone = tunable.backbone
        settings = self.settings(backbone.kind, True)
        choice = assembly.Choice(
            folder=self.source.folder,
            kind=backbone.kind,
            prefix_length=self.prefix_length,
            max_length=settings.task.max_length,
            batch_size=self.batch_size,
            local_steps=1,
            clip=settings.privacy.clip,
            noise_multiplier=1.0,
            learning_rate=settings.client.learning_rate,
            dtype=resolve_dtype("auto", self.device),
            device=self.device,
        )
        words = assembly.word_ids(choice, backbone.tokenizer)
        model = assembly.load_model(choice)
        make = opacus_step if private else peft_step
        return make(choice, model, words, tunable, features, self.max_tokens)


def our_step(
    tunable: Tunable, features: list[Feature], settings: Settings, *, seed: int | None = 0
) -> Step:
    """One local step of ours on all of ``features`` (sampling rate 1); no seed: secret noise."""
    params = initial_params(tunable, settings)
    noise = float(settings.privacy.noise_multiplier or 0.0)
    call = partial(
        train_locally,
        tunable,
        {name: value.to(tunable.backbone.device) for name, value in params.items()},
        features,
        settings,
        sampling_rate=1.0,
        noise_multiplier=noise,
        streams=lambda purpose, step: generator(seed, purpose, step),
    )
    return Step(call, tunable.backbone.model)


def peft_step(
    choice: assembly.Choice,
    model: nn.Module,
    words: Tensor | None,
    tunable: Tunable,
    features: list[Feature],
    max_tokens: int,
) -> Step:
    """One non-private step of PEFT's prefix on the same micro-batches."""
    optimizer = torch.optim.SGD(assembly.trainable(model), lr=choice.learning_rate)

    def step() -> None:
        optimizer.zero_grad()
        for group in tunable.task.batches(features, max_tokens):
            batch = tunable.task.collate([features[i] for i in group])
            assert batch.targets is not None
            loss = assembly.mean_loss(
                model, batch.input_ids, batch.attention_mask, batch.targets, words
            )
            torch.autograd.backward(loss * (len(group) / choice.batch_size))
        optimizer.step()

    return Step(step, model)


def opacus_step(
    choice: assembly.Choice,
    model: nn.Module,
    words: Tensor | None,
    tunable: Tunable,
    features: list[Feature],
    max_tokens: int,
) -> Step:
    """One private step by Opacus on the same micro-batches (as its BatchMemoryManager does)."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    wrapped = GradSampleModule(model)
    optimizer = DPOptimizer(
        torch.optim.SGD(assembly.trainable(wrapped), lr=choice.learning_rate),
        noise_multiplier=choice.noise_multiplier,
        max_grad_norm=choice.clip,
        expected_batch_size=choice.batch_size,
    )

    def step() -> None:
        groups = tunable.task.batches(features, max_tokens)
        for number, group in enumerate(groups, start=1):
            batch = tunable.task.collate([features[i] for i in group])
            assert batch.targets is not None
            optimizer.signal_skip_step(do_skip=number < len(groups))
            loss = assembly.mean_loss(
                wrapped, batch.input_ids, batch.attention_mask, batch.targets, words
            )
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

    return Step(step, model)


def measure_memory(model: str, name: str, options: argparse.Namespace) -> timing.PeakMemory:
    """Peak memory of a few steps; to be called in a fresh process."""
    bench = Bench(model, options)
    step = bench.alone(name)
    for tensor in step.model.parameters():
        tensor.sum()  # brings weights that are only mapped from the file into memory
    started = timing.start_peak(bench.device)
    for _ in range(MEMORY_STEPS):
        step.call()
        timing.synchronize(bench.device)
    return timing.read_peak(started, bench.device)


def measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model, as plain values."""
    bench = Bench(model, options)
    absent = assembly.missing()
    names = [*OURS, *(() if absent else BASELINE)]
    steps = bench.steps(names)
    calls = {name: step.call for name, step in steps.items()}
    seconds = timing.interleave(calls, options.repeats, device=bench.device)
    steps.clear()
    calls.clear()
    memory = {} if options.no_memory else {n: _memory_in_child(model, n, options) for n in names}
    pairs = [("private", "plain"), ("opacus", "peft"), ("opacus", "private"), ("peft", "plain")]
    pairs = [pair for pair in pairs if set(pair) <= set(names)]
    return {
        "model": bench.source.note,
        "data": bench.origin,
        "batch_size": bench.batch_size,
        "max_tokens": bench.max_tokens,
        "prefix_length": bench.prefix_length,
        "missing_packages": absent,
        "seconds": {name: asdict(value) for name, value in seconds.items()},
        "memory": {name: asdict(value) for name, value in memory.items()},
        "time_ratios": {
            f"{a}/{b}": asdict(timing.paired_ratio(seconds[a].wall, seconds[b].wall))
            for a, b in pairs
        },
        "cpu_time_ratios": {
            f"{a}/{b}": asdict(timing.paired_ratio(seconds[a].cpu, seconds[b].cpu))
            for a, b in (pairs if bench.device.type == "cpu" else [])
        },
        "memory_ratios": {
            f"{a}/{b}": {
                "peak": memory[a].peak / memory[b].peak,
                "step": (memory[a].peak - memory[a].before)
                / max(1, memory[b].peak - memory[b].before),
            }
            for a, b in (pairs if memory else [])
        },
    }


def _memory_in_child(model: str, name: str, options: argparse.Namespace) -> timing.PeakMemory:
    arguments = ["--memory-of", name, "--model", model, "--device", options.device]
    arguments += ["--data", options.data, "--prefix-length", str(options.prefix_length)]
    arguments += ["--threads", str(options.threads)]
    for flag, value in (("--batch", options.batch), ("--max-tokens", options.max_tokens)):
        arguments += [] if value is None else [flag, str(value)]
    return timing.PeakMemory(**timing.run_child("simulations.benchmark.dp_tax", arguments))


def report(result: dict[str, Any]) -> str:
    """The figures of one model as text."""
    lines = [
        f"{result['model']}, {result['data']}: {result['batch_size']} examples a step, "
        f"micro-batches of {result['max_tokens']} tokens, prefix length {result['prefix_length']}"
    ]
    rows = []
    for name, seconds in result["seconds"].items():
        s = timing.spread(seconds["wall"])
        row = [name, f"{s.median * 1e3:.1f}", f"{s.low * 1e3:.1f} - {s.high * 1e3:.1f}"]
        memory = result["memory"].get(name)
        if memory:
            row += [_mib(memory["peak"]), _mib(memory["peak"] - memory["before"])]
        rows.append(row)
    header = ["step", "median ms", "quartiles"]
    if result["memory"]:
        kind = next(iter(result["memory"].values()))["kind"]
        header += [f"peak MiB ({kind})", "step MiB"]
    lines.append(timing.table(header, rows))
    for pair, value in result["time_ratios"].items():
        goal, cpu = "", result["cpu_time_ratios"].get(pair)
        if pair == "private/plain":
            goal = ", " + timing.verdict(value["median"], TIME_GOAL, at_most=True)
        lines.append(f"time   {pair}: {_ratio(value)}{goal}")
        if cpu:
            lines.append(f"       in CPU time {_ratio(cpu)}")
    for pair, value in result["memory_ratios"].items():
        goal = ""
        if pair == "private/plain":
            goal = ", " + timing.verdict(value["peak"], MEMORY_GOAL, at_most=True)
        lines.append(
            f"memory {pair}: {value['peak']:.3f}{goal}; less the loaded model {value['step']:.3f}"
        )
    if result["missing_packages"]:
        lines.append(f"Opacus + PEFT left out: not installed: {result['missing_packages']}")
    return "\n".join(lines)


def _ratio(value: dict[str, Any]) -> str:
    quartiles = f"{value['low']:.3f} - {value['high']:.3f}"
    return f"{value['median']:.3f} (quartiles {quartiles}, n={value['count']})"


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f}"


def parser() -> argparse.ArgumentParser:
    """Command line."""
    made = step_parser("dp_tax", __doc__)
    made.add_argument("--no-memory", action="store_true", help="measure time alone")
    made.add_argument("--memory-of", choices=[*OURS, *BASELINE], help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = parser().parse_args(arguments)
    logging.getLogger("opacus").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="opacus")
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    if options.memory_of:
        torch.set_num_threads(options.threads)
        model = (options.model or MODELS)[0]
        timing.child_result(measure_memory(model, options.memory_of, options))
        return
    each_model(options, begin(options), measure, report)


if __name__ == "__main__":
    main()
