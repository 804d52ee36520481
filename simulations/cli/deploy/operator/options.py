"""Options that the commands about runs share."""

from __future__ import annotations

from typing import Annotated

import typer

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="Name, folder or Flower id of the run.")
]
Detach = Annotated[
    bool, typer.Option("--detach", help="Return immediately; do not follow the run.")
]
