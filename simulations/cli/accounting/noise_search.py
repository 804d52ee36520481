"""``fedllm noise-search``: find the lowest-variance noise for one number at a privacy target."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from simulations.output import (
    AsJson,
    make_table,
    print_json,
    print_parts,
    require,
)

if TYPE_CHECKING:
    from privacy.noise_search.question import NoiseQuestion
    from privacy.noise_search.search import Progress as Report


class ObjectiveName(StrEnum):
    """Names of the objectives, as options."""

    STD = "std"
    MEAN_ABS = "mean-abs"
    USEFULNESS = "usefulness"


def noise_search(
    epsilon: Annotated[float, typer.Option(help="Target epsilon over all steps.")],
    delta: Annotated[float, typer.Option(help="Target delta, from 1e-13 to below 1.")],
    steps: Annotated[int, typer.Option(help="Number of releases, one per step.")] = 1,
    sample_rate: Annotated[
        float, typer.Option(help="Probability of each record to be in a step (Poisson).")
    ] = 1.0,
    sensitivity_dimension: Annotated[
        int,
        typer.Option(
            help="1: single numbers; above 1: vectors, clipped in L2 norm, with noise on each entry."
        ),
    ] = 1,
    objective: Annotated[
        ObjectiveName, typer.Option(help="Minimise std or E|x|, or maximise P(|x| < gamma).")
    ] = ObjectiveName.STD,
    gamma: Annotated[
        float | None,
        typer.Option(
            help="Objective usefulness: gamma, in units of the sensitivity; default: the Gaussian's "
            "std."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="JSON file for the best distribution; default: a file in the cache."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the lowest-variance noise distribution that meets a privacy target.

    The families are Gaussian, Laplace, staircase and more. Every candidate is accounted exactly (PLD, zero-out).
    Answers are cached.
    """
    _check(epsilon, delta, steps, sample_rate, sensitivity_dimension, gamma)
    if output is not None and output.suffix != ".json":
        raise ValueError(f"Expected --output to end in .json, got --output={output}")
    if gamma is not None and objective is not ObjectiveName.USEFULNESS:
        raise ValueError(
            f"Expected --gamma with --objective usefulness, got --objective={objective}"
        )
    from fedllm.models.embedded import cache_folder
    from privacy.noise_search.question import NoiseQuestion, Objective

    chosen = Objective(str(objective))
    question = NoiseQuestion(
        epsilon, delta, steps, sample_rate, chosen, gamma or 0.0, sensitivity_dimension
    )
    found = _answer(question, cache_folder() / "noise")
    found = {**found, "file": str(_deliver(question, cache_folder() / "noise", output))}
    if as_json:
        print_json(found)
    else:
        _print(found)


def _check(
    epsilon: float, delta: float, steps: int, rate: float, dimension: int, gamma: float | None
) -> None:
    from privacy.noise_search.question import SMALLEST_DELTA

    require("--epsilon", epsilon, epsilon > 0 and math.isfinite(epsilon), "a finite number > 0")
    least = f"from {SMALLEST_DELTA:g} to below 1"
    require("--delta", delta, SMALLEST_DELTA <= delta < 1, least)
    require("--steps", steps, steps >= 1, "a whole number >= 1")
    require("--sample-rate", rate, 0 < rate <= 1, "above 0 and at most 1")
    require("--sensitivity-dimension", dimension, dimension >= 1, "a whole number >= 1")
    if gamma is not None:
        require("--gamma", gamma, gamma > 0 and math.isfinite(gamma), "a finite number > 0")


def _answer(question: NoiseQuestion, cache: Path) -> dict[str, Any]:
    """Return the cached answer, or search for it and write the winner's file."""
    from fedllm.files.durable import json_bytes, plain, write_bytes
    from privacy.result_cache import cache_file, read_result, write_result

    winner = cache_file(cache, "winner", question.key())
    known = read_result(cache, "answer", question.key())
    if isinstance(known, dict) and winner.is_file():
        return known
    from privacy.noise_search.search import figures, search_noise

    with _progress() as report:
        search = search_noise(question, cache, report)
    found = figures(search)
    cache.mkdir(parents=True, exist_ok=True)
    write_bytes(winner, json_bytes(found))
    write_result(cache, "answer", question.key(), plain(found))
    return found


def _deliver(question: NoiseQuestion, cache: Path, output: Path | None) -> Path:
    """Return the path of the winner: in the cache, or copied to the requested path."""
    from fedllm.files.durable import write_bytes
    from privacy.result_cache import cache_file

    winner = cache_file(cache, "winner", question.key())
    if output is None:
        return winner
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, winner.read_bytes())
    return output


@contextmanager
def _progress() -> Iterator[Report]:
    """Show a progress bar on stderr, if that is a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("searching", total=1.0)

        def report(share: float, family: str) -> None:
            bar.update(task, completed=share, description=family or "done")

        yield report


def _print(found: Mapping[str, Any]) -> None:
    """Print every family's best next to the Gaussian, the winner and its file."""
    question = found["question"]
    useful = question["objective"] == "usefulness"
    judged = [f"P(|x| < {question['gamma']:.4g})"] if useful else []
    columns = ("family", "parameters", "std", "ratio", "E|x|", "ratio", *judged)
    table = make_table(*columns)
    rows = [(best, best["family"]) for best in found["families"]]
    if "proven_laplace" in found:
        rows.append((found["proven_laplace"], "laplace, proven"))
    for best, name in rows:
        least = "≥ " if best["floor"] else ""
        wins = best["parameters"] == found["parameters"] and not best["floor"]
        table.add_row(
            name + (" *" if wins else ""),
            _parameters(best),
            f"{least}{best['std']:.5g}",
            f"{least}{best['ratio_std']:.3f}",
            f"{least}{best['mean_abs']:.5g}",
            f"{least}{best['ratio_mean_abs']:.3f}",
            *([f"{best['usefulness']:.4f}"] if useful else []),
        )
    print_parts(_title(question), table, *_verdict(found), f"winner: {found['file']}")


def _title(question: Mapping[str, Any]) -> str:
    entries, steps = question["dimension"], question["steps"]
    what = "number" if entries == 1 else "vector"
    many = f"one {what}" if steps == 1 else f"{steps:,} {what}s"
    many += "" if entries == 1 else f" of {entries:,} entries"
    rate = question["sampling_rate"]
    return (
        f"Noise on {many}{'' if rate == 1 else f', sampling rate {rate:g}'}: "
        f"epsilon = {question['epsilon']:g}, delta = {question['delta']:g} (upper bound by PLD; relation: "
        f"zero-out); in units of the {'sensitivity' if entries == 1 else 'clipping norm'}, ratios "
        "to the Gaussian"
    )


def _verdict(found: Mapping[str, Any]) -> list[str]:
    """Return the name the winner and, for vectors, its margin and the undecided families."""
    name, question = found["family"], found["question"]
    others = {b["family"]: b["ratio_std"] for b in found["families"] if b["floor"]}
    if name != "gaussian":
        said = [
            f"{name.capitalize()} noise wins (least {question['objective']}): std "
            f"{found['ratio_std']:.3f} and E|x| {found['ratio_mean_abs']:.3f} of the Gaussian's"
        ]
    elif others:
        factors = ", ".join(f"{family} at least {ratio:.3f}" for family, ratio in others.items())
        said = [f"Gaussian noise wins; std of the others, as a factor of its: {factors}"]
    else:
        said = ["Gaussian noise wins: no other family is better by 0.1 %"]
    if found["undecided"]:
        said.append(
            f"Not decided: {', '.join(found['undecided'])} may need less noise, but no proof shows that this "
            "suffices for every change, so they are not offered"
        )
    return said


def _parameters(best: Mapping[str, Any]) -> str:
    """Format the parameters; of the mixture, only the terms in use."""
    values = dict(best["parameters"])
    if best["family"] == "lmo":
        if values["uniform_low"] == values["uniform_high"] and not (values["a1"] or values["a3"]):
            return f"plain Laplace: scale={1 / (values['a4'] * values['uniform_low']):.5g}"
        terms = {
            "a1": ("gamma_shape", "gamma_scale"),
            "a2": ("normal_mean", "normal_std", "normal_low", "normal_high"),
            "a3": ("exponential_rate",),
            "a4": ("uniform_low", "uniform_high"),
        }
        kept = [n for a, names in terms.items() if values[a] for n in (a, *names)]
        values = {name: values[name] for name in kept}
    return ", ".join(f"{name}={value:.5g}" for name, value in values.items())
