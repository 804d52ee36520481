"""Settings: documented, checked, overridden, written and read back."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from fedllm.settings.experiment import Settings
from fedllm.settings.io import (
    SettingsError,
    from_json,
    load_settings,
    parse_settings,
    to_json,
    to_toml,
)
from fedllm.settings.section import Section

ROOT = Path(__file__).resolve().parents[3]


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, Section):
            yield name, type(field.default)


def keys() -> list[tuple[str, str]]:
    return [(name, key) for name, section in sections() for key in section.model_fields]


def test_every_key_and_section_is_documented() -> None:
    assert len(keys()) > 50
    for name, section in sections():
        assert section.__doc__, name
        for key, field in section.model_fields.items():
            assert field.description, f"{name}.{key}"
            assert len(field.description) > 10, f"{name}.{key}"


def test_documented_toml_holds_every_key_and_reads_back() -> None:
    text = to_toml(Settings(), documented=True)
    for section, key in keys():
        assert f"\n{key} =" in text or f"# {key} =" in text, f"{section}.{key}"
    assert parse_settings(tomllib.loads(text)) == Settings()


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"privacy": {"epsilom": 3}}, "privacy.epsilon"),
        ({"privcy": {"epsilon": 3}}, "privacy"),
        ({"server": {"local_steps": 3}}, "client.local_steps"),
        ({"epsilon": 3}, "privacy.epsilon"),
        ({"client": {"batchsize": 3}}, "client.batch_size"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_known_one(tree: Any, named: str) -> None:
    with pytest.raises(SettingsError, match=rf"did you mean (.* or )?{named}") as error:
        parse_settings(tree)
    key = next(iter(tree[next(iter(tree))])) if isinstance(tree[next(iter(tree))], dict) else ""
    assert key in str(error.value) or next(iter(tree)) in str(error.value)


def test_hopeless_key_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"known here: .*epsilon"):
        parse_settings({"privacy": {"zzzzqqq": 1}})


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("privacy.epsilon=-1", "privacy.epsilon"),
        ("privacy.epsilon=inf", "privacy.epsilon"),
        ("privacy.epsilon=nan", "privacy.epsilon"),
        ("privacy.delta=1", "privacy.delta"),
        ("privacy.clip=0", "privacy.clip"),
        ("privacy.mode=maybe", "privacy.mode"),
        ("privacy.accountant=gdp-clt", "privacy.accountant"),
        ("client.batch_size=0", "client.batch_size"),
        ("client.batch_size=none", "client.batch_size"),
        ("client.sampling_rate=1.5", "client.sampling_rate"),
        ("client.local_steps=2.5", "client.local_steps"),
        ("server.rounds=many", "server.rounds"),
        ("privacy.noise_multiplier=0", "privacy.noise_multiplier"),
        ("privacy.noise_by=server", "privacy.noise_by"),
        ("privacy.relation=replace-one", "privacy.relation"),
        ("data.sizes=private", "client.sampling_rate"),
        ("evaluation.clients=raw", "evaluation.clients_holdout"),
        ("task.labels=['a']", "task.labels"),
        ("task.labels=['a', 'a']", "task.labels"),
        ("name=a/b", "name"),
    ],
)
def test_value_out_of_range_is_named(override: str, named: str) -> None:
    with pytest.raises(SettingsError, match="Expected") as error:
        load_settings(ROOT / "simulations/experiments/tweets.toml", [override])
    assert named in str(error.value)


def test_overrides_are_toml_or_text() -> None:
    got = load_settings(
        ROOT / "simulations/experiments/tweets.toml",
        [
            "privacy.epsilon=8",
            "prefix.layers=[0, -1]",
            "data.silo_names=['United']",
            "model.name = some/model",
            "data.limit=none",
            "privacy.epsilon=5",
            "privacy.ledger=none",
        ],
    )
    assert got.privacy.epsilon == 5.0
    assert got.prefix.layers == (0, -1)
    assert got.data.silo_names == ("United",)
    assert got.model.name == "some/model"
    assert got.data.limit is None
    assert got.privacy.ledger is None


@pytest.mark.parametrize("text", ["privacy.epsilon", "=3", "privacy..epsilon=3", "name.x=1"])
def test_malformed_override_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="Expected"):
        load_settings(ROOT / "simulations/experiments/tweets.toml", [text])


def test_missing_folder_or_broken_file_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("a = [", encoding="utf-8")
    for path in (tmp_path / "none.toml", tmp_path, broken):
        with pytest.raises(SettingsError) as error:
            load_settings(path)
        assert str(path) in str(error.value)


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.privacy.epsilon = 100.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted((ROOT / "simulations").rglob("*.toml"))
        if "arms" not in tomllib.loads(path.read_text(encoding="utf-8"))  # a sweep's file
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_each_experiment_loads_and_survives_toml_and_json(path: Path) -> None:
    settings = load_settings(path)
    assert parse_settings(tomllib.loads(to_toml(settings))) == settings
    assert from_json(to_json(settings)) == settings


def test_none_survives_toml_where_the_default_is_not_none() -> None:
    tree = {"privacy": {"epsilon": "none", "noise_multiplier": 1.5}}
    settings = parse_settings(tree | {"evaluation": {"max_examples": "none"}})
    assert settings.privacy.epsilon is None
    assert settings.evaluation.max_examples is None
    again = parse_settings(tomllib.loads(to_toml(settings)))
    assert again == settings
    assert parse_settings(tomllib.loads(to_toml(settings, documented=True))) == settings


def test_the_text_none_stays_text_where_a_setting_may_not_be_empty() -> None:
    assert parse_settings({"model": {"name": "none"}}).model.name == "none"


FLOATS = st.floats(1e-9, 1e9, allow_nan=False)


@given(
    epsilon=st.none() | FLOATS,
    clip=FLOATS,
    delta=st.floats(1e-300, 0.999),
    layers=st.just("all") | st.lists(st.integers(-5, 5), max_size=4).map(tuple),
    labels=st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=4, unique=True),
    limit=st.none() | st.integers(1, 10**9),
    seed=st.integers(0, 2**63 - 1),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_any_tree_survives_toml_and_json(
    epsilon: float | None,
    clip: float,
    delta: float,
    layers: Any,
    labels: list[str],
    limit: int | None,
    seed: int,
) -> None:
    tree = {
        "seed": seed,
        "privacy": {"epsilon": epsilon, "noise_multiplier": 1.0, "clip": clip, "delta": delta},
        "prefix": {"layers": layers},
        "task": {"labels": labels},
        "data": {"limit": limit},
    }
    settings = parse_settings(tree)
    assert parse_settings(tomllib.loads(to_toml(settings))) == settings
    assert from_json(to_json(settings)) == settings


def test_data_path_is_relative_to_the_file_and_expands_variables(
    tmp_path: Path, tiny_tree: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tomli_w

    file = tmp_path / "sub" / "a.toml"
    file.parent.mkdir()
    monkeypatch.setenv("SOMEWHERE", "/somewhere")
    for written, expected in {
        "../data": tmp_path / "data",
        "$SOMEWHERE/x": Path("/somewhere/x"),
        "~/x": Path.home() / "x",
    }.items():
        changes = {
            "data.path": written,
            "public.source": "files",
            "public.path": f"{written}/p.csv",
        }
        file.write_text(tomli_w.dumps(tiny_tree(**changes)), encoding="utf-8")
        settings = load_settings(file)
        assert settings.data.path == str(expected)
        assert settings.public.path == str(expected / "p.csv")
