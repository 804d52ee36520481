"""From a sweep's run folders to its table, as plain values (``results.json``)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from fedllm import __version__
from fedllm.run.folder import RunFolder, RunFolderError
from simulations.sweep.plan import METRICS, Sweep, Trial
from simulations.sweep.statistics import gap_closed, holm, paired, paired_examples, summary
from simulations.sweep.worker import EVALUATED

FORMAT = "fedllm-sweep"
VERSION = 1


def collect(sweep: Sweep, failed: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Collect all content of the sweep's results.

    Keys: ``trials`` (one a run: where it is, its metrics, its guarantee by its own ledger) and ``table``
    (one row an arm, epsilon and data set), with what was compared by which test in ``tests``.

    Args:
        failed: title of a trial -> why it failed.
    """
    failed = failed or {}
    found = [_trial(sweep, trial, failed.get(trial.title)) for trial in sweep.trials]
    answers = [found_trial.pop("answers") for found_trial in found]
    rows = []
    for dataset in sweep.datasets:
        for epsilon in sweep.epsilons or (None,):
            for arm in sweep.arms:
                row = _row(sweep, found, answers, dataset, epsilon, arm)
                if row is not None:
                    rows.append(row)
    _adjust(rows)
    done = sum(trial["done"] for trial in found)
    compared = sum(row["over_seeds"] is not None for row in rows)
    return {
        "format": FORMAT,
        "version": VERSION,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": f"fedllm {__version__}",
        "name": sweep.name,
        "file": sweep.source.name,
        "metric": sweep.metric,
        "larger_is_better": METRICS[sweep.metric],
        "baseline": sweep.baseline,
        "reference": sweep.reference,
        "arms": list(sweep.arms),
        "datasets": list(sweep.datasets),
        "epsilons": list(sweep.epsilons),
        "seeds": list(sweep.seeds),
        "done": done,
        "of": len(found),
        "comparisons": compared,
        "table": rows,
        "trials": found,
    }


def _trial(sweep: Sweep, trial: Trial, failure: str | None) -> dict[str, Any]:
    path = sweep.run_path(trial)
    privacy = trial.settings.privacy
    found: dict[str, Any] = {
        "title": trial.title,
        "arm": trial.arm,
        "dataset": trial.dataset,
        "epsilon": trial.epsilon,
        "delta": privacy.delta if privacy.mode == "dp" else None,
        "seed": trial.seed,
        "run": str(path.relative_to(sweep.folder)),
        "status": "new",
        "message": failure or "",
        "round": 0,
        "rounds": trial.settings.server.rounds,
        "done": False,
        "metrics": {},
        "guarantee": None,
        "processor_seconds_a_round": None,
        "answers": None,
    }
    if not path.exists():
        return found | ({"status": "failed"} if failure else {})
    try:
        run = RunFolder.open(path)
        state = run.state()
        found |= {key: state[key] for key in ("status", "round")}
        found["message"] = failure or state["message"]
        evaluated = run.read_json(EVALUATED)
        if state["status"] not in ("finished", "stopped") or evaluated is None:
            return found
        last = [r for r in run.metrics() if r["kind"] == "evaluation" and r["where"] == "server"][
            -1
        ]
        report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    except (RunFolderError, OSError, ValueError, IndexError) as error:
        return found | {"status": "failed", "message": f"cannot be read: {error}"}
    found["metrics"] = {name: last[name] for name in METRICS if name in last}
    found["examples"] = int(last["examples"]) if "examples" in last else None
    found["guarantee"] = _guarantee(report)
    found["done"] = sweep.metric in last and math.isfinite(last[sweep.metric])
    found["processor_seconds_a_round"] = evaluated["processor_seconds_a_round"]
    answers = evaluated["answers"]
    found["answers"] = None if answers is None else [(str(key), bool(ok)) for key, ok in answers]
    return found


def _guarantee(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the guarantee in the run's report, computed from its ledger."""
    keys = ("level", "epsilon", "delta", "unit", "relation", "adversary", "accountant", "bound")
    stated = report["guarantee"]
    found = {key: stated[key] for key in keys}
    if found["epsilon"] == "Infinity":
        found["epsilon"] = math.inf
    return found | {"reasons": list(stated["reasons"]), "sentence": report["headline"]}


def _row(
    sweep: Sweep,
    trials: Sequence[Mapping[str, Any]],
    answers: Sequence[Any],
    dataset: str,
    epsilon: float | None,
    arm: str,
) -> dict[str, Any] | None:
    """Return one arm at one epsilon, or None if the sweep has no such trial."""

    def of(name: str | None) -> dict[int, int]:
        """Map seeds to indices of the trials that evaluate an arm at this epsilon."""
        chosen = [
            i
            for i, trial in enumerate(trials)
            if trial["arm"] == name
            and trial["dataset"] == dataset
            and trial["epsilon"] in (epsilon, None)
        ]
        return {trials[i]["seed"]: i for i in chosen}

    def values(places: Mapping[int, int]) -> dict[int, float]:
        return {
            seed: float(trials[i]["metrics"][sweep.metric])
            for seed, i in places.items()
            if trials[i]["done"]
        }

    mine = of(arm)
    if not mine:
        return None
    scores = values(mine)
    done = [trials[i] for seed, i in mine.items() if seed in scores]
    base, goal = of(sweep.baseline), of(sweep.reference)
    row: dict[str, Any] = {
        "dataset": dataset,
        "epsilon": epsilon,
        "arm": arm,
        "planned": len(mine),
        "seeds": sorted(scores),
        "values": [scores[seed] for seed in sorted(scores)],
        "summary": asdict(summary(scores.values())) if scores else None,
        "over_seeds": None,
        "over_examples": None,
        "gap": None,
        "gap_closed": None,
        "cost": _ratio(trials, mine, base),
        "guarantee": _joined([trial["guarantee"] for trial in done]),
        "no_privacy": bool(done) and all(trial["epsilon"] is None for trial in done),
    }
    if sweep.baseline is None or arm == sweep.baseline:
        return row
    over_seeds = paired(scores, values(base))
    row["over_seeds"] = None if over_seeds is None else asdict(over_seeds)
    judged = {seed: answers[i] for seed, i in mine.items() if seed in scores and answers[i]}
    by_base = {seed: answers[i] for seed, i in base.items() if answers[i]}
    if sweep.metric == "accuracy" and judged and by_base:
        over_examples = paired_examples(judged, by_base)
        row["over_examples"] = None if over_examples is None else asdict(over_examples)
    if sweep.reference is not None and arm != sweep.reference:
        common = sorted(scores.keys() & values(base).keys() & values(goal).keys())
        if common:
            gap = paired(values(goal), values(base))
            row["gap"] = None if gap is None else asdict(gap)
            means = [
                sum(found[seed] for seed in common) / len(common)
                for found in (scores, values(base), values(goal))
            ]
            row["gap_closed"] = gap_closed(*means)
    return row


def _ratio(
    trials: Sequence[Mapping[str, Any]], mine: Mapping[int, int], base: Mapping[int, int]
) -> float | None:
    """Return the median processor seconds of a round, over the baseline's."""

    def median(places: Mapping[int, int]) -> float | None:
        found = sorted(
            trials[i]["processor_seconds_a_round"]
            for i in places.values()
            if trials[i]["processor_seconds_a_round"] is not None
        )
        return found[len(found) // 2] if found else None

    ours, theirs = median(mine), median(base)
    return ours / theirs if ours is not None and theirs else None


def _joined(guarantees: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return one guarantee for all seeds: the worst of them."""
    if not guarantees:
        return None
    from fedllm.report.guarantee import STATED

    order = list(STATED)
    worst = max(
        guarantees,
        key=lambda g: (
            order.index(g["level"]) if g["level"] in order else len(order),
            g["epsilon"],
        ),
    )
    return dict(worst)


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Apply Holm's correction over all comparisons of the table, for each of the two tests."""
    for test in ("over_seeds", "over_examples"):
        compared = [row[test] for row in rows if row[test] is not None]
        for found, p in zip(compared, holm([found["p"] for found in compared]), strict=True):
            found["p_holm"] = p
