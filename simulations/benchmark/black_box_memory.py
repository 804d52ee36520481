"""Peak memory of a step through the model's outputs alone, against a step through its gradients.

    python -m simulations.benchmark.black_box_memory [--model smollm2] [--max-tokens 2048] [--json OUT]

One local step of unit "example" on a fixed batch (sampling rate 1), same model, texts and micro-batches; each
in a process of its own: ``white-box`` (one gradient an example, clipped, summed, noised), ``non-private`` (the
plain gradient) and ``black-box`` (zeroth order: two forward passes a direction). ``peak`` is all that is
resident, the model included (CUDA: allocated device memory), ``step`` is the peak less what was in use with
the model loaded. The goal is black-box peak <= 0.4 of the white-box peak.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from fedllm.forward_only import LocalForwardOnly
from fedllm.local_training import train_locally
from fedllm.models import load_backbone, resolve_device
from fedllm.settings import Settings
from fedllm.tunable import initial_params, make_tunable
from fedllm.zeroth_order import Directions, train_forward_only
from privacy.randomness import generator
from simulations.benchmark import timing, workload
from simulations.benchmark.dp_tax import sizes

MODULE = "simulations.benchmark.black_box_memory"
WAYS = ("white-box", "non-private", "black-box")
GOAL = 0.4


def peak_of(way: str, options: argparse.Namespace) -> timing.PeakMemory:
    """Peak memory of one step; to be called in a fresh process."""
    device = resolve_device(options.device)
    source = workload.model_source(options.model)
    batch, tokens = sizes(options.model, device)
    batch, tokens = options.batch or batch, options.max_tokens or tokens
    records, _ = workload.load_texts(batch, options.data)
    backbone = load_backbone(source.folder, device=device)
    base = workload.settings_for(
        source,
        backbone.kind,
        private=way != "non-private",
        batch_size=batch,
        local_steps=1,
        max_tokens=tokens,
        prefix_length=options.prefix_length,
        device=str(device),
    )
    plain = base.model_dump()
    if way == "black-box":
        plain["model"]["access"] = "black-box"
        plain["zeroth_order"] = {"directions": options.directions}
    settings = Settings.model_validate(plain)
    tunable = make_tunable(settings, backbone)
    features = tunable.task.features(records)
    params = {n: v.to(device) for n, v in initial_params(tunable, settings).items()}
    common: dict[str, Any] = {
        "sampling_rate": 1.0,
        "noise_multiplier": 0.0 if way == "non-private" else 1.0,
        "streams": lambda purpose, step: generator(0, purpose, step),
    }
    for tensor in backbone.model.state_dict().values():
        tensor.sum()  # brings weights that are only mapped from the file into memory
    started = timing.start_peak(device)
    if way == "black-box":
        model = LocalForwardOnly(tunable)
        directions = Directions(settings, params, "0")
        train_forward_only(model, params, features, settings, directions=directions, **common)
    else:
        train_locally(tunable, params, features, settings, **common)
    return timing.read_peak(started, device)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Peaks of all ways and their ratios, as plain values."""
    arguments = ["--model", options.model, "--device", options.device, "--data", options.data]
    arguments += ["--prefix-length", str(options.prefix_length), "--threads", str(options.threads)]
    arguments += ["--directions", str(options.directions)]
    for name in ("batch", "max_tokens"):
        if getattr(options, name):
            arguments += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    found = {way: timing.run_child(MODULE, ["--way", way, *arguments]) for way in WAYS}
    white, black = found["white-box"], found["black-box"]
    batch, tokens = sizes(options.model, resolve_device(options.device))
    return {
        "model": options.model,
        "batch": options.batch or batch,
        "max_tokens": options.max_tokens or tokens,
        "directions": options.directions,
        "memory": found,
        "peak_ratio": black["peak"] / white["peak"],
        "step_ratio": (black["peak"] - black["before"]) / max(1, white["peak"] - white["before"]),
    }


def report(result: dict[str, Any]) -> str:
    """The figures as text."""
    rows = [
        [way, f"{m['peak'] / 2**20:.0f}", f"{(m['peak'] - m['before']) / 2**20:.0f}"]
        for way, m in result["memory"].items()
    ]
    kind = result["memory"]["black-box"]["kind"]
    header = ["one step", f"peak MiB ({kind})", "step MiB"]
    return (
        f"{result['model']}, {result['batch']} examples, micro-batches of {result['max_tokens']} tokens, "
        f"{result['directions']} directions\n{timing.table(header, rows)}\n"
        f"black-box over white-box: peak {result['peak_ratio']:.3f}, "
        f"{timing.verdict(result['peak_ratio'], GOAL, at_most=True)}; less the loaded model "
        f"{result['step_ratio']:.3f}"
    )


def parser() -> argparse.ArgumentParser:
    """Command line."""
    made = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--model", default="smollm2", help="smollm2, minilm, a folder, a hub id")
    made.add_argument("--batch", type=int, help="examples a step")
    made.add_argument("--max-tokens", type=int, help="tokens of a micro-batch")
    made.add_argument("--prefix-length", type=int, default=8)
    made.add_argument("--directions", type=int, default=2)
    made.add_argument("--data", default="auto", help="auto, sst2, tweets or random")
    made.add_argument("--device", default="auto")
    made.add_argument("--threads", type=int, default=1, help="CPU threads")
    made.add_argument("--json", metavar="OUT", help="write all measurements to this file")
    made.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.way:
        timing.child_result(peak_of(options.way, options))
        return
    around = timing.circumstances(resolve_device(options.device))
    result = measure(options)
    print(report(result))
    if options.json:
        timing.write_json(options.json, {"circumstances": around, **result})


if __name__ == "__main__":
    main()
