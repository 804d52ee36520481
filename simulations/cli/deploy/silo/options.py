"""Shared options of a silo's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SiloOption = Annotated[
    Path | None,
    typer.Option("--silo", help="The silo config; default: $FEDLLM_SILO, or ./silo.toml."),
]
