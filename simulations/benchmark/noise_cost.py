"""What secret noise costs: in a private step, against seeded noise, and the ciphers it could be from.

    python -m simulations.benchmark.noise_cost [--model minilm --model smollm2] [--json OUT]

Measured in turn in one process, on the batch of ``dp_tax``:

* ``step, secret`` and ``step, seeded``: the private step under ``privacy.randomness`` "os" and "seeded";
* ``noise, secret`` and ``noise, seeded``: its noise alone, for a sum as long as what is trained: the
  source made anew, four draws a coordinate, added and rounded;
* ``noise, one draw``: numpy's default generator, one draw a coordinate, added and not rounded.

The ciphers of the ``cryptography`` package are timed on refills of 64 KiB, each under a new key.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedllm.models import load_backbone
from fedllm.tunable import initial_params, make_tunable
from privacy.noise import add_gaussian
from privacy.randomness import generator
from simulations.benchmark import dp_tax, timing
from simulations.benchmark.step_command import begin, each_model, step_parser

GOAL = 0.10
REFILL, REFILLS = 1 << 16, 512
RATIOS = [
    ("noise, secret", "step, secret"),
    ("noise, secret", "noise, seeded"),
    ("noise, secret", "noise, one draw"),
    ("step, secret", "step, seeded"),
]


def ciphers() -> dict[str, Callable[[], None]]:
    """``REFILLS`` refills of ``REFILL`` bytes by each cipher."""
    zeros, out = bytes(REFILL), bytearray(REFILL + 15)

    def refill(make: Callable[[], Cipher[Any]]) -> None:
        for _ in range(REFILLS):
            make().encryptor().update_into(zeros, out)

    return {
        "AES-256-CTR": lambda: refill(
            lambda: Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16)))
        ),
        "ChaCha20": lambda: refill(
            lambda: Cipher(algorithms.ChaCha20(os.urandom(32), bytes(16)), None)
        ),
    }


def measure_ciphers(repeats: int) -> dict[str, Any]:
    """Seconds for ``REFILLS`` refills, and by how much AES takes less CPU time."""
    seconds = timing.interleave(ciphers(), repeats, device=torch.device("cpu"))
    aes, chacha = (seconds[name].cpu for name in ("AES-256-CTR", "ChaCha20"))
    return {
        "bytes": REFILL * REFILLS,
        "seconds": {name: asdict(value) for name, value in seconds.items()},
        "ChaCha20/AES-256-CTR": asdict(timing.paired_ratio(chacha, aes)),
    }


def measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model, as plain values."""
    bench = dp_tax.Bench(model, options)
    backbone = load_backbone(bench.source.folder, device=bench.device)
    settings = bench.settings(backbone.kind, True)
    tunable = make_tunable(settings, backbone)
    features = tunable.task.features(bench.records)
    length = sum(value.numel() for value in initial_params(tunable, settings).values())
    total = torch.zeros(length, device=bench.device)
    clip, multiplier = settings.privacy.clip, float(settings.privacy.noise_multiplier or 0.0)

    def one_draw() -> torch.Tensor:
        noise = np.random.default_rng().standard_normal(length) * (clip * multiplier)
        return total + torch.from_numpy(noise).to(total)

    variants: dict[str, Callable[[], Any]] = {
        "step, secret": dp_tax.our_step(tunable, features, settings, seed=None).call,
        "step, seeded": dp_tax.our_step(tunable, features, settings, seed=0).call,
        "noise, secret": lambda: add_gaussian(total, clip, multiplier, generator(None)),
        "noise, seeded": lambda: add_gaussian(total, clip, multiplier, generator(0, "noise")),
        "noise, one draw": one_draw,
    }
    seconds = timing.interleave(variants, options.repeats, device=bench.device)
    return {
        "model": bench.source.note,
        "data": bench.origin,
        "batch_size": bench.batch_size,
        "prefix_length": bench.prefix_length,
        "trained": length,
        "seconds": {name: asdict(value) for name, value in seconds.items()},
        "ratios": {
            f"{a} / {b}": asdict(timing.paired_ratio(seconds[a].wall, seconds[b].wall))
            for a, b in RATIOS
        },
        "cpu_time_ratios": {
            f"{a} / {b}": asdict(timing.paired_ratio(seconds[a].cpu, seconds[b].cpu))
            for a, b in (RATIOS if bench.device.type == "cpu" else [])
        },
    }


def report(result: dict[str, Any]) -> str:
    """The figures of one model as text."""
    lines = [
        f"{result['model']}, {result['data']}: {result['batch_size']} examples a step, prefix length "
        f"{result['prefix_length']}, {result['trained']} trained values",
        _table(result["seconds"]),
    ]
    for pair, value in result["ratios"].items():
        goal = ""
        if pair == "noise, secret / step, secret":
            goal = ", " + timing.verdict(value["median"], GOAL, at_most=True)
        lines.append(f"{pair}: {_ratio(value)}{goal}")
        if pair in result["cpu_time_ratios"]:
            lines.append(f"    in CPU time {_ratio(result['cpu_time_ratios'][pair])}")
    return "\n".join(lines)


def report_ciphers(result: dict[str, Any]) -> str:
    """The ciphers' figures as text."""
    speeds = []
    for name, seconds in result["seconds"].items():
        median = timing.spread(seconds["cpu"]).median
        speeds.append(f"{name} {result['bytes'] / median / 1e9:.2f} GB/s")
    return f"{', '.join(speeds)}; ChaCha20/AES in CPU time {_ratio(result['ChaCha20/AES-256-CTR'])}"


def _table(measured: dict[str, Any]) -> str:
    rows = []
    for name, seconds in measured.items():
        s = timing.spread(seconds["wall"])
        rows.append([name, f"{s.median * 1e3:.2f}", f"{s.low * 1e3:.2f} - {s.high * 1e3:.2f}"])
    return timing.table(["", "median ms", "quartiles"], rows)


def _ratio(value: dict[str, Any]) -> str:
    quartiles = f"{value['low']:.4f} - {value['high']:.4f}"
    return f"{value['median']:.4f} (quartiles {quartiles}, n={value['count']})"


def parser() -> argparse.ArgumentParser:
    """Command line."""
    return step_parser("noise_cost", __doc__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = parser().parse_args(arguments)
    around = begin(options)
    speeds = measure_ciphers(options.repeats)
    print(report_ciphers(speeds))
    each_model(options, around, measure, report, ciphers=speeds)


if __name__ == "__main__":
    main()
