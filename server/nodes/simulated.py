"""The nodes of Flower's own simulation (``flwr run .``): one for each silo of the experiment, or no run."""

from __future__ import annotations

import time

from flwr.serverapp import Grid

from server.replies import RunStopped

REGISTRATION = 10.0
"""Seconds that Flower's simulation has to register its nodes; it takes much less."""
_SETTLED = 0.5


def require_a_node_for_each_silo(grid: Grid, silos: int, wait: float = REGISTRATION) -> None:
    """Refuse a simulation whose number of nodes is not that of the experiment's silos.

    With fewer nodes, silos would be left out of the training without a word.

    Args:
        silos: number of silos of the experiment.
        wait: seconds until nodes that are not there count as missing.

    Raises:
        RunStopped: the numbers differ; the message has the command that makes them equal.
    """
    end = time.monotonic() + wait
    while (found := len(list(grid.get_node_ids()))) < silos and time.monotonic() < end:
        time.sleep(0.05)
    if found == silos:
        time.sleep(min(_SETTLED, wait))
        found = len(list(grid.get_node_ids()))
    if found != silos:
        raise RunStopped(
            f"Expected {silos} nodes, one for each silo of the experiment, got {found}; use "
            f"flwr run . --stream --federation-config 'num-supernodes={silos}', or fedllm run"
        )
