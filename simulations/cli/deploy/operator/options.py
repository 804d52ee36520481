"""Options that the commands about runs share."""

from __future__ import annotations

from typing import Annotated

import typer

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name or folder, or Flower's id of it.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Return at once; do not follow the run.")]
