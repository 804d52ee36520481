"""Before the first round: the statistics of the silos, the prior, and the codec made of them.

Guarantee: a silo's statistics carry its own noise, and their event is in its ledger before; with a
trusted server their sum carries the server's, and their events are in the server's. The prior,
synthetic gradients, the codec and its training are post-processing of them (or of the server's own text).
The codec is written into the run folder before any silo gets it; a resumed run reads it there, and asks
for no statistics again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from torch import Tensor

from fedllm import messages as names
from fedllm.codec import Codec, Layout, make_codec
from fedllm.codec.prior import NOISE_ALONE, Prior
from fedllm.codec.store import read_codec, write_codec
from fedllm.data.formats.records import Record
from fedllm.data.public import evaluation_set, public_set
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from fedllm.training.encoding import Encoding
from fedllm.training.statistics import (
    Priors,
    StatisticsRelease,
    make_priors,
    statistics_point,
)
from server.extensions.ask_silos import ask_silos, nobody
from server.extensions.base import ServerRun
from server.extensions.central_noise import CentralRelease
from server.replies import RunStopped

log = logging.getLogger("fedllm")
CODEC, DESCRIPTION = "codec.safetensors", "codec.json"
WHAT = "statistics for the codec"
"""Name of the request in messages."""


def prepare_codec(
    grid: Grid, folder: RunFolder, run: ServerRun, trusted: CentralRelease | None
) -> Encoding:
    """Return the run's codec: the one in the run folder, or a new one.

    To be called before the first round, at the initial parameters; later calls read the folder.

    Args:
        trusted: adds the noise to the statistics where the silos do not; else None.

    Raises:
        RunStopped: too many silos failed, none is left, no codec can be made of what they sent, or the
            one in the folder is not the one that was written.
        Stopped: the run was asked to stop.
    """
    described = folder.read_json(DESCRIPTION, None)
    if described is None:
        if run.finished_rounds:
            raise RunStopped(f"Expected {DESCRIPTION} in {folder.path}: the run has begun with it")
        described = _make(grid, folder, run, trusted)
    try:
        version = str(described["version"])
        codec = read_codec(folder.path / CODEC, version)
        encoding = Encoding.of(codec, version, run.settings, run.trainable)
    except (KeyError, TypeError, ValueError) as error:
        raise RunStopped(f"The codec of the run {folder.path} is damaged: {error}") from None
    if run.finished_rounds == 0:  # else the checkpoint holds them
        for silo, rate in described["statistics"].items():
            run.spending.add_statistics(silo, float(rate))
    return encoding


def _make(
    grid: Grid, folder: RunFolder, run: ServerRun, trusted: CentralRelease | None
) -> dict[str, Any]:
    settings, params = run.settings, run.trainable
    priors = make_priors(settings)
    prior: Prior | None = None
    chance: float | None = None
    rates: dict[str, float] = {}
    try:
        if settings.codec.asks_silos:
            point = statistics_point(params, settings.seed)
            releases, rates = _ask(grid, run, priors.release, point, everybody=trusted is not None)
            if trusted is None:
                prior = priors.of_releases(params, releases)
                chance = priors.chance_of_noise(releases)
            else:
                prior, chance, rates = _released_by_the_server(
                    run, priors, trusted, point, releases
                )
        elif settings.codec.needs_prior:
            features = run.tunable.task.features(_public_records(settings))
            point = statistics_point(params, settings.seed)
            tunable, _ = run.tunable.part(run.model.params)
            prior = priors.of_public_text(tunable, point, features)
        layout = Layout.of(params)
        codec = make_codec(settings.codec, layout, prior, settings.seed)
    except ValueError as error:
        raise RunStopped(f"No codec: {error}") from None
    if chance is not None and chance > NOISE_ALONE:
        log.warning(
            "noise alone gives statistics such as the silos' with probability %.2g: the codec was fitted to "
            "noise, and knows nothing of the gradients (a larger batch, less codec.statistics_noise or "
            'codec.prior_source = "public" may tell it)',
            chance,
        )
    tensors, meta = codec.state()
    described = describe(codec, prior, rates, chance) | {"source": settings.codec.prior_source}
    write_codec(folder.path / CODEC, tensors, meta)
    folder.write_json(DESCRIPTION, described)  # from here on the silos are not asked again
    return described


def _public_records(settings: Settings) -> list[Record]:
    """The text of ``[public]``; without one the server's evaluation examples, whose classes are unused."""
    if settings.public.source == "none":
        records = list(evaluation_set(settings).records)
        if not records:
            raise ValueError(
                "Expected public.source (or data.validation) for codec.prior_source=public: text that the server "
                "has, got public.source=none"
            )
        return records
    return list(public_set(settings, labelled=False).records)


def describe(
    codec: Codec, prior: Prior | None, rates: Mapping[str, float], chance: float | None = None
) -> dict[str, Any]:
    """Describe a codec: sizes, hashes, the source of its statistics, and the probability that noise alone gives such
    statistics (None: they have no noise, or there are none)."""
    return {
        "version": codec.version,
        "dimension": codec.dimension,
        "code_dimension": codec.code_dimension,
        "linear": codec.linear,
        "lipschitz": codec.lipschitz,
        "bytes": codec.bytes,
        "float32_bytes": 4 * codec.dimension,
        "prior": None
        if prior is None
        else {"kind": prior.kind, "version": prior.version, "chance_of_noise": chance},
        "statistics": dict(rates),
    }


def _released_by_the_server(
    run: ServerRun,
    priors: Priors,
    trusted: CentralRelease,
    point: Mapping[str, Tensor],
    received: Mapping[str, Tensor],
) -> tuple[Prior, float | None, dict[str, float]]:
    """The prior of the noisy mean of statistics that came without noise, the probability that noise alone
    gives that mean, and whom it is counted for."""
    trusted.left.update(run.left)
    size = priors.release.statistics(run.trainable).size
    counted, mean = trusted.release_statistics(received, size, point)
    run.left.update(trusted.left)
    if mean is None:
        raise nobody(run, WHAT)
    prior, chance = priors.of_mean(run.trainable, mean, len(trusted.accounts))
    return prior, chance, dict.fromkeys(counted, 1.0)


def _ask(
    grid: Grid,
    run: ServerRun,
    release: StatisticsRelease,
    point: Mapping[str, Tensor],
    *,
    everybody: bool,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The noisy statistics at ``point`` of the silos that take part, and their sampling rates, by name.

    Args:
        everybody: whether silos without a planned round are asked too.
    """
    statistics = release.statistics(run.trainable)
    chosen = [name for name in sorted(run.nodes) if everybody or run.draws.planned(name)]
    chosen = [name for name in chosen if name not in run.left]
    arrays = run.arrays({**run.model.params, **point})
    tasks = run.tasks(names.ASK_STATISTICS, chosen, 0, arrays, ConfigRecord())
    found = ask_silos(
        grid,
        run,
        chosen,
        tasks,
        record=names.STATISTICS,
        size=statistics.size,
        noise=release.noise,
        what=WHAT,
    )
    releases = {name: released for name, (released, _) in found.items()}
    return releases, {name: rate for name, (_, rate) in found.items()}
