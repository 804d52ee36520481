"""The documentation names modules, files, links and settings that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import reference

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PACKAGES = ("privacy", "fedllm", "client", "server", "simulations", "tests")
SOURCES = sorted(path for name in PACKAGES for path in ROOT.glob(f"{name}/**/*.py"))
# What was made by a command of an earlier commit names that commit's tag, and its own modules and files.
TAGGED = re.compile(r"`[^`]+`\s+at\s+the\s+(same\s+)?tag(\s+results-2026-11)?")
MODULE = re.compile(rf"(?<![\w./-])((?:{'|'.join(PACKAGES)})(?:\.\w+)+)")
FILE = re.compile(
    rf"(?<![\w./-])((?:{'|'.join(PACKAGES)})(?:/[\w*-]+)*/[\w*.-]+\.(?:py|toml|sh|json))\b"
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def _names(page: Path) -> str:
    return TAGGED.sub("", page.read_text())


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def _anchors(page: Path) -> Iterator[str]:
    for title in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_pages_are_found() -> None:
    assert {"README.md", "ARCHITECTURE.md", "docs/quickstart.md", "docs/guides/deployment.md"} <= {
        str(page.relative_to(ROOT)) for page in PAGES
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_run_modules_that_exist(page: Path) -> None:
    run = re.findall(r"python -m ([\w.]+)", _names(page))
    # In a table whose rows leave `python -m` out, a command is a module of ours in backticks, perhaps with options.
    if "`python -m COMMAND`" in page.read_text():
        run += re.findall(r"`((?:simulations|tests)\.[\w.]+)[` ]", _names(page))
    unknown = [name for name in run if name.split(".")[0] in PACKAGES and not _is_module(name)]
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_exist(page: Path) -> None:
    assert not [name for name in FILE.findall(_names(page)) if not list(ROOT.glob(name))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), link
        assert not anchor or anchor in _anchors(target), link


def test_docstrings_refer_to_modules_that_exist() -> None:
    """Cross-references, commands and pages that the text of a module names."""
    assert not [
        (str(path.relative_to(ROOT)), name)
        for path in SOURCES
        for name in _dangling(path.read_text())
    ]


def _dangling(text: str) -> Iterator[str]:
    for name in re.findall(r":(?:mod|class|func|meth|data|attr|exc):`~?([\w.]+)`", text):
        if MODULE.fullmatch(name) and not _is_defined(name):
            yield name
    for name in re.findall(r"python -m ([\w.]+)", text):
        if name.split(".")[0] in PACKAGES and not _is_module(name):
            yield name
    for name in re.findall(r"\bdocs/[\w/-]+\.(?:md|png)", text):
        if not (ROOT / name).is_file():
            yield name


def _is_defined(name: str) -> bool:
    """Whether a name is a module, or something that a module's text has, such as `package.module.Class.method`."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if source.is_file():
            return all(re.search(rf"\b{part}\b", source.read_text()) for part in parts[length:])
    return False


def test_the_reference_is_what_settings_and_commands_say() -> None:
    """``python -m tests.support.reference`` writes both pages anew."""
    assert (reference.FOLDER / "settings.md").read_text() == reference.settings_page()
    assert (reference.FOLDER / "commands.md").read_text() == reference.commands_page()
