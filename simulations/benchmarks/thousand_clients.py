"""Measure the accounting of one more round in a run with 1,000 clients, and of a ledger of 100,000 rows.

    python -m simulations.benchmarks.thousand_clients [--clients 1000] [--rounds 30] [--rows 100000]
        [--json [OUT]]

Measured for each round, for all clients together:

- ``record``: make an entry for each client, and append all to one ledger: one transaction with the hash
  chain, the unique key of each entry looked up, triggers, ``synchronous=EXTRA``; until it is on disk.
- ``epsilon``: epsilon of each client against the server, from the ledger, by the PLD accountant; clients
  with the same history are accounted once (here all of them: same noise, same rounds).
- ``view``: the server's own view of the spending: a copy to fall back to, the round added for each client,
  epsilon of each.

Not measured: training, messages, and what each silo of a real federation does for itself, in its own
ledger: ``alone`` is one silo's append of one row, on disk when it returns, next to a thousand others' rows.
``computing`` is the process's own time: where it is much below the clock's, other programs ran.
Then a ledger of ``--rows`` rows is opened, verified, and opened for reading.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fedllm.settings.io import parse_settings
from privacy.accountants import make_accountant
from privacy.events.constructors import dp_sgd
from privacy.guarantee import Unit
from privacy.ledger.ledger import Ledger, LedgerEntry
from server.spending import SpendingView

GOAL = 0.05
RATE, NOISE, DELTA, STEPS = 0.01, 1.0, 1e-5, 4


def entries(clients: int, server_round: int) -> Iterator[LedgerEntry]:
    """Yield the ledger entries of the clients of a round."""
    event = dp_sgd(RATE, NOISE, STEPS)
    for client in range(clients):
        yield LedgerEntry(
            run="benchmark",
            party=f"client-{client:05}",
            unit=Unit.EXAMPLE,
            purpose="train",
            round=server_round,
            key=f"train/{server_round}",
            views={"server": event, "outsider": event},
            details={"noise_multiplier": NOISE, "sampling_rate": RATE, "delta": DELTA},
        )


def record(ledger: Ledger, clients: int, server_round: int) -> None:
    """Record a round, durably."""
    ledger.extend(entries(clients, server_round))


def epsilons(ledger: Ledger) -> dict[str, float]:
    """Return epsilon of each party; equal histories are accounted once."""
    accountant = make_accountant("pld")
    known: dict[Any, float] = {}
    result = {}
    for party, history in ledger.histories().items():
        if history not in known:
            known[history] = accountant.epsilon(ledger.spent("server", party=party), DELTA)
        result[party] = known[history]
    return result


def seconds(work: Callable[[], Any]) -> float:
    """Return the duration of a call in seconds."""
    return wall_and_cpu(work)[0]


def wall_and_cpu(work: Callable[[], Any]) -> tuple[float, float]:
    """Return seconds until it is done, and those that this process computed."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


def measure_rounds(path: Path, clients: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return seconds (by the clock, of computing) of each part, by round; the first round warms up and is left out."""
    settings = parse_settings(
        {
            "name": "thousand-clients",
            "model": {"name": "minilm"},
            "task": {"labels": ["low", "high"]},
            "data": {"source": "tweets"},
            "privacy": {"noise_multiplier": NOISE, "epsilon": 1000.0, "delta": DELTA},
        }
    )
    view = SpendingView(settings)
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def look(view: SpendingView) -> None:
        view.copy()
        for client in range(clients):
            view.add_training(
                f"client-{client:05}",
                1,
                sampling_rate=RATE,
                noise_multiplier=NOISE,
                steps=STEPS,
            )
        view.epsilon()

    with Ledger(path) as ledger:
        for number in range(rounds + 1):
            parts = {
                "record": wall_and_cpu(partial(record, ledger, clients, number)),
                "epsilon": wall_and_cpu(lambda: epsilons(ledger)),
                "view": wall_and_cpu(lambda: look(view)),
                "alone": wall_and_cpu(partial(record, ledger, 1, 10**6 + number)),
            }
            together = [parts[name] for name in ("record", "epsilon", "view")]
            parts["round"] = (sum(wall for wall, _ in together), sum(cpu for _, cpu in together))
            for name, value in parts.items() if number else ():
                found[name].append(value)
        report = ledger.verify()
        if not report.ok or report.rows != (rounds + 1) * (clients + 1):
            raise RuntimeError(f"The ledger is not what was written: {report}")
    return found


def measure_large(path: Path, rows: int) -> dict[str, float]:
    """Return seconds to use a ledger of many rows."""
    with Ledger(path) as ledger:
        for number in range(rows // 1000):
            ledger.extend(entries(1000, number))
    found = {"megabytes": path.stat().st_size / 1e6}
    found["open for writing"] = seconds(lambda: Ledger(path).close())
    with Ledger(path) as ledger:
        found["first epsilon of all"] = seconds(lambda: epsilons(ledger))
        found["append one row"] = seconds(lambda: ledger.append(next(entries(1, 10**6))))
        found["verify"] = seconds(ledger.verify)
    began = time.perf_counter()
    with Ledger(path, read_only=True) as ledger:
        found["open for reading"] = time.perf_counter() - began
        found["spent of one party"] = seconds(lambda: ledger.spent("server", party="client-00000"))
    return found


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the first quartile, median, third quartile."""
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, middle, third


def main() -> None:
    """Measure, print, and optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rows", type=int, default=100_000, help="of the large ledger; 0 for none")
    parser.add_argument("--json", nargs="?", const="-", help="to a file, or - for printing it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parts = measure_rounds(Path(folder) / "rounds.sqlite", args.clients, args.rounds)
        large = measure_large(Path(folder) / "large.sqlite", args.rows) if args.rows else {}
    result = {
        "clients": args.clients,
        "rounds": args.rounds,
        "seconds": {
            name: {
                "q1": first,
                "median": middle,
                "q3": third,
                "computing": statistics.median(cpu for _, cpu in times),
            }
            for name, times in parts.items()
            for first, middle, third in [quartiles([wall for wall, _ in times])]
        },
        "goal_seconds": GOAL,
        "large_ledger_rows": args.rows,
        "large_ledger": large,
    }
    text = json.dumps(result, indent=2)
    if args.json == "-":
        print(text)
        return
    print(f"one more round, {args.clients} clients together (goal <= {GOAL * 1000:g} ms):")
    for name, times in parts.items():
        first, middle, third = (1000 * value for value in quartiles([wall for wall, _ in times]))
        computing = 1000 * statistics.median(cpu for _, cpu in times)
        print(
            f"  {name:8} median {middle:8.2f} ms (quartiles {first:.2f} to {third:.2f}), "
            f"computing {computing:.2f} ms"
        )
    for name, value in large.items():
        print(
            f"  ledger of {args.rows} rows: {name:22} {value:.3f}{'' if 'mega' in name else ' s'}"
        )
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
