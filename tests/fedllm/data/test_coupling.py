"""Which records move where one is missing: as measured, and as plan and report say."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedllm.data.coupling import couplings, minor_couplings
from fedllm.data.silos import load_federation
from fedllm.report.prose.assumptions import assumptions

Make = Callable[..., Any]
needs_flower = pytest.mark.skipif(
    importlib.util.find_spec("flwr_datasets") is None, reason="flwr-datasets is not installed"
)
DIVISIONS = [
    {"data.partition": "natural"},
    {"data.partition": "natural", "data.validation": None, "data.holdout": 0.2},
    {"data.partition": "natural", "data.silo_names": ["alpha", "beta"]},
    {"data.partition": "hash", "data.silos": 3},
    {"data.partition": "natural", "data.silos": 1},
    {"data.partition": "natural", "data.limit": 60},
    {"data.partition": "iid", "data.silos": 3},
    pytest.param({"data.partition": "dirichlet", "data.silos": 3}, marks=needs_flower),
    pytest.param({"data.partition": "pathological", "data.silos": 3}, marks=needs_flower),
]


def silos_of(settings: Any) -> dict[str, str]:
    """The silo of each text, and where it is held out."""
    federation = load_federation(settings)
    places = {record["text"]: "server" for record in federation.evaluation.records}
    for silo in federation.silos:
        places |= {record["text"]: silo.name for record in silo.train.records}
        places |= {record["text"]: f"{silo.name}, held out" for record in silo.held_out.records}
    return places


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def moved(tiny_settings: Make, tmp_path: Path) -> Callable[..., tuple[Any, set[str]]]:
    """``moved(**changes)``: the settings, and the texts that go elsewhere where some one other is missing."""
    organisations = ["alpha"] * 50 + ["beta"] * 50 + ["gamma"] * 20
    rows = [
        {"text": f"number {i}", "label": ("bad", "good")[i % 2], "organisation": name}
        for i, name in enumerate(organisations)
    ]

    def divide(name: str, kept: list[dict[str, Any]], changes: dict[str, Any]) -> Any:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        write(folder / "train.jsonl", kept)
        write(folder / "validation.jsonl", [{"text": "another", "label": "bad"}])
        return tiny_settings(
            **{
                "data.path": str(folder),
                "data.validation": "validation.jsonl",
                "data.min_size": 1,
                "evaluation.clients_holdout": 0.1,
                **changes,
            }
        )

    def find(**changes: Any) -> tuple[Any, set[str]]:
        settings = divide("whole", rows, changes)
        whole = silos_of(settings)
        gone: set[str] = set()
        for missing in (0, 7, 49, 50, 77, 119):
            kept = rows[:missing] + rows[missing + 1 :]
            less = silos_of(divide(f"without-{missing}", kept, changes))
            text = rows[missing]["text"]
            gone |= {t for t in whole | less if whole.get(t) != less.get(t)} - {text}
        return settings, gone

    return find


@pytest.mark.parametrize("changes", DIVISIONS, ids=str)
def test_one_record_moves_others_exactly_where_it_is_said(
    changes: dict[str, Any], moved: Callable[..., tuple[Any, set[str]]]
) -> None:
    settings, gone = moved(**changes)
    assert bool(gone) == bool(couplings(settings.data))
    said = dict(assumptions(settings, seeded=False, runs=1)).get("Division of the data", "")
    assert bool(said) == bool(gone)
    for setting in couplings(settings.data):
        assert f"{setting}: " in said


def test_what_touches_few_records_is_said_too(tiny_settings: Make) -> None:
    """The smallest silo that is allowed, and repeated texts."""
    settings = tiny_settings(**{"data.min_size": 24})
    assert {silo.name for silo in load_federation(settings).silos} >= {"delta"}  # 24 records
    said = dict(assumptions(settings, seeded=False, runs=1))["Division of the data"]
    assert "data.min_size=24: " in said
    assert "as divided" in said
    assert couplings(settings.data) == {}
    tweets = settings.data.model_copy(update={"source": "tweets"})
    assert "data.source=tweets" in minor_couplings(tweets)


def test_hash_gives_silos_of_about_equal_size_and_keeps_copies_together(
    tiny_settings: Make, tmp_path: Path
) -> None:
    rows = [{"text": f"number {i // 2}", "label": "good", "organisation": "x"} for i in range(2000)]
    write(tmp_path / "train.jsonl", rows)
    settings = tiny_settings(
        **{"data.path": str(tmp_path), "data.validation": None, "data.partition": "hash"},
        **{"data.silos": 4, "data.holdout": 0.1},
    )
    silos = load_federation(settings).silos
    assert len(silos) == 4
    assert sum(len(silo.train) for silo in silos) == pytest.approx(1800, abs=60)
    seen: dict[str, str] = {}
    for silo in silos:
        assert len(silo.train) == pytest.approx(450, abs=90)
        for record in silo.train.records:
            assert seen.setdefault(record["text"], silo.name) == silo.name
