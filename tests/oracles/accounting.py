"""The accountants' figures: against the reference table, against oracles, the dominating mu, speed.

    python -m tests.oracles.accounting [table|oracles|dominating|speed|all] [--json [OUT]]
        [--schedules 200]

* ``table``: four schedules (q = 256/60000, 1000 steps, delta = 1e-5); for each accountant the noise that
  it asks for and what that truly costs by PLD, against the reference: PLD within 0.5 %, others 1 %.
* ``oracles``: random schedules of mixed events under both relations, against quadrature and brute-force
  binning (:mod:`tests.oracles.oracles`): no bound is ever below the oracle.
* ``dominating``: mu of the table's schedules: its curve is never below PLD's on 200 values of epsilon,
  and 1 % less mu breaks it somewhere.
* ``speed``: 1e5 identical events by each accountant, without and with what it remembers; one more round for
  1,000 clients with equal histories. (What the ledger adds: ``simulations.benchmarks.thousand_clients``.)

Exit code 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from dp_accounting.dp_event import DpEvent
from rich.console import Console
from rich.progress import track
from rich.table import Table

from privacy.accountants import ACCOUNTANTS, Accountant, dominating, make_accountant, pld, rdp
from privacy.accountants.dominating import DELTA_FLOOR
from privacy.accountants.dominating_mu import log_gaussian_delta
from privacy.calibration import calibrate_noise_multiplier
from privacy.events import constructors as ev
from privacy.events.multiset import multiset
from privacy.events.serialization import event_from_json, event_to_json
from privacy.guarantee import Relation
from tests.oracles import oracles

RATE, STEPS, DELTA = 256 / 60000, 1000, 1e-5
EPSILONS = (0.0, 0.3, 1.0, 2.5, 5.0)
DELTAS = (1e-3, 1e-5, 1e-7)
SMALLEST = 1e-9  # deltas below are not compared: the quadrature has about 12 digits
console = Console(stderr=True)


# -- the reference table -----------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One target of the reference: accountant -> (noise multiplier, what it costs by PLD)."""

    target: float
    figures: dict[str, tuple[float, float]]


TABLE = [
    Row(target, dict(zip(("rdp", "gdp-clt", "pld"), figures, strict=True)))
    for target, *figures in (
        (0.3, (1.9141, 0.260), (1.6650, 0.313), (1.7171, 0.300)),
        (1.0, (1.0419, 0.667), (0.7910, 1.42), (0.8823, 1.000)),
        (3.0, (0.6953, 2.26), (0.5439, 5.35), (0.6429, 3.00)),
        (8.0, (0.5116, 6.59), (0.4457, 10.55), (0.4834, 7.99)),
    )
]


@dataclass(frozen=True)
class Deviation:
    """A figure beside its reference; `limit` is relative."""

    target: float
    accountant: str
    figure: str
    reference: float
    found: float
    limit: float

    @property
    def deviation(self) -> float:
        """found / reference - 1."""
        return self.found / self.reference - 1

    @property
    def met(self) -> bool:
        """Within the limit."""
        return abs(self.deviation) <= self.limit


def schedule(noise: float, steps: int = STEPS) -> Counter[DpEvent]:
    """The table's schedule at a noise multiplier."""
    return multiset(ev.dp_sgd(RATE, noise, steps))


def table_row(row: Row, solve: bool = False) -> list[Deviation]:
    """The figures of one row: costs at the reference noise, and, to `solve`, the noise itself."""
    found = []
    for name, (noise, true) in row.figures.items():
        limit = 0.005 if name == "pld" else 0.01

        def add(figure: str, reference: float, value: float, within: float, n: str = name) -> None:
            found.append(Deviation(row.target, n, figure, reference, value, within))

        cost = make_accountant("pld").epsilon(schedule(noise), DELTA)
        add("epsilon by PLD at the reference noise", true, cost, 0.005)
        own = make_accountant(name).epsilon(schedule(noise), DELTA)
        add("epsilon by itself at the reference noise", row.target, own, limit)
        if solve:
            result = calibrate_noise_multiplier(
                epsilon=row.target,
                delta=DELTA,
                sampling_rate=RATE,
                steps=STEPS,
                accountant=name,
                tolerance=1e-4,
            )
            add("noise multiplier found", noise, result.noise_multiplier, limit)
            cost = make_accountant("pld").epsilon(schedule(result.noise_multiplier), DELTA)
            add("epsilon by PLD at the noise found", true, cost, 0.005)
    return found


def run_table() -> tuple[bool, Any]:
    """Print the table and the largest deviations."""
    rows = [row for r in track(TABLE, "table", console=console) for row in table_row(r, True)]
    shown = Table("target", "by", "noise", "ref.", "", "PLD cost", "ref.", "")
    for row in TABLE:
        for name in row.figures:
            mine = {d.figure: d for d in rows if (d.target, d.accountant) == (row.target, name)}
            noise = mine["noise multiplier found"]
            cost = mine["epsilon by PLD at the noise found"]
            shown.add_row(
                f"{row.target:g}",
                name,
                f"{noise.found:.4f}",
                f"{noise.reference:.4f}",
                f"{noise.deviation:+.2%}",
                f"{cost.found:.4f}",
                f"{cost.reference:g}",
                f"{cost.deviation:+.2%}",
            )
    Console().print(shown)
    for figure in dict.fromkeys(d.figure for d in rows):
        for name in TABLE[0].figures:
            some = [d for d in rows if d.figure == figure and d.accountant == name]
            worst = max(some, key=lambda d: abs(d.deviation))
            verdict = "" if worst.met else "  MISSED"
            print(f"{figure}, {name}: at most {abs(worst.deviation):.2%} off{verdict}")
    plain = [asdict(d) | {"deviation": d.deviation, "met": d.met} for d in rows]
    return all(d.met for d in rows), plain


# -- oracles -----------------------------------------------------------------------------------


@dataclass
class Check:
    """One random schedule against its oracle."""

    seed: int
    oracle: str
    relation: str
    events: dict[str, int]
    accountants: list[str]
    compared: int = 0
    violations: list[str] = field(default_factory=list)
    loosest: dict[str, float] = field(default_factory=dict)

    def expect(self, holds: bool, what: str) -> None:
        """Count a comparison, and keep what does not hold."""
        self.compared += 1
        if not holds:
            self.violations.append(f"seed {self.seed}, {self.oracle}: {what}")


def _bounds(events: Counter[DpEvent], relation: Relation) -> list[Accountant]:
    made = [make_accountant(name, relation) for name in ACCOUNTANTS]
    return [a for a in made if a.is_bound and a.supports(events)]


def _check(seed: int, oracle: str, events: Counter[DpEvent], relation: Relation) -> Check:
    return Check(
        seed,
        oracle,
        relation.value,
        {event_to_json(event): count for event, count in events.items()},
        [a.name for a in _bounds(events, relation)],
    )


def check_quadrature(seed: int) -> Check:
    """One or two mechanisms and some Gaussians: every bound above the exact delta, PLD within 0.1 %."""
    rng = random.Random(seed)
    relation = oracles.random_relation(rng)
    events, gaussians = oracles.random_small_schedule(rng, relation)
    mu = oracles.gaussians_mu(gaussians, relation)
    whole = multiset(events + gaussians)
    check = _check(seed, "quadrature", whole, relation)
    accountants = _bounds(whole, relation)
    check.expect({"pld", "gdp-dominating"} <= set(check.accountants), "PLD refused")
    for epsilon in EPSILONS:
        exact = oracles.quadrature_delta(events, mu, epsilon, relation)
        if exact < SMALLEST:
            continue
        for accountant in accountants:
            got = accountant.delta(whole, epsilon)
            what = f"{accountant.name} delta({epsilon}) = {got} beside {exact}"
            check.expect(got >= exact * (1 - 1e-9), what)
            if accountant.name == "pld":
                check.expect(got <= exact * 1.001 + 1e-9, "loose: " + what)
            ratio = got / exact
            check.loosest[accountant.name] = max(check.loosest.get(accountant.name, 0), ratio)
    for delta in DELTAS:
        for accountant in accountants:
            epsilon = accountant.epsilon(whole, delta)
            exact = oracles.quadrature_delta(events, mu, epsilon, relation)
            what = f"{accountant.name} epsilon({delta}) = {epsilon}, where delta is {exact}"
            check.expect(exact <= delta * (1 + 1e-9), what)
    return check


def check_binning(seed: int) -> Check:
    """Many mechanisms: every bound above the binned lower bound, and that one close to PLD."""
    rng = random.Random(seed)
    relation = oracles.random_relation(rng)
    whole = oracles.random_long_schedule(rng, relation)
    check = _check(seed, "binning", whole, relation)
    accountants = _bounds(whole, relation)
    check.expect({"pld", "gdp-dominating"} <= set(check.accountants), "PLD refused")
    lost = oracles.rounding(whole, relation)
    asked = {(a.name, d): a.epsilon(whole, d) for a in accountants for d in DELTAS}
    points = [*EPSILONS, *(e for e in asked.values() if math.isfinite(e))]
    low = dict(zip(points, oracles.binned_deltas(whole, points, relation), strict=True))
    for epsilon in EPSILONS:
        for accountant in accountants:
            got = accountant.delta(whole, epsilon)
            what = f"{accountant.name} delta({epsilon}) = {got} beside {low[epsilon]}"
            check.expect(got >= low[epsilon] * (1 - 1e-9), what)
            # The binning loses at most `lost` in epsilon, so it is not vacuous.
            if accountant.name == "pld" and low[epsilon] > SMALLEST and epsilon > lost:
                above = accountant.delta(whole, epsilon + lost)
                check.expect(above <= low[epsilon] * 1.001 + 1e-10, "loose: " + what)
    for (name, delta), epsilon in asked.items():
        found = low.get(epsilon, 0.0)
        what = f"{name} epsilon({delta}) = {epsilon}, where delta is at least {found}"
        check.expect(found <= delta * (1 + 1e-9), what)
    return check


def run_oracles(schedules: int) -> tuple[bool, Any]:
    """Half of the schedules by each oracle."""
    checks = [
        (check_quadrature if seed % 2 else check_binning)(seed)
        for seed in track(range(1000, 1000 + schedules), "oracles", console=console)
    ]
    shown = Table("oracle", "schedules", "comparisons", "below the oracle")
    for oracle in ("quadrature", "binning"):
        some = [c for c in checks if c.oracle == oracle]
        count = sum(len(c.violations) for c in some)
        shown.add_row(oracle, str(len(some)), str(sum(c.compared for c in some)), str(count))
    Console().print(shown)
    kinds: Counter[str] = Counter()
    for c in checks:
        kinds.update({event_from_json(text).__class__.__name__ for text in c.events})
    print("schedules with each kind:", ", ".join(f"{k} {n}" for k, n in kinds.most_common()))
    judged = Counter(name for c in checks for name in c.accountants)
    print("schedules that each bound was asked:", ", ".join(f"{k} {n}" for k, n in judged.items()))
    for c in checks:
        for violation in c.violations:
            print(violation)
    return not any(c.violations for c in checks), [asdict(c) for c in checks]


# -- the dominating mu -------------------------------------------------------------------------


def run_dominating() -> tuple[bool, Any]:
    """mu of the table's four schedules (at PLD's noise)."""
    found = []
    shown = Table(
        "target", "noise", "mu", "GDP-CLT mu", "epsilon", "never below", "1 % less breaks"
    )
    for row in track(TABLE, "dominating", console=console):
        noise = row.figures["pld"][0]
        events = schedule(noise)
        accountant = make_accountant("gdp-dominating")
        mu = accountant.mu(events)
        assert mu is not None
        reach = make_accountant("pld").epsilon(events, DELTA_FLOOR)
        # 200 values that have nothing to do with the losses that mu was found on
        epsilons = np.sort(np.random.default_rng(1).uniform(0, reach, 200))
        pair = pld.PldAccountant().distributions(events)
        deltas = np.max([d.delta(epsilons) for d in pair], axis=0)
        never = bool(np.all(np.exp(log_gaussian_delta(mu, epsilons)) >= deltas))
        breaks = bool(np.any(np.exp(log_gaussian_delta(0.99 * mu, epsilons)) < deltas))
        record = {
            "target": row.target,
            "noise_multiplier": noise,
            "mu": mu,
            "clt_mu": make_accountant("gdp-clt").mu(events),
            "epsilon": accountant.epsilon(events, DELTA),
            "note": accountant.note(events),
            "never_below": never,
            "one_percent_less_breaks": breaks,
        }
        found.append(record)
        shown.add_row(
            f"{row.target:g}",
            f"{noise:g}",
            f"{mu:.4f}",
            f"{record['clt_mu']:.4f}",
            f"{record['epsilon']:.4f}",
            str(never),
            str(breaks),
        )
    Console().print(shown)
    print(found[0]["note"])
    return all(r["never_below"] and r["one_percent_less_breaks"] for r in found), found


# -- speed -------------------------------------------------------------------------------------


def forget() -> None:
    """Empty what the accountants remember."""
    for cached in (pld._epsilon, pld._composed, pld._base, rdp._single):
        cached.cache_clear()
    dominating._dominating.cache_clear()
    gc.collect()


def _seconds(accountant: Accountant, asked: list[dict[DpEvent, int]]) -> tuple[float, float]:
    """(wall clock, CPU) to ask for each of them."""
    wall, cpu = time.perf_counter(), time.process_time()
    for events in asked:
        accountant.epsilon(events, DELTA)
    return time.perf_counter() - wall, time.process_time() - cpu


def run_speed() -> tuple[bool, Any]:
    """CPU time decides (other work on the machine is no fault of the accountants)."""
    found: list[dict[str, Any]] = []
    count = 100_000
    for name in track(list(ACCOUNTANTS), "speed", console=console):
        accountant = make_accountant(name)
        event = ev.gaussian(300.0) if name == "gdp-exact" else ev.dp_sgd(RATE, 0.9, 1)
        accountant.epsilon({event: 10}, DELTA)  # imports
        times: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
        for _ in range(3):
            forget()
            times["cold"].append(_seconds(accountant, [{event: count}]))
            # The single event is remembered, the number of events is new.
            other = count + 1 + len(times["warm"])
            times["warm"].append(_seconds(accountant, [{event: other}]))
        for state, measured in times.items():
            wall, cpu = (min(t) for t in zip(*measured, strict=True))
            found.append(
                {"what": f"1e5 events, {name}, {state}", "wall": wall, "cpu": cpu, "goal": 1.0}
            )
    accountant = make_accountant("pld")
    event = ev.dp_sgd(RATE, 0.9, 1)
    accountant.epsilon({event: 1000}, DELTA)
    measured = []
    for step in range(1, 6):
        measured.append(_seconds(accountant, [{event: 1000 + 4 * step} for _ in range(1000)]))
    wall, cpu = (min(t) for t in zip(*measured, strict=True))
    found.append(
        {"what": "one more round, 1,000 clients, pld", "wall": wall, "cpu": cpu, "goal": 0.05}
    )
    shown = Table("", "wall, s", "CPU, s", "goal, s")
    for row in found:
        style = None if row["cpu"] < row["goal"] else "bold"
        shown.add_row(
            row["what"], f"{row['wall']:.3f}", f"{row['cpu']:.3f}", f"{row['goal']:g}", style=style
        )
    Console().print(shown)
    return all(row["cpu"] < row["goal"] for row in found), found


# ----------------------------------------------------------------------------------------------


def main(arguments: Iterable[str] | None = None) -> int:
    """Run one part or all; print, write JSON if asked, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parts: dict[str, Callable[[], tuple[bool, Any]]] = {
        "table": run_table,
        "oracles": lambda: run_oracles(args.schedules),
        "dominating": run_dominating,
        "speed": run_speed,
    }
    parser.add_argument("part", nargs="?", default="all", choices=[*parts, "all"])
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--json", nargs="?", const="-", help="write JSON to OUT, or print it")
    args = parser.parse_args(list(arguments) if arguments is not None else None)
    result: dict[str, Any] = {}
    for name, run in parts.items():
        if args.part in (name, "all"):
            met, figures = run()
            result[name] = {"met": met, "figures": figures}
            print(f"{name}: {'met' if met else 'MISSED'}\n")
    text = json.dumps(result, indent=2)
    if args.json == "-":
        print(text)
    elif args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    return 0 if all(part["met"] for part in result.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
