"""The report's drawings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, PercentFormatter

from fedllm.report.guarantee import round_up, shown
from fedllm.report.page.svg import (
    INK,
    MARKERS,
    SIZE,
    by_round,
    label_at,
    label_ends,
    line,
    render,
)

Point = tuple[float, float]
_SCORES = {
    "accuracy": "accuracy",
    "micro_f1": "micro-F1",
    "macro_f1": "macro-F1",
    "tag_accuracy": "tag accuracy",
    "entity_f1": "entity F1",
}


def epsilon_curves(
    curves: Mapping[str, Sequence[Point]], target: float | None, accountant: str
) -> str | None:
    """Return epsilon of what was released by round, one line a silo, with the target; None with nothing finite."""
    finite = {
        silo: [(r, e) for r, e in points if math.isfinite(e)] for silo, points in curves.items()
    }
    finite = {silo: points for silo, points in finite.items() if points}
    if not finite:
        return None
    largest = max(e for points in finite.values() for _, e in points)

    def draw(axes: Axes) -> None:
        ends = []
        for number, (silo, points) in enumerate(finite.items()):
            colour = line(axes, points, number, marker=MARKERS[number % len(MARKERS)])
            ends.append((silo, *points[-1], colour))
        if target is not None:
            axes.axhline(target, color=INK, linestyle="--", linewidth=1.2, gid="target")
            ends.append(("target", axes.get_xlim()[1], target, INK))
        axes.set_ylim(0, 1.08 * max(largest, target or 0.0) or 1.0)
        axes.set_ylabel(f"epsilon ({accountant})")
        by_round(axes)
        label_ends(axes, ends)

    last = max(r for points in finite.values() for r, _ in points)
    title = (
        f"Line chart of the epsilon of the releases by round, one line for each of {len(finite)} silos. It rises to "
        f"{shown(largest)} at the most by round {last}"
        + (f"; the target is {target:g}." if target is not None else ".")
    )
    return render(draw, "epsilon", title, (SIZE[0], 3.3))


def delta_curve(curves: Mapping[str, Any], epsilon: float, delta: float, accountant: str) -> str:
    """Return delta at every epsilon, the dominating mu's curve above it, and the point that is stated."""
    points = [(e, d) for e, d, _ in curves["epsilon_delta"] if d > 0]
    gaussian = [(e, g) for e, _, g in curves["epsilon_delta"] if g is not None and g > 0]

    def draw(axes: Axes) -> None:
        axes.set_yscale("log")
        colour = line(axes, points, 0)
        label_at(axes, f"{accountant}", points[len(points) // 4], (0.62, 0.95), colour)
        if gaussian:
            colour = line(axes, gaussian, 1)
            name = f"mu = {round_up(curves['mu'], 4)}: never below"
            label_at(axes, name, gaussian[len(gaussian) // 2], (0.50, 0.84), colour)
        axes.plot([epsilon], [delta], "o", color=INK, markersize=6, gid="mark-stated")
        label_at(axes, f"stated: {shown(epsilon)}", (epsilon, delta), (0.62, 0.73), INK)
        axes.set_xlim(left=0)
        axes.set_xlabel("epsilon")
        axes.set_ylabel("delta (log scale)")

    title = (
        f"Curve of delta against epsilon by the {accountant} accountant, falling from "
        f"{points[0][1]:.2g} at epsilon 0 to {points[-1][1]:.2g} at epsilon {points[-1][0]:.3g}; the "
        f"stated point is epsilon {shown(epsilon)} at delta {delta:g}."
    )
    if gaussian:
        title += f" The Gaussian curve of mu {round_up(curves['mu'], 4)} is never below it."
    return render(draw, "delta", title)


def trade_off_curve(curves: Mapping[str, Any], accountant: str) -> str:
    """Draw missed detections against false alarms: guessing, the guarantee, and the dominating mu."""
    points = [(a, b) for a, b, _ in curves["trade_off"]]
    gaussian = [(a, g) for a, _, g in curves["trade_off"] if g is not None]

    def near(found: Sequence[Point], share: float) -> Point:
        return min(found, key=lambda p: abs(p[0] - share * (p[0] + p[1])))

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [1, 0], color=INK, linestyle=":", linewidth=1.2, gid="mark-guessing")
        label_at(axes, "guessing", (0.25, 0.75), (0.46, 0.95), INK)
        colour = line(axes, points, 0)
        label_at(axes, f"{accountant}: no test is better", near(points, 0.4), (0.46, 0.84), colour)
        if gaussian:
            colour = line(axes, gaussian, 1)
            name = f"mu = {round_up(curves['mu'], 4)}: never above"
            label_at(axes, name, near(gaussian, 0.55), (0.46, 0.73), colour)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("false alarms (record was not used)")
        axes.set_ylabel("missed (record was used)")

    at = min(points, key=lambda p: abs(p[0] - 0.01))
    title = (
        "Trade-off curve: whoever tests whether one record was used, with false alarms in "
        f"{at[0]:.0%} of the cases, recognises at most {math.ceil(1000 * (1 - at[1]) - 1e-9) / 10:g}% of the records "
        f"that were used, by the {accountant} accountant; by guessing, {at[0]:.0%}."
    )
    if gaussian:
        title += f" The Gaussian curve of mu {round_up(curves['mu'], 4)} is never above it."
    return render(draw, "tradeoff", title)


def losses(evaluations: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the loss by round; None with nothing to draw."""
    return _metrics(evaluations, {"loss": "loss"}, "loss", "loss")


def scores(evaluations: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the accuracy and macro-F1 by round; None with nothing to draw."""
    return _metrics(evaluations, _SCORES, "scores", "share")


def clipping(rounds: Sequence[Mapping[str, Any]]) -> str | None:
    """Draw the clipping norm by round; None if it is fixed."""
    points = [(row["round"], row["clip"]) for row in rounds]
    if not points:
        return None

    def draw(axes: Axes) -> None:
        line(axes, points, 0, marker=MARKERS[0])
        if min(clip for _, clip in points) > 0:
            axes.set_yscale("log")
        by_round(axes)
        axes.set_ylabel("clipping norm (log)")

    title = (
        f"Clipping norm by round: from {points[0][1]:.4g} in round {points[0][0]} to {points[-1][1]:.4g} in "
        f"round {points[-1][0]}."
    )
    return render(draw, "clipping", title)


def traffic(rounds: Sequence[Mapping[str, Any]]) -> str | None:
    """Return bytes sent down and up by round; None with nothing to draw."""
    lines = {
        "to silos": [(r["round"], r["bytes_down"]) for r in rounds if r.get("bytes_down")],
        "from silos": [(r["round"], r["bytes_up"]) for r in rounds if r.get("bytes_up")],
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None

    def draw(axes: Axes) -> None:
        ends = []
        for number, (name, points) in enumerate(lines.items()):
            colour = line(axes, points, number, marker=MARKERS[number])
            ends.append((name, *points[-1], colour))
        axes.set_ylim(0, 1.15 * max(b for points in lines.values() for _, b in points))
        axes.yaxis.set_major_formatter(EngFormatter(unit="B"))
        axes.set_ylabel("bytes in a round")
        by_round(axes)
        label_ends(axes, ends)

    title = "Line chart of the bytes of trained tensors sent in each round, to and from the silos."
    return render(draw, "traffic", title, (SIZE[0], 2.2))


def _metrics(
    evaluations: Sequence[Mapping[str, Any]], keys: Mapping[str, str], name: str, unit: str
) -> str | None:
    places = dict.fromkeys(str(record.get("where", "server")) for record in evaluations)
    lines = {}
    for where in places:
        for key, title in keys.items():
            points = [
                (record["round"], record[key])
                for record in evaluations
                if str(record.get("where", "server")) == where and _finite(record.get(key))
            ]
            if points:
                lines[f"{title}, {where}" if len(places) > 1 else title] = points
    if not lines:
        return None

    def draw(axes: Axes) -> None:
        ends = []
        for number, (title, points) in enumerate(lines.items()):
            marker = MARKERS[number % len(MARKERS)]
            ends.append((title, *points[-1], line(axes, points, number, marker=marker)))
        if unit == "share":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylabel("share of the examples" if unit == "share" else "loss (nats)")
        by_round(axes)
        label_ends(axes, ends)

    said = "; ".join(
        f"{title} from {points[0][1]:.3g} in round {points[0][0]} to {points[-1][1]:.3g} in round "
        f"{points[-1][0]}"
        for title, points in lines.items()
    )
    return render(draw, name, f"Line chart by round: {said}.", (SIZE[0], 2.6))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
