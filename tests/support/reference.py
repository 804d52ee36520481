"""Write docs/reference: every setting, and every command of ``fedllm``.

    python -m tests.support.reference

Settings and commands document themselves; these pages are that text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from typer.main import get_command

from fedllm.settings.experiment import Settings
from fedllm.settings.io import to_toml
from simulations.cli.main import app

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"
WRITTEN = "Written by `python -m tests.support.reference`; a test compares."


def settings_page() -> str:
    """Return the page with all settings and their defaults."""
    return (
        f"# Settings\n\nEvery setting with its default, as `fedllm settings` prints them. A key without a value is empty by default. {WRITTEN}\n\n"
        f"```toml\n{to_toml(Settings(), documented=True).strip()}\n```\n"
    )


def _commands(group: click.Group, prefix: str) -> Iterator[tuple[str, str]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", " ".join((command.help or "").split("\n\n")[0].split())


def commands_page() -> str:
    """Return the page with all commands of ``fedllm``."""
    group = get_command(app)
    assert isinstance(group, click.Group)
    rows = "\n".join(
        f"| `{name}` | {text.replace('``', '`')} |" for name, text in _commands(group, "fedllm")
    )
    return (
        f"# Commands\n\n`COMMAND --help` prints the options of each. {WRITTEN}\n\n"
        f"| command | |\n| --- | --- |\n{rows}\n\n"
        "Benchmarks and attacks are modules of `simulations/benchmarks` and `simulations/attacks`; the results pages name the command of each "
        "figure. `python -m tests.mutation` runs the mutants, `python -m tests.hostile` sends a silo the tasks of a hostile server, and "
        "`python -m tests.seeded` compares seeded runs of two commits.\n"
    )


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "settings.md").write_text(settings_page())
    (FOLDER / "commands.md").write_text(commands_page())
