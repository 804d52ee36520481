"""``fedllm predict``: predict classes or generate texts with a trained model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from simulations.output import AsJson


def predict(
    path: Annotated[Path, typer.Argument(help="A run folder or an exported adapter.")],
    texts: Annotated[
        list[str], typer.Argument(help="Input texts; `-` reads one text per line from stdin.")
    ],
    as_json: AsJson = False,
) -> None:
    """Predict classes or generate texts with a trained model."""
    import fedllm

    if texts == ["-"]:
        texts = [line.rstrip("\n") for line in sys.stdin]
    answers = fedllm.predict(path, texts)
    if as_json:
        typer.echo(json.dumps(answers, ensure_ascii=False, indent=2))
        return
    for text, answer in zip(texts, answers, strict=True):
        if isinstance(answer, dict) and "label" in answer:
            sure = max(answer["probabilities"].values())
            typer.echo(f"{answer['label']:<12} {sure:.2f}  {text}")
        else:
            typer.echo(answer if isinstance(answer, str) else json.dumps(answer))
