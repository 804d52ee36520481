"""Measure time and peak memory of one training step relative to another step on the same batch.

    python -m simulations.benchmarks.step_cost [--variant NAME] [--adapter FORM] [--model minilm --model smollm2]
        [--json OUT]

The steps of a variant run on one batch, cut into the same micro-batches, in turn in one process:

* ``privacy`` (what privacy costs): ``plain``, gradient sum and SGD, the code of ``privacy.mode = "none"``; ``private``,
  per-example gradients, clipping, seeded noise and SGD, the code of unit "example"; ``peft``, PEFT's adapter of the same
  form on the same model (the plain model where PEFT has no such form), mean loss and SGD; ``opacus``, the same wrapped by Opacus' GradSampleModule and DPOptimizer (what
  PrivacyEngine makes);
* ``noise`` (what secret noise costs): ``secret``, the private step under ``privacy.randomness = "os"``; its ``noise`` alone,
  for a sum as long as what is trained (the source made again), and that of a seed; the ciphers that the noise could be
  from, on refills of 64 KiB, each under a new key;
* ``perturbation``: the private step with ``awp.form``; a form with two passes over the batch costs about twice;
* ``teacher``: the ``duplicate`` that ``teacher.kind = "nonprivate"`` adds at each silo; at the server one pull with
  ``closeness`` of weights and the average's own step (``ema``), one with a step of ``distillation`` on as many public
  examples as a batch has, and one ``training step`` of a ``public`` teacher;
* ``black-box``: a step of zeroth order, two forward passes a direction, next to ``private`` and ``plain``.

Poisson sampling is left out: the batch is fixed. Memory is the peak of a separate process for each step: resident
memory on a CPU (the model included in ``peak``, not in ``step``, which is peak less what was in use with the model
loaded), allocated device memory on CUDA.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch

from fedllm.models.loading.placement import resolve_device
from fedllm.settings.adapter import Form
from simulations.benchmarks import baseline as assembly
from simulations.benchmarks.steps import BASELINE, MAKERS, Bench
from simulations.benchmarks.support import timing

MODELS = ("minilm", "smollm2")
MEMORY_STEPS = 3
OF_ALL_WEIGHTS = (1.6, 1.5)
"""Goals of time and memory for ``full``."""


@dataclass(frozen=True)
class Variant:
    """The compared steps.

    Attributes:
        pairs: steps whose ratio is told; the first pair has the goals.
        time_goal: largest ratio of seconds; None: no goal.
        memory_goal: largest ratio of peak memory.
        memory: whether memory is measured.
    """

    pairs: tuple[tuple[str, str], ...]
    time_goal: float | None = None
    memory_goal: float | None = None
    memory: bool = False

    @property
    def steps(self) -> list[str]:
        """Names of the steps."""
        return list(dict.fromkeys(name for pair in self.pairs for name in reversed(pair)))


TEACHERS = ("duplicate", "closeness", "distillation", "training step")
VARIANTS = {
    "privacy": Variant(
        pairs=(("private", "plain"), ("opacus", "peft"), ("opacus", "private"), ("peft", "plain")),
        time_goal=1.10,
        memory_goal=1.15,
        memory=True,
    ),
    "noise": Variant(
        pairs=(
            ("noise", "secret"),
            ("noise", "seeded noise"),
            ("secret", "private"),
            ("ChaCha20", "AES-256-CTR"),
        ),
        time_goal=0.10,
    ),
    "perturbation": Variant(pairs=(("per-example", "private"), ("batch", "private"))),
    "teacher": Variant(pairs=tuple((name, "private") for name in TEACHERS)),
    "black-box": Variant(
        pairs=(("black-box", "private"), ("plain", "private")), memory_goal=0.4, memory=True
    ),
}


def measure_memory(model: str, name: str, options: argparse.Namespace) -> timing.PeakMemory:
    """Return the peak memory of a few steps; to be called in a fresh process."""
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
    """Return all figures of one model, as plain values."""
    variant, bench = VARIANTS[options.variant], Bench(model, options)
    absent = assembly.missing() if set(BASELINE) & set(variant.steps) else None
    pairs = [pair for pair in variant.pairs if not (absent and set(pair) & set(BASELINE))]
    names = [name for name in variant.steps if any(name in pair for pair in pairs)]
    steps = bench.steps(names)
    calls = {name: step.call for name, step in steps.items()}
    seconds = timing.interleave(calls, options.repeats, device=bench.device)
    for name, step in steps.items():
        for times in (seconds[name].wall, seconds[name].cpu):
            times[:] = [value / step.count for value in times]
    steps.clear()
    calls.clear()
    wanted = variant.memory and not options.no_memory
    memory = {name: _memory_in_child(model, name, options) for name in names} if wanted else {}
    return {
        "model": bench.source.note,
        "data": bench.origin,
        "variant": options.variant,
        "batch_size": bench.batch_size,
        "max_tokens": bench.max_tokens,
        "prefix_length": bench.prefix_length,
        "adapter": bench.adapter,
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
    arguments += ["--threads", str(options.threads), "--adapter", options.adapter]
    arguments += ["--rank", str(options.rank)]
    for flag, value in (("--batch", options.batch), ("--max-tokens", options.max_tokens)):
        arguments += [] if value is None else [flag, str(value)]
    return timing.PeakMemory(**timing.run_child("simulations.benchmarks.step_cost", arguments))


def report(result: dict[str, Any]) -> str:
    """Return the figures of one model as text."""
    variant = VARIANTS[result["variant"]]
    form, goals = result["adapter"]["form"], (variant.time_goal, variant.memory_goal)
    adapter = form + (f" rank {result['adapter']['rank']}" if "rank" in result["adapter"] else "")
    if form == "prefix":
        adapter += f" of length {result['prefix_length']}"
    if form == "full" and variant.time_goal is not None:
        goals = OF_ALL_WEIGHTS
    lines = [
        f"{result['model']}, {result['data']}: {result['batch_size']} examples a step, "
        f"micro-batches of {result['max_tokens']} tokens, {adapter}"
    ]
    rows = []
    for name, seconds in result["seconds"].items():
        s = timing.spread(seconds["wall"])
        row = [name, f"{s.median * 1e3:.2f}", f"{s.low * 1e3:.2f} - {s.high * 1e3:.2f}"]
        memory = result["memory"].get(name)
        if memory:
            row += [_mib(memory["peak"]), _mib(memory["peak"] - memory["before"])]
        rows.append(row)
    header = ["step", "median ms", "quartiles"]
    if result["memory"]:
        kind = next(iter(result["memory"].values()))["kind"]
        header += [f"peak MiB ({kind})", "step MiB"]
    lines.append(timing.table(header, rows))
    first = "/".join(variant.pairs[0])
    for pair, value in result["time_ratios"].items():
        goal, cpu = "", result["cpu_time_ratios"].get(pair)
        if pair == first and goals[0] is not None:
            goal = ", " + timing.verdict(value["median"], goals[0], at_most=True)
        lines.append(f"time   {pair}: {_ratio(value)}{goal}")
        if cpu:
            lines.append(f"       in CPU time {_ratio(cpu)}")
    for pair, value in result["memory_ratios"].items():
        goal = ""
        if pair == first and goals[1] is not None:
            goal = ", " + timing.verdict(value["peak"], goals[1], at_most=True)
        lines.append(
            f"memory {pair}: {value['peak']:.3f}{goal}; less the loaded model {value['step']:.3f}"
        )
    if result["missing_packages"]:
        lines.append(f"Opacus + PEFT left out: not installed: {result['missing_packages']}")
    return "\n".join(lines)


def _ratio(value: dict[str, Any]) -> str:
    quartiles = f"{value['low']:.4g} - {value['high']:.4g}"
    return f"{value['median']:.4g} (quartiles {quartiles}, n={value['count']})"


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f}"


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog="python -m simulations.benchmarks.step_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--variant", choices=list(VARIANTS), default="privacy")
    made.add_argument("--model", action="append", help="minilm, smollm2, a folder, a hub id")
    made.add_argument("--repeats", type=int, default=9)
    made.add_argument("--batch", type=int, help="examples a step")
    made.add_argument("--max-tokens", type=int, help="tokens of a micro-batch")
    made.add_argument("--prefix-length", type=int, default=8)
    made.add_argument("--adapter", default="prefix", choices=get_args(Form), help="its form")
    made.add_argument("--rank", type=int, default=8, help="of LoRA")
    made.add_argument("--data", default="auto", help="auto, sst2, tweets or random")
    made.add_argument("--device", default="auto")
    made.add_argument("--threads", type=int, default=1, help="CPU threads")
    made.add_argument("--json", metavar="OUT", help="write all measurements to this file")
    made.add_argument("--no-memory", action="store_true", help="measure time alone")
    made.add_argument("--memory-of", choices=list(MAKERS), help=argparse.SUPPRESS)
    return made


def each_model(
    options: argparse.Namespace,
    measure: Callable[[str, argparse.Namespace], dict[str, Any]],
    report: Callable[[dict[str, Any]], str],
) -> None:
    """Measure each model, print its report, and write all to ``--json``; first print what the machine is."""
    torch.set_num_threads(options.threads)
    around = timing.circumstances(resolve_device(options.device))
    print(", ".join(f"{name} {value}" for name, value in around.items()))
    results = []
    for model in options.model or MODELS:
        results.append(measure(model, options))
        print("\n" + report(results[-1]), flush=True)
    if options.json:
        timing.write_json(options.json, {"circumstances": around, "models": results})


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
    each_model(options, measure, report)


if __name__ == "__main__":
    main()
