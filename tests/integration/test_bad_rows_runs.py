"""One bad record among many: the same rule in a simulation and at a silo of its own, told to the silo alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from configured_silo import write_silo

from fedllm.run.folder import RunFolder
from privacy.ledger.ledger import Ledger

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
Make = Callable[..., list[dict[str, Any]]]
SILOS = ("alpha", "beta", "gamma")
BAD: dict[str, dict[str, Any]] = {
    "null": {"text": None},
    "half a character": {"text": "w5 \ud83d w6"},
    "no such key": {"text": ...},
}


@pytest.fixture(autouse=True)
def no_other_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDLLM_SILO", raising=False)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [{k: v for k, v in row.items() if v is not ...} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="ascii")
    return path


class Watch:
    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def record(self, record: Mapping[str, Any]) -> None:
        self.found.append(dict(record))

    def close(self) -> None:
        pass


@pytest.mark.parametrize("rule", ["refuse", "drop"])
@pytest.mark.parametrize("name", BAD)
def test_one_rule_in_both(
    name: str,
    rule: str,
    start_run: Start,
    in_process: Federate,
    word_records: Make,
    tmp_path: Path,
) -> None:
    rows = {silo: word_records(20, seed, silo) for seed, silo in enumerate(SILOS)}
    rows["beta"][7] |= BAD[name]
    here = tmp_path / "data"
    write(here / "train.jsonl", [row for silo in SILOS for row in rows[silo]])
    write(here / "validation.jsonl", word_records(10, 99))
    changes = {"data.path": str(here), "data.bad_rows": rule, "server.rounds": 1}
    logs: dict[str, str] = {}
    for kind in ("simulated", "deployed"):
        run, watch = start_run(kind, **changes), Watch()
        files = []
        for silo in SILOS if kind == "deployed" else ():
            data = write(tmp_path / silo / "records.jsonl", rows[silo])
            own = {"name": silo, "data.bad_rows": rule}
            files.append(write_silo(tmp_path / silo, run.settings(), data, **own))
        given: dict[str, Any] = {"silo_files": files} if files else {}
        assert in_process(run, callbacks=[watch], **given) == "finished"
        ledger = tmp_path / "beta" / "ledger.sqlite" if files else run.ledger_path
        rows_spent = 0
        if ledger.exists():
            with Ledger(ledger, read_only=True) as opened:
                rows_spent = len(opened.entries(party="beta"))
        told = " ".join(r["message"] for r in watch.found if r["kind"] == "warning")
        (start,) = (r for r in watch.found if r["kind"] == "start")
        if rule == "refuse":
            assert rows_spent == 0
            assert "beta" not in start["silos"]
            assert "takes no part in the run; its own log has the reason" in told
            assert "record" not in told.replace("the run", "")
        else:
            assert rows_spent == 1
            assert start["sizes"]["beta"] == 19
        log = tmp_path / "beta" / "rounds.jsonl" if files else run.silo_log_path("beta")
        logs[kind] = log.read_text(encoding="utf-8") if log.exists() else ""
    assert "1 of 20 records of" in logs["deployed"]
    assert "records.jsonl line 8" in logs["deployed"]
    if rule == "drop":
        assert "1 of 20 records of" in logs["simulated"]


def test_a_line_that_is_no_record_is_left_out_or_refuses(
    start_run: Start,
    in_process: Federate,
    word_records: Make,
    tmp_path: Path,
) -> None:
    """A damaged line and bytes that are no text, at a silo of its own."""
    rows = [row for seed, silo in enumerate(SILOS) for row in word_records(4, seed, silo)]
    public = write(tmp_path / "data" / "train.jsonl", rows).parent
    changes = {"data.path": str(public), "data.validation": "train.jsonl"}
    for rule, sizes in (("refuse", {"alpha": 20, "gamma": 20}), ("drop", {"beta": 20})):
        run, watch = start_run(rule, **changes, **{"server.rounds": 1}), Watch()
        files = []
        for seed, silo in enumerate(SILOS):
            data = write(tmp_path / rule / silo / "records.jsonl", word_records(20, seed, silo))
            if silo == "beta":
                bad = b'{"text": "w5 caf\xe9 w6", "label": "low"}\n{"text": "w5\n'
                data.write_bytes(bad + data.read_bytes())
            own = {"name": silo, "data.bad_rows": rule}
            files.append(write_silo(data.parent, run.settings(), data, **own))
        assert in_process(run, callbacks=[watch], silo_files=files) == "finished"
        (start,) = (r for r in watch.found if r["kind"] == "start")
        assert sizes.items() <= start["sizes"].items()
        assert ("beta" in start["sizes"]) == (rule == "drop")
        log = (tmp_path / rule / "beta" / "rounds.jsonl").read_text(encoding="utf-8")
        assert ("data.encoding" if rule == "refuse" else "1 of 22 rows of") in log


def test_the_servers_own_records_follow_the_rule(
    start_run: Start, in_process: Federate, word_records: Make, tmp_path: Path
) -> None:
    rows = word_records(12, 99)
    rows[3] |= {"text": None}
    write(tmp_path / "data" / "validation.jsonl", rows)
    write(tmp_path / "data" / "train.jsonl", word_records(30, 1, "alpha"))
    changes = {"data.path": str(tmp_path / "data"), "server.rounds": 1}
    with pytest.raises(ValueError, match=r"1 of 12 records of .*validation\.jsonl cannot be used"):
        in_process(start_run("refused", **changes))
    run = start_run("dropped", **changes, **{"data.bad_rows": "drop"})
    assert in_process(run) == "finished"
    (first, *_) = (m for m in run.metrics() if m["kind"] == "evaluation")
    assert first["examples"] == 11


def test_a_folder_of_files_is_divided_by_file(
    start_run: Start, in_process: Federate, word_records: Make, tmp_path: Path
) -> None:
    for seed, silo in enumerate(SILOS):
        rows = [{"text": r["text"], "label": r["label"]} for r in word_records(20, seed)]
        write(tmp_path / "data" / "silos" / f"{silo}.jsonl", rows)
    write(tmp_path / "data" / "validation.jsonl", word_records(10, 99))
    changes = {"data.path": str(tmp_path / "data"), "data.train": "silos", "server.rounds": 1}
    run = start_run("folder", **changes)
    assert in_process(run) == "finished"
    assert run.read_json("schedule.json")["silos"] == list(SILOS)
