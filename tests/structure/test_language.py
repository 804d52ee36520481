"""Docstrings, command help and setting descriptions are in plain technical English.

A first line says what a thing is or does: "Return the key of a release.", "A silo's reply.". It is not a relative clause in
place of a noun ("What a silo says", "Whether the key fits"), and help texts use no figure of speech for a plain verb ("go on"
for resume).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import BaseModel
from typer.main import get_command

from fedllm.settings.experiment import Settings
from simulations.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("privacy", "fedllm", "client", "server", "simulations")
# Docstrings that still begin so, by file. Rewrite one and lower its number; add none.
LEFT = {
    "fedllm/flatness/layer_choice.py": 1,
    "fedllm/settings/checks/black_box.py": 2,
    "fedllm/settings/checks/sections.py": 5,
    "fedllm/training/statistics.py": 1,
}
CLAUSE = re.compile(
    r"(What|Whether|Who|Whose|Whoever|That which|How|Why|Which|Where|Tell (whether|what|if|how|who))\b"
)
PHRASE = re.compile(
    r"\b(go(es)? on|gone on|beside|of its own|as it is|as they are|whoever|is told|are told|what is|what it is)\b"
)


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, docstring) of a file's module and of its public classes, functions and documented names."""
    yield from _within(ast.parse(path.read_text(encoding="utf-8")), path.stem)


def _within(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    body: list[ast.stmt] = getattr(node, "body", [])
    for before, statement in zip([None, *body], body, strict=False):
        text = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            if isinstance(before, ast.Assign | ast.AnnAssign):
                yield f"{name}: {ast.unparse(before)[:40]}", text.value
            elif before is None:
                yield name, text.value
        is_named = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if is_named and (not statement.name.startswith("_") or statement.name.startswith("__")):
            yield from _within(statement, f"{name}.{statement.name}")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_docstring_begins_with_no_relative_clause(package: str) -> None:
    for path in sorted(ROOT.glob(f"{package}/**/*.py")):
        file = str(path.relative_to(ROOT))
        found = [
            f"{name}: {text.splitlines()[0]}"
            for name, text in _docstrings(path)
            if CLAUSE.match(text.strip())
        ]
        assert len(found) <= LEFT.get(file, 0), (file, found)


def test_the_check_sees_what_it_looks_for(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text(
        '"""Whether it works."""\nX = 1\n"""What X is."""\nclass A:\n    """Whose."""\n    def f(self):\n'
        '        """Why."""\n    def _g(self):\n        """How."""\n'
    )
    assert [name for name, text in _docstrings(file) if CLAUSE.match(text)] == [
        "some",
        "some: X = 1",
        "some.A",
        "some.A.f",
    ]


def _helps(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    """Yield every help text below a command, of its options too."""
    yield name, command.help or ""
    for parameter in command.params:
        yield f"{name} {parameter.name}", getattr(parameter, "help", None) or ""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from _helps(found, f"{name} {child}")


def _descriptions(model: type[BaseModel], name: str) -> Iterator[tuple[str, str]]:
    """Yield every description below a section of the settings."""
    for key, field in model.model_fields.items():
        yield f"{name}.{key}".strip("."), field.description or ""
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield f"{name}.{key}".strip("."), (field.annotation.__doc__ or "").strip()
            yield from _descriptions(field.annotation, f"{name}.{key}".strip("."))


def test_command_help_is_plain() -> None:
    texts = list(_helps(get_command(app), "fedllm"))
    assert len(texts) > 100
    assert not [item for item in texts if CLAUSE.match(item[1]) or PHRASE.search(item[1])]


def test_setting_descriptions_are_plain() -> None:
    texts = list(_descriptions(Settings, ""))
    assert len(texts) > 150
    assert not [item for item in texts if CLAUSE.match(item[1]) or PHRASE.search(item[1])]
