"""Attack 1: a client's message. Which text was it computed from?

    python -m simulations.attacks.gradient_inversion [--figure FILE.png] [--json]

A client of one text sends the gradient of prefix and head after one local step. The adversary is the
server: it knows the model, the parameters of the round, the text's length and its label. It tries
two things (``token_recovery.py``):

* to write down the text: the tokens closest to the span of the gradient of layer 0's keys, then a
  coordinate search that compares messages. ``unrelated`` is the same search on the message of
  another text of the same length: what the search finds by chance.
* to name the text among a pool of texts of the same length, by maximum likelihood. Chance is one in
  the pool's number. Under noise no adversary does better than ``proven``.

The linear code is fitted to the gradients of other texts of the same source (low-rank prior): as
much as a public text could ever know.

Each epsilon is of this one message: unit client, zero-out, against the server, by the
exact accountant of the Gaussian mechanism. In a run of many rounds at the same total epsilon each
message has more noise than here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from fedllm.codec.layout import Layout
from fedllm.data.batches import Feature
from privacy.randomness import generator
from simulations.attacks import show
from simulations.attacks.protections import DELTA, Protection, protections
from simulations.attacks.scene import Scene, make_scene
from simulations.attacks.token_recovery import identify, rank_tokens, recovery, refine
from simulations.output import (
    AsJson,
    OneLineErrors,
    make_table,
    require,
)

TEXTS_AT_HAND = 2500
PUBLIC_TEXTS = 256
MEASURES = ("anywhere", "in_place", "whole")


def texts_of_length(scene: Scene, length: int, count: int, least: int = 2) -> list[Feature]:
    """Return at most ``count`` texts of exactly ``length`` tokens.

    Raises:
        ValueError: there are fewer than ``least``.
    """
    found = [feature for feature in scene.features if len(feature) == length][:count]
    if len(found) < least:
        raise ValueError(
            f"Expected at least {least} texts of {length} tokens in {scene.origin}, "
            f"got {len(found)}"
        )
    return found


def recover_tokens(
    scene: Scene,
    protections: Sequence[Protection],
    texts: Sequence[Feature],
    *,
    width: int,
    sweeps: int,
    seed: int,
) -> list[list[dict[str, Any]]]:
    """Attack the message of each text in each form; at least two texts of each length.

    Returns:
        For each protection one row a text: its length, the three measures of :func:`recovery`, and
        the same measures of what was found from the message of the next text of that length
        (``unrelated``).
    """
    gradients = scene.gradients(texts)
    messages = [
        list(p.send(gradients, generator(seed, "leakage-message", p.name))) for p in protections
    ]
    lengths = [len(text) for text in texts]
    flat = [message for group in messages for message in group]
    ranked = rank_tokens(scene, flat, lengths * len(protections), width, seed)
    found = []
    for number, protection in enumerate(protections):
        shortlists = ranked[number * len(texts) : (number + 1) * len(texts)]
        guesses = [
            refine(scene, message, text, shortlist, protection.visible, sweeps=sweeps)
            for message, text, shortlist in zip(messages[number], texts, shortlists, strict=True)
        ]
        found.append([_row(guesses, texts, place) for place in range(len(texts))])
    return found


def _row(
    guesses: Sequence[tuple[list[int], float]], texts: Sequence[Feature], place: int
) -> dict[str, Any]:
    text = texts[place]
    same = [i for i, other in enumerate(texts) if len(other) == len(text)]
    unrelated = same[(same.index(place) + 1) % len(same)]
    truth = text.input_ids[1:-1]
    return {
        "tokens": len(text),
        "distance": guesses[place][1],
        **dict(zip(MEASURES, recovery(guesses[place][0], truth), strict=True)),
        "unrelated": dict(zip(MEASURES, recovery(guesses[unrelated][0], truth), strict=True)),
    }


def identify_texts(
    scene: Scene, protection: Protection, pools: Sequence[Sequence[Feature]], draws: int, seed: int
) -> list[float]:
    """Return the share of draws in which each text of each pool is named as the sender's."""
    shares: list[float] = []
    for number, pool in enumerate(pools):
        gradients = scene.gradients(pool)
        candidates = protection.visible(gradients)
        hits = np.zeros(len(pool))
        for draw in range(draws if protection.noise_multiplier else 1):
            rng = generator(seed, "leakage-identify", protection.name, number, draw)
            messages = protection.send(gradients, rng)
            hits += identify(messages, candidates) == np.arange(len(pool))
        shares += list(hits / (draws if protection.noise_multiplier else 1))
    return shares


def measure(
    *,
    lengths: Sequence[int],
    texts: int,
    pool: int,
    draws: int,
    prefix_length: int,
    epsilons: Sequence[float],
    ratio: float,
    width: int,
    sweeps: int,
    seed: int,
    data: str,
    model: str = "minilm",
    at_hand: int = TEXTS_AT_HAND,
) -> dict[str, Any]:
    """Return all figures of the command, as plain values."""
    scene = make_scene(
        texts=at_hand, prefix_length=prefix_length, seed=seed, data=data, model=model
    )
    chosen = [t for length in lengths for t in texts_of_length(scene, length, texts)]
    pools = [texts_of_length(scene, length, pool) for length in lengths]
    rows = []
    attacked = {id(text) for text in (*chosen, *(text for group in pools for text in group))}
    others = [text for text in scene.features if id(text) not in attacked][:PUBLIC_TEXTS]
    layout = Layout.of(scene.params)
    forms = protections(scene.dimension, epsilons, ratio, layout, scene.gradients(others))
    recovered = recover_tokens(scene, forms, chosen, width=width, sweeps=sweeps, seed=seed)
    for protection, found in zip(forms, recovered, strict=True):
        named = identify_texts(scene, protection, pools, draws, seed)
        bounds = [protection.identification_bound(len(p)) for p in pools for _ in p]
        rows.append(
            {
                "protection": protection.name,
                "epsilon": protection.epsilon,
                "delta": DELTA if protection.epsilon is not None else None,
                "noise_multiplier": protection.noise_multiplier,
                **{m: show.mean_and_error([r[m] for r in found]) for m in MEASURES},
                "unrelated": {
                    m: show.mean_and_error([r["unrelated"][m] for r in found]) for m in MEASURES
                },
                "by_length": {
                    str(n): {
                        m: show.mean_and_error([r[m] for r in found if r["tokens"] == n])
                        for m in MEASURES
                    }
                    for n in lengths
                },
                "identified": show.mean_and_error(named),
                "identified_at_most": None
                if bounds[0] is None
                else float(np.mean([b for b in bounds if b is not None])),
            }
        )
    return {
        "data": scene.origin,
        "model": model,
        "prefix_length": prefix_length,
        "dimension": scene.dimension,
        "lengths": list(lengths),
        "texts": len(chosen),
        "pool": [len(p) for p in pools],
        "chance_of_identification": float(np.mean([1 / len(p) for p in pools for _ in p])),
        "seed": seed,
        "unit": "client (of one text)",
        "relation": "zero-out",
        "adversary": "server",
        "accountant": "gdp-exact, one message",
        "rows": rows,
    }


def tables(result: dict[str, Any]) -> list[Any]:
    """Return the figures as tables and sentences."""
    main = make_table(
        "message",
        "tokens found %",
        "(unrelated)",
        "in place %",
        "(unrelated)",
        "whole text %",
        "named in pool %",
        "proven at most %",
    )
    for row in result["rows"]:
        bound = row["identified_at_most"]
        main.add_row(
            row["protection"],
            show.share(row["anywhere"]),
            show.share(row["unrelated"]["anywhere"]),
            show.share(row["in_place"]),
            show.share(row["unrelated"]["in_place"]),
            show.share(row["whole"]),
            show.share(row["identified"]),
            "no bound" if bound is None else f"{100 * bound:.1f}",
        )
    lengths = make_table("tokens found / in place %", *(f"{n} tokens" for n in result["lengths"]))
    for row in result["rows"]:
        cells = [row["by_length"][str(n)] for n in result["lengths"]]
        lengths.add_row(
            row["protection"],
            *(f"{100 * c['anywhere'][0]:.0f} / {100 * c['in_place'][0]:.0f}" for c in cells),
        )
    return [
        f"{result['data']}, {result['model']}, prefix of {result['prefix_length']}, "
        f"{result['texts']} texts attacked; pool of {result['pool'][0]} texts, chance "
        f"{100 * result['chance_of_identification']:.1f} %; seed {result['seed']}",
        main,
        lengths,
        f"± is one standard error over texts. Epsilon: of one message at delta={DELTA:g}, unit "
        "client (of one text), zero-out, against the server, accountant gdp-exact.",
        "Clipping and codes without noise have no guarantee; a code that hides the tokens from this "
        "attack still identifies the text in the pool.",
    ]


def draw(figure: Figure, result: dict[str, Any]) -> None:
    """Draw bars of token recovery next to chance, and of identification next to its theoretical upper bound."""
    rows = result["rows"][::-1]
    places = np.arange(len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    for shift, label, colour, pick in (
        (0.27, "found anywhere", show.COLOURS[0], lambda r: r["anywhere"]),
        (0.0, "found in place", show.COLOURS[1], lambda r: r["in_place"]),
        (-0.27, "unrelated message, anywhere", "#bbbbbb", lambda r: r["unrelated"]["anywhere"]),
    ):
        values = np.array([pick(row) for row in rows])
        left.barh(places + shift, values[:, 0], 0.25, xerr=values[:, 1], label=label, color=colour)
    left.set(title="Tokens recovered", xlim=(0, 1.05), yticks=places)
    left.set_yticklabels([row["protection"] for row in rows])
    left.legend(fontsize=7, loc="lower right")
    named = np.array([row["identified"] for row in rows])
    right.barh(places, named[:, 0], 0.5, xerr=named[:, 1], color=show.COLOURS[2], label="measured")
    proven = [(p, r["identified_at_most"]) for p, r in zip(places, rows, strict=True)]
    marks = np.array([(b, p) for p, b in proven if b is not None])
    if len(marks):
        right.plot(marks[:, 0], marks[:, 1], "k|", markersize=14, label="theoretical upper bound")
    right.axvline(result["chance_of_identification"], color="grey", lw=0.8, ls=":", label="chance")
    right.set(title="Text named among the pool", xlim=(0, 1.05))
    right.legend(fontsize=7, loc="lower right")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(cls=OneLineErrors, help=__doc__.splitlines()[0])
def main(
    length: Annotated[list[int] | None, typer.Option(help="Tokens of the attacked texts.")] = None,
    texts: Annotated[int, typer.Option(help="Texts of each length to recover.")] = 4,
    pool: Annotated[int, typer.Option(help="Texts of each length to name one among.")] = 50,
    draws: Annotated[int, typer.Option(help="Noise draws for each text of the pool.")] = 5,
    prefix_length: Annotated[int, typer.Option(help="Virtual positions in each layer.")] = 8,
    epsilon: Annotated[list[float] | None, typer.Option(help="Of one message.")] = None,
    ratio: Annotated[float, typer.Option(help="Compression of the codes.")] = 32.0,
    width: Annotated[int, typer.Option(help="Tokens tried at each position.")] = 8,
    sweeps: Annotated[int, typer.Option(help="Sweeps of the coordinate search.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of texts, warm-up and noise.")] = 0,
    data: Annotated[str, typer.Option(help="auto, sst2 or tweets.")] = "auto",
    figure: show.FigurePath = None,
    as_json: AsJson = False,
) -> None:
    """Attack the messages and print what was recovered."""
    lengths, epsilons = length or [6, 8, 12], epsilon or [8.0, 3.0, 1.0]
    show.check_figure(figure)
    for name, value, least in (
        ("--length", min(lengths), 3),
        ("--texts", texts, 2),
        ("--pool", pool, 2),
        ("--draws", draws, 1),
        ("--prefix-length", prefix_length, 1),
        ("--width", width, 1),
        ("--sweeps", sweeps, 0),
    ):
        require(name, value, value >= least, f"at least {least}")
    result = measure(
        lengths=lengths,
        texts=texts,
        pool=pool,
        draws=draws,
        prefix_length=prefix_length,
        epsilons=epsilons,
        ratio=ratio,
        width=width,
        sweeps=sweeps,
        seed=seed,
        data=data,
    )
    show.present(result, tables, draw, figure=figure, size=(10, 4.2), as_json=as_json)


if __name__ == "__main__":
    app(prog_name="python -m simulations.attacks.gradient_inversion")
