"""``report.html``: one page without external resources, made of ``report.json``'s content."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fedllm.durable import write_text
from fedllm.report import figures
from fedllm.report.build import build
from fedllm.report.guarantee import accountant_title, shown
from fedllm.report.page import PAGE
from fedllm.report.training import METRICS, metric_rows
from fedllm.run_folder import RunFolder
from privacy.vocabulary import Adversary

_LEVELS = {
    "guaranteed": "good",
    "conditional": "warn",
    "outsider-only": "bad",
    "none": "bad",
    "nothing-released": "warn",
}


def write_report(run: RunFolder) -> Path:
    """Write ``report.json`` and ``report.html`` into the run folder.

    Returns:
        Path of ``report.html``.
    """
    content = build(run)
    run.write_json("report.json", content)
    path = run.path / "report.html"
    write_text(path, render(content))
    return path


def render(content: Mapping[str, Any]) -> str:
    """The page for :func:`fedllm.report.build`'s content."""
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"report.html": PAGE}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "epsilon": shown,
        "accountant": accountant_title,
        "number": _number,
        "bytes": _bytes,
        "seconds": _seconds,
        "moment": _moment,
        "value": _value,
    }
    curves = content["epsilon_by_round"]["silos"]
    training = content["training"]
    rows = _rows(content)
    page = environment.get_template("report.html").render(
        report=content,
        tone=_LEVELS[content["guarantee"]["level"]],
        adversaries=_adversaries(content),
        columns=_columns(content),
        rows=rows,
        explained=_explained(rows),
        final={where: metric_rows(found) for where, found in training["final"].items()},
        metrics=[
            (key, title, pattern)
            for key, title, pattern in METRICS
            if any(key in record for record in training["evaluations"])
        ],
        learning=_markup(figures.learning_curves(training["evaluations"])),
        epsilon=_markup(
            figures.epsilon_curves(
                curves,
                content["target"]["epsilon"],
                accountant_title(content["guarantee"]["accountant"]),
            )
        ),
        traffic=_markup(figures.traffic(training.get("rounds", []))),
        sections={k: v for k, v in content["settings"].items() if isinstance(v, dict)},
        top={k: v for k, v in content["settings"].items() if not isinstance(v, dict)},
    )
    return page


def _rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a silo and adversary; adversaries with the same figures share one."""
    rows = []
    for silo in content["silos"]:
        groups: dict[str, list[str]] = {}
        for adversary, found in silo["adversaries"].items():
            key = json.dumps(found, sort_keys=True, default=str)
            groups.setdefault(key, []).append(adversary)
        for number, names in enumerate(groups.values()):
            found = silo["adversaries"][names[0]]
            by_name = {figure["accountant"]: figure for figure in found["figures"]}
            rows.append(
                {
                    "silo": silo,
                    "first": number == 0,
                    "span": len(groups),
                    "adversaries": names,
                    "figures": by_name,
                    "reasons": found["reasons"],
                }
            )
    return rows


def _explained(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Each reason for no guarantee once, with the silos that it concerns."""
    silos: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for reason in row["reasons"]:
            key = (", ".join(row["adversaries"]), reason)
            silos.setdefault(key, []).append(row["silo"]["silo"])
    everyone = {row["silo"]["silo"] for row in rows}
    return [
        {
            "adversaries": adversaries,
            "reason": reason,
            "silos": "All silos" if set(names) == everyone else ", ".join(names),
        }
        for (adversaries, reason), names in silos.items()
    ]


def _columns(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accountants that gave at least one number; PLD and RDP always."""
    used = {
        figure["accountant"]
        for silo in content["silos"]
        for found in silo["adversaries"].values()
        for figure in found["figures"]
        if figure["epsilon"] is not None
    } | {"pld", "rdp"}
    return [row for row in content["accountants"] if row["name"] in used]


def _adversaries(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {name for silo in content["silos"] for name in silo["adversaries"]}
    ordered = sorted((Adversary(name) for name in names), key=lambda a: a.strength)
    return [(str(name), name.describe()) for name in ordered]


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _seconds(value: float) -> str:
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h"


def _moment(value: Any) -> str:
    return str(value)[:19].replace("T", " ") + " UTC" if value else "–"


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
