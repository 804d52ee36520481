"""Attack 2: an autoencoder for gradients. Whose gradients was it trained on?

    python -m simulations.attacks.autoencoder_inversion [--figure FILE.png] [--json]

The server publishes encoder and decoder. Where they were trained on clients' gradients they remember
them; where they were trained on draws of a random prior they cannot know more than the prior's
statistics (DR-Encoder, arXiv 2412.17053). Both are trained here by the same code and attacked twice, on
gradients of single texts, clipped; held-out gradients come from other texts.

* reconstruction: a gradient that the codec reconstructs well was in its training set. AUC of the
  relative squared error, training against held-out gradients; chance is 50 %.
* inversion, from the networks alone: the seed, and so the network before its training, is public. The
  difference of the two networks is what training put in; subspace iteration finds the directions that
  it answers to most. Distance (share of the squared norm outside their span) of the training
  gradients over that of as many held-out ones: below 1 where training gradients came out.

The statistics of a prior are a release of their own. Rows without noise have no guarantee, however
badly an attack does. In the rows with noise each client (of one text) releases noisy statistics:
epsilon is of that release, unit client, zero-out, against the server, accountant gdp-exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

from fedllm.codec.autoencoder import Autoencoder, Network, train_autoencoder
from fedllm.codec.base import compressed_dimension
from fedllm.codec.layout import Layout
from fedllm.codec.prior import Prior, prior_from_releases
from fedllm.codec.statistics import Statistics
from privacy.mechanisms.gaussian import add_gaussian
from privacy.randomness import RandomSource, generator
from simulations.attacks import auditing, show
from simulations.attacks.protections import CLIP, DELTA, Protection, noise_for
from simulations.attacks.scene import make_scene
from simulations.output import (
    AsJson,
    OneLineErrors,
    make_table,
    require,
)

SOURCES = ("real gradients", "layerwise", "coordinate", "low-rank")
MEASURES = ("train_error", "held_out_error", "to_train", "to_held_out", "ratio")


@dataclass(frozen=True)
class RealGradients(Prior):
    """No prior: draws are the given gradients themselves. What must not be done."""

    gradients: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def of(cls, gradients: Tensor) -> RealGradients:
        """Make the source from gradients (n, d)."""
        d = gradients.shape[1]
        mean = gradients.mean(0)
        variance = (gradients.square().mean(0) - mean.square()).clamp(min=0)
        return cls("real", mean, variance, torch.zeros(0, d), torch.zeros(0), gradients)

    def sample(self, count: int, rng: RandomSource) -> Tensor:
        """Return ``count`` of the gradients, drawn with replacement."""
        return self.gradients[torch.from_numpy(rng.random(count) * len(self.gradients)).long()]


def make_source(
    name: str, layout: Layout, gradients: Tensor, epsilon: float | None, rng: RandomSource
) -> Prior:
    """Return the training data of an autoencoder.

    Args:
        name: of :data:`SOURCES`.
        gradients: (n, d), one of each client.
        epsilon: of each client's release; None: statistics as they are.

    Raises:
        ValueError: an unknown name, or real gradients with an epsilon.
    """
    if name not in SOURCES:
        raise ValueError(f"Expected a source among {', '.join(SOURCES)}, got {name!r}")
    if name == SOURCES[0]:
        if epsilon is not None:
            raise ValueError(f"Expected epsilon=None for {name}, got epsilon={epsilon}")
        return RealGradients.of(gradients)
    statistics = Statistics(name, layout, CLIP)  # type: ignore[arg-type]
    if epsilon is None:
        return prior_from_releases(statistics, torch.stack([statistics.of(g) for g in gradients]))
    noise, bound = noise_for(epsilon), statistics.sensitivity()  # the bound is 1
    releases = [add_gaussian(statistics.of(g), bound, noise, rng) for g in gradients]
    prior = prior_from_releases(statistics, torch.stack(releases), noise_multiplier=noise)
    if prior.energy > 0:
        return prior
    # the noise has left nothing: white, as without any statistics
    return replace(prior, variance=torch.full_like(prior.mean, CLIP**2 / layout.dimension))


def reconstruction_errors(codec: Autoencoder, gradients: Tensor) -> np.ndarray:
    """Return the relative squared error of each gradient (n, d) after encoding and decoding."""
    decoded = codec.reconstruct(codec.project(gradients))
    sizes = gradients.square().sum(1).clamp(min=1e-30)
    return ((decoded - gradients).square().sum(1) / sizes).double().numpy()


def invert(codec: Autoencoder, directions: int, rounds: int, rng: RandomSource) -> Tensor:
    """Return orthonormal rows (directions, d): what the training of the codec added, most first.

    Subspace iteration on the difference between the codec and itself before training, whose weights
    follow from the public seed. Needs nothing but the codec.
    """
    before = Autoencoder(codec.shape, codec.scale, Network(codec.shape))
    size = codec.scale * codec.dimension**0.5  # a typical gradient's length
    start = torch.from_numpy(rng.standard_normal((codec.dimension, directions))).float()
    found = torch.linalg.qr(start).Q.T
    for _ in range(rounds):
        rows = found * size
        added = codec.reconstruct(codec.project(rows)) - before.reconstruct(before.project(rows))
        found = torch.linalg.qr(added.T).Q.T
    return found


def distances(directions: Tensor, gradients: Tensor) -> np.ndarray:
    """Return the share of each gradient's squared norm outside the span of orthonormal rows."""
    inside = (gradients @ directions.T).square().sum(1)
    return (1 - inside / gradients.square().sum(1).clamp(min=1e-30)).double().numpy()


def attack(
    codec: Autoencoder, train: Tensor, held_out: Tensor, *, directions: int, rounds: int, seed: int
) -> dict[str, Any]:
    """Return both attacks on one codec; ``train`` and ``held_out`` hold equally many gradients."""
    errors = reconstruction_errors(codec, train), reconstruction_errors(codec, held_out)
    found = invert(codec, directions, rounds, generator(seed, "autoencoder-inversion"))
    to_train, to_held_out = distances(found, train), distances(found, held_out)
    return {
        "auc": auditing.area_under_curve(-errors[0], -errors[1]),
        "train_error": float(errors[0].mean()),
        "held_out_error": float(errors[1].mean()),
        "to_train": float(to_train.mean()),
        "to_held_out": float(to_held_out.mean()),
        "ratio": float(to_train.mean() / to_held_out.mean()),
        "inverted_auc": auditing.area_under_curve(-to_train, -to_held_out),
        "points": [to_train.tolist(), to_held_out.tolist()],
    }


def measure(
    *,
    gradients: int,
    sources: Sequence[tuple[str, float | None]],
    prefix_length: int,
    ratio: float,
    steps: int,
    directions: int,
    rounds: int,
    seeds: Sequence[int],
    data: str,
    model: str = "minilm",
) -> dict[str, Any]:
    """Return all figures of the command, as plain values."""
    found: dict[tuple[str, float | None], list[dict[str, Any]]] = {key: [] for key in sources}
    for seed in seeds:
        scene = make_scene(
            texts=6 * gradients, prefix_length=prefix_length, seed=seed, data=data, model=model
        )
        short = sorted(scene.features, key=len)[: 2 * gradients]  # they cost less
        order = generator(seed, "autoencoder-split").permutation(len(short))
        everything = Protection("clipped", clip=CLIP).visible(
            scene.gradients([short[i] for i in order])
        )
        train, held_out = everything[:gradients], everything[gradients:]
        layout = Layout.of(scene.params)
        for name, epsilon in sources:
            rng = generator(seed, "autoencoder-statistics", name)
            codec = train_autoencoder(
                make_source(name, layout, train, epsilon, rng),
                compressed_dimension(scene.dimension, ratio),
                seed,
                steps=steps,
            )
            found[name, epsilon].append(
                attack(codec, train, held_out, directions=directions, rounds=rounds, seed=seed)
            )
    rows = []
    for (name, epsilon), cells in found.items():
        averaged = {key: show.mean_and_error([cell[key] for cell in cells]) for key in MEASURES}
        areas = {
            key: (
                float(np.mean([cell[key][0] for cell in cells])),
                float(np.linalg.norm([cell[key][1] for cell in cells])) / len(cells),
            )
            for key in ("auc", "inverted_auc")
        }
        rows.append(
            {
                "trained_on": name if epsilon is None else f"{name}, noise, epsilon={epsilon:g}",
                "epsilon": epsilon,
                "delta": None if epsilon is None else DELTA,
                **averaged,
                **areas,
                "points": cells[0]["points"],
            }
        )
    return {
        "data": scene.origin,
        "model": model,
        "prefix_length": prefix_length,
        "dimension": scene.dimension,
        "ratio": ratio,
        "gradients": gradients,
        "seeds": list(seeds),
        "rows": rows,
    }


def tables(result: dict[str, Any]) -> list[Any]:
    """Return the figures as a table and sentences."""
    table = make_table(
        "autoencoder trained on",
        "error, training %",
        "error, held-out %",
        "AUC of the error %",
        "inverted span to training",
        "to held-out",
        "ratio",
        "AUC %",
    )
    for row in result["rows"]:
        table.add_row(
            row["trained_on"],
            show.share(row["train_error"]),
            show.share(row["held_out_error"]),
            show.share(row["auc"]),
            f"{row['to_train'][0]:.3f}",
            f"{row['to_held_out'][0]:.3f}",
            f"{row['ratio'][0]:.2f} ± {row['ratio'][1]:.2f}",
            show.share(row["inverted_auc"]),
        )
    return [
        f"{result['data']}, {result['model']}, prefix of {result['prefix_length']} "
        f"(d = {result['dimension']}), code {result['ratio']:g}x, {result['gradients']} training and "
        f"{result['gradients']} held-out gradients; seeds {result['seeds']}",
        table,
        "± is one standard error over seeds (of AUC: DeLong's, over gradients); chance is 50 % and a "
        "ratio of 1. Inverted span: share of a gradient's squared norm outside the directions found in "
        "the networks alone.",
        "Epsilon: of each client's release of statistics (client of one text), zero-out, "
        f"delta={DELTA:g}, against the server, accountant gdp-exact. Rows without it have no guarantee.",
    ]


def draw(figure: Figure, result: dict[str, Any]) -> None:
    """Draw distances of inverted gradients, and the AUC of the reconstruction error."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for number, row in enumerate(result["rows"]):
        colour = show.COLOURS[number % len(show.COLOURS)]
        left.plot(
            *map(sorted, row["points"]), "o", ms=3, alpha=0.7, color=colour, label=row["trained_on"]
        )
    left.plot([0, 1], [0, 1], color="grey", lw=0.8, ls=":")
    left.set(xlabel="training gradient", ylabel="held-out gradient")
    left.set_title("Distance to the inverted span (first seed, sorted)", fontsize=9)
    left.legend(fontsize=7)
    places = np.arange(len(result["rows"]))[::-1]
    for shift, key, label in ((0.2, "auc", "reconstruction"), (-0.2, "inverted_auc", "inversion")):
        areas = np.array([row[key] for row in result["rows"]])
        right.barh(places + shift, areas[:, 0], 0.38, xerr=areas[:, 1], label=label)
    right.axvline(0.5, color="grey", lw=0.8, ls=":")
    right.set(xlim=(0, 1.05), yticks=places)
    right.set_yticklabels([row["trained_on"] for row in result["rows"]], fontsize=7)
    right.set_title("AUC: training against held-out gradients", fontsize=9)
    right.legend(fontsize=7)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(cls=OneLineErrors, help=__doc__.splitlines()[0])
def main(
    gradients: Annotated[int, typer.Option(help="Training gradients; as many held out.")] = 48,
    source: Annotated[list[str] | None, typer.Option(help=f"Of: {', '.join(SOURCES)}.")] = None,
    prefix_length: Annotated[int, typer.Option(help="Virtual positions in each layer.")] = 2,
    ratio: Annotated[float, typer.Option(help="Compression of the code.")] = 32.0,
    steps: Annotated[int, typer.Option(help="Training steps of an autoencoder at most.")] = 200,
    directions: Annotated[int, typer.Option(help="Directions that the inversion finds.")] = 300,
    rounds: Annotated[int, typer.Option(help="Rounds of its subspace iteration.")] = 6,
    epsilon: Annotated[float, typer.Option(help="Of each client's release of statistics.")] = 8.0,
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 2,
    data: Annotated[str, typer.Option(help="auto, sst2 or tweets.")] = "auto",
    figure: show.FigurePath = None,
    as_json: AsJson = False,
) -> None:
    """Train the autoencoders, attack them, and print."""
    show.check_figure(figure)
    chosen = source or list(SOURCES)
    for name, value, least in (
        ("--gradients", gradients, 4),
        ("--prefix-length", prefix_length, 1),
        ("--steps", steps, 1),
        ("--directions", directions, 1),
        ("--rounds", rounds, 1),
        ("--seeds", seeds, 1),
    ):
        require(name, value, value >= least, f"at least {least}")
    result = measure(
        gradients=gradients,
        sources=[(name, None) for name in chosen]
        + [(name, epsilon) for name in chosen if name != SOURCES[0]],
        prefix_length=prefix_length,
        ratio=ratio,
        steps=steps,
        directions=directions,
        rounds=rounds,
        seeds=range(seeds),
        data=data,
    )
    show.present(result, tables, draw, figure=figure, size=(9, 4), as_json=as_json)


if __name__ == "__main__":
    app(prog_name="python -m simulations.attacks.autoencoder_inversion")
