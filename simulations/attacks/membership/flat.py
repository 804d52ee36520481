"""Attack 4: flattened models. Does flattening, or its labelled form, reveal more about membership?

    python -m simulations.attacks.membership.flat [--runs 8] [--row 'NAME: section.key=value; ...'] \\
        [--work DIR] [--figure FILE.png] [--json]

The federation itself trains each model (``federated_runs.py``): small silos, few and short texts, many
rounds, half of the texts with a flipped label, so that there is something to leak. Each run includes
each text by a coin of its own; rows differ in settings alone, and run r has the same texts, coins and seed in
all of them, so that rows are compared in pairs. Attacks on the released model:

* ``loss``: members have the smaller loss (Yeom et al. 2018);
* ``LiRA``: the likelihood ratio of the text's own scores with and without it, the row's other runs as
  reference models (Carlini et al. 2022).

An attack that does no better against one row than against another is no proof: what is proven is in the
column of the greatest AUC, from the events of the runs' own ledgers. A row whose ledger holds a release
without a guarantee has none, however little these two attacks find.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

from fedllm.models.embedded import cache_folder
from privacy.randomness import generator
from simulations.attacks import auditing, show
from simulations.attacks.membership.attacks import (
    RATES,
    areas,
    interval,
    paired,
    rate_over_runs,
    roc,
)
from simulations.attacks.membership.federated_runs import (
    DELTA,
    Experiment,
    Row,
    attacked_losses,
    coins,
    load,
    settings_of,
)
from simulations.output import (
    AsJson,
    OneLineErrors,
    make_table,
    require,
)

ATTACKS = ("loss", "LiRA")
GROUPS = ("canaries", "texts")
ROWS = (
    Row("no privacy", ("privacy.mode=none",)),
    Row("DP"),
    Row("DP, flattened, valid forms", ("awp.form=per-example", "teacher.kind=ema")),
    Row("DP, flattened, nonprivate teacher", ("awp.form=per-example", "teacher.kind=nonprivate")),
)
BASE = "DP"


def measure(
    experiment: Experiment, rows: Sequence[Row], runs: int, cache: Path, advance: Any = lambda: None
) -> dict[str, Any]:
    """Return all figures of the command, as plain values.

    Raises:
        SettingsError: a row's overrides do not fit.
        DataError: too few texts.
        ValueError: a run did not finish.
    """
    texts = load(experiment)
    included = coins(experiment, runs)
    half = experiment.texts // 2
    parts = {"canaries": slice(0, half), "texts": slice(half, experiment.texts)}
    found = []
    by_area: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        trained = attacked_losses(experiment, row, texts, included, cache, advance)
        losses = np.array([one["losses"] for one in trained])
        scores = {"loss": -losses, "LiRA": auditing.lira_scores(included, losses)}
        rng = generator(experiment.seed, "flat-membership-bootstrap", row.name)
        groups: dict[str, Any] = {}
        by_area[row.name] = {}
        for group, part in parts.items():
            by_area[row.name][group] = {
                name: areas(included[:, part], value[:, part]) for name, value in scores.items()
            }
            groups[group] = {
                name: {
                    "auc": interval(by_area[row.name][group][name]),
                    "tpr": {
                        str(rate): rate_over_runs(included[:, part], value[:, part], rate, rng)
                        for rate in RATES
                    },
                }
                for name, value in scores.items()
            }
        own = parts["canaries"]
        found.append(
            {
                "row": row.name,
                "overrides": list(row.overrides),
                "accuracy": interval([one["accuracy"] for one in trained]),
                "member_loss": float(losses[included].mean()),
                "other_loss": float(losses[~included].mean()),
                "proven": trained[0]["proven"],
                **groups,
                "roc": roc(scores["LiRA"][:, own], included[:, own]),
            }
        )
    base = BASE if BASE in by_area else rows[0].name
    for one in found:
        one["against"] = {
            group: {
                name: paired(by_area[one["row"]][group][name], by_area[base][group][name])
                for name in ATTACKS
            }
            for group in GROUPS
        }
    return {
        **vars(experiment),
        "data": texts.origin,
        "runs": runs,
        "delta": DELTA,
        "unit": "example",
        "relation": "zero-out",
        "accountant": "pld",
        "base": base,
        "rows": found,
    }


def tables(result: dict[str, Any]) -> list[Any]:
    """Return the figures as tables and sentences."""
    found: list[Any] = [
        f"{result['data']}, {result['model']}, {result['silos']} silos, {result['runs']} runs of "
        f"{result['rounds']} rounds at sampling rate {result['sampling_rate']:g}, each on about half of "
        f"{result['texts']} texts; epsilon={result['epsilon']:g} for the private rows; seed {result['seed']}"
    ]
    for group in GROUPS:
        table = make_table(
            f"training ({group})",
            *(f"AUC %, {name}" for name in ATTACKS),
            "proven at most %",
            *(f"TPR % at {100 * rate:g} % FPR, LiRA" for rate in RATES),
            f"LiRA's AUC over {result['base']}'s",
        )
        for row in result["rows"]:
            against = row["against"][group]["LiRA"]
            own = row["row"] == result["base"]
            table.add_row(
                row["row"],
                *(_span(row[group][name]["auc"]) for name in ATTACKS),
                f"{100 * row['proven']['auc']:.1f}" if row["proven"] else "no bound",
                *(_span(tuple(row[group]["LiRA"]["tpr"][str(rate)].values())) for rate in RATES),
                ""
                if own
                else f"{100 * against['difference']:+.1f} ({100 * against['low']:+.1f} to "
                f"{100 * against['high']:+.1f}), p = {against['p']:.2g}",
            )
        found.append(table)
    table = make_table("training", "loss: members / others", "accuracy %", "overrides")
    for row in result["rows"]:
        table.add_row(
            row["row"],
            f"{row['member_loss']:.3f} / {row['other_loss']:.3f}",
            _span(row["accuracy"]),
            "; ".join(row["overrides"]) or "none",
        )
    return [
        *found,
        table,
        "Intervals: 95 %. AUC: Student's over runs; chance is 50 %. TPR: bootstrap over runs. Difference: paired by "
        "run (same texts, coins and seed), p of a paired t-test, not corrected for the number of rows. LiRA's "
        "runs share reference models, which the intervals ignore. `proven at most`: greatest AUC of any "
        f"attack on one text, from the events in the first run's ledger (unit example, zero-out, "
        f"delta={result['delta']:g} for calibration, PLD); `no bound`: the ledger holds a release without a guarantee.",
    ]


def _span(values: Sequence[float]) -> str:
    mean, low, high = (100 * value for value in values)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def draw(figure: Figure, result: dict[str, Any]) -> None:
    """Draw AUC with its interval and its bound; ROC of LiRA on the canaries with logarithmic axes."""
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    rows = result["rows"]
    styles = {
        ("canaries", "loss"): "o",
        ("canaries", "LiRA"): "D",
        ("texts", "loss"): "s",
        ("texts", "LiRA"): "^",
    }
    for place, row in enumerate(rows):
        for number, (group, name) in enumerate(styles):
            mean, low, high = row[group][name]["auc"]
            left.errorbar(
                mean,
                -place + 0.24 - 0.16 * number,
                xerr=[[mean - low], [high - mean]],
                fmt=styles[group, name],
                color=show.COLOURS[number],
                markersize=4,
                capsize=2,
                label=f"{name}, {group}" if place == 0 else None,
            )
        if row["proven"]:
            most = row["proven"]["auc"]
            label = (
                "theoretical upper bound" if not any(r["proven"] for r in rows[:place]) else None
            )
            left.plot([most, most], [-place - 0.38, -place + 0.38], "k-", lw=2, label=label)
    left.axvline(0.5, color="grey", lw=0.8, ls=":")
    left.set_yticks([-place for place in range(len(rows))])
    left.set_yticklabels([row["row"].replace(", ", ",\n") for row in rows], fontsize=8)
    left.set_ylim(-len(rows) + 0.4, 0.6)
    left.set_xlabel("AUC (0.5: guessing)", fontsize=8)
    left.grid(axis="x", alpha=0.25)
    figure.legend(*left.get_legend_handles_labels(), fontsize=7, loc="outside lower left", ncols=5)
    for number, row in enumerate(rows):
        right.plot(*row["roc"], color=show.COLOURS[number % len(show.COLOURS)], label=row["row"])
    right.plot([1e-3, 1], [1e-3, 1], color="grey", lw=0.8, ls=":")
    right.set(xscale="log", yscale="log", xlim=(2e-3, 1), ylim=(2e-3, 1.02))
    right.set_xlabel("false positive rate", fontsize=8)
    right.set_ylabel("true positive rate", fontsize=8)
    right.set_title("LiRA on canaries", fontsize=9)
    right.legend(fontsize=7)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(cls=OneLineErrors, help=__doc__.splitlines()[0])
def main(
    row: Annotated[
        list[str] | None,
        typer.Option(help="'NAME: section.key=value; ...', repeated; instead of the usual rows."),
    ] = None,
    runs: Annotated[int, typer.Option(help="Models trained for each row.")] = 8,
    texts: Annotated[int, typer.Option(help="Candidates; half are canaries, half are in.")] = 256,
    silos: Annotated[int, typer.Option(help="Silos.")] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds of one step.")] = 20,
    epsilon: Annotated[float, typer.Option(help="Target of a run, at delta 1e-5.")] = 8.0,
    sampling_rate: Annotated[float, typer.Option(help="Poisson sampling rate of a step.")] = 0.5,
    learning_rate: Annotated[float, typer.Option(help="The server's, for the prefix.")] = 0.02,
    head_learning_rate: Annotated[float, typer.Option(help="The server's, for the head.")] = 0.1,
    prefix_length: Annotated[int, typer.Option(help="Virtual positions in each layer.")] = 4,
    model: Annotated[str, typer.Option(help="minilm, or a folder of an encoder.")] = "minilm",
    seed: Annotated[int, typer.Option(help="Seed of texts, coins, sampling and noise.")] = 0,
    data: Annotated[str, typer.Option(help="auto, sst2 or tweets.")] = "auto",
    work: Annotated[
        Path | None,
        typer.Option(help="Folder of finished runs' losses: the same command resumes."),
    ] = None,
    figure: show.FigurePath = None,
    as_json: AsJson = False,
) -> None:
    """Train, attack, compare, and print."""
    show.check_figure(figure)
    require("--runs", runs, runs >= 3, "at least 3")
    require("--silos", silos, silos >= 1, "at least 1")
    require("--texts", texts, texts >= 16 * silos, "at least 16 a silo")
    require("--sampling-rate", sampling_rate, 0 < sampling_rate <= 1, "between 0 and 1")
    for name, value in (("--rounds", rounds), ("--prefix-length", prefix_length)):
        require(name, value, value >= 1, "at least 1")
    rows = [Row.parse(text) for text in row] if row else list(ROWS)
    if len({one.name for one in rows}) < len(rows):
        raise ValueError("Expected distinct names of rows, got one twice")
    experiment = Experiment(
        texts=texts,
        silos=silos,
        rounds=rounds,
        epsilon=epsilon,
        sampling_rate=sampling_rate,
        learning_rate=learning_rate,
        head_learning_rate=head_learning_rate,
        prefix_length=prefix_length,
        model=model,
        data=data,
        seed=seed,
    )
    for one in rows:  # before the first of them has trained for minutes
        settings_of(experiment, one, Path.cwd(), 0)
    cache = work or cache_folder() / "flat-membership"
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("runs", total=runs * len(rows))
        result = measure(experiment, rows, runs, cache, lambda: progress.advance(bar))
    show.present(result, tables, draw, figure=figure, size=(10, 4.6), as_json=as_json)


if __name__ == "__main__":
    app(prog_name="python -m simulations.attacks.membership.flat")
