"""The tool that compares two commits: the same experiment gives the same digests, another seed gives others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from . import __main__ as command
from .experiments import COMMON, EXPERIMENTS, IF_KNOWN, ON_ENGINE
from .measure import measure, prepare, reduced_rows, same_labels, tree
from .product import NEEDED, product


def digests(found: dict[str, Any]) -> dict[str, str]:
    return {part: found[part] for part in ("parameters", "ledger")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seeded")
    prepare(path)
    return path


@pytest.mark.parametrize("name", ["example", "black-box-central"])
def test_the_same_digests_again_and_others_for_another_seed_or_noise(
    name: str, folder: Path
) -> None:
    changes = EXPERIMENTS[name] | {"server.rounds": 1}
    first = measure(f"{name}-1", changes, folder)
    assert digests(measure(f"{name}-2", changes, folder)) == digests(first)
    other = measure(f"{name}-3", changes | {"seed": 8}, folder)
    assert other["parameters"] != first["parameters"]
    assert other["ledger"] == first["ledger"], "the same release, of other numbers"
    louder = measure(f"{name}-4", changes | {"privacy.noise_multiplier": 0.81}, folder)
    assert louder["ledger"] != first["ledger"]
    assert {row["purpose"] for row in first["rows"]} == {"plan", "train"}
    assert all(json.loads(json.dumps(row)) == row for row in first["rows"])
    text = json.dumps(first["rows"])
    assert "seeded-run" not in text
    assert '"reason"' not in text
    assert reduced_rows(folder / "runs" / f"{name}-1" / "ledger.sqlite") == first["rows"]


def test_a_setting_that_changes_the_fingerprint_alone_is_seen_on_demand(folder: Path) -> None:
    """`client.max_tokens` is part of the fingerprint, and changes no sum of these few examples."""
    changes = EXPERIMENTS["example"] | {"server.rounds": 1}
    other = changes | {"client.max_tokens": 4095}
    for keep in (False, True):
        one = measure(f"own-{keep}-1", changes, folder, keep_fingerprints=keep)
        two = measure(f"own-{keep}-2", other, folder, keep_fingerprints=keep)
        assert (one["parameters"] == two["parameters"]) is not keep


def test_streams_are_as_before_afterwards() -> None:
    generator = product("generator")
    before = generator(1, "a" * 64).bytes(8)
    with same_labels():
        assert generator(1, "a" * 64).bytes(8) == generator(1, "b" * 64).bytes(8)
        assert generator(1, "train").bytes(8) != generator(1, "noise").bytes(8)
    assert generator(1, "a" * 64).bytes(8) == before != generator(1, "b" * 64).bytes(8)


def test_every_experiment_has_settings_that_are_accepted() -> None:
    for changes in EXPERIMENTS.values():
        product("parse_settings")(tree(COMMON | changes))
    assert set(ON_ENGINE) <= set(EXPERIMENTS)
    assert all(any(name in changes for changes in EXPERIMENTS.values()) for name in IF_KNOWN)


def test_a_name_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NEEDED, "gone", ("privacy", ("no_such_function",)))
    with pytest.raises(LookupError, match=r"no_such_function in privacy/, found no file"):
        product("gone")


def test_the_command_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"parameters": "a", "ledger": "b", "rows": []}
    monkeypatch.setattr(command, "prepare", lambda folder: None)
    monkeypatch.setattr(command, "measure", lambda *args, **kwargs: dict(told))
    file = tmp_path / "before.json"
    assert command.main(["example", "client", "--write", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(file.read_text())
    assert command.main(["example", "client", "--compare", str(file)]) == 0
    told["ledger"] = "c"
    assert command.main(["example", "--compare", str(file)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "example: different ledger"
    assert command.main(["lmo", "--compare", str(file)]) == 1
    assert "lmo: only after" in capsys.readouterr().err
