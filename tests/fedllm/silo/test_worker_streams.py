"""Each use of randomness in a round has a stream of its own; secret ones do not follow from the seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedllm.data.silos import load_federation
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training.tunable import initial_params, shared_tunable

USES = [(purpose, step) for purpose in ("sample", "noise", "evaluate-noise") for step in range(3)]


def beginnings(settings: Any, folder: Path) -> dict[tuple[str, int, int], bytes]:
    """First bytes of every stream of two rounds, by purpose, step and round."""
    silo = next(s for s in load_federation(settings).silos if s.name == "alpha")
    worker = SiloWorker(settings, silo, run="r", ledger=folder / "ledger.sqlite")
    digest = worker.digest(SiloTask(initial_params(shared_tunable(settings), settings)), 1.0)
    return {
        (purpose, step, server_round): worker.streams(server_round, digest)(purpose, step).bytes(16)
        for server_round in (1, 2)
        for purpose, step in USES
    }


@pytest.mark.parametrize("randomness", ["seeded", "os"])
def test_no_two_uses_share_a_stream(
    randomness: str, tiny_settings: Callable[..., Any], tmp_path: Path
) -> None:
    """Sampling and noise neither: who learnt which examples were drawn must not know the noise."""
    found = beginnings(tiny_settings(**{"privacy.randomness": randomness}), tmp_path)
    assert len(set(found.values())) == len(found) == 2 * len(USES)


def test_secret_streams_are_never_the_same_again(
    tiny_settings: Callable[..., Any], tmp_path: Path
) -> None:
    """For every purpose, sampling too: amplification needs batches that nobody can foresee."""
    settings = tiny_settings(**{"privacy.randomness": "os"})
    first, second = beginnings(settings, tmp_path), beginnings(settings, tmp_path)
    assert not set(first.values()) & set(second.values())
    seeded = tiny_settings()
    assert beginnings(seeded, tmp_path) == beginnings(seeded, tmp_path)
