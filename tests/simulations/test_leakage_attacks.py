"""Each attack works without the protection and fails with it; small random models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedllm.codec.autoencoder import train_autoencoder
from fedllm.codec.layout import Layout
from privacy.randomness import generator
from simulations.attacks import autoencoder_inversion, gradient_inversion
from simulations.attacks.membership import membership
from simulations.attacks.protections import CLIP, Protection, noise_for
from simulations.attacks.scene import Scene, make_scene
from simulations.attacks.token_recovery import key_span, layer0_queries, recovery
from simulations.output import print_json

PREFIX = 7


@pytest.fixture(scope="module")
def folder(random_words_encoder: Path) -> str:
    """A random BERT of two layers with heads of size 16, and a tokenizer for random words."""
    return str(random_words_encoder)


@pytest.fixture(scope="module")
def scene(folder: str) -> Scene:
    return make_scene(
        texts=300, prefix_length=PREFIX, seed=0, data="random", model=folder, warm_texts=64
    )


def test_queries_of_the_text_lie_in_the_span(scene: Scene) -> None:
    text = gradient_inversion.texts_of_length(scene, PREFIX - 1, 2)[0]
    span = key_span(scene, scene.gradients([text])[0], len(text))
    outside = []
    for position, token in enumerate(text.input_ids):
        query = torch.nn.functional.normalize(layer0_queries(scene, position)[token], dim=-1)
        inside = torch.einsum("hd,hrd->hr", query, span).square().sum(1)
        outside.append(float((1 - inside).max()))
    assert max(outside) < 1e-3


def test_tokens_come_out_of_a_bare_gradient_and_not_out_of_a_private_one(scene: Scene) -> None:
    texts = [t for n in (5, 7) for t in gradient_inversion.texts_of_length(scene, n, 3)]
    forms = [
        Protection("none"),
        Protection("clipped", clip=CLIP),
        Protection("noise", clip=CLIP, noise_multiplier=noise_for(8.0), epsilon=8.0),
    ]
    found = gradient_inversion.recover_tokens(scene, forms, texts, width=4, sweeps=1, seed=0)
    bare, clipped, private = (np.mean([row["in_place"] for row in rows]) for rows in found)
    assert bare > 0.95
    assert clipped > 0.95
    assert private < 0.15  # chance: one in 4,000
    assert np.mean([row["unrelated"]["anywhere"] for row in found[0]]) < 0.15


def test_naming_a_text_stays_below_the_proof(scene: Scene) -> None:
    pool = gradient_inversion.texts_of_length(scene, 8, 12)
    bare = gradient_inversion.identify_texts(scene, Protection("none"), [pool], 1, 0)
    assert np.mean(bare) == 1.0
    for epsilon in (8.0, 1.0):
        form = Protection(f"e{epsilon}", CLIP, None, noise_for(epsilon), epsilon)
        draws = 60
        named = np.mean(gradient_inversion.identify_texts(scene, form, [pool], draws, 0))
        most = form.identification_bound(len(pool))
        assert most is not None
        assert named <= most + 3.3 * np.sqrt(most * (1 - most) / (draws * len(pool)))
        assert named < 0.7


def test_recovery_counts_each_token_once() -> None:
    assert recovery([5, 5, 7], [5, 7, 7]) == (2 / 3, 2 / 3, 0.0)
    assert recovery([1, 2], [1, 2]) == (1.0, 1.0, 1.0)


def test_members_are_known_without_privacy_and_not_with_it(folder: str) -> None:
    training = membership.Training(steps=60, learning_rate=0.05, prefix_length=2, model=folder)
    result = membership.measure(
        texts=64, runs=4, epsilons=[0.1], broken=1000.0, training=training, seed=0, data="random"
    )
    bare, private, broken = result["rows"]
    # 32 texts of a group in 4 runs, half of them members: a standard error of about 0.051
    assert bare["canaries"]["loss"]["auc"][0] > 0.5 + 3.3 * 0.051
    assert bare["audited_epsilon"] > 0.3
    assert broken["refuted"]
    assert not private["refuted"]
    for group in membership.GROUPS:
        mean = private[group]["loss"]["auc"][0]
        assert mean <= private["proven"]["auc"] + 3.3 * 0.051


def test_lira_finds_the_shift_of_each_text() -> None:
    rng = generator(0, "lira")
    included = rng.random((16, 50)) < 0.5
    ease = 3 * rng.standard_normal(50)
    scores = ease + np.where(included, 1.0, 0.0) + 0.3 * rng.standard_normal((16, 50))
    losses = np.log1p(np.exp(-scores))
    by_loss = membership.attack(included, -losses)["auc"][0]
    by_ratio = membership.attack(included, membership.auditing.lira_scores(included, losses))[
        "auc"
    ][0]
    assert by_ratio > 0.9 > by_loss


def low_rank_gradients(count: int, seed: int) -> torch.Tensor:
    """Rows of norm at most CLIP: a common part, and a part of each one's own."""
    rng = torch.Generator().manual_seed(seed)
    shared = torch.randn(1, 1200, generator=torch.Generator().manual_seed(99))
    rows = shared + 2 * torch.randn(count, 1200, generator=rng)
    return CLIP * torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize(("source", "leaks"), [("real gradients", True), ("layerwise", False)])
def test_an_autoencoder_remembers_what_it_was_trained_on(source: str, leaks: bool) -> None:
    layout = Layout({"a": (200,), "b": (1000,)})
    train, held_out = low_rank_gradients(20, 0), low_rank_gradients(20, 1)
    prior = autoencoder_inversion.make_source(source, layout, train, None, generator(0, "s"))
    codec = train_autoencoder(prior, 96, 0, steps=150)
    found = autoencoder_inversion.attack(codec, train, held_out, directions=90, rounds=6, seed=0)
    if leaks:
        assert found["auc"][0] > 0.95
        assert found["inverted_auc"][0] > 0.9
        assert found["ratio"] < 0.9
    else:
        assert abs(found["auc"][0] - 0.5) < 3.3 * found["auc"][1]
        assert abs(found["inverted_auc"][0] - 0.5) < 3.3 * found["inverted_auc"][1]
        assert found["ratio"] == pytest.approx(1.0, abs=0.03)


def test_statistics_without_noise_are_a_release(folder: str) -> None:
    """Second moments of each coordinate tell who gave them; with noise they do not."""
    layout = Layout({"a": (1200,)})
    sparse = torch.zeros(40, 1200)
    for row in range(40):  # each gradient in coordinates of its own
        sparse[row, 30 * row : 30 * row + 30] = CLIP / 30**0.5
    areas = {}
    for epsilon in (None, 1.0):
        rng = generator(0, "release")
        prior = autoencoder_inversion.make_source("coordinate", layout, sparse[::2], epsilon, rng)
        codec = train_autoencoder(prior, 96, 0, steps=100)
        found = autoencoder_inversion.attack(
            codec, sparse[::2], sparse[1::2], directions=20, rounds=4, seed=0
        )
        areas[epsilon] = found["auc"]
    assert areas[None][0] > 0.95
    assert areas[1.0][0] < 0.5 + 3.3 * areas[1.0][1]


@pytest.mark.parametrize("module", [gradient_inversion, membership, autoencoder_inversion])
def test_a_bad_figure_is_refused_before_the_work(module: Any, tmp_path: Path) -> None:
    done = CliRunner().invoke(module.app, ["--figure", str(tmp_path / "x.txt")])
    assert done.exit_code == 2
    assert "--figure to end in" in done.output


def test_tables_and_figures_are_made(folder: str, tmp_path: Path) -> None:
    results: list[tuple[Callable[..., Any], Callable[..., list[Any]], dict[str, Any]]] = []
    found = gradient_inversion.measure(
        lengths=[5],
        texts=2,
        pool=4,
        draws=1,
        prefix_length=4,
        epsilons=[8.0],
        ratio=8.0,
        width=2,
        sweeps=1,
        seed=0,
        data="random",
        model=folder,
        at_hand=150,
    )
    results.append((gradient_inversion.draw, gradient_inversion.tables, found))
    small = membership.Training(steps=2, prefix_length=1, model=folder)
    found = membership.measure(
        texts=16, runs=2, epsilons=[8.0], broken=None, training=small, seed=0, data="random"
    )
    results.append((membership.draw, membership.tables, found))
    found = autoencoder_inversion.measure(
        gradients=6,
        sources=[("real gradients", None), ("layerwise", 8.0)],
        prefix_length=2,
        ratio=16.0,
        steps=5,
        directions=5,
        rounds=2,
        seeds=[0],
        data="random",
        model=folder,
    )
    results.append((autoencoder_inversion.draw, autoencoder_inversion.tables, found))
    for number, (draw, tables, result) in enumerate(results):
        path = tmp_path / f"{number}.svg"
        gradient_inversion.show.save_figure(path, lambda f, d=draw, r=result: d(f, r), (8, 4))
        assert path.read_text().startswith("<?xml")
        print_json(result)
        assert all(part for part in map(str, tables(result)))
