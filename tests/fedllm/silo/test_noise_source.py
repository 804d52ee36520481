"""Which source a run's noise and sampling come from, and what the report says of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedllm.budget.schedule import participation
from fedllm.data.silos import load_federation
from fedllm.report.prose.assumptions import ROUNDING_CPU, assumptions
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.keystream import CIPHER
from privacy.randomness import SecretSource

Make = Callable[..., Any]
SECRET = {"privacy.randomness": "os"}


def test_every_stream_of_every_silo_and_round_has_a_key_of_its_own(
    tiny_settings: Make, tmp_path: Path
) -> None:
    """One seed everywhere, and every library's generator reset: no two uses draw alike."""
    settings = tiny_settings(**SECRET)
    params = initial_params(shared_tunable(settings), settings)
    drawn: list[float] = []
    silos = load_federation(settings).silos
    assert len(silos) > 1
    for silo in silos:
        worker = SiloWorker(settings, silo, run="r", ledger=tmp_path / "ledger.sqlite")
        for server_round in (1, 2):
            for purpose in ("sample", "noise", "evaluate-noise"):
                random.seed(0)
                np.random.seed(0)
                torch.manual_seed(0)
                digest = worker.digest(SiloTask(params, server_round), 1.0)
                source = worker.streams(server_round, digest)(purpose, 0)
                assert isinstance(source, SecretSource)
                drawn += [*source.standard_normal(4), *source.random(4)]
    assert len(set(drawn)) == len(drawn) == len(silos) * 48


def test_training_with_secret_noise_does_not_follow_any_seed(
    tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(**SECRET)
    params = initial_params(shared_tunable(settings), settings)
    silo = load_federation(settings).silos[0]
    updates = []
    for name in ("a", "b"):
        torch.manual_seed(0)
        np.random.seed(0)
        worker = SiloWorker(settings, silo, run=name, ledger=tmp_path / f"{name}.sqlite")
        updates.append(
            torch.cat([v.flatten() for v in worker.train(SiloTask(params, 1, 3)).update.values()])
        )
    same = (updates[0] == updates[1]).double().mean()
    assert float(same) < 0.01


def test_seeded_participation_is_what_one_draw_for_all_rounds_gave(tiny_settings: Make) -> None:
    """Runs of earlier versions resume with their schedule."""
    from privacy.randomness import generator

    names = [f"s{i}" for i in range(7)]
    changes = {"server.sampling": "poisson", "server.fraction": 0.3, "server.rounds": 50}
    settings = tiny_settings(**changes, **{"privacy.randomness": "seeded"})
    drawn = generator(settings.seed, "participation").random((50, 7)) < 0.3
    assert participation(settings, names) == [
        [name for name, taken in zip(names, row, strict=True) if taken] for row in drawn
    ]


def test_the_report_names_the_cipher_or_says_that_noise_is_reproducible(
    tiny_settings: Make,
) -> None:
    secret = dict(assumptions(tiny_settings(**SECRET), seeded=False, runs=1))
    assert CIPHER in secret["Source of randomness"]
    seeded = dict(assumptions(tiny_settings(), seeded=True, runs=1))["Source of randomness"]
    assert "reproducible" in seeded
    assert "no protection" in seeded
    assert CIPHER not in seeded
    assert "2^-16" in secret["Floating-point noise"]


def test_the_report_names_the_rounding_that_is_left(tiny_settings: Make) -> None:
    title = "Rounding between examples"
    said = dict(assumptions(tiny_settings(), seeded=False, runs=1))[title]
    assert "counts rounding as 0" in said
    assert f"{ROUNDING_CPU} (python -m simulations.attacks.batch_mates.rounding)" in said
    coded = tiny_settings(**{"codec.name": "linear", "model.device": "cuda"})
    said = dict(assumptions(coded, seeded=False, runs=1))[title]
    assert "projection to a code" in said
    assert "On a GPU" in said
    assert "batch_rounding" not in said
    silo = tiny_settings(**{"privacy.unit": "client"})
    assert title not in dict(assumptions(silo, seeded=False, runs=1))
