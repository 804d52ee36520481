"""The report's drawings: SVG text to stand inside the page, legible in light and dark."""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

INK, GRID = "#010203", "#010204"
"""Stand-ins, replaced by the page's own colours."""
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8658f", "#b07d00", "#3d9ad1", "#7d6cc0", "#7a7a7a")
_MARKERS = "osD^vPX*"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedllm",
    "font.family": ["sans-serif"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}


def learning_curves(evaluations: Sequence[Mapping[str, Any]]) -> str | None:
    """Loss (or perplexity), and accuracy and macro-F1, by round; None with nothing to draw."""
    panels = [("Loss", ["loss"]), ("Accuracy and macro-F1", ["accuracy", "macro_f1"])]
    chosen = [
        (title, keys)
        for title, keys in panels
        if any(_finite(record.get(key)) for record in evaluations for key in keys)
    ]
    if not chosen:
        return None

    def draw(figure: Figure) -> None:
        for place, (title, keys) in enumerate(chosen, 1):
            axes = figure.add_subplot(1, len(chosen), place)
            _draw_metrics(axes, evaluations, keys)
            axes.set_title(title, fontsize=10, loc="left")
            if title != "Loss":
                axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            _by_round(axes)

    what = " and ".join(title.lower() for title, _ in chosen)
    return _svg(draw, "learning", f"Learning curves: {what} by round", (7.2, 2.7))


def epsilon_curves(
    curves: Mapping[str, Sequence[tuple[int, float]]], target: float | None, accountant: str
) -> str | None:
    """Epsilon spent by round, one line a silo, with the target; None with nothing finite."""
    finite = {
        silo: [(r, e) for r, e in points if math.isfinite(e)] for silo, points in curves.items()
    }
    finite = {silo: points for silo, points in finite.items() if points}
    if not finite:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for number, (silo, points) in enumerate(finite.items()):
            axes.plot(
                [r for r, _ in points],
                [e for _, e in points],
                label=_safe(silo),
                color=_COLOURS[number % len(_COLOURS)],
                marker=_MARKERS[number % len(_MARKERS)],
            )
        if target is not None:
            axes.axhline(target, color=INK, linestyle="--", linewidth=1.2, label="target")
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"epsilon ({accountant})")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
        _by_round(axes)

    return _svg(draw, "epsilon", "Epsilon spent by round, one line a silo", (7.2, 3.0))


def traffic(rounds: Sequence[Mapping[str, Any]]) -> str | None:
    """Bytes sent down and up by round; None with nothing to draw."""
    lines = {
        "to the silos": [(r["round"], r["bytes_down"]) for r in rounds if r.get("bytes_down")],
        "from the silos": [(r["round"], r["bytes_up"]) for r in rounds if r.get("bytes_up")],
    }
    if not any(lines.values()):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for number, (name, points) in enumerate(lines.items()):
            axes.plot(
                [r for r, _ in points],
                [b for _, b in points],
                label=name,
                color=_COLOURS[number],
                linestyle=("-", "--")[number],
            )
        axes.set_ylim(0, 1.15 * max(b for points in lines.values() for _, b in points))
        axes.yaxis.set_major_formatter(EngFormatter(unit="B"))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
        _by_round(axes)

    return _svg(draw, "traffic", "Bytes sent by round, to and from the silos", (7.2, 2.0))


def _draw_metrics(
    axes: Axes, evaluations: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> None:
    number = 0
    places = dict.fromkeys(str(record.get("where", "server")) for record in evaluations)
    for where in places:
        for key in keys:
            points = [
                (record["round"], record[key])
                for record in evaluations
                if str(record.get("where", "server")) == where and _finite(record.get(key))
            ]
            if points:
                name = {"macro_f1": "macro-F1"}.get(key, key)
                axes.plot(
                    [r for r, _ in points],
                    [v for _, v in points],
                    label=f"{name}, by the {where}" if len(places) > 1 else name,
                    color=_COLOURS[number % len(_COLOURS)],
                    marker=_MARKERS[number % len(_MARKERS)],
                )
            number += 1
    if len(axes.lines) > 1:
        axes.legend(fontsize=9)


def _by_round(axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _safe(text: str) -> str:
    """Text that matplotlib takes literally: no mathematics between dollar signs, not too long, and
    shown in the legend even where it begins with an underscore."""
    short = text if len(text) <= 24 else text[:23] + "…"
    short = short.replace("$", r"\$")
    return f"\u200b{short}" if short.startswith("_") else short


def _svg(draw: Any, name: str, title: str, size: tuple[float, float]) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        stream = io.StringIO()
        with warnings.catch_warnings():  # the page's fonts draw the text, not matplotlib's
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor").replace(GRID, "var(--grid)")
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    label = html.escape(title, quote=True)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
