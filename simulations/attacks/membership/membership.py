"""Leak 3: the final model. Was this text in the training data?

    python -m simulations.attacks.membership.membership [--figure FILE.png] [--json]

A small prefix and head are trained to overfit a few texts, with the code of a normal run
(``fedllm.training.mechanism``): without privacy, and with DP-SGD at each epsilon, all else equal. Half the
texts are canaries: their label is flipped, so that a model that gives it must have seen them. Each
run includes each text by a fair coin of its own. Attacks on the final model:

* ``loss``: members have the smaller loss (Yeom et al. 2018, "Privacy risk in machine learning");
* ``LiRA``: likelihood ratio of the text's own logit scores in runs with and without it, the other
  runs serving as shadow models (Carlini et al. 2022, "Membership inference attacks from first
  principles"; pooled variances, online).

Next to them stands what the guarantee allows to any attack, from the same events by the PLD accountant
(unit example, zero-out; the final model is less than what the server sees). ``audited`` is
a 95 % lower bound of epsilon from the ``loss`` attack on all texts, ranked within canaries and
others (``auditing.py``): above the claimed epsilon it would prove the accounting wrong. The last row shows that it can: its noise is
divided by a factor that its claim does not tell of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure
from scipy.stats import rankdata

from fedllm.data.batches import Feature
from fedllm.settings.experiment import Settings
from fedllm.training.mechanism import make_mechanism
from fedllm.training.steps import LocalWork
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from privacy.calibration import calibrate_noise_multiplier
from privacy.events.constructors import dp_sgd
from privacy.events.multiset import multiset
from privacy.randomness import generator
from simulations.attacks import auditing, show
from simulations.attacks.membership.attacks import RATES, attack, flipped, losses, roc
from simulations.attacks.scene import MICRO_BATCH, load_distinct, with_client
from simulations.benchmarks.support import workload
from simulations.output import (
    AsJson,
    OneLineErrors,
    make_table,
    require,
)

DELTA = 1e-5
ATTACKS = ("loss", "LiRA")
GROUPS = ("canaries", "texts")


@dataclass(frozen=True)
class Training:
    """Training of the attacked models: the same for all rows except the noise."""

    steps: int = 40
    sampling_rate: float = 0.5
    learning_rate: float = 0.01
    prefix_length: int = 4
    model: str = "minilm"

    def settings(self, private: bool, members: int) -> Settings:
        """Return the settings of one local round, ``members`` being the expected number of texts."""
        source = workload.model_source(self.model)
        settings = workload.settings_for(
            source,
            "encoder",
            private=private,
            batch_size=max(1, round(members * self.sampling_rate)),
            local_steps=self.steps,
            max_tokens=MICRO_BATCH,
            prefix_length=self.prefix_length,
        )
        return with_client(settings, optimizer="adam", learning_rate=self.learning_rate)


@dataclass(frozen=True)
class Claim:
    """One row: the claimed and the actual training.

    Attributes:
        name: as in the tables.
        epsilon: claimed at ``DELTA``; None without privacy.
        noise_multiplier: of the claim.
        divided_by: the noise that is really added is smaller by this factor.
    """

    name: str
    epsilon: float | None = None
    noise_multiplier: float = 0.0
    divided_by: float = 1.0


def claims(epsilons: Sequence[float], broken: float | None, training: Training) -> list[Claim]:
    """Return no privacy; each epsilon; and the smallest epsilon with the noise divided by ``broken``."""
    found = [Claim("none")]
    for epsilon in epsilons:
        noise = calibrate_noise_multiplier(
            epsilon=epsilon,
            delta=DELTA,
            sampling_rate=training.sampling_rate,
            steps=training.steps,
        ).noise_multiplier
        found.append(Claim(f"epsilon={epsilon:g}", epsilon, noise))
    if broken is not None and epsilons:
        last = min(found[1:], key=lambda claim: claim.epsilon or 0.0)
        name = f"{last.name} claimed, noise / {broken:g}"
        found.append(Claim(name, last.epsilon, last.noise_multiplier, broken))
    return found


def train_runs(
    tunable: Tunable,
    features: Sequence[Feature],
    claim: Claim,
    training: Training,
    runs: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Train ``runs`` models on coin-chosen parts of ``features``.

    Returns:
        Membership (runs, m) and the losses of all texts under each final model (runs, m).
    """
    private = claim.epsilon is not None
    settings = training.settings(private, len(features) // 2)
    start = initial_params(tunable, settings)
    included = generator(seed, "membership-coins").random((runs, len(features))) < 0.5
    found = np.zeros(included.shape)
    mechanism = make_mechanism(
        settings,
        sampling_rate=training.sampling_rate,
        noise_multiplier=claim.noise_multiplier / claim.divided_by,
    )
    for run, chosen in enumerate(included):
        streams = partial(generator, seed, "membership", claim.name, run)
        inside = [f for f, taken in zip(features, chosen, strict=True) if taken]
        result = mechanism.train(LocalWork(tunable, start, inside, streams))
        final = {name: start[name] + result.update[name] for name in start}
        found[run] = losses(tunable, final, features).numpy()
    return included, found


def measure(
    *,
    texts: int,
    runs: int,
    epsilons: Sequence[float],
    broken: float | None,
    training: Training,
    seed: int,
    data: str,
) -> dict[str, Any]:
    """Return all figures of the command, as plain values."""
    tunable = make_tunable(training.settings(False, texts // 2))
    records, origin = load_distinct(3 * texts, data, seed)
    natural = sorted(tunable.task.features(records), key=len)[:texts]  # short ones: they cost less
    natural = [natural[i] for i in generator(seed, "membership-texts").permutation(texts)]
    half = texts // 2
    features = [flipped(f, len(workload.LABELS)) for f in natural[:half]] + natural[half:]
    parts = {"canaries": slice(0, half), "texts": slice(half, texts)}
    rows = []
    for claim in claims(epsilons, broken, training):
        included, found = train_runs(tunable, features, claim, training, runs, seed)
        scores = {"loss": -found, "LiRA": auditing.lira_scores(included, found)}
        own = parts["canaries"]
        proven: dict[str, Any] | None = None
        if claim.epsilon is not None:
            events = multiset(
                {dp_sgd(training.sampling_rate, claim.noise_multiplier, training.steps): 1}
            )
            rates = auditing.greatest_rates(events, np.array([*RATES]))
            curve = np.geomspace(1e-3, 1, 60)
            proven = {
                "auc": auditing.greatest_area(events),
                "tpr": {str(r): float(v) for r, v in zip(RATES, rates, strict=True)},
                "curve": [list(curve), list(auditing.greatest_rates(events, curve))],
            }
        ranks = [rankdata(-found[:, part]).reshape(runs, -1) / half for part in parts.values()]
        audited = auditing.audited_epsilon(
            np.hstack(ranks).ravel(),
            included.ravel(),
            DELTA if claim.epsilon is not None else 0.0,
        )
        rows.append(
            {
                "training": claim.name,
                "claimed_epsilon": claim.epsilon,
                "noise_multiplier": claim.noise_multiplier / claim.divided_by,
                "audited_epsilon": audited,
                "refuted": claim.epsilon is not None and audited > claim.epsilon,
                "member_loss": float(found[included].mean()),
                "other_loss": float(found[~included].mean()),
                "proven": proven,
                **{
                    group: {
                        name: attack(included[:, part], value[:, part])
                        for name, value in scores.items()
                    }
                    for group, part in parts.items()
                },
                "roc": roc(scores["LiRA"][:, own], included[:, own]),
            }
        )
    return {
        "data": origin,
        "model": training.model,
        "prefix_length": training.prefix_length,
        "steps": training.steps,
        "sampling_rate": training.sampling_rate,
        "texts": texts,
        "runs": runs,
        "seed": seed,
        "delta": DELTA,
        "unit": "example",
        "relation": "zero-out",
        "adversary": "outsider (final model)",
        "accountant": "pld",
        "rows": rows,
    }


def tables(result: dict[str, Any]) -> list[Any]:
    """Return the figures as tables and sentences."""
    parts: list[Any] = [
        f"{result['data']}, {result['model']}, prefix of {result['prefix_length']}, "
        f"{result['runs']} runs of {result['steps']} steps at sampling rate "
        f"{result['sampling_rate']:g}, each on about half of {result['texts']} texts; "
        f"seed {result['seed']}"
    ]
    for group in GROUPS:
        table = make_table(
            f"training ({group})",
            *(f"AUC %, {name}" for name in ATTACKS),
            "at most %",
            *(
                head
                for rate in RATES
                for head in (f"TPR % at {100 * rate:g} % FPR, LiRA", "at most %")
            ),
        )
        for row in result["rows"]:
            proven = row["proven"]
            cells = [show.share(row[group][name]["auc"]) for name in ATTACKS]
            cells.append(f"{100 * proven['auc']:.1f}" if proven else "no bound")
            for rate in map(str, RATES):
                found = row[group]["LiRA"]["tpr"][rate]
                cells.append(
                    f"{100 * found['tpr']:.1f} ({100 * found['low']:.1f} - {100 * found['high']:.1f})"
                )
                cells.append(f"{100 * proven['tpr'][rate]:.1f}" if proven else "no bound")
            table.add_row(row["training"], *cells)
        parts.append(table)
    audit = make_table(
        "training", "noise multiplier", "loss: members / others", "claimed", "audited", "verdict"
    )
    for row in result["rows"]:
        claimed = row["claimed_epsilon"]
        verdict = "no claim" if claimed is None else "not refuted"
        audit.add_row(
            row["training"],
            f"{row['noise_multiplier']:.3f}",
            f"{row['member_loss']:.3f} / {row['other_loss']:.3f}",
            "none" if claimed is None else f"{claimed:g}",
            f"> {row['audited_epsilon']:.2f}",
            "CLAIM REFUTED" if row["refuted"] else verdict,
        )
    return [
        *parts,
        audit,
        "AUC: ± one standard error over runs; chance is 50 %. TPR: Clopper-Pearson 95 % over all runs "
        "(texts taken as independent). Epsilon: unit example, "
        f"zero-out, delta={result['delta']:g}, accountant pld, against who sees the final "
        "model (it holds against the server too). `at most` is of the claim; audited: 95 % lower bound.",
    ]


def draw(figure: Figure, result: dict[str, Any]) -> None:
    """Draw ROC of LiRA on the canaries, measured and proven, with logarithmic axes."""
    left, right = figure.subplots(1, 2)
    for number, row in enumerate(result["rows"]):
        colour = show.COLOURS[number % len(show.COLOURS)]
        left.plot(*row["roc"], color=colour, label=row["training"])
        if row["proven"] and not row["refuted"]:
            left.plot(*row["proven"]["curve"], color=colour, ls="--", lw=0.9)
    left.plot([1e-3, 1], [1e-3, 1], color="grey", lw=0.8, ls=":")
    left.set(xscale="log", yscale="log", xlim=(2e-3, 1), ylim=(2e-3, 1.02))
    left.set(xlabel="false positive rate", ylabel="true positive rate")
    left.set_title("LiRA on canaries (dashed: theoretical upper bound)", fontsize=9)
    left.legend(fontsize=7)
    rows = result["rows"]
    places = np.arange(len(rows))
    audited = [row["audited_epsilon"] for row in rows]
    right.bar(places, audited, 0.5, color=show.COLOURS[0], label="audited lower bound")
    claimed = [(p, r["claimed_epsilon"]) for p, r in zip(places, rows, strict=True)]
    marks = np.array([(p, c) for p, c in claimed if c is not None])
    if len(marks):
        right.plot(marks[:, 0], marks[:, 1], "k_", markersize=22, label="claimed")
    right.set(xticks=places, ylabel="epsilon")
    right.set_xticklabels([row["training"].replace(", ", "\n") for row in rows], fontsize=7)
    right.set_title("Audit", fontsize=9)
    right.legend(fontsize=7)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(cls=OneLineErrors, help=__doc__.splitlines()[0])
def main(
    texts: Annotated[int, typer.Option(help="Texts; half of them are canaries.")] = 64,
    runs: Annotated[int, typer.Option(help="Models trained for each row.")] = 8,
    epsilon: Annotated[list[float] | None, typer.Option(help="Claimed for a whole run.")] = None,
    broken: Annotated[
        float, typer.Option(help="Factor of the broken row; 0 leaves it out.")
    ] = 100.0,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 40,
    sampling_rate: Annotated[float, typer.Option(help="Poisson sampling rate of a step.")] = 0.5,
    learning_rate: Annotated[float, typer.Option(help="Adam's.")] = 0.01,
    prefix_length: Annotated[int, typer.Option(help="Virtual positions in each layer.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of texts, coins, sampling and noise.")] = 0,
    data: Annotated[str, typer.Option(help="auto, sst2 or tweets.")] = "auto",
    figure: show.FigurePath = None,
    as_json: AsJson = False,
) -> None:
    """Train, attack, audit, and print."""
    show.check_figure(figure)
    require("--texts", texts, texts >= 16, "at least 16")
    require("--runs", runs, runs >= 2, "at least 2")
    require("--broken", broken, broken == 0 or broken > 1, "0 or above 1")
    require("--sampling-rate", sampling_rate, 0 < sampling_rate <= 1, "between 0 and 1")
    for name, value in (("--steps", steps), ("--prefix-length", prefix_length)):
        require(name, value, value >= 1, "at least 1")
    result = measure(
        texts=texts,
        runs=runs,
        epsilons=epsilon or [8.0, 3.0, 1.0],
        broken=broken or None,
        training=Training(steps, sampling_rate, learning_rate, prefix_length),
        seed=seed,
        data=data,
    )
    show.present(result, tables, draw, figure=figure, size=(9, 4), as_json=as_json)


if __name__ == "__main__":
    app(prog_name="python -m simulations.attacks.membership.membership")
