"""Write the page with one row a family: which adapters train it, and how equal an example's rows are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import transformers

from simulations.architectures.families import FAMILIES, Family
from simulations.architectures.trial import FORMS, Trial, try_family

COMMAND = "python -m simulations.architectures"
_GROUPS = {"padded": "padded", "one-length": "one length", "alone": "one example"}
_INTRODUCTION = """# Architectures

Which adapter (`adapter.form`) trains which family of models, tried on tiny random models of each with transformers {version}. Written by
`{command}`; a test compares. `tests/fedllm/models/test_families.py` compares LoRA and BitFit with ordinary autograd
through the library's own model, one example at a time and without padding.

* **Micro-batches**: *padded*: examples of one bucket of lengths, and NaN in the place of padding reaches no token. *One length*: padding would reach
  tokens (a state, a convolution, an added mask), so examples of one length share a micro-batch, without padding. *One example*: a router sends tokens to
  experts, a module computes once for all examples, encoder and decoder each have a length, or kernels round by the number of examples. It is measured when a model is loaded
  (`fedllm/models/grouping.py`), so that a large model of a family may differ from the tiny one. Smaller micro-batches take longer;
  `client.max_batch` needs *padded*.
* **Rows**: an example's LoRA gradient alone and among others: the same *bits*, or the largest difference over its norm. On a CPU, in float32.
* **Reuse**: whether `model.reuse` keeps the states below the trained layers, with the same bits.

LoRA changes the linear maps that the model uses, experts left out. A layer that is used many times (ALBERT) gets one adapter. Encoder-decoders
train for `task.kind = "generation"`: the encoder reads the prompt. Their adapters are exported in fedllm's own format alone.
"""


def page(trials: Mapping[str, Trial]) -> str:
    """Return the page.

    Args:
        trials: by the family's name; families that the installed transformers lacks have none.
    """
    notes: list[str] = []
    rows = [row(family, trials[family.name], notes) for family in FAMILIES if family.name in trials]
    header = ["family", "`model_type`", *(f"`{form}`" for form in FORMS)]
    header += ["micro-batches", "rows", "reuse"]
    lines = [_line(header), _line(["---"] * len(header)), *rows]
    lacking = [f"{f.name} (`{f.model_type}`)" for f in FAMILIES if f.name not in trials]
    parts = [
        _INTRODUCTION.format(version=transformers.__version__, command=COMMAND),
        "\n".join(lines) + "\n",
        "\n".join(f"{number}. {text}" for number, text in enumerate(notes, 1)) + "\n",
    ]
    if lacking:
        parts.append(f"This version of transformers lacks {', '.join(lacking)}.\n")
    return "\n".join(parts)


def row(family: Family, trial: Trial, notes: list[str]) -> str:
    """Return one family's row; reasons of refusals are added to the notes."""
    cells = [family.name, f"`{family.model_type}`"]
    cells += [_answer(trial.refused[form], notes) for form in FORMS]
    rows = "bits" if trial.difference == 0 else f"{trial.difference:.0e}"
    return _line([*cells, _GROUPS[trial.grouping], rows, _answer(trial.reuse, notes)])


def try_all(families: Sequence[Family] = FAMILIES) -> dict[str, Trial]:
    """Try the families that the installed transformers has."""
    return {family.name: try_family(family) for family in families if family.known}


def _answer(refusal: str | None, notes: list[str]) -> str:
    if refusal is None:
        return "yes"
    if refusal not in notes:
        notes.append(refusal)
    return f"no ({notes.index(refusal) + 1})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
