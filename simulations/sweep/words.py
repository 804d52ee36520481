"""A sweep's numbers as text: what the Markdown and the HTML table share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedllm.report.guarantee import accountant_title, shown

SHARES = ("accuracy", "micro_f1", "macro_f1", "rouge_l", "tag_accuracy", "entity_f1")
"""Metrics in [0, 1]: shown in percent, differences in points."""

COLUMNS = (
    ("arm", "Arm"),
    ("n", "Seeds"),
    ("mean", "Mean"),
    ("spread", "Spread"),
    ("error", "Std. error"),
    ("difference", "Against baseline"),
    ("p", "p over seeds"),
    ("p_examples", "p over examples"),
    ("gap", "Gap closed"),
    ("cost", "Cost of a round"),
    ("privacy", "Epsilon by the ledger"),
)


def number(value: float | None, metric: str, sign: bool = False) -> str:
    """Return a metric's value, or a difference of two (with its sign)."""
    if value is None:
        return "–"
    scale, digits = (100, 2) if metric in SHARES else (1, 4)
    return f"{scale * value:{'+' if sign else ''}.{digits}f}"


def p_value(value: float | None) -> str:
    """Return a p-value."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def row_texts(row: Mapping[str, Any], metric: str) -> dict[str, tuple[str, str]]:
    """Return the table's texts of one row, by the keys of ``COLUMNS``: what is read first, and details."""
    found = dict.fromkeys((key for key, _ in COLUMNS), ("–", ""))
    missing = row["planned"] - len(row["seeds"])
    found["arm"] = row["arm"], ""
    found["n"] = str(len(row["seeds"])), f"of {row['planned']}" if missing else ""
    summary = row["summary"]
    if summary is None:
        return found
    for key in ("mean", "spread", "error"):
        found[key] = number(summary[key], metric), ""
    test = row["over_seeds"]
    if test is not None:
        low, high = (number(test[key], metric, sign=True) for key in ("low", "high"))
        interval = "" if test["low"] is None else f"[{low}, {high}]"
        found["difference"] = number(test["difference"], metric, sign=True), interval
        found["p"] = _test_texts(test)
    if row["over_examples"] is not None:
        found["p_examples"] = _test_texts(row["over_examples"])
    if row["gap_closed"] is not None:
        share = f"{100 * row['gap_closed']:.0f} %"
        found["gap"] = (share, "") if gap_known(row) else ("–", f"{share}, gap within the noise")
    if row["cost"] is not None:
        found["cost"] = f"× {row['cost']:.2f}", ""
    found["privacy"] = privacy_texts(row)
    return found


def _test_texts(test: Mapping[str, Any]) -> tuple[str, str]:
    adjusted = "" if test["p"] is None else f", Holm {p_value(test['p_holm'])}"
    return p_value(test["p"]), f"n = {test['n']:,}{adjusted}"


def gap_known(row: Mapping[str, Any]) -> bool:
    """Return True if the gap to the reference is larger than what seeds alone bring: two standard errors."""
    gap = row["gap"]
    return (
        row["gap_closed"] is not None
        and gap is not None
        and gap["error"] is not None
        and abs(gap["difference"]) > 2 * gap["error"]
    )


def breaks_guarantee(row: Mapping[str, Any]) -> bool:
    """Return True if the arm was to be private, and its ledger says that there is no guarantee."""
    found = row["guarantee"]
    return found is not None and not row["no_privacy"] and math.isinf(found["epsilon"])


def privacy_texts(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the ledgers' epsilon or the lack of a guarantee, and its conditions."""
    found = row["guarantee"]
    if found is None:
        return "–", ""
    if row["no_privacy"]:
        return "none", "trained without privacy"
    if math.isinf(found["epsilon"]):
        return "NO GUARANTEE", ""
    details = {
        "not-as-asked": "not the requested epsilon",
        "conditional": "if the seed is secret",
        "if-fixed": "if fixed beforehand",
        "sum-only": "if only sums are seen",
        "outsider-only": "against outsiders only",
    }
    return shown(found["epsilon"]), details.get(found["level"], "")


def epsilon_meaning(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Explain the epsilons of the table: one sentence for each kind of guarantee in it."""
    found = []
    for row in rows:
        stated = row["guarantee"]
        if stated is None or math.isinf(stated["epsilon"]):
            continue
        sums = str(stated["adversary"]).startswith("sum-only")
        against = f"{'' if sums else 'the '}{stated['adversary']}"
        kind = "an upper bound" if stated["bound"] else "an approximation, no bound"
        found.append(
            f"Epsilon: the largest over silos and seeds at delta = {stated['delta']:g}, unit "
            f"{stated['unit']}, neighbouring relation {stated['relation']}, against "
            f"{against}, by the {accountant_title(stated['accountant'])} accountant "
            f"({kind}), computed from each run's own ledger. It is of one run: the runs of a sweep "
            "on the same data compose, and choosing among them by their results costs privacy that no "
            "row of the table contains."
        )
    return list(dict.fromkeys(found))


def broken(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one sentence for each arm whose ledger holds events without a guarantee."""
    found = [
        f"{row['arm']}: NO GUARANTEE, epsilon is infinite. {'; '.join(row['guarantee']['reasons'])}"
        for row in rows
        if breaks_guarantee(row)
    ]
    return list(dict.fromkeys(found))


def explanations(content: Mapping[str, Any]) -> list[str]:
    """Explain the columns and the power of the tests."""
    found = [
        f"{content['metric']} of the last model on the server's own examples"
        + (", in percent, differences in points" if content["metric"] in SHARES else "")
        + "; spread: standard deviation over seeds (n − 1).",
    ]
    if content["baseline"] is not None:
        found.append(
            f"Against baseline: mean difference to {content['baseline']} over the seeds that both have, with "
            "its 95 % interval. p over seeds: paired t-test over seeds (partition, sampling, noise, "
            f"initial values), two-sided; with {len(content['seeds'])} seeds it finds large differences only."
        )
        found.append(
            "p over examples: paired t-test over the evaluation examples, each scored by the share of "
            "seeds that got it right; it generalises to other examples, not to other seeds. "
            f"Holm: adjusted for the {content['comparisons']} comparisons of this table, each test by itself."
        )
        found.append(
            "Cost of a round: median processor time of a round (all silos and the server in one process) "
            "over the baseline's."
        )
    if content["reference"] is not None and content["baseline"] is not None:
        found.append(
            f"Gap closed: share of the way from {content['baseline']} to {content['reference']}, by means "
            "over the seeds that all three have; none is stated where that gap is below two standard errors."
        )
    return found


def heading(dataset: str, epsilon: float | None) -> str:
    """Return the heading of one block of the table."""
    parts = [dataset, "" if epsilon is None else f"epsilon = {epsilon:g}"]
    return ", ".join(filter(None, parts)) or "All arms"


def blocks(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Return the table's rows by data set and epsilon, each with its heading."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(heading(row["dataset"], row["epsilon"]), []).append(row)
    return list(found.items())


def unfinished(content: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each trial without a result."""
    found = []
    for trial in content["trials"]:
        if trial["done"]:
            continue
        text = f"{trial['title']}: {trial['status']}"
        if trial["round"]:
            text += f" after {trial['round']} of {trial['rounds']} rounds"
        found.append(text + (f": {trial['message']}" if trial["message"] else ""))
    return found


def shortened(content: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each run that its budget stopped before the last round."""
    return [
        f"{trial['title']}: stopped after {trial['round']} of {trial['rounds']} rounds: {trial['message']}"
        for trial in content["trials"]
        if trial["done"] and trial["round"] < trial["rounds"]
    ]
