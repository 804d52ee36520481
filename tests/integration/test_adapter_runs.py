"""Whole runs with each form of adapter and each optional part: real client and server code within this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedllm.adapter.predict import Predictor
from fedllm.data.public import public_set
from fedllm.models.adapters.base import layer_of
from fedllm.models.adapters.lora import LoraAdapter
from fedllm.models.adapters.principal import principal_factors
from fedllm.report.build import build
from fedllm.run.checkpoints import latest_checkpoint
from fedllm.run.folder import RunFolder
from fedllm.training.tunable import initial_params, make_tunable
from privacy.events.multiset import is_private
from privacy.guarantee import SERVER
from privacy.ledger.ledger import Ledger
from server.monitoring import Callback
from tests.support.deep import deep_settings

Start = Callable[..., RunFolder]
Federate = Callable[..., str]
FORMS = ("lora", "ffa-lora", "rolora", "fedsvd", "bitfit", "head")
PARTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "adam": {"server.optimizer": "adam", "server.noise_correction": True},
    "client": {"privacy.unit": "client"},
    "trusted": {"privacy.unit": "client", "privacy.noise_by": "server"},
    "codec": {"codec.name": "linear", "codec.ratio": 4, "codec.noise": "in-code"},
    "autoencoder": {"codec.name": "autoencoder", "codec.ratio": 4, "codec.steps": 20},
    "layers-public": {"layers.form": "public", "layers.after": 1},
    "layers-private": {"layers.form": "private", "layers.examples": 16},
    "layers-random": {"layers.form": "public", "layers.measure": "random"},
    "perturbed": {"awp.form": "per-example"},
    "perturbed-batch": {"awp.form": "batch", "awp.rounds": 1},
    "ema": {"teacher.kind": "ema"},
    "public": {"teacher.kind": "public", "teacher.public_steps": 3, "teacher.distillation": 0.5},
    "nonprivate": {"teacher.kind": "nonprivate"},
    "adaptive": {"clipping.form": "adaptive"},
    "fixed-shape": {"client.max_batch": 24, "privacy.accountant": "pld"},
    "black-box": {"model.access": "black-box"},
    "rounded-downlink": {"codec.downlink": "int8"},
}
REFUSED = {
    ("rolora", "codec"): r"no codec for adapter\.form=rolora",
    ("rolora", "autoencoder"): r"no codec for adapter\.form=rolora",
    ("fedsvd", "ema"): "different bases",
    ("fedsvd", "public"): "different bases",
    ("fedsvd", "nonprivate"): "different bases",
    ("head", "layers-public"): "no layers to choose among",
    ("head", "layers-private"): "no layers to choose among",
    ("head", "layers-random"): "no layers to choose among",
    ("head", "perturbed"): "nothing to perturb",
    ("head", "perturbed-batch"): "nothing to perturb",
}
QUICK = {("lora", "plain"), ("bitfit", "plain"), ("head", "plain"), ("fedsvd", "adam")}
QUICK |= {("rolora", "trusted"), ("ffa-lora", "codec"), ("ffa-lora", "nonprivate")}
QUICK |= {("ffa-lora", "layers-private"), ("lora", "perturbed"), ("lora", "black-box")}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, word_files: Path) -> Any:
    usual = deep_settings(tmp_path_factory.mktemp("deep"), word_files)

    def settings(form: str, **changes: Any) -> Any:
        return usual(**({"adapter.form": form, "adapter.rank": 2, "server.rounds": 2} | changes))

    return settings


def final(run: RunFolder) -> dict[str, Tensor]:
    checkpoint = latest_checkpoint(run.checkpoints_path)
    assert checkpoint is not None
    return checkpoint.params


def same_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return sorted(first) == sorted(second) and all(torch.equal(first[n], second[n]) for n in first)


def training_rows(run: RunFolder) -> list[Any]:
    with Ledger(run.ledger_path, read_only=True) as ledger:
        return [row for row in ledger.entries() if row.purpose == "train"]


def costs(run: RunFolder) -> list[tuple[Any, ...]]:
    return [(row.party, row.round, row.views) for row in training_rows(run)]


def cases() -> list[Any]:
    return [
        pytest.param(form, part, marks=() if (form, part) in QUICK else pytest.mark.slow)
        for form in FORMS
        for part in PARTS
        if (form, part) not in REFUSED
    ]


@pytest.mark.parametrize(("form", "part"), cases())
def test_a_run_of_this_form(
    make: Any, tmp_path: Path, in_process: Federate, form: str, part: str
) -> None:
    """It ends, moves what it trains and nothing else, and costs what the same run with a prefix costs."""
    settings = make(form, **PARTS[part])
    run = RunFolder.create(settings, tmp_path / "run")
    assert in_process(run) == "finished", run.state()["message"]
    found = final(run)
    chosen = run.settings_of(found)
    tunable = make_tunable(chosen)
    start = initial_params(tunable, chosen)
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in start.items()}
    assert all(bool(value.isfinite().all()) for value in found.values())
    still = {name for name, value in found.items() if torch.equal(value, start[name])}
    expected = tunable.adapter.fixed(None) if form != "fedsvd" else frozenset()
    assert still >= expected
    if part not in ("codec", "autoencoder"):  # these leave out what carries little
        assert still == expected
    if part.startswith("layers"):
        assert len({layer_of(name) for name in found} - {None}) == 2
    if part in ("plain", "adam", "client", "trusted", "adaptive"):
        prefix = RunFolder.create(make("prefix", **PARTS[part]), tmp_path / "prefix")
        assert in_process(prefix) == "finished"
        assert costs(run) == costs(prefix)
    private = part not in ("perturbed-batch", "nonprivate", "trusted")  # of the server's view
    assert any(not is_private(row.view(SERVER)) for row in training_rows(run)) != private
    assert build(run)["silos"]
    answers = Predictor(run).predict(["w4 w5 w40"])
    assert answers[0]["label"] in chosen.task.labels


@pytest.mark.parametrize("part", ["plain", "layers-random"])
def test_the_first_factors_come_from_public_text(
    make: Any, tmp_path: Path, in_process: Federate, part: str
) -> None:
    """The principal directions, which a run with fixed factors keeps; the report names the use of the text."""
    settings = make("ffa-lora", **PARTS[part], **{"adapter.init": "principal"})
    run = RunFolder.create(settings, tmp_path / "run")
    assert in_process(run) == "finished", run.state()["message"]
    found = final(run)
    chosen = run.settings_of(found)
    tunable = make_tunable(chosen)
    features = tunable.task.features(public_set(settings, labelled=False).records)
    assert isinstance(tunable.adapter, LoraAdapter)
    batches = [tunable.task.collate([feature]) for feature in features]
    expected = principal_factors(tunable.adapter, batches, tunable.task.run)
    drawn = initial_params(tunable, chosen)
    for name, value in expected.items():
        # One text a batch here, many there: equal to rounding.
        turned = (found[name] @ value.T).abs()
        assert torch.allclose(turned, torch.eye(len(value)), atol=1e-3), name
        assert not torch.allclose(found[name], drawn[name], atol=1e-2)
    assert "the first factors of LoRA" in (run.path / "report.html").read_text()


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        ("bitfit", {}, r"LoRA form for adapter\.init=principal, got adapter\.form=bitfit"),
        ("lora", {"public.source": "none"}, r"public\.source for adapter\.init=principal"),
    ],
)
def test_principal_directions_need_lora_and_public_text(
    make: Any, form: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        make(form, **{"adapter.init": "principal"}, **changes)


@pytest.mark.parametrize(("form", "part"), sorted(REFUSED))
def test_what_has_no_meaning_is_refused(make: Any, form: str, part: str) -> None:
    with pytest.raises(Exception, match=REFUSED[(form, part)]):
        make(form, **PARTS[part])


@pytest.mark.parametrize("form", ["rolora", "fedsvd"])
def test_an_interrupted_run_resumes_to_the_same_bits(
    make: Any, tmp_path: Path, in_process: Federate, form: str
) -> None:
    changes = PARTS["adam"] | {"server.rounds": 4, "server.momentum": 0.9}
    whole = RunFolder.create(make(form, **changes), tmp_path / "whole")
    assert in_process(whole) == "finished"
    cut = RunFolder.create(make(form, **changes), tmp_path / "cut")
    stop = threading.Event()

    class Halt(Callback):
        def record(self, record: Mapping[str, Any]) -> None:
            if record["kind"] == "round" and record["round"] == 2:
                stop.set()

    assert in_process(cut, stop=stop, callbacks=[Halt()]) == "interrupted"
    assert in_process(cut) == "finished", cut.state()["message"]
    assert same_bits(final(cut), final(whole))


def test_a_run_that_keeps_states_is_the_run_that_does_not(
    make: Any, tmp_path: Path, in_process: Federate
) -> None:
    """Without noise and with nothing drawn: settings are in the key of seeded noise."""
    plain = {"privacy.mode": "none", "client.sampling_rate": 1.0, "adapter.layers": [-1]}
    found = []
    for reuse in ("off", "memory", "disk"):
        run = RunFolder.create(make("lora", **plain, **{"model.reuse": reuse}), tmp_path / reuse)
        assert in_process(run) == "finished"
        found.append(final(run))
        logs = "".join(path.read_text() for path in run.path.glob("silo-logs/*.jsonl"))
        assert ('"kind": "reuse"' in logs) == (reuse != "off")
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])


@pytest.mark.slow
def test_whole_runs_with_less_memory(make: Any, tmp_path: Path, in_process: Federate) -> None:
    """Checkpointing and a device map give the same bits; fewer bits of the weights give another model."""
    plain = {"privacy.mode": "none", "client.sampling_rate": 1.0, "server.rounds": 1}
    found = {}
    for name, model in {
        "plain": {},
        "again": {"model.checkpointing": True, "model.device_map": "auto"},
        "packed": {"model.checkpointing": True, "model.quantization": "8bit"},
    }.items():
        run = RunFolder.create(make("lora", **plain, **model), tmp_path / name)
        assert in_process(run) == "finished"
        found[name] = final(run)
    assert same_bits(found["plain"], found["again"])
    assert not same_bits(found["plain"], found["packed"])


def test_rolora_moves_one_factor_a_round(make: Any, tmp_path: Path, in_process: Federate) -> None:
    settings = make("rolora", **{"server.rounds": 1})
    run = RunFolder.create(settings, tmp_path / "one")
    assert in_process(run) == "finished"
    found, start = final(run), initial_params(make_tunable(settings), settings)
    moved = {n.rpartition(".")[2] for n in found if not torch.equal(found[n], start[n])}
    assert moved == {"B", "weight", "bias"}


def test_fedsvd_is_ffa_lora_in_another_basis(
    make: Any, tmp_path: Path, in_process: Federate
) -> None:
    """With SGD and one round the models are one and the same: only the factors differ."""
    changes = {"server.rounds": 1, "server.optimizer": "sgd", "privacy.mode": "none"}
    changes |= {"client.sampling_rate": 1.0, "server.learning_rate": 5.0}  # nothing is drawn
    products = []
    for form in ("ffa-lora", "fedsvd"):
        run = RunFolder.create(make(form, **changes), tmp_path / form)
        assert in_process(run) == "finished"
        params = final(run)
        products.append(
            {n[:-1]: params[f"{n[:-1]}B"] @ params[n] for n in params if n.endswith(".A")}
        )
    for name, product in products[0].items():
        size = float(product.abs().max())
        assert torch.allclose(product, products[1][name], atol=1e-4 * size)
        assert size > 1e-6
