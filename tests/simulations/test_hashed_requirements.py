"""What a deployment installs has a hash for each file, in the versions that the tests ran with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from server.deployment.units import DOCKERFILE
from simulations.hashed_requirements import BUILD, HASHED, entry

ROOT = Path(__file__).parents[2]
_ENTRY = re.compile(r"^([a-z0-9-]+)==([^ ;]+)(?: ; [^\\\n]+)? \\\n((?:    --hash=.*\n)+)", re.M)


def pinned(name: str) -> dict[str, set[str]]:
    """Versions by package; each entry of the file has been looked at."""
    text = "".join(
        line
        for line in (ROOT / name).read_text().splitlines(keepends=True)
        if not line.startswith("#")
    )
    found: dict[str, set[str]] = {}
    for package, version, hashes in _ENTRY.findall(text):
        found.setdefault(package, set()).add(version)
        each = [line.strip(" \\\n") for line in hashes.splitlines()]
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in each), package
    assert _ENTRY.sub("", text).strip() == "", "a line that is no pinned and hashed package"
    return found


def test_every_entry_is_pinned_and_hashed() -> None:
    found = pinned(HASHED)
    assert len(found) > 80
    assert set(pinned(BUILD)) == {"setuptools"}
    assert pinned(BUILD)["setuptools"] == found["setuptools"]


def test_all_that_the_project_asks_for_is_there_in_the_versions_of_the_constraints() -> None:
    found = pinned(HASHED)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        requirement = Requirement(text)
        versions = found[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(version) for version in versions), text
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith("#") or "==" not in line:
            continue
        name, version = line.split("==")
        assert found.get(canonicalize_name(name), {version}) == {version}, line


def test_the_image_and_the_page_install_by_them() -> None:
    page = (ROOT / "docs" / "guides" / "deployment.md").read_text()
    for text in (DOCKERFILE, page):
        assert f"--require-hashes -r {BUILD}" in text.replace("/source/", "")
        assert f"--require-hashes --no-build-isolation -r {HASHED}" in text.replace("/source/", "")
        assert "--no-deps" in text
    wheel = (ROOT / "Makefile").read_text().partition("\nwheel:")[2].partition("\n\n")[0]
    assert f"{BUILD} {HASHED} dist/" in wheel
    assert "sha256sum fedllm-*.whl constraints.txt requirements-*.txt" in wheel


def test_an_entry_is_found_by_its_name() -> None:
    text = (ROOT / HASHED).read_text()
    assert entry(text, "torch").startswith("torch==2")
    with pytest.raises(ValueError, match="nowhere"):
        entry(text, "nowhere")
