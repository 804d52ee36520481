"""A tiny encoder or decoder with more layers than the other tests', for choices among layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedllm.settings.io import parse_settings
from simulations.benchmarks.support import tiny

LAYERS = 4


def deep_settings(folder: Path, words: Path, kind: str = "encoder") -> Callable[..., Any]:
    """``make(**{"section.key": value})``: the small experiment with four layers, phrase prefix, and
    public text in ``public.*``."""
    model = folder / f"deep-{kind}"
    if not model.exists():
        model.mkdir()
        (tiny.save_encoder if kind == "encoder" else tiny.save_decoder)(model, LAYERS)
        rows = tiny.make_records(60, 1234, "public")
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "public.jsonl").write_text(text, encoding="utf-8")

    def make(**changes: Any) -> Any:
        usual = {
            "prefix.init": "phrase",
            "prefix.phrase": "w5 w9",
            "public.source": "files",
            "public.path": str(folder / "public.jsonl"),
            "layers.keep": 2,
        }
        if kind == "decoder":
            usual |= {"task.prompt": "{text} is", "task.label_words": ["w4", "w5"]}
        return parse_settings(tiny.tree(model, words, **(usual | changes)))

    return make
