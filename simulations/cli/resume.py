"""``fedllm resume``: continue an interrupted run."""

from __future__ import annotations

from simulations.output import AsJson, RunPath


def resume(path: RunPath, as_json: AsJson = False) -> None:
    """Go on with an interrupted run, to the same end as without the interruption."""
    import fedllm
    from simulations.cli.training import finish, view

    finish(fedllm.resume(path, watch=view(as_json)), as_json)
