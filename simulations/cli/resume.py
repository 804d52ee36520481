"""``fedllm resume``: continue an interrupted run."""

from __future__ import annotations

from simulations.output import AsJson, RunPath


def resume(path: RunPath, as_json: AsJson = False) -> None:
    """Resume an interrupted run; the result equals that of an uninterrupted run."""
    import fedllm
    from simulations.cli.training import finish, view

    finish(fedllm.resume(path, watch=view(as_json)), as_json)
