"""The code that a run ships to the nodes: a Flower app made of the installed packages.

It lies in the deployment's folder, so that every run ships the same bytes (one SHA-256 to approve)
until the operator decides otherwise, and so that ``flwr run FOLDER/app`` ships them too. Only what
server and nodes need is in it. An experiment's settings are no part of it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import tomli_w

from fedllm import __version__
from fedllm.files.durable import write_text
from server.deployment.folder import DeploymentError

PACKAGES = ("client", "fedllm", "privacy", "server")
CONFIG = {
    # What a run may be told; the values here are Flower's defaults for them.
    "settings": "",  # an experiment's resolved settings, as JSON
    "experiment": "",  # or: a TOML file on the server's machine, absolute
    "overrides": "",  # "privacy.epsilon=8; server.rounds=3"
    "run-folder": "",  # on the server's machine; one that exists is resumed
    "silos": "",  # names of the silos to wait for, separated by commas
}


def make_app(folder: Path) -> str:
    """Write the app into ``folder``, instead of what was there.

    Returns:
        SHA-256 of its bundle.

    Raises:
        DeploymentError: the installed packages cannot be read.
    """
    root = Path(__file__).resolve().parents[2]
    partial = Path(tempfile.mkdtemp(prefix=".app-", dir=folder.parent))
    try:
        for package in PACKAGES:
            files = sorted((root / package).rglob("*.py"))
            if not files:
                raise DeploymentError(f"Expected the package {package} in {root}, found no code")
            for file in files:
                target = partial / file.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
        write_text(partial / "pyproject.toml", tomli_w.dumps(_project()))
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        raise DeploymentError(f"The app cannot be written to {folder}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return bundle_hash(bundle(folder))


def bundle(folder: Path) -> bytes:
    """Return the bundle (FAB) that Flower makes of the app: a function of the files alone.

    Raises:
        DeploymentError: there is no app in ``folder``.
    """
    from flwr.cli.build import build_fab_from_disk

    if not (folder / "pyproject.toml").is_file():
        raise DeploymentError(
            f"Expected the app in {folder}, found none; `fedllm deploy app` makes it"
        )
    return build_fab_from_disk(folder)


def bundle_hash(data: bytes) -> str:
    """Return hexadecimal SHA-256 of a bundle, by which Flower and the nodes know it."""
    return hashlib.sha256(data).hexdigest()


def _project() -> dict[str, object]:
    return {
        "project": {
            "name": "fedllm",
            "version": __version__,
            "description": "Federated, differentially private prefix-tuning of language models",
            "license": "Apache-2.0",
            "dependencies": [],  # what is installed on a machine is what runs there
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedllm",
                    "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
                    "config": CONFIG,
                }
            }
        },
    }
