"""Settings of earlier versions: refused with what replaces them, dropped where an earlier run is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedllm import removed_settings
from fedllm.removed_settings import Removed, removed_of
from fedllm.run_folder import RunFolder
from fedllm.settings_io import SettingsError, load_settings, parse_settings

EARLIER = Path(__file__).parents[1] / "support" / "earlier_run"


@pytest.fixture(autouse=True)
def removed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "codec.echo": Removed("codec.bits=8 is as short", unused=False),
        "codec.name=zip": Removed("codec.name=linear"),
    }
    monkeypatch.setattr(removed_settings, "REMOVED", removed_settings.REMOVED | found)


@pytest.mark.parametrize("value", ["true", "false"])
def test_a_removed_key_is_refused_in_one_line_whatever_its_value(
    tmp_path: Path, value: str
) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(f"[codec]\necho = {value}\n", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert str(caught.value) == (
        f"{path}: Expected no codec.echo (removed: codec.bits=8 is as short), got codec.echo="
        f"{value.capitalize()}"
    )


def test_a_removed_value_is_refused_in_one_line_and_an_override_too(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text("", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_settings(path, ["codec.name=zip"])
    expected = "Expected another codec.name (removed: codec.name=linear), got codec.name='zip'"
    assert str(caught.value) == f"{path}: {expected}"


def test_removed_and_unknown_keys_are_named_together() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"codec": {"echo": True, "nmae": "none"}})
    removed, unknown = str(caught.value).splitlines()
    assert "removed" in removed
    assert "did you mean codec.name?" in unknown


def test_what_is_no_section_or_no_text_is_left_to_the_other_checks() -> None:
    for tree in ({"codec": "echo"}, {"codec": {"name": ["zip"]}}, {"codec": {"name": 3}}):
        with pytest.raises(SettingsError) as caught:
            parse_settings(tree)
        assert "removed" not in str(caught.value)


def test_a_run_of_an_earlier_version_opens_without_them(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EARLIER, tmp_path / "earlier"))
    path = folder / "settings.toml"
    plain = RunFolder.open(folder).settings()
    text = path.read_text(encoding="utf-8").replace("[codec]\n", "[codec]\necho = true\n")
    path.write_text(
        text.replace('[codec]\necho = true\nname = "none"', '[codec]\necho = true\nname = "zip"')
    )
    assert RunFolder.open(folder).settings() == plain


def test_the_settings_that_an_earlier_run_used_are_named() -> None:
    assert removed_of({"codec": {"echo": False, "name": "fp16"}, "seed": 1}) == {}
    used = {"codec": {"echo": True, "name": "zip"}}
    assert removed_of(used) == {"codec.echo": True, "codec.name": "zip"}
