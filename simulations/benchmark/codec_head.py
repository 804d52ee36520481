"""What noise in the code does to a linear head, over many seeds: the benchmark `codec_accuracy` without prefix.

    FEDLLM_TEST_DATA=../shared/data python -m simulations.benchmark.codec_head [--seeds 16] [--json OUT]

In `sst2-codec.toml` a silo's update is the head's (the prefix holds less than 1 % of its energy). With
the prefix as it starts, the texts' features are fixed: they are computed once (and kept in the cache
folder), and a run takes a second. The mechanism is the same: each silo's gradient is projected, clipped, summed,
and Gaussian noise of the same multiplier is added to the sum of the codes. What is simulated: no prefix noise, no
ledger, no messages. For choosing settings; what is claimed comes from whole runs.

Each line: a code, a rate (the length of the mean step where nothing cancels, server.learning_rate times clip),
and the accuracy on the judged half of the validation file, mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedllm.settings import Settings
from fedllm.settings_io import load_settings
from privacy.calibration import calibrate_noise_multiplier
from privacy.clipping import clip_and_sum
from privacy.noise import add_gaussian
from privacy.randomness import generator
from privacy.vocabulary import Relation
from simulations.benchmark import timing
from simulations.benchmark.codec_accuracy import EXPERIMENT
from simulations.benchmark.head_features import head_features

CODES = ("uncompressed", "labels", "answers", "shared", "no noise", "labels, no noise")
_ROOT = math.sqrt(2.0)


def features(settings: Settings) -> dict[str, Tensor]:
    """Features with a 1 for the bias [n, h + 1] and classes [n] of each silo ("x.NAME", "y.NAME") and of
    the evaluation ("x", "y")."""
    found = head_features(settings)
    for name in [name for name in found if name.startswith("x")]:
        found[name] = torch.cat([found[name], torch.ones(len(found[name]), 1)], dim=1)
        found["y" + name[1:]] = found["y" + name[1:]].float()
    return found


def directions(public: Tensor, how: str, rank: int, rng: np.random.Generator) -> Tensor:
    """Leading directions [rank, h + 1] of public gradients at an ordinary random head, pairs of texts.

    ``labels``: what moving the labels on changes, one of each class in a pair, as the codec's public
    prior. ``answers``: the gradients themselves, about their mean. ``shared``: with independent labels,
    as they are: the direction that all texts share comes first.
    """
    pairs = public[torch.from_numpy(rng.permutation(len(public)))]
    pairs = pairs[: len(pairs) // 2 * 2].reshape(-1, 2, public.shape[1])
    head = torch.from_numpy(rng.standard_normal(public.shape[1])).float() / public.shape[1] ** 0.5
    answer = torch.sigmoid(_ROOT * pairs @ head)
    label = torch.tensor([0.0, 1.0]).expand_as(answer)
    if how == "shared":
        label = torch.from_numpy(rng.integers(0, 2, size=tuple(answer.shape))).float()
    weight = 0.5 - label if how == "labels" else answer - label
    rows = (weight[:, :, None] * pairs).mean(1)
    if how == "answers":
        rows = rows - rows.mean(0)
    return torch.linalg.svd(rows, full_matrices=False)[2][:rank]


def train(
    data: dict[str, Tensor],
    settings: Settings,
    rows: Tensor | None,
    rate: float,
    noise: float,
    seed: int,
) -> Tensor:
    """The head after all rounds, as the difference of its rows over sqrt(2), [h + 1].

    Args:
        rows: orthonormal, of the code; None sends the whole gradient.
        noise: multiplier over the clipping norm; 0 adds none.
    """
    rng = generator(seed, "codec-head", "run")
    silos = sorted(name[2:] for name in data if name.startswith("x."))
    batch, clip = float(settings.client.batch_size or 1), settings.privacy.clip
    head = torch.zeros(data["x"].shape[1])
    for _ in range(settings.server.rounds):
        gradients = []
        for name in silos:
            x, y = data[f"x.{name}"], data[f"y.{name}"]
            drawn = torch.from_numpy(rng.random(len(x)) < batch / len(x))
            x, y = x[drawn], y[drawn]
            gradients.append(_ROOT * ((torch.sigmoid(_ROOT * x @ head) - y) @ x) / batch)
        codes = torch.stack(gradients) * settings.client.learning_rate
        codes = codes if rows is None else codes @ rows.T
        total = clip_and_sum([codes], clip).sums[0]
        total = add_gaussian(total, clip, noise, rng) if noise else total
        step = total / len(silos) / clip
        head = head - rate * (step if rows is None else step @ rows)
    return head


def _common(data: dict[str, Tensor]) -> str:
    """How much all texts have in common, in words: of the silos' features, without the bias."""
    x = torch.cat([data[name][:, :-1] for name in sorted(data) if name.startswith("x.")])
    y = torch.cat([data[name] for name in sorted(data) if name.startswith("y.")])
    mean = x.mean(0)
    apart = x[y > 0.5].mean(0) - x[y < 0.5].mean(0)
    energy = mean.square().sum() / x.square().sum(1).mean()
    along = (apart @ mean).square() / (apart.square().sum() * mean.square().sum())
    return (
        f"The mean feature holds {float(energy):.1%} of the features' energy, and {float(along):.1%} of "
        "what tells the classes' means apart."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all codes, ranks and rates; print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codes", nargs="+", choices=CODES, default=list(CODES))
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 32, 64, 96])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument(
        "--seeds", type=int, default=16, help="number; none is one of codec_accuracy's"
    )
    parser.add_argument("--rounds", type=int, help="instead of the experiment's")
    parser.add_argument("--json", metavar="OUT")
    options = parser.parse_args(arguments)
    settings = load_settings(EXPERIMENT, ["seed=100"])
    data = features(settings)
    if options.rounds:
        server = settings.server.model_copy(update={"rounds": options.rounds})
        settings = settings.model_copy(update={"server": server})
    privacy = settings.privacy
    noise = calibrate_noise_multiplier(
        epsilon=float(privacy.epsilon or 0),
        delta=privacy.delta,
        sampling_rate=1.0,
        steps=settings.server.rounds,
        relation=Relation(privacy.relation),
        accountant=privacy.accountant,
    ).noise_multiplier
    print(_common(data))
    lines = []
    for code in options.codes:
        fitted = code.split(",")[0] in ("labels", "answers", "shared")
        for rank in options.ranks if fitted else [data["x"].shape[1]]:
            for rate in options.rates:
                found = []
                for seed in range(2000, 2000 + options.seeds):
                    rng = generator(seed, "codec-head", "texts")
                    order = torch.from_numpy(rng.permutation(len(data["x"])))
                    judged, public = order[: len(order) // 2], order[len(order) // 2 :]
                    how = code.split(",")[0]
                    rows = directions(data["x"][public], how, rank, rng) if fitted else None
                    used = 0.0 if "no noise" in code else noise
                    head = train(data, settings, rows, rate, used, seed)
                    right = (data["x"][judged] @ head > 0) == (data["y"][judged] > 0.5)
                    found.append(float(right.float().mean()))
                lines.append(
                    [code, rank, rate, float(np.mean(found)), float(np.std(found, ddof=1))]
                )
                print(f"{code} {rank} {rate}: {lines[-1][3]:.3f}", flush=True)
    shown = [[c, str(k), f"{r:g}", f"{m:.3f}", f"{s:.3f}"] for c, k, r, m, s in lines]
    print(
        f"{settings.server.rounds} rounds, noise multiplier {noise:.3f}, {options.seeds} seeds\n"
        + timing.table(["code", "numbers", "rate", "accuracy", "deviation"], shown)
    )
    if options.json:
        Path(options.json).write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
