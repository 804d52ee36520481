"""``python -m simulations.cli``: the same as the script ``fedllm``."""

from __future__ import annotations

from simulations.cli.main import main

if __name__ == "__main__":
    main()
