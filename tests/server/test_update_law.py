"""The law of an honest update's length: honest ones of every form pass, longer ones and lies do not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Message
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor
from whole_runs import final, poison, rounds, same_bits, tell

from fedllm import messages as names
from fedllm.codec import Code, Layout, make_codec
from fedllm.codec.prior import Prior
from fedllm.data.batches import Feature
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from fedllm.training.black_box.directions import Directions, DirectionsPlan
from fedllm.training.black_box.forward_only import LocalForwardOnly
from fedllm.training.encoding import Encoding
from fedllm.training.mechanism import make_mechanism
from fedllm.training.tunable import Tunable, initial_params, shared_tunable
from privacy.mechanisms.scalar_noise import LmoNoise
from privacy.randomness import generator
from server.aggregation import Contribution
from server.robust.limit_warnings import limit_warnings
from server.robust.update_law import UpdateLaw, adam_travel, why_no_law
from tests.support.local_training import train_forward_only, train_locally
from tests.support.tiny_tunables import shaken

Make = Callable[..., Any]
LAPLACE = json.dumps({"family": "laplace", "parameters": {"scale": 1.0}})
NO_VARIANCE = json.dumps({"family": "lmo", "parameters": LmoNoise(a3=1.0).parameters})
LMO = {"privacy.mechanism": "lmo", "privacy.noise": LAPLACE}
CLIENT = {"privacy.unit": "client"}
BLACK_BOX = {
    "model.access": "black-box",
    "zeroth_order.directions": 3,
}
FORMS: dict[str, dict[str, Any]] = {
    "one step": {"client.local_steps": 1},
    "several steps": {"client.local_steps": 4},
    "scaled prefix": {"privacy.prefix_scale": 0.2},
    "max_batch": {"client.max_batch": 24, "privacy.accountant": "pld"},
    "rate": {"client.sampling_rate": 1.0},
    "adaptive": {"clipping.form": "adaptive", "clipping.count_share": 0.5},
    "per-example": {"awp.form": "per-example"},
    "laplace": LMO,
    "fp16": {"codec.name": "fp16"},
    "int8": {"codec.name": "int8"},
    "4 bits": {"codec.bits": 4},
    "top-k": {"codec.name": "top-k", "codec.ratio": 4},
    "projection": {"codec.name": "random-projection", "codec.ratio": 4},
    "linear, laplace": LMO | {"codec.name": "linear", "codec.ratio": 4},
    "linear, in code": {"codec.name": "linear", "codec.ratio": 4, "codec.noise": "in-code"},
    "in code, 8 bits, laplace": LMO
    | {"codec.name": "linear", "codec.ratio": 4, "codec.noise": "in-code", "codec.bits": 8},
    "client": CLIENT,
    "client, adaptive": CLIENT | {"clipping.form": "adaptive", "clipping.count_share": 0.5},
    "client, laplace": CLIENT | LMO,
    "client, in code": CLIENT
    | {"codec.name": "linear", "codec.ratio": 4, "codec.noise": "in-code"},
    "client, local adam": CLIENT | {"client.optimizer": "adam"},
    "numbers": BLACK_BOX,
    "numbers alone": BLACK_BOX | LMO | {"privacy.accountant": "pld"},
    "numbers, client": BLACK_BOX | CLIENT,
    "numbers alone, client": BLACK_BOX | CLIENT | LMO | {"privacy.accountant": "pld"},
}

COUNT = 24
"""Examples of the silo, all the same one, all in every batch: their gradients add up as no others do."""


@pytest.fixture(scope="module")
def tunable(tiny_settings: Make) -> Tunable:
    return shared_tunable(tiny_settings())


@pytest.fixture(scope="module")
def features(tunable: Tunable, word_records: Any) -> list[Feature]:
    return tunable.task.features(word_records(1, 3)) * COUNT


@pytest.fixture(scope="module")
def params(tunable: Tunable, tiny_settings: Make) -> dict[str, Tensor]:
    return shaken(initial_params(tunable, tiny_settings()))


def encoding_of(settings: Settings, params: Mapping[str, Tensor]) -> Encoding | None:
    if not settings.codec.active:
        return None
    layout = Layout.of(params)
    d = layout.dimension
    spread = torch.rand(d, generator=torch.Generator().manual_seed(5))
    prior = Prior("coordinate", torch.zeros(d), spread, torch.zeros(0, d), torch.zeros(0))
    codec = make_codec(settings.codec, layout, prior, 3)
    return Encoding.of(codec, codec.version, settings, params)


def settings_of(tiny_settings: Make, form: str, **changes: Any) -> Settings:
    """Every gradient is clipped: the norm is far below all of them."""
    base = {"client.batch_size": COUNT, "privacy.clip": 1e-4, "client.learning_rate": 1.0}
    found: Settings = tiny_settings(**base | FORMS[form] | changes)
    return found


def honest(
    tunable: Tunable,
    params: Mapping[str, Tensor],
    features: list[Feature],
    settings: Settings,
    noise: float,
    seed: int,
) -> Contribution:
    """What a server reads of an honest silo's reply."""

    def streams(purpose: str, step: int) -> Any:
        return generator(seed, purpose, step)

    if settings.model.access == "black-box":
        result = train_forward_only(
            LocalForwardOnly(tunable),
            params,
            features,
            settings,
            sampling_rate=1.0,
            noise_multiplier=noise,
            streams=streams,
            directions=Directions(DirectionsPlan.of(settings), params, "c0ffee"),
        )
        return Contribution("alpha", result.update, None, noise_multiplier=noise)
    encoding = encoding_of(settings, params)
    result = train_locally(
        tunable,
        params,
        features,
        settings,
        sampling_rate=1.0,
        noise_multiplier=noise,
        streams=streams,
        encoding=encoding,
    )
    update = result.update
    if encoding is not None:
        code = encoding.codec.decode_code(Code(update))
        update = encoding.unflatten(encoding.codec.reconstruct(code))
    return Contribution("alpha", update, result.noise_std, noise_multiplier=noise)


def tight(form: str, least: float) -> float:
    """The share of its bound that the longest honest update reaches at least: the bound would refuse nobody else."""
    if "laplace" in form or "alone" in form or form == "4 bits":
        return 0.05  # heavy tails in few dimensions, the worst rounding
    return 0.4 * least if "numbers" in form else least


def law(settings: Settings, params: Mapping[str, Tensor], replies: int = 12) -> UpdateLaw:
    return UpdateLaw(
        settings=settings,
        clip=settings.privacy.clip,
        replies=replies,
        params=params,
        sizes={"alpha": COUNT},
        encoding=encoding_of(settings, params),
    )


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize(
    ("noise", "least"), [(0.01, 0.2), (30.0, 0.35)], ids=["all signal", "all noise"]
)
def test_the_longest_honest_updates_pass_and_hardly_longer_ones_do_not(
    form: str,
    noise: float,
    least: float,
    tiny_settings: Make,
    tunable: Tunable,
    params: dict[str, Tensor],
    features: list[Feature],
) -> None:
    settings = settings_of(tiny_settings, form, **{"privacy.noise_multiplier": noise})
    found = [honest(tunable, params, features, settings, noise, seed) for seed in range(3)]
    made = law(settings, params)
    assert max(made.length(c.update) for c in found) >= tight(form, least) * float(
        made.limit("alpha", noise) or 0
    )
    for contribution in found:
        kept, refused = made.check([contribution])
        assert not refused
        assert [c.silo for c in kept] == ["alpha"]
        limit, length = made.limit("alpha", noise), made.length(contribution.update)
        assert limit is not None
        longer = {n: v * (1.01 * limit / length) for n, v in contribution.update.items()}
        hostile = Contribution("alpha", longer, None, noise_multiplier=noise)
        _, refused = made.check([hostile])
        assert "which an honest one of this run exceeds" in refused["alpha"]


def test_what_adam_moves_at_most(
    tiny_settings: Make, tunable: Tunable, params: dict[str, Tensor], features: list[Feature]
) -> None:
    assert adam_travel(1) == pytest.approx(1.0)
    worst = 0.0
    for steps in (2, 5):
        # The gradients of the largest move: small ones that grow (Cauchy-Schwarz is an equality there).
        ages = torch.arange(steps - 1, -1, -1, dtype=torch.float64)
        w, u = 0.1 * 0.9**ages, 0.001 * 0.999**ages
        weight = torch.zeros(1, dtype=torch.float64)
        adam = torch.optim.Adam([weight], lr=1.0, eps=0.0)
        for value in (w / u).tolist():
            before = weight.clone()
            weight.grad = torch.tensor([value], dtype=torch.float64)
            adam.step()
        last = float((weight - before).abs())
        assert last == pytest.approx(adam_travel(steps) - adam_travel(steps - 1), rel=1e-6)
        worst = max(worst, last)
    assert worst > 1.0
    settings = settings_of(
        tiny_settings,
        "several steps",
        **{"client.optimizer": "adam", "client.learning_rate": 0.01},
    )
    found = honest(tunable, params, features, settings, 0.8, 1)
    made = law(settings, params)
    assert not made.check([found])[1]
    assert made.length(found.update) > 0.3 * float(made.limit("alpha", 0.8) or 0)


def test_samples_are_covered_whatever_the_silos_size(
    tiny_settings: Make, params: dict[str, Tensor]
) -> None:
    """With a batch size the limit knows no number of examples; with a rate it follows it."""
    made = law(settings_of(tiny_settings, "one step"), params)
    assert made.limit("alpha", 0.8) == made.limit("unheard of", 0.8)
    rate = {"client.sampling_rate": 0.5, "data.sizes": "private"}
    private = settings_of(tiny_settings, "one step", **rate)
    assert "leaves the number of examples" in str(why_no_law(private, None))
    assert law(private, params).limit("unheard of", 0.8) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"privacy.mode": "none"}, "privacy.mode=none"),
        ({"codec.name": "autoencoder", "codec.ratio": 4}, "codec.name=autoencoder"),
    ],
)
def test_where_there_is_no_law_the_run_says_so(
    changes: dict[str, Any], reason: str, tiny_settings: Make
) -> None:
    settings = tiny_settings(**changes)
    assert reason in str(why_no_law(settings, 10))
    (sentence,) = limit_warnings(settings, {"alpha": 10, "beta": 20})
    assert reason in sentence
    assert "server.max_update_norm=10000" in sentence
    assert limit_warnings(tiny_settings(), {"alpha": 10}) == []
    median = tiny_settings(**{"server.aggregation": "median"})
    assert "is the mean with fewer than 3" in limit_warnings(median, {"a": 1, "b": 1})[0]


def told(silo: str, params: Mapping[str, Tensor], noise: float, **more: Any) -> Contribution:
    update = {name: torch.zeros_like(value) for name, value in params.items()}
    return Contribution(silo, update, more.get("std"), noise_multiplier=noise)


def test_noise_is_compared_with_the_median_silos(
    tiny_settings: Make, params: dict[str, Tensor]
) -> None:
    made = law(tiny_settings(**{"privacy.noise_multiplier": None}), params)
    honest_ones = [told(f"s{i}", params, 1.0 + 0.1 * i) for i in range(5)]
    liars = [told("liar", params, 1e6), told("other", params, 2e6)]
    kept, refused = made.check([*liars, *honest_ones])
    assert [c.silo for c in kept] == [c.silo for c in honest_ones]
    assert set(refused) == {"liar", "other"}
    assert "server.max_noise_ratio=10 times the median silo's" in refused["liar"]
    # Those who call their noise small throw no honest silo out.
    kept, _ = made.check([told("liar", params, 1e-3), told("other", params, 1e-3), *honest_ones])
    assert {c.silo for c in kept} >= {c.silo for c in honest_ones}
    # Of two, neither the one nor the other is more than the larger.
    assert not made.check([told("a", params, 1.0), told("b", params, 50.0)])[1]


def test_noise_that_is_given_has_to_be_that(tiny_settings: Make, params: dict[str, Tensor]) -> None:
    made = law(tiny_settings(), params)
    for noise in (1.6, 0.4, 0.0, math.nan, math.inf):
        _, refused = made.check([told("alpha", params, noise)])
        assert "noise-multiplier" in refused["alpha"]
    std = dict.fromkeys(params, 1.0)
    _, refused = made.check([told("alpha", params, 0.8, std=std)])
    assert "Expected noise-std." in refused["alpha"]


def test_the_noise_of_the_correction_is_the_servers_own(
    tiny_settings: Make, tunable: Tunable, params: dict[str, Tensor], features: list[Feature]
) -> None:
    settings = tiny_settings()
    found = honest(tunable, params, features, settings, 0.8, 1)
    (kept,), _ = law(settings, params).check([found])
    assert kept.noise_std == pytest.approx(found.noise_std)
    (silent,), _ = law(settings, params).check([replace(found, noise_std=None)])
    assert silent.noise_std == kept.noise_std, "a silo that tells none"
    unprotected = tiny_settings(**{"privacy.mode": "none"})
    _, refused = law(unprotected, params).check(
        [told("alpha", params, 0.0, std=dict.fromkeys(params, 1e4))]
    )
    assert "Expected noise-std." in refused["alpha"]


@pytest.mark.parametrize(
    "changes",
    [
        FORMS["top-k"],
        BLACK_BOX,
        {"client.optimizer": "adam", "client.learning_rate": 0.01},
        CLIENT | {"privacy.mechanism": "lmo", "privacy.noise": NO_VARIANCE},
    ],
    ids=["codec", "numbers", "local adam", "no variance"],
)
def test_noise_of_no_known_deviation_is_not_told(
    changes: dict[str, Any], tiny_settings: Make, params: dict[str, Tensor]
) -> None:
    mechanism = make_mechanism(tiny_settings(**changes), sampling_rate=1.0, noise_multiplier=1.0)
    assert mechanism.noise_std(params) is None


def test_a_silo_that_tells_no_noise_leaves_the_correction_as_it_is(
    start_run: Callable[..., RunFolder], in_process: Callable[..., str]
) -> None:
    def silent(task: Message, reply: Message) -> Message:
        info: Any = reply.content.config_records.get(names.INFO, {})
        if names.UPDATE in reply.content and info[names.SILO] == "beta":
            metrics: Any = reply.content.metric_records[names.METRICS]
            told = [key for key in metrics if key.startswith(names.NOISE_STD)]
            assert told
            for key in told:
                del metrics[key]
        return reply

    changes = {"server.optimizer": "adam", "server.noise_correction": True, "server.rounds": 2}
    models = []
    for name, tamper in (("run", None), ("silent", silent)):
        run = start_run(name, **changes)
        assert in_process(run, tamper=tamper) == "finished"
        assert [record["refused"] for record in rounds(run)] == [[], []]
        models.append(final(run))
    assert same_bits(*models)


def test_the_clipping_norm_of_the_round_decides(
    tiny_settings: Make, params: dict[str, Tensor]
) -> None:
    settings = settings_of(tiny_settings, "adaptive")
    start = law(settings, params)
    later = replace(start, clip=10 * start.clip)
    first, last = start.limit("alpha", 0.8), later.limit("alpha", 0.8)
    assert first is not None
    assert last == pytest.approx(10 * first, rel=0.03)  # but for the parameters' rounding


def test_silos_whose_honest_noise_is_above_the_ratio_are_named_before_they_train(
    tiny_settings: Make,
) -> None:
    calibrated = {"privacy.noise_multiplier": None, "privacy.epsilon": 2.0, "client.batch_size": 20}
    sizes: dict[str, int | None] = {"small": 30, "a": 1000, "b": 2000, "unknown": None}
    (sentence,) = limit_warnings(tiny_settings(**calibrated), sizes)
    assert sentence.startswith("small: the noise that its data and target ask for")
    assert "server.max_noise_ratio=10 " in sentence
    wider = calibrated | {"server.max_noise_ratio": 100.0}
    assert limit_warnings(tiny_settings(**wider), sizes) == []
    assert limit_warnings(tiny_settings(**calibrated), {"a": 1000, "b": 2000}) == []
    assert limit_warnings(tiny_settings(**{"privacy.noise_multiplier": 0.8}), sizes) == []
    strict = calibrated | CLIENT | {"privacy.silos": {"a": {"epsilon": 0.1}}}
    (sentence,) = limit_warnings(tiny_settings(**strict), sizes)
    assert sentence.startswith("a: ")


def test_noise_that_is_given_is_no_silos_word(
    tiny_settings: Make, params: dict[str, Tensor]
) -> None:
    """Where the settings say the noise, batch sizes may differ by more than the ratio: nobody is refused for it."""
    silos = {"small": {"batch_size": 1}, "a": {"batch_size": 40}, "b": {"batch_size": 40}}
    made = law(tiny_settings(**{"privacy.silos": silos}), params)
    found = [told(name, params, 0.8) for name in silos]
    kept, refused = made.check(found)
    assert not refused
    assert len(kept) == 3


FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(value=FLOATS, noise=st.floats() | st.floats(1e-3, 100.0), given_noise=st.booleans())
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_comes_is_within_its_law_or_refused(
    value: float,
    noise: float,
    given_noise: bool,
    tiny_settings: Make,
    params: dict[str, Tensor],
) -> None:
    settings = tiny_settings(**{"privacy.noise_multiplier": 0.8 if given_noise else None})
    made = law(settings, params)
    hostile = Contribution(
        "alpha",
        {n: torch.full_like(v, value) for n, v in params.items()},
        None,
        noise_multiplier=noise,
    )
    kept, refused = made.check([hostile, *(told(f"s{i}", params, 0.8) for i in range(4))])
    assert len(kept) + len(refused) == 5
    assert set(refused) <= {"alpha"}
    for contribution in kept:
        limit = made.limit(contribution.silo, contribution.noise_multiplier)
        assert limit is not None
        assert made.length(contribution.update) <= limit
        assert contribution.noise_multiplier <= 8.0 * (1 + 1e-9)


def test_the_budget_of_false_refusals_is_the_runs(
    tiny_settings: Make, params: dict[str, Tensor]
) -> None:
    """More replies have a larger limit: each may fail with less probability."""
    settings = settings_of(tiny_settings, "one step")
    few, many = (law(settings, params, replies).limit("alpha", 0.8) for replies in (1, 10**6))
    assert few is not None
    assert many is not None
    assert few < many < 1.5 * few


@pytest.mark.parametrize(
    "changes",
    [
        {},
        CLIENT | {"privacy.noise_by": "server", "server.max_update_norm": 1e4},
    ],
    ids=["noise by the silos", "noise by the server"],
)
def test_a_run_goes_on_without_the_updates_of_a_silo_that_multiplies_them(
    changes: dict[str, Any], start_run: Callable[..., RunFolder], in_process: Callable[..., str]
) -> None:
    def hostile(task: Message, reply: Message) -> Message:
        info: Any = reply.content.config_records.get(names.INFO, {})
        if names.UPDATE in reply.content and info[names.SILO] == "beta":
            return poison(reply, lambda u: {n: -400 * v for n, v in u.items()})
        return reply

    run = start_run("run", **changes, **{"server.rounds": 2})
    assert in_process(run, tamper=hostile) == "finished"
    for record in rounds(run):
        assert [item["silo"] for item in record["refused"]] == ["beta"]
        assert "Expected an update of norm at most" in record["refused"][0]["reason"]
        assert record["replied"] == 3


def test_a_share_of_the_norms_is_bounded(
    start_run: Callable[..., RunFolder], in_process: Callable[..., str]
) -> None:
    """A silo whose share is a million moves the clipping norm as one whose share is 1."""

    def claims(share: float) -> Callable[[Message, Message], Message]:
        def hostile(task: Message, reply: Message) -> Message:
            info: Any = reply.content.config_records.get(names.INFO, {})
            if names.UPDATE in reply.content and info[names.SILO] == "beta":
                return tell(reply, names.BELOW, share)
            return reply

        return hostile

    clips = []
    for share in (1.0, 1e5):
        run = start_run(f"run-{share:g}", **{"clipping.form": "adaptive", "server.rounds": 2})
        assert in_process(run, tamper=claims(share)) == "finished"
        clips.append([record["clip"] for record in rounds(run)])
    assert clips[0] == clips[1]
