"""Silos of a resumed run, and the outcome of a run that did not fail."""

from __future__ import annotations

from collections.abc import Mapping

from fedllm.run.folder import SCHEDULE, RunFolder


def why_nobody_trained(run: RunFolder, left: Mapping[str, str]) -> str:
    """Why no silo's update is in the model, a resumed run's earlier rounds included.

    Args:
        left: why a silo takes no part any more, by name.
    """
    try:
        rounds = [record for record in run.metrics() if record["kind"] == "round"]
    except OSError:
        rounds = []
    reasons = dict(left)
    for record in rounds:
        for item in (*record["failed"], *record["refused"], *record["left"]):
            reasons[item["silo"]] = item["reason"]
    said = "; ".join(f"{silo}: {reason}" for silo, reason in sorted(reasons.items()))
    return f"No silo trained in {len(rounds)} rounds: {said or 'none was drawn'}"


def of_the_run(run: RunFolder, nodes: Mapping[str, int]) -> dict[str, int]:
    """Those of the nodes whose silos a run was begun with; all of them where it has not begun."""
    saved = run.read_json(SCHEDULE, None)
    return {name: node for name, node in nodes.items() if not saved or name in saved["silos"]}
