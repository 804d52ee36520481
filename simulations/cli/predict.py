"""``fedllm predict``: use a trained model on texts, records or in a conversation."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.output import AsJson

Inputs = Sequence[str | Mapping[str, Any]]


def predict(
    path: Annotated[Path, typer.Argument(help="A run folder or an exported adapter.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Input texts; `-` reads one text per line from stdin."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Data file whose records are the inputs (JSON Lines, CSV, ...), such as conversations of a chat."
        ),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Chat: read a line, write the answer, until the input ends."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Predict classes, numbers, tags or texts with a trained model, or chat with it."""
    import fedllm

    if (bool(texts) + (file is not None) + chat) != 1:
        raise typer.BadParameter("Expected one of TEXTS, --file and --chat")
    if chat:
        converse(path)
        return
    inputs: Inputs
    if file is not None:
        from fedllm.data.formats.sources import load_file

        inputs = load_file(file).records
    else:
        inputs = texts or []
        if texts == ["-"]:
            inputs = [line.rstrip("\n") for line in sys.stdin]
    answers = fedllm.predict(path, inputs)
    if as_json:
        typer.echo(json.dumps(answers, ensure_ascii=False, indent=2))
        return
    for given, answer in zip(inputs, answers, strict=True):
        typer.echo(_line(given, answer))


def _line(given: str | Mapping[str, Any], answer: Any) -> str:
    """Describe an answer in one line, with the input in front of which it stands where that is a text."""
    text = given if isinstance(given, str) else ""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, float):
        return f"{answer:<12.4g} {text}".rstrip()
    if "label" in answer:
        sure = max(answer["probabilities"].values())
        return f"{answer['label']:<12} {sure:.2f}  {text}".rstrip()
    if "tags" in answer:
        pairs = zip(answer["words"], answer["tags"], strict=True)
        return " ".join(f"{word}/{tag or '?'}" for word, tag in pairs)
    return f"{', '.join(answer['labels']) or '-':<12} {text}".rstrip()


def converse(path: Path) -> None:
    """Answer each line of standard input, with what was said before; end with the input, or at Ctrl-C.

    Raises:
        PredictError: the model does not chat, or its template does not allow the conversation.
    """
    from fedllm.adapter.predict import PredictError, Predictor
    from fedllm.data.record_forms import ASSISTANT, USER

    predictor = Predictor(path)
    task = predictor.settings.task
    if task.facts.holds != "messages":
        raise PredictError(
            f"Expected a model of task.kind=chat for --chat, got task.kind={task.kind}"
        )
    asks = sys.stdin.isatty()
    messages: list[dict[str, str]] = []
    try:
        while True:
            if asks:
                typer.echo("> ", nl=False)
            line = sys.stdin.readline()
            if not line:
                break
            if not line.strip():
                continue
            messages.append({"role": USER, "content": line.strip()})
            (answer,) = predictor.predict([{task.target: messages}])
            typer.echo(answer)
            # A turn without text would be refused as data.
            messages.append({"role": ASSISTANT, "content": answer or "..."})
    except KeyboardInterrupt:
        pass
    if asks:
        typer.echo()
