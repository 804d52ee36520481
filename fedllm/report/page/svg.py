"""Drawings as SVG text to stand inside the page: legible in light and dark, on paper and on a phone."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, GRID = "#010203", "#010204"
"""Stand-ins, replaced by the page's own colours."""
COLOURS = ("#0072b2", "#d55e00", "#0a8f6a", "#b8658f", "#b07d00", "#3d8fc4", "#7d6cc0", "#7a7a7a")
"""After Okabe and Ito, told apart with any colour vision; at least 3:1 on the light and dark page."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
MARKERS = "osD^vPX*"
SIZE = (5.2, 3.0)
"""Inches. Narrow, so that the text stays legible where a phone shows the whole width."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedllm",
    "font.family": ["sans-serif"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}


def render(
    draw: Callable[[Axes], None], name: str, title: str, size: tuple[float, float] = SIZE
) -> str:
    """Return the SVG text of one drawing.

    Args:
        draw: draws into the axes.
        name: goes before every id, so that several drawings can stand in one page.
        title: what the drawing shows, in words, for anyone who cannot see it.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
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


def line(axes: Axes, points: Sequence[tuple[float, float]], number: int, **options: Any) -> str:
    """Draw one line in the colour and dash of its number, which it returns the colour of."""
    colour = COLOURS[number % len(COLOURS)]
    options = {"linestyle": DASHES[number % len(DASHES)]} | options
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=colour,
        gid=f"mark-{number}",
        **options,
    )
    return colour


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Name each line at its right end, (text, x, y, colour), apart from each other.

    To be called when all lines are drawn and the limits are set.
    """
    low, high = axes.get_ylim()
    gap = 0.085
    ordered = sorted(ends, key=lambda end: end[2])
    places = [(y - low) / (high - low) for _, _, y, _ in ordered]
    for i in range(1, len(places)):  # upwards, then down again where they leave the top
        places[i] = max(places[i], places[i - 1] + gap)
    if places and places[-1] > 1.0:
        places[-1] = 1.0
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - gap)
    for (text, x, y, colour), place in zip(ordered, places, strict=True):
        axes.annotate(
            safe(text),
            xy=(x, y),
            xycoords="data",
            xytext=(1.04, place),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.9,
                "shrinkA": 1,
                "relpos": (0, 0.5),
            },
        )


def label_at(
    axes: Axes, text: str, point: tuple[float, float], place: tuple[float, float], colour: str
) -> None:
    """Name a point of a line by a text at a place (fractions of the axes), joined to it."""
    axes.annotate(
        text,
        xy=point,
        xycoords="data",
        xytext=place,
        textcoords="axes fraction",
        va="center",
        fontsize=9,
        arrowprops={
            "arrowstyle": "-",
            "color": colour,
            "linewidth": 0.9,
            "shrinkA": 1,
            "relpos": (0, 0.5),
        },
    )


def by_round(axes: Axes) -> None:
    """Label the horizontal axis with whole rounds."""
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def safe(text: str, longest: int = 16) -> str:
    """Return the text that matplotlib takes literally: no mathematics between dollar signs, and not too long."""
    short = text if len(text) <= longest else text[: longest - 1] + "…"
    return short.replace("$", r"\$")
