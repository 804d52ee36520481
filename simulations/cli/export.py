"""``fedllm export``: export the trained adapter for use outside fedllm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.output import RunPath


def export(
    path: RunPath,
    target: Annotated[Path, typer.Argument(help="Output folder.", metavar="DIR")],
) -> None:
    """Export the trained adapter with a model card that states the privacy guarantee."""
    from fedllm.adapter.export import export_adapter
    from fedllm.run.folder import RunFolder

    exported = export_adapter(RunFolder.open(path), target)
    typer.echo(str(target))
    if exported.why_not_peft:
        typer.echo(f"no PEFT adapter: {exported.why_not_peft}", err=True)
