"""Figures of loss landscapes: curves, contours and surfaces, every checkpoint on the same scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulations.attacks.show import COLOURS, save_figure

_AWAY = "step along the direction (1: each vector by its own norm)"
_SECOND = {"random": "another random direction", "sharpest": "its own sharpest direction"}
_COLUMNS = 3
_ROOM_FOR_LABEL = 40


def draw_all(rows: Sequence[dict[str, Any]], folder: Path, label: str | None) -> dict[str, str]:
    """Write ``curves.png`` and, where a plane was measured, ``contours.png`` and ``surfaces.png``.

    Args:
        rows: what :func:`simulations.landscape.landscape.measure` gives for each checkpoint.
        label: drawn into every figure, where the data is private.

    Returns:
        Paths of the files by name.
    """
    found = {}
    kinds = [name for name in ("random", "sharpest") if name in rows[0]["curves"]]
    size = (4.6 * len(kinds) + 0.4, 6.4)
    found["curves"] = save_figure(
        folder / "curves.png", lambda f: _curves(_titled(f, label), rows, kinds), size
    )
    if rows[0]["plane"] is not None:
        wide, high = min(len(rows), _COLUMNS), math.ceil(len(rows) / _COLUMNS)
        found["contours"] = save_figure(
            folder / "contours.png",
            lambda f: _contours(_titled(f, label), rows),
            (3.3 * wide + 1.2, 3.3 * high + 0.3),
        )
        found["surfaces"] = save_figure(
            folder / "surfaces.png",
            lambda f: _surfaces(_titled(f, label), rows),
            (3.8 * wide + 1.2, 3.5 * high + 0.3),
        )
    return {name: str(path) for name, path in found.items()}


def _titled(figure: Figure, label: str | None) -> Figure:
    if label is not None:
        figure.suptitle("MEASURED ON PRIVATE EXAMPLES: NO GUARANTEE", color="#b00020", fontsize=9)
    return figure


def _name(row: dict[str, Any]) -> str:
    label = str(row["label"])
    return label if len(label) <= _ROOM_FOR_LABEL else label[: _ROOM_FOR_LABEL - 1] + "…"


def _curves(figure: Figure, rows: Sequence[dict[str, Any]], kinds: Sequence[str]) -> None:
    """Draw the loss above, and below its increase over the checkpoint's own loss."""
    axes = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
    titles = {
        "random": "A random direction, shared by all",
        "sharpest": "Each checkpoint's sharpest direction",
    }
    for column, kind in enumerate(kinds):
        upper, lower = axes[0][column], axes[1][column]
        for number, row in enumerate(rows):
            colour = COLOURS[number % len(COLOURS)]
            style = "-" if number < len(COLOURS) else "--"
            values = np.array(row["curves"][kind], dtype=float)
            upper.plot(row["axis"], values, style, color=colour, label=_name(row), lw=1.5)
            rise = values - values[len(values) // 2]
            lower.plot(row["axis"], rise, style, color=colour, lw=1.5)
        upper.set_title(titles[kind], fontsize=9)
        lower.set_xlabel(_AWAY, fontsize=8)
        for axis in (upper, lower):
            axis.grid(alpha=0.25)
            axis.tick_params(labelsize=8)
    axes[0][0].set_ylabel("mean loss", fontsize=8)
    axes[1][0].set_ylabel("rise of the mean loss", fontsize=8)
    axes[0][0].legend(fontsize=7)


def _planes(rows: Sequence[dict[str, Any]]) -> tuple[list[np.ndarray], float, float]:
    planes = [np.array(row["plane"], dtype=float) for row in rows]
    finite = np.concatenate([plane[np.isfinite(plane)] for plane in planes])
    low, high = float(finite.min()), float(finite.max())
    return planes, low, high if high > low else low + 1e-6


def _contours(figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
    planes, low, high = _planes(rows)
    wide = min(len(rows), _COLUMNS)
    axes = figure.subplots(
        math.ceil(len(rows) / wide), wide, sharex=True, sharey=True, squeeze=False
    ).ravel()
    levels = MaxNLocator(20).tick_values(low, high)
    filled = None
    for axis, row, plane in zip(axes, rows, planes, strict=False):
        # first direction across: the plane's rows belong to it
        filled = axis.contourf(row["axis"], row["axis"], plane.T, levels=levels, cmap="viridis")
        lines = axis.contour(
            row["axis"], row["axis"], plane.T, levels=levels[::2], colors="white", linewidths=0.5
        )
        axis.clabel(lines, fontsize=6, fmt="%.2f")
        axis.plot(0, 0, "+", color="white", markersize=8)
        axis.set_title(_name(row), fontsize=9)
        axis.set_aspect("equal")
        axis.tick_params(labelsize=7)
    for axis in axes[len(rows) :]:
        axis.set_visible(False)
    if filled is not None:
        bar = figure.colorbar(filled, ax=list(axes), shrink=0.85)
        bar.set_label("mean loss", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    figure.supxlabel("a random direction (1: each vector by its own norm)", fontsize=8)
    figure.supylabel(_SECOND[rows[0]["second"]], fontsize=8)


def _surfaces(figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
    planes, low, high = _planes(rows)
    wide = min(len(rows), _COLUMNS)
    high_count = math.ceil(len(rows) / wide)
    scale = Normalize(low, high)
    for number, (row, plane) in enumerate(zip(rows, planes, strict=True), 1):
        axis: Any = figure.add_subplot(high_count, wide, number, projection="3d")
        first, second = np.meshgrid(row["axis"], row["axis"], indexing="ij")
        axis.plot_surface(
            first,
            second,
            plane,
            facecolors=colormaps["viridis"](scale(plane)),
            rstride=1,
            cstride=1,
            linewidth=0.2,
            edgecolor=(1, 1, 1, 0.4),
            shade=False,
        )
        axis.set_zlim(low, high)
        axis.set_title(_name(row), fontsize=9)
        axis.set_xlabel("a random direction", fontsize=7)
        axis.set_ylabel(_SECOND[row["second"]], fontsize=7)
        axis.set_zlabel("mean loss", fontsize=7)
        axis.set_box_aspect(None, zoom=0.82)  # else the last label is cut off
        axis.tick_params(labelsize=6)
        axis.view_init(elev=28, azim=-50)
