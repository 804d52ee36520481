"""``fedllm resume``: continue an interrupted run."""

from __future__ import annotations

from simulations.output import AsJson, RunPath


def resume(path: RunPath, as_json: AsJson = False) -> None:
    """Go on with an interrupted run, to the same end as without the interruption."""
    from fedllm.run.folder import RunFolder, RunFolderError
    from simulations.cli.training import train

    folder = RunFolder.open(path)
    folder.require_current()
    state = folder.state()
    if state["status"] == "finished":
        raise RunFolderError(f"Expected an unfinished run, {path} is finished")
    train(folder, as_json)
