"""Command groups that import a command's file only when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, ClassVar

import click
import typer
from typer.core import TyperArgument
from typer.utils import get_params_from_function

from simulations.output import OneLineErrors, OneLineGroup

Table = Mapping[str, tuple[str, str]]
"""Import path (``module:function`` or ``module:group``) and first help line, by a command's name."""
_OPTIONS: Mapping[str, Any] = {
    "add_completion": False,
    "suggest_commands": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}


class LazyGroup(OneLineGroup):
    """A group that knows its commands' names and first help lines, and imports the one that is called."""

    table: ClassVar[Table]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, (_, line) in self.table.items():
            self.commands[name] = click.Command(name, help=line)  # for lists and suggestions

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; return None if the table does not have it."""
        return load_command(self.table, cmd_name) if cmd_name in self.table else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands for the help text without importing them."""
        room = formatter.width - 6 - max(map(len, self.commands))  # the margins that click leaves
        rows = [(name, command.get_short_help_str(room)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def load_command(table: Table, name: str) -> click.Command:
    """Import the file of a command or group and build the command."""
    module, _, attribute = table[name][0].partition(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    app = typer.Typer(**_OPTIONS)
    app.command(name, cls=OneLineErrors)(found)
    command = typer.main.get_command(app)
    _restore_argument_help(command, found)
    return command


def _restore_argument_help(command: click.Command, function: Any) -> None:
    """Give arguments their help texts again: click 8.5 sets them to None after Typer 0.20 has set them."""
    described = get_params_from_function(function)
    for argument in command.params:
        if isinstance(argument, TyperArgument) and argument.help is None and argument.name:
            argument.help = getattr(described[argument.name].default, "help", None)


def lazy_group(name: str, help: str, commands: Table, *, first: bool = False) -> typer.Typer:
    """Make a group from a table of commands.

    Args:
        first: this is the command itself, with ``--version`` and shell completion, and none of its groups.

    Example:
        ``lazy_group("tool", "Tools.", {"hello": ("tools.hello:hello", "Greet somebody.")})`` is a command ``tool``
        with the command ``hello``.
    """

    class Group(LazyGroup):
        table = commands

    options = dict(_OPTIONS) | {"add_completion": first}
    app = typer.Typer(name=name, help=help, no_args_is_help=True, cls=Group, **options)
    app.callback()(_with_version if first else _nothing)  # makes Typer treat this as a group
    return app


def _nothing() -> None: ...


def _print_version(asked: bool) -> None:
    if asked:
        from fedllm import __version__

        typer.echo(f"fedllm {__version__}")
        raise typer.Exit()


def _with_version(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None: ...
