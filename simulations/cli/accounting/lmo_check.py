"""``fedllm lmo-check``: compare LMO-DP's claimed epsilon with the true one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.output import (
    AsJson,
    epsilon_text,
    make_table,
    print_json,
    print_parts,
    require,
)


def lmo_check(
    parameters: Annotated[
        Path,
        typer.Argument(
            help="JSON with a1 a3 a4 gamma_shape gamma_scale exponential_rate uniform_low "
            "uniform_high (a2 normal_mean normal_std normal_low normal_high too), or what "
            "noise-search wrote.",
            metavar="PARAMETERS",
        ),
    ],
    dimension: Annotated[int, typer.Option(help="Number of coordinates of the noised vector.")] = 1,
    delta: Annotated[float, typer.Option(help="Delta, above 0 and below 1.")] = 1e-5,
    epsilon: Annotated[
        float | None,
        typer.Option(
            help="Claimed epsilon of a training: also print the privacy.noise_scale that the authors accept "
            "for it."
        ),
    ] = None,
    sample_rate: Annotated[
        float, typer.Option(help="Probability of each record to be in a training step (Poisson).")
    ] = 1.0,
    steps: Annotated[int, typer.Option(help="Number of training steps.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Compare the claimed and the true epsilon of one release with LMO noise.

    The sensitivity is 1 in L2 norm, without sampling. The authors' figure is that of one number for every
    dimension, at an order where its formula does not hold. --epsilon adds the smallest noise that they
    accept for --steps training steps at --sample-rate, and the true cost of such a training.
    """
    require("--dimension", dimension, dimension >= 1, "a whole number >= 1")
    require("--delta", delta, 0 < delta < 1, "above 0 and below 1")
    require("--epsilon", epsilon or 1.0, epsilon is None or epsilon > 0, "above 0")
    require("--sample-rate", sample_rate, 0 < sample_rate <= 1, "above 0 and at most 1")
    require("--steps", steps, steps >= 1, "a whole number >= 1")
    from privacy.lmo_dp.comparison import lmo_figures, lmo_training
    from privacy.mechanisms.scalar_noise import LmoNoise
    from privacy.mechanisms.scalar_noise.lmo import lmo_from_dict

    noise: LmoNoise = lmo_from_dict(_read(parameters))
    figures, training = lmo_figures(noise, dimension, delta), None
    if epsilon is not None:
        training = lmo_training(noise, epsilon=epsilon, delta=delta, rate=sample_rate, steps=steps)
    if as_json:
        found = {"parameters": noise.parameters, **asdict(figures), "factor": figures.factor}
        print_json(found | ({} if training is None else {"training": asdict(training)}))
        return
    table = make_table("epsilon", "of one release", "holds")
    table.add_row(
        epsilon_text(figures.claimed_epsilon),
        f"claimed, at order {figures.claimed_order}",
        "yes, for one number"
        if figures.claimed_valid
        else f"no bound: orders below {figures.largest_order:g}, one number",
    )
    if dimension == 1:
        table.add_row(epsilon_text(figures.true_epsilon), "true, one number", "yes, tight bound")
    else:
        table.add_row(
            epsilon_text(figures.true_epsilon),
            f"true, change spread over {figures.true_changed} of {dimension} coordinates",
            "exact for this change: at least this",
        )
        table.add_row(
            epsilon_text(figures.epsilon_bound), "bound, any change", "yes, counted by a ledger"
        )
    text = (
        f"delta = {delta:g}; standard deviation {figures.std:.4g}, which is {figures.factor:.3g} times "
        f"that of the Gaussian noise of equal true epsilon ({figures.gaussian_std:.4g})."
    )
    if dimension > 1 and figures.factor > 1:
        text += " For vectors, use Gaussian noise."
    print_parts(table, text)
    if training is None:
        return
    print_parts(
        f"Training ({steps} steps, sample rate {sample_rate:g}, delta = {delta:g}): privacy.noise_scale = "
        f"{training.scale:.6g} is claimed to cost epsilon = {epsilon_text(training.claimed_epsilon)}, no bound. "
        f"A change spread over many coordinates costs {epsilon_text(training.spread_epsilon)}; proven for every "
        f"change, and counted by a ledger: {epsilon_text(training.epsilon_bound)} (zero-out)."
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"Expected JSON in {path}, got line {error.lineno}: {error.msg}") from None
    except UnicodeDecodeError:
        raise ValueError(f"Expected JSON in {path}, got a file that is not UTF-8") from None
