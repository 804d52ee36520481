"""The option ``--node-keys``: whose extracts of a deployed run are trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedllm.report.extract.check import Trusted

NodeKeys = Annotated[
    list[Path] | None,
    typer.Option(
        help="Of a deployed run: the registered node keys, as a deployment's folder, a folder of NAME.pub, or such a "
        "file; repeatable. Without: those of the deployment's folder that the run folder lies in."
    ),
]


def trusted_keys(path: Path, node_keys: list[Path] | None) -> Trusted:
    """Return the given node keys, or those of the deployment's folder that the run folder lies in."""
    from fedllm.report.extract.check import deployment_of, trusted_of

    return trusted_of(deployment_of(path), node_keys or [])
