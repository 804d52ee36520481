"""A command starts at once: its file, and what takes seconds to load, is imported when it is called."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from client import config
from fedllm import __version__
from server.deployment import folder
from simulations.benchmarks import start_time
from simulations.cli import deploy, ledger
from simulations.cli.lazy import Table
from simulations.cli.main import COMMANDS, app

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ["torch", "transformers", "flwr", "ray", "scipy", "dp_accounting", "pydantic"]
TABLES = {"fedllm": COMMANDS, "ledger": ledger.COMMANDS, "deploy": deploy.COMMANDS}
LIGHT = {"typer", "click", "rich", *sys.stdlib_module_names}
ALL_HELPS = f"""
import contextlib, io, json, sys
from simulations.benchmarks.start_time import commands
from simulations.cli.main import app

found = {{}}
for words in commands():
    with contextlib.redirect_stdout(io.StringIO()) as text:
        app([*words, "--help"], prog_name="fedllm", standalone_mode=False)
    assert text.getvalue().startswith(f"Usage: {{' '.join(['fedllm', *words])}} "), text.getvalue()
    found[" ".join(words)] = sorted({HEAVY} & sys.modules.keys())
print(json.dumps(found))
"""


def fedllm(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), prog_name="fedllm", env={"COLUMNS": "200"})


@pytest.mark.parametrize("group", TABLES)
def test_the_line_of_help_is_the_commands_own(group: str) -> None:
    table: Table = TABLES[group]
    for name, (place, line) in table.items():
        module, _, attribute = place.partition(":")
        found = getattr(import_module(module), attribute)
        own = found.info.help if isinstance(found, typer.Typer) else inspect.getdoc(found)
        assert own.splitlines()[0] == line, name


@pytest.mark.parametrize("group", TABLES)
def test_a_commands_file_imports_at_its_top_only_what_is_light(group: str) -> None:
    for place, _ in TABLES[group].values():
        path = Path(str(import_module(place.partition(":")[0]).__file__))
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            else:
                continue
            for name in names:
                ours = name == "simulations.output" or name.startswith("simulations.cli.")
                assert ours or name.split(".")[0] in LIGHT, f"{path}: {name}"


def test_no_help_text_needs_what_takes_seconds_to_load() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALL_HELPS], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 1 + sum(map(len, TABLES.values()))
    assert {words: names for words, names in found.items() if names} == {}


def test_help_costs_few_times_a_bare_python() -> None:
    """About 4 where it was measured; with torch and Flower it was 230."""
    seconds = start_time.measure([(), ("run",)], repeats=3)
    assert list(seconds) == [start_time.NOTHING, "fedllm --help", "fedllm run --help"]
    assert max(start_time.ratios(seconds).values()) < 20


def test_the_help_says_what_each_argument_is() -> None:
    for words, line in {
        ("run",): "EXPERIMENT  The experiment's TOML file.  [required]",
        ("sign",): "RUN  A run folder.  [required]",
        ("ledger", "show"): "PATH  A ledger file.  [required]",
        ("sweep",): "FILE  The sweep's TOML file.  [required]",
    }.items():
        assert fedllm(*words, "--help").stdout.count(line) == 1, words


def test_every_argument_has_a_help_text() -> None:
    for words in start_time.commands():
        text = fedllm(*words, "--help").stdout
        for line in text.partition("Arguments:\n")[2].partition("\n\n")[0].splitlines():
            if line[2:3] != " ":  # no continuation
                described = line.replace("[required]", "").split(maxsplit=1)
                assert len(described) == 2, (words, line)


def test_the_version() -> None:
    found = fedllm("--version")
    assert (found.exit_code, found.stdout) == (0, f"fedllm {__version__}\n")
    assert fedllm("deploy", "--version").exit_code == 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fedllm re", ["resume", "report"]),
        ("fedllm deploy st", ["status", "stop"]),
        ("fedllm run --s", ["--set"]),
    ],
)
def test_the_shell_completes_commands_and_options(line: str, expected: list[str]) -> None:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", "from simulations.cli.main import app; app(prog_name='fedllm')"],
        cwd=ROOT,
        env=os.environ | words | {"_FEDLLM_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == expected, done.stderr


def test_an_unknown_command_is_one_line_with_the_nearest_name() -> None:
    found = fedllm("rnu")
    assert (found.exit_code, found.stdout) == (2, "")
    assert found.stderr.startswith("fedllm: No such command 'rnu'.")
    found = fedllm("deploy", "strat")
    assert (found.exit_code, found.stdout) == (2, "")
    assert found.stderr.startswith("fedllm: No such command 'strat'.")


def test_the_help_lists_the_commands_in_the_tables_order() -> None:
    for words, table in {(): COMMANDS, ("deploy",): deploy.COMMANDS}.items():
        lines = fedllm(*words, "--help").stdout.split("Commands:\n")[1].splitlines()
        assert [line.split()[0] for line in lines] == list(table)


def test_help_names_the_environments_own_variables() -> None:
    assert f"${folder.ENVIRONMENT}" in fedllm("deploy", "server", "--help").stdout
    assert f"${config.ENVIRONMENT}" in fedllm("deploy", "doctor", "--help").stdout


def test_the_package_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "simulations.cli", "keygen", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")
    assert "KEY.pem" in done.stdout
