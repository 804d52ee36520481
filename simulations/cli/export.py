"""``fedllm export``: export the trained adapter for use outside fedllm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.output import RunPath


def export(
    path: RunPath,
    target: Annotated[Path, typer.Argument(help="Output folder.", metavar="DIR")],
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Write a plain model, with LoRA or BitFit merged into its weights."
        ),
    ] = False,
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Write LoRA for llama.cpp too (adapter.gguf).")
    ] = False,
) -> None:
    """Export the trained adapter with a model card that states the privacy guarantee."""
    from fedllm.adapter.export import export_adapter
    from fedllm.adapter.merge import export_merged
    from fedllm.run.folder import RunFolder

    if merge and gguf:
        raise typer.BadParameter("--gguf writes an adapter, and --merge a model: give one of them")
    if merge:
        merged = export_merged(RunFolder.open(path), target)
        typer.echo(str(target))
        typer.echo(
            f"weights in {merged.dtype}; rounding {merged.rounding:.2g} of the adapter's effect",
            err=True,
        )
        return
    exported = export_adapter(RunFolder.open(path), target, gguf=gguf)
    typer.echo(str(target))
    if exported.why_not_peft:
        typer.echo(f"no PEFT adapter: {exported.why_not_peft}", err=True)
