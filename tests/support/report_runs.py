"""Run folders as the system leaves them, for the tests of the report; made without training."""

from __future__ import annotations

import html.parser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from dp_accounting.dp_event import DpEvent

from fedllm.report import write_report
from fedllm.run.checkpoints import save_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.settings.io import parse_settings
from privacy.accountants import make_accountant
from privacy.events.constructors import dp_sgd
from privacy.events.multiset import multiset
from privacy.guarantee import Unit
from privacy.ledger.ledger import Ledger, LedgerEntry

ROUNDS = 3
SILOS = {"A": 0.02, "B": 0.05}
NOISE = 1.0
COLLUDER = "an adversary that sees every message and controls 1 other client"


def new_run(tmp_path: Path, **sections: Mapping[str, Any]) -> RunFolder:
    tree: dict[str, Any] = {"name": "try", "seed": 7654321, "server": {"rounds": ROUNDS}}
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return RunFolder.create(parse_settings(tree), tmp_path / f"run{len(list(tmp_path.iterdir()))}")


def enter(run: RunFolder, party: str, round_: int, event: DpEvent, **options: Any) -> None:
    views = options.pop("views", {"server": event, "outsider": event})
    purpose = options.pop("purpose", "train")
    unit = options.pop("unit", Unit(run.settings().privacy.unit))
    details = {"relation": run.settings().privacy.relation, "randomness": "os"} | options
    with Ledger(run.ledger_path) as ledger:
        key = f"{purpose}/{round_}"
        ledger.append(LedgerEntry(run.run_id, party, unit, purpose, round_, key, views, details))


def finish_round(run: RunFolder, round_: int, replied: int = len(SILOS)) -> None:
    run.append_metrics(
        {"kind": "round", "round": round_, "seconds": 1.5, "replied": replied, "failed": []}
        | {"refused": [], "left": [], "bytes_down": 1000 * replied, "bytes_up": 1000 * replied}
    )
    run.append_metrics(
        {"kind": "evaluation", "round": round_, "where": "server", "loss": 1 / (1 + round_)}
        | {"accuracy": 0.5 + round_ / 10, "macro_f1": 0.4 + round_ / 10, "examples": 100.0}
    )
    run.set_state(status="running", round=round_)


def trained(run: RunFolder, silos: Mapping[str, float] = SILOS, **options: Any) -> RunFolder:
    """A run as the system leaves it: ledger rows before metrics."""
    for round_ in range(1, ROUNDS + 1):
        for name, rate in silos.items():
            enter(
                run,
                name,
                round_,
                options.get("event") or dp_sgd(rate, NOISE, 1),
                **{key: value for key, value in options.items() if key != "event"},
            )
        finish_round(run, round_, len(silos))
    public = {name: {"examples": 100, "left": None} for name in silos}
    run.write_json("silos.json", public)
    run.write_json(
        "environment.json",
        {
            "python": "3",
            "platform": "x",
            "cpu": None,
            "cores": 1,
            "memory_bytes": None,
            "gpus": [],
            "packages": {},
            "git": None,
        },
    )
    return run


def epsilon(events: Mapping[DpEvent, int], name: str = "pld", delta: float = 1e-5) -> float:
    return make_accountant(name).epsilon(multiset(events), delta)


class Page(html.parser.HTMLParser):
    """Text of the page in order, ids, and whatever would be loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self._mute = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._mute += tag in ("style", "title")
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._mute -= tag in ("style", "title")

    def handle_data(self, data: str) -> None:
        if not self._mute and data.strip():
            self.words.append(" ".join(data.split()))


def page(run: RunFolder) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def finished(run: RunFolder, silos: Mapping[str, float] = SILOS, **options: Any) -> RunFolder:
    """A run that came to its end, with its checkpoint: nothing of it is missing."""
    trained(run, silos, **options)
    save_checkpoint(run.checkpoints_path, ROUNDS, {"head.bias": torch.zeros(2)}, {}, {})
    run.set_state(status="finished")
    return run
