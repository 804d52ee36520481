"""Shared parts of the command line: common options, one-line errors, JSON, tables."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NoReturn

import click
import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from fedllm.files.durable import plain

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: section.key=value. May be repeated."),
]
RunPath = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")]
LedgerPath = Annotated[Path, typer.Argument(help="A ledger file.", metavar="PATH")]

_WIDEST = 1000


class _OneLine(click.Command):
    """Print errors about input as one line on stderr and exit with status 2."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Parse the options."""
        try:
            return super().make_context(*args, **options)
        except click.UsageError as error:
            _fail(error)

    def get_help(self, ctx: click.Context) -> str:
        """Return the help text without the backslashes that Typer writes if rich is installed."""
        return super().get_help(ctx).replace("\\[", "[")

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `| head` has seen enough; nothing more may be written at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None
        except (click.UsageError, ValueError, ArithmeticError, OSError) as error:
            _fail(error)
        except KeyboardInterrupt:
            typer.echo("fedllm: interrupted", err=True)
            raise typer.Exit(130) from None


class OneLineErrors(_OneLine, TyperCommand):
    """A command whose errors about input are one line on stderr and exit status 2."""

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write nothing: Typer writes the arguments among the options, and click 8.5 would write them again."""


class OneLineGroup(_OneLine, TyperGroup):
    """A command group whose errors about input are one line on stderr and exit status 2."""


def _fail(error: Exception) -> NoReturn:
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        raise error  # prints the help
    message = error.format_message() if isinstance(error, click.UsageError) else str(error)
    if isinstance(error, ArithmeticError):
        message = f"Cannot be computed with these values: {message}"
    lines = [" ".join(line.split()) for line in message.splitlines()]
    typer.echo("fedllm: " + "; ".join(filter(None, lines)), err=True)
    raise typer.Exit(2) from None


def require(option: str, value: float, good: bool, expected: str) -> None:
    """Raise ValueError that names the option, its value and the expected range."""
    if not good:
        raise ValueError(f"Expected {option} to be {expected}, got {option}={value}")


def print_json(value: Mapping[str, Any]) -> None:
    """Print JSON; infinite numbers become "Infinity"."""
    typer.echo(json.dumps(plain(dict(value)), ensure_ascii=False, indent=2, allow_nan=False))


def print_parts(*parts: Table | str) -> None:
    """Print tables and texts, each on its own line; only the terminal wraps them.

    A table is as wide as the terminal, or wider if a word (a digest, a path) would be split, so that words can be
    copied and searched.
    """
    console = Console()
    for part in parts:
        if isinstance(part, str):
            console.print(part, highlight=False, markup=False, soft_wrap=True)
            continue
        _wide_enough(part, console).print(part, highlight=False, markup=False)


def _wide_enough(table: Table, console: Console) -> Console:
    """Return the console, or a wider one on which no word of the table is split."""
    words = {
        word
        for column in table.columns
        for cell in column.cells
        if isinstance(cell, str)
        for word in cell.split()
    }
    size = Measurement.get(console, console.options.update_width(_WIDEST), table)
    for width in (console.width, size.minimum, size.maximum):
        wide = Console(width=max(width, console.width), height=console.height)
        with wide.capture() as shown:
            wide.print(table, highlight=False, markup=False)
        if all(word in shown.get() for word in words):
            return wide if width > console.width else console
    return Console(width=size.maximum, height=console.height)


def make_table(*columns: str) -> Table:
    """Make a table that folds long cells instead of cutting them off."""
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def rounded(value: float, digits: int, towards: Callable[[Any], int]) -> str:
    """Round a value up or down to some significant digits."""
    if value == 0 or not math.isfinite(value):
        return "∞" if value == math.inf else f"{value:g}"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    scaled = Decimal(repr(float(value))).scaleb(places)
    return f"{float(Decimal(towards(scaled)).scaleb(-places)):.{digits}g}"


def epsilon_text(epsilon: float) -> str:
    """Format epsilon, rounded up so that the printed number is still a bound."""
    from fedllm.report.guarantee import shown

    return rounded(epsilon, 6, math.ceil) if 1e4 < epsilon < math.inf else shown(epsilon)
