"""Data of the tiny experiment in the forms of other kinds of tasks, and the settings of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simulations.benchmarks.support.tiny import SILOS, make_records

TEMPLATE = (
    "{% for m in messages %}{{ 'w4 ' if m.role == 'user' else 'w5 ' }}{{ m.content }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}w5 {% endif %}"
)
"""A chat template of the tiny models' words; [SEP] ends a turn."""
SETTINGS: dict[str, dict[str, Any]] = {
    "multilabel": {"task.labels": ["high", "long", "even"]},
    "regression": {"task.labels": None, "task.target_range": [0, 60]},
    "tokens": {"task.labels": ["O", "B-high", "I-high"]},
    "chat": {"task.labels": None, "task.template": TEMPLATE, "task.max_prompt": 24},
}


def in_form(kind: str, record: dict[str, Any]) -> dict[str, Any]:
    """Return a record of words in the form of a kind of task, a function of this record alone."""
    words = record["text"].split()
    numbers = [int(word[1:]) for word in words]
    tags, inside = [], False
    for number in numbers:
        tags.append(("I-high" if inside else "B-high") if number > 31 else "O")
        inside = number > 31
    marks = {"high": record["label"] == "high", "long": len(words) > 5, "even": numbers[0] % 2 == 0}
    forms: dict[str, dict[str, Any]] = {
        "multilabel": {
            "text": record["text"],
            "labels": [name for name, on in marks.items() if on],
        },
        "regression": {"text": record["text"], "score": sum(numbers) / len(numbers)},
        "tokens": {"tokens": words, "tags": tags},
        "chat": {
            "messages": [
                {"role": "user", "content": record["text"]},
                {"role": "assistant", "content": record["answer"]},
                {"role": "user", "content": words[-1]},
                {"role": "assistant", "content": words[0]},
            ]
        },
    }
    return forms[kind] | {"organisation": record["organisation"]}


def save(kind: str, folder: Path) -> Path:
    """Write train.jsonl (the silos' examples) and validation.jsonl (40) of a kind of task."""
    rows = [
        record
        for seed, (silo, count) in enumerate(SILOS.items())
        for record in make_records(count, seed, silo)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in {"train": rows, "validation": make_records(40, 99, "server")}.items():
        text = "".join(json.dumps(in_form(kind, row)) + "\n" for row in chosen)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def changes(kind: str, folder: Path, decoder: Path) -> dict[str, Any]:
    """Return the changes of the tiny experiment's settings for a kind of task."""
    found = {"task.kind": kind, "data.path": str(folder), **SETTINGS[kind]}
    return found | ({"model.name": str(decoder)} if kind == "chat" else {})
