"""Silos with their own files and node keys, for tests of signed extracts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from configured_silo import write_silo
from dp_accounting.dp_event import DpEvent
from report_runs import NOISE, ROUNDS, SILOS, finish_round, new_run

from client.config import load_silo
from fedllm.budget.local_policy import LocalPolicy
from fedllm.data.silos import load_federation
from fedllm.report.extract.keys import (
    EXTRACT,
    NodeKey,
    SigningKey,
    load_node_key,
    load_signing_key,
)
from fedllm.report.extract.make import make_extract
from fedllm.report.extract.statement import Extract, text_of
from fedllm.report.extract.store import (
    FOLDER,
    Expected,
    Signed,
    path_of,
    write_index,
    write_signed,
)
from fedllm.run.checkpoints import save_checkpoint
from fedllm.run.folder import RunFolder
from privacy.events.constructors import dp_sgd
from privacy.events.serialization import event_to_json
from privacy.guarantee import Relation, Unit
from privacy.ledger.ledger import Ledger, LedgerEntry
from server.deployment.certificates import make_node_key


def write_silos(run: RunFolder, folder: Path, **changes: Mapping[str, Any]) -> list[Path]:
    """A folder with data and file for each silo of the settings; ``changes`` by silo."""
    paths = []
    for silo in load_federation(run.settings()).silos:
        place = folder / silo.name
        place.mkdir(parents=True)
        rows = "".join(json.dumps(row) + "\n" for row in silo.train)
        (place / "records.jsonl").write_text(rows, encoding="utf-8")
        named = {"name": silo.name, **changes.get(silo.name, {})}
        paths.append(write_silo(place, run.settings(), place / "records.jsonl", **named))
    return paths


def write_keys(files: Sequence[Path]) -> dict[str, NodeKey]:
    """A node key beside each silo's file; the public halves by silo."""
    found = {}
    for file in files:
        public = file.parent / "node.pub"
        if not public.exists():
            make_node_key(file.parent / "node.key", public)
        found[load_silo(file).name] = load_node_key(public)
    return found


# -- without training ------------------------------------------------------------------------------


class Silo:
    """A silo with a ledger and a node key, of a run that nobody trained.

    Args:
        folder: is made.
        name: the silo's.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        make_node_key(self.folder / "node.key", self.folder / f"{name}.pub")
        self.key = load_signing_key(self.folder / "node.key")
        self.ledger = self.folder / "ledger.sqlite"

    def enter(self, run: RunFolder, round_: int, event: DpEvent, **options: Any) -> None:
        """Append a row of a round of training."""
        settings = run.settings().privacy
        details = {"relation": settings.relation, "randomness": options.pop("randomness", "os")}
        run_id = options.pop("run_id", run.run_id)
        unit = Unit(settings.unit)
        views = options.pop("views", {"server": event, "outsider": event})
        with Ledger(self.ledger) as ledger:
            key = f"train/{round_}/{len(ledger.entries())}"
            ledger.append(
                LedgerEntry(run_id, self.name, unit, "train", round_, key, views, details)
            )

    def extract(self, run: RunFolder, *, events: bool = True, **changes: Any) -> Extract:
        """The extract as the silo makes it; ``changes`` of its fields make a lie of it."""
        privacy = run.settings().privacy
        absent = not self.ledger.exists()  # a silo that has nothing yet makes an empty ledger
        with Ledger(self.ledger, read_only=not absent) as ledger:
            found = make_extract(
                ledger,
                silo=self.name,
                run=run.run_id,
                unit=Unit(privacy.unit),
                relation=Relation(privacy.relation),
                delta=privacy.delta,
                own=LocalPolicy(epsilon=60.0, delta=1e-5),
                events=events,
            )
        return found.model_copy(update=changes)

    def signed(self, extract: Extract | str, key: SigningKey | None = None) -> Signed:
        """A text, or an extract, signed with the silo's key (or another's)."""
        text = extract if isinstance(extract, str) else text_of(extract)
        return Signed(text, (key or self.key).sign(EXTRACT, text))

    def put(self, run: RunFolder, signed: Signed) -> None:
        """Lay a signed extract into the run folder, as the server does."""
        write_signed(path_of(run.path / FOLDER, self.name), signed)


def deployed(tmp_path: Path, names: Mapping[str, float] = SILOS) -> tuple[RunFolder, list[Silo]]:
    """A finished run of which each silo has its own ledger, with final extracts of all: one for each sampling rate."""
    run = finished_elsewhere(new_run(tmp_path, privacy={"colluding": []}), names)
    silos = [Silo(tmp_path / "silos", name) for name in names]
    for silo in silos:
        for round_ in range(1, ROUNDS + 1):
            silo.enter(run, round_, dp_sgd(names[silo.name], NOISE, 1))
        silo.put(run, silo.signed(silo.extract(run)))
    expect(run, silos, names)
    return run, silos


def expect(run: RunFolder, silos: Sequence[Silo], names: Mapping[str, float] = SILOS) -> None:
    """The index, as the server writes it at the end of a run."""
    write_index(
        run.path,
        {
            silo.name: Expected(
                key=silo.key.public,
                final=True,
                told=((event_to_json(dp_sgd(names[silo.name], NOISE, 1)), ROUNDS),),
            )
            for silo in silos
        },
    )


def finished_elsewhere(run: RunFolder, names: Mapping[str, float]) -> RunFolder:
    """A finished run folder without a ledger."""
    for round_ in range(1, ROUNDS + 1):
        finish_round(run, round_, len(names))
    run.write_json("silos.json", {name: {"examples": 100, "left": None} for name in names})
    run.write_json("environment.json", {"python": "3", "packages": {}})
    save_checkpoint(run.checkpoints_path, ROUNDS, {"head.bias": torch.zeros(2)}, {}, {})
    run.set_state(status="finished")
    return run
