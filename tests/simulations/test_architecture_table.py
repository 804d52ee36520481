"""The page of architectures says what the command finds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers

from simulations.architectures.__main__ import PAGE, main
from simulations.architectures.families import FAMILIES
from simulations.architectures.table import page, row
from simulations.architectures.trial import FORMS, Trial, try_family

SAME_VERSION = f"with transformers {transformers.__version__}." in PAGE.read_text(encoding="utf-8")
needs_version = pytest.mark.skipif(not SAME_VERSION, reason="written with another transformers")


def row_on_page(name: str) -> str:
    (line,) = [
        line
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith(f"| {name} |")
    ]
    return line


@needs_version
@pytest.mark.parametrize("name", ["ALBERT", "OLMo", "Mamba"])
def test_a_row_is_what_is_found(name: str) -> None:
    (family,) = [family for family in FAMILIES if family.name == name]
    trial = try_family(family)
    written, found = (
        re.sub(r"no \(\d+\)", "no", line) for line in (row_on_page(name), row(family, trial, []))
    )
    assert written == found
    assert all(refusal in PAGE.read_text() for refusal in trial.refused.values() if refusal)


@needs_version
@pytest.mark.slow
def test_the_page_is_what_the_command_writes(tmp_path: Path) -> None:
    assert main([str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_every_form_is_on_the_page_and_a_family_that_is_missing_is_named() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{form}`" in text for form in FORMS)
    trial = Trial("alone", dict.fromkeys(FORMS) | {"prefix": "because"}, 2e-7, None)
    made = page({FAMILIES[0].name: trial})
    assert "| no (1) |" in made
    assert "1. because" in made
    assert "| one example | 2e-07 | yes |" in made
    assert f"lacks {FAMILIES[1].name} (`{FAMILIES[1].model_type}`)" in made
