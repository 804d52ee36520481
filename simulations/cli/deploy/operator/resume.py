"""``fedllm deploy resume``: resume a run after its last finished round."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.cli.deploy.operator.options import Detach, RunName
from simulations.cli.deploy.options import FolderOption

if TYPE_CHECKING:
    from server.deployment.control import Control


def resume(
    run: RunName,
    folder: FolderOption = None,
    without: Annotated[
        str, typer.Option(help="Comma-separated silos to leave out of the resumed run.")
    ] = "",
    detach: Detach = False,
) -> None:
    """Resume a failed or stopped run after its last finished round."""
    from server.deployment import control
    from server.deployment.app_bundle import bundle
    from server.deployment.folder import DeploymentError
    from simulations.cli.deploy.operator.shared import home_folder, split_names, start

    home = home_folder(folder)
    code = bundle(home / "app")
    with control.connect(home) as link:
        place, expected = _to_resume(link, home, run)
        left_out = split_names(without)
        if unknown := [name for name in left_out if name not in expected]:
            raise DeploymentError(
                f"Expected --without to name silos of the run ({', '.join(expected)}), "
                f"got {', '.join(unknown)}"
            )
        chosen = [name for name in expected if name not in left_out]
        start(link, home, code, {"run-folder": place, "silos": ",".join(chosen)}, detach)


def _to_resume(link: Control, home: Path, run: str) -> tuple[str, list[str]]:
    """Return the run's folder, as the server app expects it, and the names of its silos."""
    from fedllm.run.folder import RunFolder, RunFolderError
    from server.deployment.folder import DEPLOYMENT, DeploymentError
    from simulations.cli.deploy.operator.shared import folder_name, name_of

    runs = link.runs()
    if (home / DEPLOYMENT).is_file():
        path = (
            Path(run) if Path(run).is_dir() else home / "runs" / Path(folder_name(runs, run)).name
        )
        found = RunFolder.open(path)
        found.require_current()
        if found.state()["status"] == "finished":
            raise RunFolderError(f"Expected an unfinished run, {path} is finished")
        place = str(found.path)
        schedule: Any = found.read_json("schedule.json", None)
        silos = schedule["silos"] if schedule else [node.name for node in link.nodes()]
    else:
        place = f"runs/{Path(folder_name(runs, run)).name}"
        silos = [node.name for node in link.nodes()]
    live = [r for r in runs if not r.over and Path(r.folder).name == Path(place).name]
    if live:
        raise DeploymentError(
            f"Expected a run that is over, {name_of(live[0])} is {live[0].status} "
            f"(Flower's id {live[0].run_id})"
        )
    return place, silos
