"""What the ledger says of a silo's steps is what they do: their number, rate and noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dp_accounting import dp_event as dp
from scipy import stats

from fedllm.data.silos import load_federation
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.events.multiset import multiset

ROUNDS = 60


def test_steps_rate_and_noise_are_the_recorded_ones(
    tiny_settings: Callable[..., Any], tmp_path: Path
) -> None:
    """Numbers drawn and updates of 60 rounds against the events: binomial and chi-squared tests.

    Noise of 40 clipping norms in each entry: what the gradients add to an update is far below it.
    """
    settings = tiny_settings(
        **{
            "privacy.epsilon": None,
            "privacy.noise_multiplier": 40.0,
            "client.local_steps": 3,
            "client.learning_rate": 1.0,
            "client.batch_size": 8,
        }
    )
    silo = next(s for s in load_federation(settings).silos if s.name == "alpha")
    log = tmp_path / "alpha.jsonl"
    worker = SiloWorker(settings, silo, run="r", ledger=tmp_path / "ledger.sqlite", log=log)
    params = initial_params(shared_tunable(settings), settings)
    updates = [worker.train(SiloTask(params, r, ROUNDS)).update for r in range(1, ROUNDS + 1)]
    for adversary in ("server", "outsider"):
        spent = worker.ledger.spent(adversary, party="alpha")
        assert spent == sum(
            (multiset(e.view(adversary)) for e in worker.ledger.entries()), start=multiset({})
        )
        ((event, steps),) = spent.items()
        assert steps == 3 * ROUNDS
        assert isinstance(event, dp.PoissonSampledDpEvent)
        rate, noise = event.sampling_probability, event.event.noise_multiplier
        lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
        drawn = [line["examples"] for line in lines if "round" in line]
        assert len(drawn) == ROUNDS
        chances = stats.binom(len(silo.train) * steps, rate)
        assert chances.ppf(5e-7) <= sum(drawn) <= chances.ppf(1 - 5e-7)
        assert len(set(drawn)) > 5, "a Poisson sample has no fixed size"
        std = noise * settings.privacy.clip / settings.client.batch_size * 3**0.5
        sample = np.concatenate(
            [torch.cat([v.flatten() for v in update.values()]).double() for update in updates]
        )
        low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], sample.size) / sample.size
        assert low < ((sample / std) ** 2).mean() < high
