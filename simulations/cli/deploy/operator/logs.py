"""``fedllm deploy logs``: print the log of a run or of a server program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.deploy.options import FolderOption

LOGS = ("superlink", "superexec", "proxy", "proxy-access", "proxy-error")


def logs(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", help="Name, folder or Flower id of the run; default: the last run."
        ),
    ] = None,
    folder: FolderOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Follow the log until the run ends.")
    ] = False,
    of: Annotated[
        str | None, typer.Option("--of", help=f"Print a program's log instead: {', '.join(LOGS)}.")
    ] = None,
    lines: Annotated[int, typer.Option(help="With --of: number of last lines to print.")] = 50,
) -> None:
    """Print the log of a run or of a server program."""
    from server.deployment import control
    from simulations.cli.deploy.operator.shared import find_run, home_folder

    home = home_folder(folder)
    if of is not None:
        _print_tail(home, of, lines)
        return
    with control.connect(home) as link:
        chosen = find_run(link, run)
        for piece in link.log(chosen.run_id, follow=follow):
            typer.echo(piece, nl=False)


def _print_tail(home: Path, of: str, lines: int) -> None:
    from server.deployment.folder import DeploymentError

    if of not in LOGS:
        raise DeploymentError(f"Expected --of to be one of {', '.join(LOGS)}, got {of}")
    path = home / "logs" / f"{of}.log"
    if not path.is_file():
        raise DeploymentError(f"Expected the log {path}, found none: has the server been started?")
    text = path.read_text(encoding="utf-8", errors="replace").splitlines()
    typer.echo("\n".join(text[-lines:]))
