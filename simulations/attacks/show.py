"""Shared output of the commands: tables with standard errors, and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simulations.output import print_json, print_parts

FigurePath = Annotated[
    Path | None, typer.Option("--figure", help="Draw to this file (.png, .svg or .pdf).")
]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8658f", "#b07d00", "#3d9ad1", "#7d6cc0", "#7a7a7a")
_ENDINGS = (".png", ".svg", ".pdf")


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error (0 for one value)."""
    array = np.asarray(values, dtype=float)
    error = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else 0.0
    return float(array.mean()), float(error)


def share(value: tuple[float, float] | Sequence[float]) -> str:
    """Return a share and its standard error, in percent."""
    return f"{100 * value[0]:.1f} ± {100 * value[1]:.1f}"


def check_figure(path: Path | None) -> None:
    """Refuse a figure's path before the work begins.

    Raises:
        ValueError: an ending that is not drawn, or a folder that does not exist.
    """
    if path is not None and path.suffix.lower() not in _ENDINGS:
        raise ValueError(f"Expected --figure to end in .png, .svg or .pdf, got --figure={path}")
    if path is not None and not path.resolve().parent.is_dir():
        raise ValueError(f"Expected a folder for --figure, got --figure={path}")


def save_figure(
    path: Path | None, draw: Callable[[Figure], Any], size: tuple[float, float]
) -> str | None:
    """Draw to a file; gives its path, or None where none was asked for."""
    if path is None:
        return None
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    figure.savefig(path, dpi=150)
    return str(path)


def present(
    result: dict[str, Any],
    tables: Callable[[dict[str, Any]], list[Any]],
    draw: Callable[[Figure, dict[str, Any]], Any],
    *,
    figure: Path | None,
    size: tuple[float, float],
    as_json: bool,
) -> None:
    """Draw the result where that was asked for, and print it, as tables or as JSON."""
    result["figure"] = save_figure(figure, lambda drawn: draw(drawn, result), size)
    if as_json:
        print_json(result)
    else:
        print_parts(*tables(result))
