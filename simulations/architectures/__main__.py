"""Write docs/reference/architectures.md: every adapter on every family of models.

python -m simulations.architectures [FILE]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from simulations.architectures.table import page, try_all

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "architectures.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page to a file."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=PAGE)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen.file.write_text(page(try_all()), encoding="utf-8")
    print(os.path.relpath(chosen.file))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
