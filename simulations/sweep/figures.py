"""A sweep's drawings: the metric over epsilon with its spread, and the gap closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from fedllm.report.page.svg import COLOURS, INK, MARKERS, SIZE, label_ends, line, render, safe
from simulations.sweep.words import SHARES, breaks_guarantee, gap_known, number

Row = Mapping[str, Any]


def over_epsilon(rows: Sequence[Row], arms: Sequence[str], metric: str, name: str) -> str | None:
    """Return the metric's mean over epsilon, one line an arm, bars of one standard deviation over seeds; arms without
    privacy as level lines. None with nothing to draw.

    Args:
        rows: of one data set.
        name: goes into the drawing's ids.
    """
    scale = 100 if metric in SHARES else 1
    lines: dict[str, list[tuple[float, float, float]]] = {}
    level: dict[str, tuple[float, float]] = {}
    for row in rows:
        found = row["summary"]
        if found is None:
            continue
        mean, spread = scale * found["mean"], scale * (found["spread"] or 0.0)
        if row["no_privacy"] or row["epsilon"] is None:
            level[row["arm"]] = mean, spread
        else:
            lines.setdefault(row["arm"], []).append((row["epsilon"], mean, spread))
    if not lines and not level:
        return None
    epsilons = sorted({epsilon for points in lines.values() for epsilon, _, _ in points})
    broken = {row["arm"] for row in rows if breaks_guarantee(row)}

    def draw(axes: Axes) -> None:
        ends = []
        places = {epsilon: float(place) for place, epsilon in enumerate(epsilons)}
        for count, (arm, points) in enumerate(lines.items()):
            number_ = list(arms).index(arm)
            shift = 0.06 * (count - (len(lines) - 1) / 2)  # so that the bars do not hide each other
            at = [(places[epsilon] + shift, mean) for epsilon, mean, _ in points]
            marker = "x" if arm in broken else MARKERS[number_ % len(MARKERS)]
            colour = line(axes, at, number_, marker=marker)
            spreads = [spread for _, _, spread in points]
            axes.errorbar(
                [x for x, _ in at], [y for _, y in at], yerr=spreads, fmt="none", ecolor=colour,
                elinewidth=1.1, capsize=2.5,
            )  # fmt: skip
            ends.append((arm, *at[-1], colour))
        right = max(0.35, len(epsilons) - 1 + 0.25)
        axes.set_xlim(-0.35, right)
        for arm, (mean, spread) in level.items():
            axes.axhspan(mean - spread, mean + spread, color=INK, alpha=0.12, linewidth=0)
            axes.axhline(
                mean, color=INK, linestyle="--", linewidth=1.2, gid=f"mark-level-{_id(arm)}"
            )
            ends.append((arm, right, mean, INK))
        axes.xaxis.set_major_locator(FixedLocator(list(places.values())))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{epsilon:g}" for epsilon in epsilons])
        axes.set_xlabel("epsilon of the run")
        axes.set_ylabel(f"{metric} (%)" if scale == 100 else metric)
        label_ends(axes, ends)

    said = [
        f"{arm}: " + ", ".join(f"{mean:.4g} at epsilon {epsilon:g}" for epsilon, mean, _ in points)
        for arm, points in lines.items()
    ] + [f"{arm}, without privacy: {mean:.4g}" for arm, (mean, _) in level.items()]
    title = f"{metric} over epsilon, mean and standard deviation over seeds. {'; '.join(said)}."
    return render(draw, name, title, (SIZE[0] + 0.6, 3.6))


def gap_bars(rows: Sequence[Row], metric: str, name: str) -> str | None:
    """Return the share of the gap between baseline and reference that each arm closes; None with nothing to draw.

    Arms whose gap lies within the noise are left out: a share of nothing says nothing.
    """
    shown = [row for row in rows if gap_known(row)]
    if not shown:
        return None
    arms = list(dict.fromkeys(row["arm"] for row in shown))
    epsilons = sorted({row["epsilon"] for row in shown if row["epsilon"] is not None}) or [None]

    def draw(axes: Axes) -> None:
        height = 0.8 / len(epsilons)
        for row in shown:
            place = arms.index(row["arm"]) + height * (
                epsilons.index(row["epsilon"]) - (len(epsilons) - 1) / 2
            )
            axes.barh(
                place, 100 * row["gap_closed"], height * 0.9,
                color=COLOURS[epsilons.index(row["epsilon"]) % len(COLOURS)],
                hatch="//" if breaks_guarantee(row) else None,
                gid=f"mark-{_id(row['arm'])}-{epsilons.index(row['epsilon'])}",
                label="" if row["epsilon"] is None else f"epsilon {row['epsilon']:g}",
            )  # fmt: skip
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.axvline(100, color=INK, linewidth=1.2, linestyle="--")
        axes.set_yticks(range(len(arms)), [safe(arm, 26) for arm in arms])
        axes.invert_yaxis()
        axes.set_xlabel("% of the gap closed")
        handles, labels = axes.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        if len(named) > 1:
            axes.legend(
                named.values(), named.keys(), loc="lower center", bbox_to_anchor=(0.5, 1.0),
                ncols=len(named), frameon=False, fontsize=9,
            )  # fmt: skip

    said = "; ".join(
        f"{row['arm']}{_at(row['epsilon'])}: {100 * row['gap_closed']:.0f} % of "
        f"{number(abs(row['gap']['difference']), metric)}"
        for row in shown
    )
    title = f"Bars of the gap closed between the baseline (0) and the reference (100). {said}."
    return render(draw, name, title, (SIZE[0] + 0.6, 1.4 + 0.45 * len(arms)))


def _at(epsilon: float | None) -> str:
    return "" if epsilon is None else f" at epsilon {epsilon:g}"


def _id(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)
