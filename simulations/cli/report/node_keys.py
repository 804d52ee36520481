"""The option ``--node-keys``: node keys whose extracts of a deployed run are trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedllm.report.extract.check import Trusted

NodeKeys = Annotated[
    list[Path] | None,
    typer.Option(
        help="Registered node keys of a deployed run: a deployment folder, a folder of NAME.pub files, or one "
        "such file. May be repeated. Default: the keys of the deployment folder that contains the run "
        "folder."
    ),
]


def trusted_keys(path: Path, node_keys: list[Path] | None) -> Trusted:
    """Return the given node keys, or those of the deployment folder that contains the run folder."""
    from fedllm.report.extract.check import deployment_of, trusted_of

    return trusted_of(deployment_of(path), node_keys or [])
