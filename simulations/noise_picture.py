"""The picture of a noise search: densities, tails, and what an attacker detects at most."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from privacy.accountants.loss_distribution import LossDistribution
from privacy.noise_search import NoiseSearch, composed_loss

matplotlib.use("agg")
_COLOURS = {
    "gaussian": "#444444",
    "laplace": "#0072b2",
    "exponential-power": "#d55e00",
    "staircase": "#009e73",
    "lmo": "#cc79a7",
}


def trade_off(loss: LossDistribution, rates: np.ndarray) -> np.ndarray:
    """The largest detection rate at each false-alarm rate (Dong, Roth and Su 2022: one minus f).

    Args:
      loss: ln P / Q under P, P the law with the record that is looked for; a pessimistic distribution
        gives more than the mechanism allows, never less.
      rates: False-alarm rates, ascending, of shape (n,).

    Returns:
      Detection rates of likelihood-ratio tests, between their corners those of randomised ones.
    """
    masses = np.maximum(loss.probs, 0.0)[::-1]
    detected = loss.infinity + np.cumsum(masses)
    alarms = np.cumsum(masses * np.exp(-loss.losses[::-1]))
    points = np.concatenate([[0.0], alarms]), np.concatenate([[loss.infinity], detected])
    return np.minimum(np.interp(rates, *points), 1.0)


def draw(search: NoiseSearch, path: Path, width: float = 15.0) -> None:
    """Write the picture; the format is that of the path's suffix (png, svg, pdf).

    Args:
      search: What is drawn: each family's best.
      path: Where to.
      width: In inches.
    """
    question = search.question
    figure = Figure(figsize=(width, width * 0.33), layout="constrained")
    density, tail, curve = figure.subplots(1, 3)
    gaussian = search.gaussian.noise
    x = np.linspace(-3.2, 3.2, 3001) * gaussian.std
    far = np.linspace(0, 8, 800) * gaussian.std
    rates = np.logspace(min(-4.0, np.log10(question.delta) - 1), 0, 300)
    winner = search.winner.noise.family
    for family, candidate in search.candidates.items():
        noise = candidate.noise
        style = {
            "color": _COLOURS[family],
            "linewidth": 2.4 if family == winner else 1.2,
            "linestyle": "--" if family == "lmo" else "-",  # it is Laplace more often than not
        }
        label = f"{family}: std {noise.std:.4g}, E|x| {noise.mean_abs:.4g}"
        if family == winner:
            label += " (winner)"
        density.plot(x, np.exp(noise.log_density(x)), label=label, **style)
        tail.semilogy(far, 2 * noise.survival(far), **style)
        found = np.max([trade_off(d, rates) for d in composed_loss(noise, question)], axis=0)
        curve.semilogx(rates, found / rates, **style)
    bound = np.minimum(question.delta + np.exp(question.epsilon) * rates, 1.0)
    # What (epsilon, delta) allows on the other side of the diagonal
    bound = np.minimum(bound, 1 - np.exp(-question.epsilon) * (1 - question.delta - rates))
    curve.semilogx(
        rates, bound / rates, color="#999999", linestyle=":", label="allowed by the target"
    )
    curve.set_ylim(1, 1 + 1.2 * np.expm1(question.epsilon))
    if question.epsilon > 3:
        curve.set_yscale("log")
    density.set_title("Density of the noise on one number")
    density.set_xlabel("noise, in units of the sensitivity")
    density.set_ylim(bottom=0)
    tail.set_title("Tail: probability of more noise than x")
    tail.set_xlabel("x, in units of the sensitivity")
    tail.set_ylim(1e-12, 1)
    what = "one number" if question.steps == 1 else f"all {question.steps:,} numbers"
    curve.set_title(f"Trade-off curve of {what}")
    curve.set_xlabel("false-alarm rate of an attacker's test")
    curve.set_ylabel("detection rate over false-alarm rate, at most")
    curve.legend(frameon=False, fontsize=8)
    density.legend(frameon=False, fontsize=7.5, loc="upper left")
    density.set_ylim(top=density.get_ylim()[1] * 1.35)  # room for the legend
    for axes in (density, tail, curve):
        axes.spines[["top", "right"]].set_visible(False)
    sampled = "" if question.sampling_rate == 1 else f", sampling rate {question.sampling_rate:g}"
    figure.suptitle(
        f"Noise that keeps {question.steps:,} number{'s' if question.steps > 1 else ''}{sampled} "
        f"to epsilon = {question.epsilon:g} at delta = {question.delta:g}"
    )
    figure.savefig(path, dpi=110)
