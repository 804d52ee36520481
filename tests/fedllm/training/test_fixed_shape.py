"""Steps of a fixed shape: the same tensors whatever is drawn, the same sums, their own event."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from dp_accounting import dp_event as dp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedllm.data.batches import Feature
from fedllm.data.silos import load_federation
from fedllm.settings.io import SettingsError
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training import gradients
from fedllm.training.batch.contained import Failures
from fedllm.training.batch.fixed_shape import FixedShape
from fedllm.training.gradients import clipped_gradient_sum
from fedllm.training.tunable import Tunable, initial_params, make_tunable, shared_tunable
from privacy.events.multiset import multiset
from privacy.randomness import generator
from server.spending import SpendingView
from tests.support.local_training import train_locally, training_events
from tests.support.tiny_tunables import shaken

Make = Callable[..., Any]
FIXED: dict[str, Any] = {"client.max_batch": 12, "privacy.accountant": "pld"}
KINDS = ("encoder", "label words", "generation")


def settings_of(kind: str, tiny_settings: Make, decoder_folder: Path, **changes: Any) -> Any:
    options = dict(FIXED)
    if kind != "encoder":
        options |= {"model.name": str(decoder_folder), "task.prompt": "w4 {text} w5"}
        options |= {"task.label_words": ["w10", "w11"]}
    if kind == "generation":
        options |= {"task.kind": "generation", "task.labels": None, "task.label_words": None}
        options |= {"task.target": "answer"}
    return tiny_settings(**options | changes)


def params_of(tunable: Tunable, settings: Any) -> dict[str, Tensor]:
    return shaken(initial_params(tunable, settings))


class Shapes(TorchDispatchMode):
    """Every operation with the shapes of its tensors, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [a for a in (*args, found) if isinstance(a, Tensor)]
        self.seen.append((str(func), [tuple(t.shape) for t in tensors]))
        return found


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The operations of a step once its micro-batches are padded: forward, backward, selection, clipping, sum."""
    seen: list[Any] = []

    def watch(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with Shapes() as mode:
                found = function(*args, **options)
            seen.extend(mode.seen)
            return found

        return call

    with monkeypatch.context() as patch:
        for name in ("per_example_gradients", "fixed_rows", "clip_and_sum"):
            patch.setattr(gradients, name, watch(getattr(gradients, name)))
        yield seen


def data_sets(tunable: Tunable, records: Any) -> dict[str, list[Feature]]:
    """Of very different numbers and lengths."""
    one = records(1, 3)[0]
    long = {**one, "text": "w7 " * 60, "answer": "w8 " * 60}
    short = {**one, "text": "w7", "answer": "w8"}
    made = {
        "none": [],
        "one": [short],
        "usual": records(9, 3),
        "long": [long] * 12,
        "many": [*records(30, 4), long],
    }
    return {name: tunable.task.features(rows) for name, rows in made.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_tokens", [40, 4096])
def test_all_tensors_of_a_step_have_the_same_shapes(
    kind: str,
    max_tokens: int,
    tiny_settings: Make,
    decoder_folder: Path,
    word_records: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each operation in order. The draw, the padding of token lists and the silo's log are left out."""
    settings = settings_of(kind, tiny_settings, decoder_folder, **{"client.max_tokens": max_tokens})
    tunable = make_tunable(settings)
    params = params_of(tunable, settings)
    fixed = FixedShape.of(tunable, settings.client.max_batch, settings.client.max_tokens)
    assert fixed is not None
    options: Any = {"clip_norm": 0.5, "scales": dict.fromkeys(params, 1.0), "failures": Failures()}
    found = {}
    for name, features in data_sets(tunable, word_records).items():
        batch, examples = fixed.draw(features, 1.0, generator(1, name))
        assert examples == min(12, len(features))
        assert len(batch) == fixed.slots
        with watched(monkeypatch) as seen:
            clipped_gradient_sum(
                fixed.tunable,
                params,
                batch,
                max_tokens=fixed.max_tokens,
                examples=examples,
                **options,
            )
        found[name] = seen
    assert len(found["usual"]) > 100
    for name, seen in found.items():
        assert seen == found["usual"], name


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_that_of_the_kept_examples(
    kind: str, tiny_settings: Make, decoder_folder: Path, word_records: Any
) -> None:
    """Padding, fillers and what is not finite change nothing but rounding."""
    settings = settings_of(kind, tiny_settings, decoder_folder)
    tunable = make_tunable(settings)
    params = params_of(tunable, settings)
    fixed = FixedShape.of(tunable, settings.client.max_batch, settings.client.max_tokens)
    assert fixed is not None
    options: Any = {"clip_norm": 0.5, "scales": dict.fromkeys(params, 1.0)}
    features = tunable.task.features(word_records(7, 3))
    batch, examples = fixed.draw(features, 1.0, generator(1))
    got = clipped_gradient_sum(
        fixed.tunable, params, batch, max_tokens=fixed.max_tokens, examples=examples, **options
    )
    expected = clipped_gradient_sum(tunable, params, features, max_tokens=4096, **options)
    assert (got.count, got.clipped) == (7, expected.clipped)
    assert len(got.norms) == 7
    for one, other in zip(got.sums, expected.sums, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_an_example_that_is_not_finite_counts_as_zero(
    tiny_settings: Make, decoder_folder: Path, word_records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of("encoder", tiny_settings, decoder_folder)
    tunable = make_tunable(settings)
    params = params_of(tunable, settings)
    fixed = FixedShape.of(tunable, settings.client.max_batch, settings.client.max_tokens)
    assert fixed is not None
    features = tunable.task.features(word_records(5, 3))
    options: Any = {"clip_norm": 0.5, "scales": dict.fromkeys(params, 1.0)}
    expected = clipped_gradient_sum(tunable, params, features[1:], max_tokens=4096, **options)
    real = fixed.tunable.losses

    def losses(given: Any, batch: Any) -> Tensor:
        return real(given, batch) * torch.tensor([float("nan")] + [1.0] * (len(batch) - 1))

    monkeypatch.setattr(fixed.tunable, "losses", losses)
    batch = [*features, *[fixed.filler] * (fixed.slots - 5)]
    got = clipped_gradient_sum(
        fixed.tunable, params, batch, max_tokens=fixed.max_tokens, examples=5, **options
    )
    assert got.nonfinite == 1
    for one, other in zip(got.sums, expected.sums, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_step_takes_as_long_whatever_is_drawn(
    tiny_settings: Make, decoder_folder: Path, word_records: Any
) -> None:
    """Medians of the CPU time of 15 rounds each, in turns; without a fixed shape the same data differ by more than twice."""
    settings = settings_of("encoder", tiny_settings, decoder_folder, **{"client.max_batch": 24})
    ratios = {}
    for name, chosen in {"fixed": settings, "free": tiny_settings()}.items():
        tunable = shared_tunable(chosen)
        params = params_of(tunable, chosen)
        sets = [tunable.task.features(word_records(count, 3)) for count in (1, 24)]
        times: list[list[float]] = [[], []]
        for repetition in range(17):
            for place, features in enumerate(sets):
                began = time.process_time()
                train_locally(
                    tunable,
                    params,
                    features,
                    chosen,
                    sampling_rate=1.0,
                    noise_multiplier=0.8,
                    streams=lambda purpose, step, r=repetition: generator(r, purpose, step),
                )
                times[place].append(time.process_time() - began)
        ratios[name] = median(times[1][2:]) / median(times[0][2:])
    assert 0.8 < ratios["fixed"] < 1.25, ratios
    assert ratios["free"] > ratios["fixed"], ratios


def test_the_row_holds_the_truncated_event(tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings(**FIXED | {"privacy.epsilon": 8.0, "privacy.noise_multiplier": None})
    silo = load_federation(settings).silos[0]
    worker = SiloWorker(settings, silo, run="r", ledger=tmp_path / "ledger.sqlite")
    reply = worker.train(SiloTask(initial_params(worker.tunable, settings), 1, 3))
    size = len(silo.train)
    event = dp.TruncatedSubsampledGaussianDpEvent(size, 8 / size, 12, reply.noise_multiplier)
    (entry,) = worker.ledger.entries(party=silo.name)
    assert multiset(entry.views["server"]) == Counter({event: 2}), "two local steps"
    view = SpendingView(settings)
    view.add_training(
        silo.name,
        1,
        sampling_rate=reply.sampling_rate,
        noise_multiplier=reply.noise_multiplier,
        steps=reply.steps,
    )
    assert view.events[silo.name] == Counter({event: 2})
    for server_round in (2, 3):
        worker.train(SiloTask(initial_params(worker.tunable, settings), server_round, 3))
    spent = worker.account(3).epsilon()
    assert 8.0 * 0.99 <= spent <= 8.0


@pytest.mark.parametrize("examples", range(9, 4000, 37))
def test_the_number_of_examples_follows_from_the_rate(examples: int, tiny_settings: Make) -> None:
    settings = tiny_settings(**FIXED)
    events = training_events(settings, 1, sampling_rate=8 / examples, noise_multiplier=1.0)
    assert {event.dataset_size for event in events} == {examples}


def test_a_silo_that_is_always_sampled_whole_has_a_plain_event(tiny_settings: Make) -> None:
    (event,) = training_events(tiny_settings(**FIXED), 1, sampling_rate=1.0, noise_multiplier=1.0)
    assert event == dp.GaussianDpEvent(1.0)


REFUSED = {
    "private sizes": {"data.sizes": "private", "client.sampling_rate": 0.1},
    "client.sampling_rate": {"client.sampling_rate": 0.1},
    "privacy.silos": {"privacy.silos": {"alpha": {"sampling_rate": 0.1}}},
    "unit client": {"privacy.unit": "client"},
    "accountant": {"privacy.accountant": "rdp"},
    "adaptive clipping": {"clipping.form": "adaptive"},
    "raw ascent": {"awp.form": "batch", "awp.gamma": 0.01},
    "black box": {"model.access": "black-box"},
    "codec in code": {
        "codec.name": "linear",
        "codec.prior_source": "public",
        "codec.noise": "in-code",
        "codec.rank": 2,
    },
    "statistics": {"codec.name": "linear", "codec.prior_source": "private", "codec.rank": 2},
    "layers": {"layers.form": "private", "layers.keep": 1, "layers.bound": 0.5},
    "evaluation": {"evaluation.clients": "private", "evaluation.clients_holdout": 0.3},
    "below the batch": {"client.max_batch": 7},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED)
def test_what_is_not_proven_is_refused_by_name(
    changes: dict[str, Any], tiny_settings: Make
) -> None:
    tiny_settings(**FIXED)
    with pytest.raises(SettingsError, match=r"client\.max_batch"):
        tiny_settings(**FIXED | changes)
