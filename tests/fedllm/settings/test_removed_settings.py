"""Settings of earlier versions: refused with what replaces them, dropped where an earlier run is read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import pytest
from accounting_commands import call
from flwr.serverapp import Grid

from fedllm.report.build import build
from fedllm.run.folder import RunFolder, RunFolderError
from fedllm.settings import removed as removed_settings
from fedllm.settings.io import SettingsError, load_settings, parse_settings
from fedllm.settings.removed import Removed, removed_of
from server.run import run_experiment

EARLIER = Path(__file__).parents[2] / "support" / "earlier_run"


@pytest.fixture(autouse=True)
def removed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "codec.echo": Removed("codec.bits=8 is as short", unused=(False,)),
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


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A run folder of an earlier version, with settings that it used."""
    folder = Path(shutil.copytree(EARLIER, tmp_path / "earlier"))
    path = folder / "settings.toml"
    text = path.read_text(encoding="utf-8")
    used = text.replace('[codec]\nname = "none"', '[codec]\necho = true\nname = "zip"')
    path.write_text(used, encoding="utf-8")
    return folder


def test_a_run_of_an_earlier_version_opens_and_reports_without_them(earlier: Path) -> None:
    assert RunFolder.open(earlier).settings() == RunFolder.open(EARLIER).settings()
    report, plain = build(earlier), build(EARLIER)
    (note,) = [note for note in report["notes"] if "codec.echo" in note]
    assert "earlier version with codec.echo = True, codec.name = zip" in note
    assert report["guarantee"] == plain["guarantee"]
    assert report["settings"]["codec"] == plain["settings"]["codec"]


def test_nobody_goes_on_with_such_a_run(earlier: Path) -> None:
    RunFolder.open(EARLIER).require_current()
    run = RunFolder.open(earlier)
    before = run.state()
    with pytest.raises(
        RunFolderError, match=r"codec\.echo=True, codec\.name=zip, which was removed"
    ):
        run_experiment(cast(Grid, None), run)
    assert run.state() == before
    result = call("resume", earlier)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "codec.echo=True, codec.name=zip, which was removed" in line


def test_the_settings_that_an_earlier_run_used_are_named() -> None:
    assert removed_of({"codec": {"echo": False, "name": "fp16"}, "seed": 1}) == {}
    used = {"codec": {"echo": True, "name": "zip"}}
    assert removed_of(used) == {"codec.echo": True, "codec.name": "zip"}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("codec.error_feedback=true", "Expected no codec.error_feedback"),
        ("privacy.calibrate_to=claimed", "fedllm lmo-check"),
        ("awp.form=previous", "Expected another awp.form (removed: awp.form=per-example"),
        ("awp.form=private-ascent", "Expected another awp.form (removed: awp.form=per-example"),
    ],
)
def test_each_names_what_replaced_it(tmp_path: Path, setting: str, expected: str) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text("", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_settings(path, [setting])
    (line,) = str(caught.value).splitlines()
    assert expected in line
