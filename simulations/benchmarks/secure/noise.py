"""Noise of the mean of a round: shares that add up in a sum, next to noise that each silo adds by itself, at equal epsilon.

    python -m simulations.benchmarks.secure.noise [--silos 8 32] [--epsilon 3] [--rounds 40] [--rate 0.05]

Both are the real mechanisms with MiniLM and LoRA, on Poisson batches that are empty, so that what leaves is noise alone. Local noise is
calibrated against the server that sees every message, the sum's against the server that learns sums (and m colluding silos). The
ratio of their standard deviations is measured over all entries of the mean of n silos; expected is 1 / sqrt(n - m - t'), with t' the honest
silos that a malicious server can leave out where t may be missing (`privacy.secure_sum.shares.most_missing`). Nobody is missing
in the round that is measured. Exit status 1 where a ratio is more than 2 % from that.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedllm.settings.experiment import Settings
from fedllm.settings.io import parse_settings
from fedllm.training.mechanism import Mechanism, make_mechanism
from fedllm.training.steps import LocalWork
from fedllm.training.sum_share.mechanism import SUM, SumShare, ring_of
from fedllm.training.tunable import Tunable, initial_params, shared_tunable
from privacy.accountants import make_accountant
from privacy.calibration import calibrate_noise_multiplier
from privacy.randomness import generator
from privacy.secure_sum import ring
from privacy.secure_sum.shares import honest_shares

DELTA = 1e-5
TOLERANCE = 0.02


def settings_of(noise_by: str, noise: float, missing: int = 0, colluding: int = 0) -> Settings:
    """Return the settings of one arm."""
    tree: dict[str, dict[str, Any]] = {
        "model": {"name": "minilm", "device": "cpu"},
        "adapter": {"form": "lora"},
        "client": {"local_steps": 1, "batch_size": 64},
        "privacy": {"noise_by": noise_by, "noise_multiplier": noise},
    }
    if noise_by == "sum":
        tree["secure"] = {"drop_outs": missing, "colluding": colluding}
    return parse_settings(tree)


def flat(update: dict[str, Tensor]) -> Tensor:
    """Return an update as one vector, float64."""
    return torch.cat([update[name].reshape(-1) for name in sorted(update)]).double()


def work(tunable: Tunable, params: dict[str, Tensor], *seed: str | int) -> LocalWork:
    """Return a silo's work without examples."""
    return LocalWork(tunable, params, [], lambda purpose, step: generator(0, *seed, purpose, step))


def measured(
    tunable: Tunable, params: dict[str, Tensor], one: Mechanism, silos: int
) -> tuple[float, SumShare | None]:
    """Return the standard deviation of the noise in the mean of a round, and the mechanism of a sum."""
    if not isinstance(one, SumShare):
        total = torch.zeros(0)
        for silo in range(silos):
            update = flat(one.train(work(tunable, params, "local", silo)).update)
            total = update if silo == 0 else total + update
        return float(total.std() / silos), None
    summed = one.among(silos, sum(value.numel() for value in params.values()))
    messages = (
        ring_of(summed.train(work(tunable, params, "sum", silo)).update[SUM])
        for silo in range(silos)
    )
    mean = summed.read(ring.add(messages), silos, params).update
    return float(flat(mean).std()), summed


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each number of silos, missing and colluding ones; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.secure.noise")
    parser.add_argument("--silos", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--rate", type=float, default=0.05, help="sampling rate of each example")
    options = parser.parse_args(arguments)
    noise = calibrate_noise_multiplier(
        epsilon=options.epsilon, delta=DELTA, sampling_rate=options.rate, steps=options.rounds
    ).noise_multiplier
    local = settings_of("client", noise)
    tunable = shared_tunable(local)
    params = initial_params(tunable, local)
    size = sum(value.numel() for value in params.values())
    print(
        f"MiniLM with LoRA, {size} trained parameters; epsilon {options.epsilon:g} at delta {DELTA:g}, {options.rounds} rounds at "
        f"sampling rate {options.rate:g}: noise multiplier {noise:.4f}"
    )
    print(
        "| silos | colluding m | missing t | std, local | std, sum | ratio | 1/sqrt(honest) | off | epsilon |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    wrong, started = 0, time.process_time()
    for silos in options.silos:
        alone, _ = measured(
            tunable, params, make_mechanism(local, sampling_rate=1.0, noise_multiplier=noise), silos
        )
        for colluding in (0, 1):
            for missing in (0, 1):
                made = make_mechanism(
                    settings_of("sum", noise, missing, colluding),
                    sampling_rate=1.0,
                    noise_multiplier=noise,
                )
                together, one = measured(tunable, params, made, silos)
                assert one is not None
                expected = 1 / math.sqrt(honest_shares(silos, missing, colluding))
                off = together / alone / expected - 1
                [event] = replace(one, sampling_rate=options.rate).events(1)
                epsilon = make_accountant("pld").epsilon({event: options.rounds}, DELTA)
                wrong += abs(off) > TOLERANCE or epsilon > options.epsilon
                print(
                    f"| {silos} | {colluding} | {missing} | {alone:.3e} | {together:.3e} | {together / alone:.4f} | "
                    f"{expected:.4f} | {off:+.2%} | {epsilon:.4f} |",
                    flush=True,
                )
    print(f"{time.process_time() - started:.0f} s of CPU; {wrong} rows outside of {TOLERANCE:.0%}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
