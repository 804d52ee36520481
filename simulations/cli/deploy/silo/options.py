"""Options that a silo's commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SiloOption = Annotated[
    Path | None,
    typer.Option("--silo", help="The silo's own file; else $FEDLLM_SILO, else ./silo.toml."),
]
