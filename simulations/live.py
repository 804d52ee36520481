"""Live view of a run: rounds, loss, accuracy, epsilon released so far by silo, bytes, time left."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedllm.metrics import SHOWN
from fedllm.report.plan_figures import SO_FAR
from fedllm.settings.experiment import Settings

_TEACHER_LINES = 50
"""Steps of a teacher's training between two lines, where the output is no terminal."""


class LiveView:
    """A progress bar and a table on a terminal; plain lines where the output is no terminal."""

    def __init__(self, settings: Settings, console: Console | None = None) -> None:
        self.settings = settings
        self.console = console or Console()
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} rounds"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
        )
        self.task = self.progress.add_task(settings.name, total=settings.server.rounds)
        self.evaluations: list[Mapping[str, Any]] = []
        self.epsilon: dict[str, float] = {}
        self.sizes: dict[str, int | None] = {}
        self.targets: dict[str, Mapping[str, Any]] = {}
        self.left: dict[str, str] = {}
        self.bytes = 0
        self.note = "starting and loading the model"
        self.began = time.monotonic()
        self.live: Live | None = None
        if self.console.is_terminal:
            self.live = Live(self.render(), console=self.console, refresh_per_second=4)
            self.live.start()
        self._print(f"{settings.name}: {self.note}")

    def record(self, record: Mapping[str, Any]) -> None:
        kind = record["kind"]
        if kind == "start":
            self.sizes = dict(record["sizes"])
            self.targets = dict(record["targets"])
            self.progress.reset(self.task, completed=record["round"])
            self.note = f"{len(self.sizes)} silos connected"
            self._print(f"{self.settings.name}: {self.note}, {record['rounds']} rounds")
        elif kind == "engine":
            how = {
                "in-process": "in this process, one silo after the other",
                "ray": "on Flower's Ray engine, in worker processes",
            }
            self._say(f"engine: {record['silos']} silos {how[record['engine']]}")
        elif kind == "warning":
            self._say(f"warning: {record['message']}")
        elif kind == "teacher":
            self.note = (
                f"teacher on public text: step {record['step']} of {record['of']}, "
                f"loss {record['loss']:.4f}"
            )
            if record["step"] % _TEACHER_LINES == 0 or record["step"] == record["of"]:
                self._print(f"  {self.note}  [{time.monotonic() - self.began:.0f} s]")
        elif kind == "reply":
            done = record["round"] - 1 + record["done"] / max(1, record["of"])
            self.progress.update(self.task, completed=done)
            self.note = f"round {record['round']}: {record['done']} of {record['of']} silos"
        elif kind == "round":
            self.progress.update(self.task, completed=record["round"])
            self.bytes += record["bytes_up"] + record["bytes_down"]
            for item in record["left"]:
                self.left[item["silo"]] = item["reason"]
            for item in [*record["failed"], *record["refused"]]:
                self._say(f"round {record['round']}: {item['silo']} not used: {item['reason']}")
            for item in record["left"]:
                self._say(f"round {record['round']}: {item['silo']} leaves: {item['reason']}")
            self._print(
                f"  round {record['round']:>4} of {self.settings.server.rounds}  "
                f"{record['replied']} silos  sent {self.bytes / 1e6:.1f} MB  "
                f"[{time.monotonic() - self.began:.0f} s]"
            )
        elif kind == "replies":
            for item in [*record["failed"], *record["refused"]]:
                self._say(f"{record['what']}: {item['silo']} not used: {item['reason']}")
        elif kind == "layers":
            self.note = describe_layers(record)
            self._print(f"  {self.note}  [{time.monotonic() - self.began:.0f} s]")
        elif kind == "silo":
            self.epsilon[record["silo"]] = record["epsilon"]
        elif kind == "evaluation":
            self.evaluations.append(record)
            self._print(f"  {describe(record)}  [{time.monotonic() - self.began:.0f} s]")
        elif kind == "end":
            self.note = f"{record['status']} {record['message']}".strip()
        if self.live is not None:
            self.live.update(self.render())

    def render(self) -> Group:
        """Return the view as it stands."""
        title = f"epsilon: {epsilon_label(self.settings, len(self.sizes))}"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for title in ("silo", "examples", "released so far", ""):
            table.add_column(title, justify="left" if title in ("silo", "") else "right")
        for name in sorted(self.sizes, key=lambda n: -(self.sizes[n] or 0)):
            spent = self.epsilon.get(name)
            text = (
                "-"
                if spent is None
                else "none: no guarantee"
                if math.isinf(spent)
                else f"{spent:.3f}"
            )
            target = target_text(self.targets.get(name, {}), self.settings)
            if spent is not None and target != "-" and not math.isinf(spent):
                text += f" of {target}"
            size = self.sizes[name]
            table.add_row(
                name,
                "private" if size is None else f"{size:,}",
                text,
                "left" if name in self.left else "",
            )
        history = "\n".join(describe(record) for record in self.evaluations[-6:])
        head = f"{self.note}   sent {self.bytes / 1e6:.1f} MB"
        return Group(self.progress, head, history, table, f"epsilon: {SO_FAR}")

    def close(self) -> None:
        if self.live is not None:
            self.live.update(self.render())
            self.live.stop()
            self.live = None

    def _say(self, text: str) -> None:
        (self.live.console if self.live else self.console).print(
            text, highlight=False, markup=False
        )

    def _print(self, text: str) -> None:
        if self.live is None:
            self.console.print(text, highlight=False, markup=False)


def epsilon_label(settings: Settings, silos: int) -> str:
    """Describe an epsilon of this run: delta, unit, relation, adversary, accountant."""
    privacy = settings.privacy
    if privacy.mode == "none":
        return "privacy.mode=none: no guarantee"
    if privacy.noise_by == "server":
        adversary = "an outsider (none against the server)"
    elif privacy.noise_by == "sum":
        most = settings.secure.colluding
        adversary = "a server that learns sums only" + (f" and {most} other silos" if most else "")
    else:
        colluding = (silos - 1,) if privacy.colluding == "others" else privacy.colluding
        most = max((0, *colluding))
        adversary = "the server" + (f" and up to {most} other silos" if most else "")
    return (
        f"delta {privacy.delta:g}, unit {privacy.unit}, {privacy.relation}, "
        f"against {adversary}, {privacy.accountant.upper()}"
        + ("" if privacy.ledger is None else "; this run without the ledger's others")
    )


def target_text(target: Mapping[str, Any], settings: Settings) -> str:
    """Return a silo's own bounds, and its delta where it is not the run's; ``-`` where it has none."""
    whole, run = target.get("target_epsilon"), target.get("target_run_epsilon")
    texts = [] if whole is None else [f"{whole:g}"]
    texts += [] if run is None else [f"{run:g} in this run"]
    if texts and target["delta"] != settings.privacy.delta:
        texts[-1] += f" at delta {target['delta']:g}"
    return ", ".join(texts) or "-"


def describe_layers(record: Mapping[str, Any]) -> str:
    """Describe the choice of layers in one line: its start or its result."""
    of = ", ".join(map(str, record["of"]))
    if record["kept"] is None:
        return f"measuring the sharpness without each of the layers {of} ({record['form']})"
    kept = ", ".join(map(str, record["kept"]))
    return f"layers {kept} stay in the adapter, of {of} ({record['form']})"


def describe(record: Mapping[str, Any]) -> str:
    """Describe one evaluation in one line."""
    numbers = "  ".join(f"{name} {record[name]:.4f}" for name in SHOWN if name in record)
    where = "" if record["where"] == "server" else " (by the silos)"
    return f"round {record['round']:>4}{where}  {numbers}"
