"""An audit of a sum over silos: canaries at one silo, a server that sees the sum, and a lower bound of what it learns.

    python -m simulations.benchmarks.secure.audit [--runs 20] [--silos 4] [--epsilon 3] [--fault none|share]

A silo holds canaries, each in its data by a fair coin; a canary's gradient is the clipping norm along a coordinate of its own, the
strongest there is. Every silo adds its share by the real mechanism (:class:`SumShare`: clipping, rounding, share, ring), the server reads
the sum, and guesses "in" where a canary's coordinate is above half the clipping norm, a rule that is fixed beforehand. The ledger's event
claims mu-GDP (`privacy.secure_sum.bound`): at false positive rate a no test has more power than Phi(Phi^-1(a) + mu). So with
Clopper-Pearson limits of both rates, Phi^-1(power) - Phi^-1(a) is a lower bound of mu; it must not be above the claim. Canaries have coordinates
and coins of their own, so each is a trial of its own. Two limits at 99.95 % each: a right mechanism, whose bound were tight, would be
above in 1 of 1000 runs.

``--fault share``: one silo of n adds no noise, while the event counts n shares. Exit status 1 where a right mechanism is above its claim in any run, or a fault is not caught in 9
runs of 10.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import norm

from fedllm.settings.io import parse_settings
from fedllm.training.mechanism import make_mechanism
from fedllm.training.sum_share.mechanism import SumShare
from privacy.accountants import make_accountant
from privacy.calibration import calibrate_noise_multiplier
from privacy.events.constructors import gaussian
from privacy.randomness import RandomSource, generator
from privacy.secure_sum import ring
from privacy.secure_sum.bound import noise_multiplier
from privacy.secure_sum.contributions import clip_and_round
from privacy.secure_sum.ring import Ring
from simulations.attacks.auditing import clopper_pearson

DELTA = 1e-5
CONFIDENCE = 0.999
CLIP = 0.7
CAUGHT = 0.9


def mechanism_of(noise: float, silos: int, canaries: int) -> SumShare:
    """Return the real mechanism of a sum with so many canaries, each with a coordinate of its own."""
    tree = {
        "client": {"local_steps": 1, "batch_size": 1},
        "privacy": {"noise_by": "sum", "noise_multiplier": noise, "clip": CLIP},
    }
    made = make_mechanism(parse_settings(tree), sampling_rate=1.0, noise_multiplier=noise)
    assert isinstance(made, SumShare)
    return made.among(silos, canaries)


def total_of(one: SumShare, present: np.ndarray, silos: int, fault: str, *seed: int) -> Ring:
    """Return the sum over silos of a round: the first one holds the canaries that are present, the others nothing."""
    gradients = torch.eye(one.dimension)[torch.from_numpy(present)] * (
        3 * CLIP
    )  # clipped to the norm
    found = clip_and_round([gradients], one.clip, [1.0], one.shares.exponent)
    messages = []
    for silo in range(silos):
        integers = found.sums[0] if silo == 0 else torch.zeros(one.dimension, dtype=torch.int64)
        rng: RandomSource = generator(*seed, "share", silo)
        if fault == "share" and silo == silos - 1:
            plan = one.shares
            nothing = np.zeros(one.dimension, dtype=np.int64)
            messages.append(ring.encode(integers.numpy(), nothing, plan.largest, plan.bits))
        else:
            messages.append(one.message(integers, 0, rng))
    return ring.add(messages)


def audited_mu(one: SumShare, silos: int, rounds: int, fault: str, seed: int) -> float:
    """Return the lower bound of mu that a server finds in so many rounds."""
    hits = np.zeros((2, 2), dtype=np.int64)  # [was in, guessed in]
    for server_round in range(rounds):
        coins = generator(seed, "coins", server_round).random(one.dimension) < 0.5
        total = total_of(one, coins, silos, fault, seed, server_round)
        update = one.read(total, silos, {"canaries": torch.zeros(one.dimension)}).update["canaries"]
        seen = -update.numpy() * silos * one.plan.divisor / one.plan.learning_rate
        guessed = seen > CLIP / 2
        np.add.at(hits, (coins.astype(int), guessed.astype(int)), 1)
    power, _ = clopper_pearson(int(hits[1, 1]), int(hits[1].sum()), CONFIDENCE)
    _, alarms = clopper_pearson(int(hits[0, 1]), int(hits[0].sum()), CONFIDENCE)
    return max(0.0, float(norm.ppf(power) - norm.ppf(alarms)))


def epsilon_of(mu: float) -> float:
    """Return the epsilon of a Gaussian mechanism with this mu."""
    return float(make_accountant("pld").epsilon({gaussian(1 / mu): 1}, DELTA)) if mu > 0 else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the audited and the claimed mu and epsilon of each run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.secure.audit")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--silos", type=int, default=4)
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--canaries", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=160, help="independent releases of one run")
    parser.add_argument("--fault", choices=["none", "share"], default="none")
    options = parser.parse_args(arguments)
    started = time.process_time()
    noise = calibrate_noise_multiplier(
        epsilon=options.epsilon, delta=DELTA, sampling_rate=1.0, steps=1
    ).noise_multiplier
    one = mechanism_of(noise, options.silos, options.canaries)
    plan = one.shares
    claimed = 1 / noise_multiplier(plan.sigma, plan.honest, plan.sensitivity)
    print(
        f"{options.silos} silos, fault: {options.fault}; each release claims epsilon {epsilon_of(claimed):.4f} at delta {DELTA:g}, "
        f"mu {claimed:.4f}; {options.rounds * options.canaries} trials a run"
    )
    found = []
    for run in range(options.runs):
        mu = audited_mu(one, options.silos, options.rounds, options.fault, run)
        found.append(mu)
        verdict = "ABOVE the claim" if mu > claimed else "below"
        print(
            f"run {run + 1}: mu >= {mu:.4f}, epsilon >= {epsilon_of(mu):.4f}: {verdict}", flush=True
        )
    above = sum(mu > claimed for mu in found)
    print(
        f"above the claim in {above} of {options.runs} runs; largest mu {max(found):.4f}, median {np.median(found):.4f}; "
        f"{time.process_time() - started:.0f} s of CPU"
    )
    good = above == 0 if options.fault == "none" else above >= CAUGHT * options.runs
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
