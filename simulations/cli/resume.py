"""``fedllm resume``: continue an interrupted run."""

from __future__ import annotations

from typing import Annotated

import typer

from simulations.output import AsJson, RunPath


def resume(
    path: RunPath,
    changed_data: Annotated[
        bool,
        typer.Option(
            "--changed-data",
            help="Go on with other data than the run was begun with; the report says so.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Resume an interrupted run; the result equals that of an uninterrupted run."""
    import fedllm
    from simulations.cli.training import finish, view

    finish(fedllm.resume(path, watch=view(as_json), changed_data=changed_data), as_json)
