"""Reports of runs whose ledgers are with the silos, and what tests read in them."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
from report_runs import NOISE, ROUNDS, SILOS, Page

from fedllm.files.durable import plain
from fedllm.report import build, write_report
from fedllm.report.extract.statement import AccountItem, Extract
from fedllm.report.schema import json_schema
from fedllm.run.folder import RunFolder
from privacy.events.constructors import dp_sgd

COST = {dp_sgd(SILOS["B"], NOISE, 1): ROUNDS}


def report(run: RunFolder) -> dict[str, Any]:
    """The report's content as it stands in report.json."""
    found: dict[str, Any] = plain(build(run))
    return found


def written(run: RunFolder) -> dict[str, Any]:
    """report.json as read back, checked against the schema; the page begins with its first line."""
    page = write_report(run.path).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(json_schema()).validate(found)
    assert Page(page).words[0] == found["headline"]
    return found


def row(found: dict[str, Any], name: str) -> dict[str, Any]:
    (one,) = (row for row in found["vouching"] if row["silo"] == name)
    return dict(one)


def silo_part(found: dict[str, Any], name: str) -> dict[str, Any]:
    (one,) = (silo for silo in found["silos"] if silo["silo"] == name)
    return dict(one)


def cheaper(extract: Extract, factor: float) -> dict[str, AccountItem]:
    """An account in which everything costs less."""
    account = {}
    for adversary, item in extract.account.items():
        figures = tuple(
            figure
            if figure.epsilon is None
            else figure.model_copy(update={"epsilon": float(figure.epsilon) * factor})
            for figure in item.figures
        )
        account[adversary] = item.model_copy(update={"figures": figures})
    return account


def why(found: dict[str, Any], name: str) -> str:
    """Why nothing is known of a silo, and that the report says so wherever it speaks of it."""
    part = row(found, name)
    assert not part["vouches"]
    assert name not in {silo["silo"] for silo in found["silos"]}
    assert any(text.startswith(f"silo {name}: ") for text in found["problems"])
    assert f"nothing is known of {name}" in found["headline"]
    assert found["guarantee"]["level"] == "some-silos"
    assert found["guarantee"]["epsilon"] == "Infinity"
    assert set(found["guarantee"]["others"].values()) == {"Infinity"}
    assert found["headline"].startswith("NO GUARANTEE for 1 of 2 silos")
    assert found["meaning"] is None
    return str(part["why"])
