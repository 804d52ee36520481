"""Measure each codec's bytes and its error on held-out real gradients.

    FEDLLM_TEST_DATA=../shared/data python -m simulations.benchmarks.codec.error \\
        [--model minilm] [--ratios 16 32 64] [--json OUT]

Each line: bytes of a client's message (values on the wire), the relative squared error
sum ||g - decoded||^2 / sum ||g||^2 over the held-out clients, the same for the mean of all held-out
gradients (what the server uses), and the CPU time to encode and decode one gradient, also over that of
the client's own gradient on its examples (one local step: the least that a client does).

Next to them: sending zeros has error 1, and no linear code has an error below 1 - k/d on white noise. Priors
come from

* ``exact``: the statistics of other clients with the same text, without noise. **No privacy**: it
  shows what the structure is worth;
* ``dp-example``, ``dp-client``: the same released under differential privacy, at the mu that
  ``--mu`` names for every client (Gaussian DP, zero-out, against the server) with that unit;
* ``public``: gradients on another text, with its labels; ``random-labels``: with drawn ones. Free.

See ``gradients.py`` for the gradients: they are at one point of training, and the error at
others may differ.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from fedllm.codec import Codec, CodecSettings, Prior, make_codec
from fedllm.codec.base import compressed_dimension
from fedllm.codec.prior import prior_from_gradients, prior_from_releases
from fedllm.codec.statistics import Kind, Statistics
from fedllm.models.loading.placement import resolve_device
from privacy.randomness import RandomSource, generator
from simulations.benchmarks.codec.gradients import (
    Gradients,
    Request,
    collect,
    groups,
    local_seconds,
)
from simulations.benchmarks.support import timing

SOURCES = ("exact", "dp-example", "dp-client", "public", "random-labels")
FIXED = ("none", "fp16", "int8")
COST_GOAL = 0.05


@dataclass(frozen=True)
class Line:
    """One codec's figures; see the module."""

    codec: str
    prior: str
    source: str
    ratio: float
    code_dimension: int
    bytes: int
    error: float
    error_of_mean: float
    milliseconds: float
    share_of_training: float
    fit_seconds: float
    beats_zeros: bool


def make_prior(
    kind: Kind, source: str, data: Gradients, *, mu: float, group: int, rank: int, rng: RandomSource
) -> Prior:
    """Return the prior of one kind from one source."""
    given = {"exact": data.fit, "public": data.public, "random-labels": data.random_labels}
    if source in given:
        return prior_from_gradients(kind, data.layout, given[source], rank=rank)
    statistics = Statistics(kind, data.layout, clip=data.clip)
    if source == "dp-client":
        divisor, totals = 1.0, [statistics.of(row) for row in data.fit]
    else:
        divisor = float(group)
        totals = [
            divisor * statistics.of_sums(mean / data.clip, squares / data.clip**2)
            for mean, squares in zip(data.fit, data.fit_squares, strict=True)
        ]
    rows = [statistics.release(total, 1 / mu, rng, divisor=divisor) for total in totals]
    return prior_from_releases(
        statistics, torch.stack(rows), noise_multiplier=1 / mu, divisor=divisor, rank=rank
    )


def measure(codec: Codec, gradients: Tensor, rng: RandomSource) -> dict[str, Any]:
    """Return the errors of a codec on gradients [n, d], through the wire, and CPU seconds for one."""
    started = time.process_time()
    messages = [codec.encode(row, rng) for row in gradients]
    decoded = torch.stack([codec.decode(message) for message in messages])
    seconds = (time.process_time() - started) / len(gradients)
    mean = gradients.mean(0)
    return {
        "code_dimension": codec.code_dimension,
        "bytes": messages[0].bytes,
        "error": float((decoded - gradients).square().sum() / gradients.square().sum()),
        "error_of_mean": float((decoded.mean(0) - mean).square().sum() / mean.square().sum()),
        "seconds": seconds,
    }


def figures(
    data: Gradients, local: float, options: argparse.Namespace, progress: Progress
) -> list[Line]:
    """Return all lines; ``local`` are the CPU seconds of one client's gradient."""
    kinds = get_args(Kind)
    learned = [
        (name, kind, source)
        for kind in kinds
        for name, sources in (
            ("linear", options.sources),
            ("autoencoder", options.autoencoder_sources),
        )
        for source in sources
    ]
    jobs: list[tuple[Any, Any, str, float]] = [(name, "", "", 1.0) for name in FIXED]
    for ratio in options.ratios:
        jobs += [(name, "", "", ratio) for name in ("top-k", "random-projection")]
        jobs += [(*job, ratio) for job in learned]
    task = progress.add_task("codecs", total=len(jobs))
    priors: dict[tuple[str, str], Prior] = {}
    lines = []
    for name, kind, source, ratio in jobs:
        progress.update(task, description=" ".join(filter(None, (name, kind, source))))
        if kind and (kind, source) not in priors:
            rng = generator(options.seed, "codec-error", kind, source)
            priors[kind, source] = make_prior(
                kind, source, data, mu=options.mu, group=options.group, rank=options.rank, rng=rng
            )
        settings = CodecSettings(name=name, ratio=ratio, steps=options.steps)
        started = time.perf_counter()
        codec = make_codec(settings, data.layout, priors.get((kind, source)), options.seed)
        fit = time.perf_counter() - started
        found = measure(codec, data.held_out, generator(options.seed, "codec-error", "rounding"))
        seconds = found.pop("seconds")
        lines.append(
            Line(
                codec=name,
                prior=kind,
                source=source,
                ratio=ratio,
                milliseconds=1000 * seconds,
                share_of_training=seconds / local,
                fit_seconds=fit,
                beats_zeros=found["error"] < 1,
                **found,
            )
        )
        progress.advance(task)
    return lines


def report(data: Gradients, lines: Sequence[Line], options: argparse.Namespace) -> str:
    """Return the figures as text."""
    d = data.layout.dimension
    rows = []
    for line in lines:
        row = [line.codec, line.prior, line.source, f"{line.ratio:g}", str(line.bytes)]
        row += [f"{line.error:.3f}", f"{line.error_of_mean:.3f}", f"{line.milliseconds:.1f}"]
        row += [f"{line.share_of_training:.1%}", "" if line.beats_zeros else "does not beat zeros"]
        rows.append(row)
    header = [
        "codec",
        "prior",
        "source",
        "ratio",
        "bytes",
        "error",
        "of mean",
        "ms",
        "of local",
        "",
    ]
    floors = ", ".join(
        f"{1 - compressed_dimension(d, r) / d:.3f} at {r:g}x" for r in options.ratios
    )
    worst = max(lines, key=lambda line: line.share_of_training)
    return "\n".join(
        [
            f"{data.notes['model']}, prefix of {options.prefix_length}: d = {d}, {4 * d} bytes in "
            f"float32. {len(data.fit)} clients to fit, {len(data.held_out)} held out, of "
            f"{options.group} examples each ({data.notes['text']}); public: {data.notes['public']}, "
            f"{len(data.public)} groups. Clipping norm {data.clip:.3g}.",
            "exact: statistics without noise, NO PRIVACY GUARANTEE. dp-example, dp-client: mu = "
            f"{options.mu:g} for each client (Gaussian DP, zero-out, against the server), "
            "unit example and unit client.",
            f"Sending zeros: error 1. Floor of every linear code on white noise: {floors}.",
            "",
            timing.table(header, rows),
            "",
            f"Share of the mean's energy in a held-out gradient: {mean_share(data.held_out):.2f}",
            f"Most costly to encode and decode: {worst.codec} at {worst.ratio:g}x, "
            f"{worst.share_of_training:.1%} of one local step, "
            + timing.verdict(worst.share_of_training, COST_GOAL, at_most=True),
        ]
    )


def mean_share(gradients: Tensor) -> float:
    """Return ||mean||^2 / mean ||g||^2."""
    return float(gradients.mean(0).square().sum() / gradients.square().sum(1).mean())


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog="python -m simulations.benchmarks.codec.error",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = Request()
    made.add_argument("--model", default=defaults.model, help="minilm, smollm2, a folder, a hub id")
    made.add_argument("--prefix-length", type=int, default=defaults.prefix_length)
    made.add_argument("--ratios", type=float, nargs="+", default=[16.0, 32.0, 64.0])
    made.add_argument(
        "--fit", type=int, default=defaults.fit, help="clients for exact and dp priors"
    )
    made.add_argument(
        "--held-out", type=int, default=defaults.held_out, help="clients to measure on"
    )
    made.add_argument("--public", type=int, default=defaults.public, help="groups of public text")
    made.add_argument("--group", type=int, default=defaults.group, help="examples of a client")
    made.add_argument("--warm-up", type=int, default=defaults.steps, help="plain steps before")
    made.add_argument("--sources", nargs="*", choices=SOURCES, default=list(SOURCES))
    made.add_argument("--autoencoder-sources", nargs="*", choices=SOURCES, default=["exact"])
    made.add_argument("--mu", type=float, default=1.0, help="of each client's statistics")
    made.add_argument("--rank", type=int, default=8)
    made.add_argument("--steps", type=int, default=400, help="autoencoder: training steps at most")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--data", default="auto", help="auto, sst2, tweets or random")
    made.add_argument("--device", default="auto", help="of the gradients; codecs run on the CPU")
    made.add_argument("--threads", type=int, default=1, help="CPU threads")
    made.add_argument("--json", metavar="OUT", help="write all measurements to this file")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Collect gradients, measure, print, write."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    request = Request(
        model=options.model,
        prefix_length=options.prefix_length,
        fit=options.fit,
        held_out=options.held_out,
        public=options.public,
        group=options.group,
        steps=options.warm_up,
        seed=options.seed,
        data=options.data,
        device=options.device,
    )
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("gradients", total=groups(request))

        def tick(what: str) -> None:
            progress.update(task, advance=1, description=what)

        data = collect(request, tick)
        progress.remove_task(task)
        local = local_seconds(request)
        lines = figures(data, local, options, progress)
    print(report(data, lines, options))
    if options.json:
        result = {
            "circumstances": timing.circumstances(resolve_device(options.device)),
            "request": asdict(request),
            "dimension": data.layout.dimension,
            "clip": data.clip,
            "local_cpu_seconds": local,
            "mu": options.mu,
            "notes": data.notes,
            "lines": [asdict(line) for line in lines],
        }
        timing.write_json(options.json, result)


if __name__ == "__main__":
    main()
