"""Write requirements-hashed.txt and requirements-build.txt again: `make hashes`.

uv resolves what ``pyproject.toml`` asks for in the versions of ``constraints.txt``, for every platform that the packages
have files for, and names the SHA-256 of each file as the index gives it. One package comes as source alone; what
builds it is pinned in a separate file, so that nothing is fetched without a hash.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from fedllm.files.durable import write_text

HASHED, BUILD = "requirements-hashed.txt", "requirements-build.txt"
SOURCE_ALONE = ("rouge-score",)
_HEAD = f"""\
# What a deployment installs, each file by its SHA-256. Made by `make hashes` from pyproject.toml and constraints.txt.
# pip install --require-hashes -r {BUILD}
# pip install --require-hashes --no-build-isolation -r {HASHED}
# then the wheel of fedllm itself with --no-deps (docs/guides/deployment.md).
"""
_BUILD_HEAD = (
    "# What builds the one package that comes as source alone (rouge-score), and fedllm from its own "
    "source.\n"
)


def resolved(uv: str, root: Path) -> str:
    """Return uv's resolution, as requirements with hashes.

    Raises:
        subprocess.CalledProcessError: it finds no versions that fit; it has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / HASHED
        sources = [word for name in SOURCE_ALONE for word in ("--no-binary", name)]
        subprocess.run(
            [
                *(uv, "pip", "compile", "pyproject.toml", "-c", "constraints.txt"),
                *("--generate-hashes", "--universal", "--python-version", "3.11"),
                *("--only-binary", ":all:", *sources),
                *("--no-config", "--no-header", "--no-annotate", "-q"),
                *("-o", str(made)),
            ],
            cwd=root,
            check=True,
        )
        return made.read_text(encoding="utf-8")


def entry(requirements: str, name: str) -> str:
    """Return the lines of one package.

    Raises:
        ValueError: there is none.
    """
    found = re.search(rf"^{re.escape(name)}==(?:.*\\\n)+.*\n", requirements, re.M)
    if found is None:
        raise ValueError(f"Expected {name} among the requirements, found none")
    return found[0]


def main() -> None:
    """Write both files into the working directory."""
    root = Path.cwd()
    text = resolved(sys.argv[1] if len(sys.argv) > 1 else "uv", root)
    write_text(root / HASHED, _HEAD + text)
    write_text(root / BUILD, _BUILD_HEAD + entry(text, "setuptools"))


if __name__ == "__main__":
    main()
