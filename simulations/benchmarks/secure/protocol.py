"""Bytes and CPU seconds of secure sums, and rounds with drop-outs: every sum exact, or a clear stop.

    python -m simulations.benchmarks.secure.protocol [--silos 8 32 100] [--dimension 100000] [--bits 64]
    python -m simulations.benchmarks.secure.protocol --rounds 200 [--silos 9] [--drop-outs 2] [--chance 0.1]

The first form: for each number of silos, without and with drop-outs (a tenth of the silos, at least one), the cost of one silo and of
the server in one round, with t silos missing after they advanced. One silo does its whole work, on packets of all others. The server
takes random vectors in place of masked ones, and openings that are made from the silos' records: it computes the same, on other numbers.
That sums are exact with as many silos is checked with 64 entries, where every silo does its whole work.

The second form: real silos and server, a record on the disk for each silo. In each round every silo drops out with the chance given, at a
random stage, and every fifth restarts before it opens.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedllm.secure import session
from fedllm.secure.errors import SumLost
from fedllm.secure.member import Member
from fedllm.secure.messages import Advance, Opening, names_to_text, packets_to_text
from fedllm.secure.roster import Roster
from fedllm.secure.sums import Sums
from privacy.secure_sum.ring import Ring
from privacy.secure_sum.shares import honest_shares

STAGES = ("before the advance", "after the advance", "after masking", "in the opening")
CONTEXT = "benchmark"


class Federation:
    """Silos of one roster, each with a record on the disk."""

    def __init__(self, folder: Path, silos: int, drop_outs: int, bits: int, dimension: int) -> None:
        """Introduce the silos and let them join."""
        self.folder = folder
        self.members = {
            name: self.restarted(name) for name in map("silo-{:03d}".format, range(silos))
        }
        self.roster = Roster.make(
            [member.introduce() for member in self.members.values()],
            drop_outs=drop_outs,
            colluding=0,
            bits=bits,
            noise_multiplier=1.0,
            dimension=dimension,
        )
        for member in self.members.values():
            member.join(self.roster)

    def restarted(self, name: str) -> Member:
        """Return a silo that knows no more than its record."""
        return Member(name, "benchmark", self.folder / name)

    def vectors(self, rng: np.random.Generator) -> dict[str, Ring]:
        """Draw a vector for each silo."""
        bits, size = self.roster.bits, self.roster.dimension
        return {name: rng.integers(0, 2**bits, size, f"uint{bits}") for name in self.members}

    def advances(self, number: int, names: Sequence[str]) -> list[Advance]:
        """Return the advances of silos; none where nobody may drop out."""
        return [self.members[n].advance(number) for n in names] if self.roster.drop_outs else []

    def run(
        self, number: int, vectors: Mapping[str, Ring], gone: Mapping[str, str], restarts: int = 0
    ) -> tuple[Ring, list[str]]:
        """Run a session; `gone` has the stage at which silos drop out. Return the sum and the silos in it.

        Raises:
            SumLost: too few silos are left.
        """
        there = [name for name in self.members if gone.get(name) != STAGES[0]]
        sums = Sums(self.roster, number, CONTEXT, self.advances(number, there))
        for name in there:
            if gone.get(name) == STAGES[1]:
                continue
            packets = sums.packets_for(name)
            masked = self.members[name].mask(number, packets, vectors[name], CONTEXT)
            if gone.get(name) != STAGES[2]:
                sums.add(name, masked)
        answered, openings = sums.answered(), []
        if restarts:
            for name in list(self.members)[::restarts]:
                self.members[name] = self.restarted(name)
        if self.roster.drop_outs and len(answered) >= self.roster.threshold:
            openings = [
                self.members[name].open(number, answered) for name in there if name not in gone
            ]
        return sums.total(openings), answered


def exact(total: Ring, vectors: Mapping[str, Ring], names: Sequence[str]) -> bool:
    """Return True if a total is the sum of the silos' vectors, added as whole numbers of any size."""
    size = 2 ** (8 * total.dtype.itemsize)
    columns = np.stack([vectors[name] for name in names]).astype(object).sum(axis=0)
    return bool((total.astype(object) == columns % size).all())


def cost(silos: int, drop_outs: int, bits: int, dimension: int) -> dict[str, float]:
    """Measure one round of one silo and of the server, with drop_outs silos missing after they advanced."""
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        small = Federation(Path(folder) / "small", silos, drop_outs, bits, 64)
        vectors = small.vectors(rng)
        late = list(small.members)[silos - drop_outs :]
        total, answered = small.run(1, vectors, dict.fromkeys(late, STAGES[1]))
        if not exact(total, vectors, answered):
            raise RuntimeError(f"Expected an exact sum of {silos} silos, got another")

        large = Federation(Path(folder) / "large", silos, drop_outs, bits, dimension)
        names = list(large.members)
        one, advances = names[0], large.advances(1, names[1:])
        clock = time.process_time
        vector = rng.integers(0, 2**bits, dimension, f"uint{bits}")
        start = clock()
        own = large.advances(1, [one])
        advanced = clock()
        sums = Sums(large.roster, 1, CONTEXT, own + advances)
        packets = sums.packets_for(one)
        before = clock()
        sums.add(one, large.members[one].mask(1, packets, vector, CONTEXT))
        masked = clock()
        for name in names[1 : silos - drop_outs]:
            sums.add(name, vector)
        answered, openings = sums.answered(), []
        opening_started = clock()
        if drop_outs:
            openings = [large.members[one].open(1, answered)]
        opened = clock()
        if drop_outs:
            openings += _openings(large, names[1 : silos - drop_outs], answered)
        recovery = clock()
        sums.total(openings)
        recovered = clock()
    texts = [item.to_text() for item in own] + [item.to_text() for item in openings[:1]]
    small_down = len(packets_to_text(packets)) + len(names_to_text(answered)) if drop_outs else 0
    return {
        "vector": dimension * bits / 8,
        "up": sum(map(len, texts)),
        "down": small_down,
        "roster": len(large.roster.to_text()),
        "advance": advanced - start,
        "mask": masked - before,
        "open": opened - opening_started,
        "server": recovered - recovery,
    }


def _openings(silos: Federation, names: Sequence[str], answered: Sequence[str]) -> list[Opening]:
    """Return the openings of silos, made from the dealers' records."""
    dealt = {
        name: session.secrets_of(member._record.read().master, silos.roster, 1, name)
        for name, member in silos.members.items()
    }
    found = []
    for name in names:
        place = silos.roster.point(name) - 1
        seeds = {dealer: dealt[dealer].seed_shares[place] for dealer in answered}
        private = {d: dealt[d].key_shares[place] for d in dealt if d not in seeds}
        found.append(Opening(name, 1, seeds, private))
    return found


def rounds(number: int, silos: int, drop_outs: int, chance: float) -> Counter[str]:
    """Run sessions with random drop-outs; count their outcomes.

    Raises:
        RuntimeError: a sum is wrong, is lost though enough silos were left, or is not lost though too few were.
    """
    rng, draws, counts = random.Random(1), np.random.default_rng(1), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(Path(folder), silos, drop_outs, 64, 100)
        threshold = federation.roster.threshold
        for place in range(1, number + 1):
            gone = {n: rng.choice(STAGES) for n in federation.members if rng.random() < chance}
            counts.update(f"drop-outs {stage}" for stage in gone.values())
            enough = silos - len(gone) >= threshold
            vectors = federation.vectors(draws)
            try:
                total, answered = federation.run(place, vectors, gone, restarts=5)
            except SumLost as error:
                if enough:
                    raise RuntimeError(
                        f"Expected the sum of round {place}, got: {error}"
                    ) from error
                counts["clear stop, too few silos left"] += 1
                counts[f"stopped: {str(error).split(' in session')[0]}"] += 1
                continue
            if not enough or not exact(total, vectors, answered):
                raise RuntimeError(f"Expected an exact sum or a stop in round {place}, got another")
            counts["exact, nobody dropped out" if not gone else "exact after drop-outs"] += 1
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--silos", type=int, nargs="+", help="default: 8 32 100; 9 with --rounds")
    parser.add_argument("--dimension", type=int, default=100_000, help="entries of a vector")
    parser.add_argument("--bits", type=int, default=64, choices=(32, 64))
    parser.add_argument("--rounds", type=int, help="rounds with random drop-outs")
    parser.add_argument("--drop-outs", type=int, default=2, help="t of these rounds")
    parser.add_argument(
        "--chance", type=float, default=0.1, help="of a silo to drop out in a round"
    )
    options = parser.parse_args(arguments)
    if options.rounds is not None:
        silos = (options.silos or [9])[0]
        counts = rounds(options.rounds, silos, options.drop_outs, options.chance)
        print(f"{options.rounds} rounds of {silos} silos, t = {options.drop_outs}")
        for what, count in sorted(counts.items()):
            print(f"| {what} | {count} |")
        return 0
    print(
        "| silos | t | honest shares | vector up | else up | down | advance | mask | open | server |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for silos in options.silos or (8, 32, 100):
        for drop_outs in (0, max(1, silos // 10)):
            found = cost(silos, drop_outs, options.bits, options.dimension)
            sizes = [f"{found[what] / 1000:,.1f} kB" for what in ("vector", "up", "down")]
            times = [f"{found[what]:.3f} s" for what in ("advance", "mask", "open", "server")]
            shares = str(honest_shares(silos, drop_outs, 0))
            print(
                f"| {' | '.join([str(silos), str(drop_outs), shares, *sizes, *times])} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
