"""Everything that a seeded release depends on is in its fingerprint, by construction."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedllm.budget.release_id import Fingerprinted, features_digest, params_digest
from fedllm.budget.release_inputs import ReleaseInputs, machine, model_inputs
from fedllm.data.batches import Feature
from fedllm.data.silos import load_federation
from fedllm.models.backbone import load_backbone
from fedllm.silo.silo import SiloWorker
from fedllm.silo.task import SiloTask
from fedllm.training.tunable import initial_params, shared_tunable
from server.extensions.central_noise import SumInputs
from simulations.attacks.batch_mates.architectures import tiny_tunable

Make = Callable[..., Any]

TASK = SiloTask(
    {"a": torch.tensor([1.0, -0.0])},
    1,
    3,
    {"clip": 0.5, "duplicate": {"a": torch.zeros(2)}, "candidates": (0, 1)},
)
SILO = ReleaseInputs(
    task="t",
    silo="alpha",
    examples="e",
    settings="s",
    weights="w",
    dtype="torch.float32",
    model_config="c",
    tokenizer="t",
    device="cpu",
    machine="m",
    planned_rounds=3,
    sampling_rate=0.1,
    noise_multiplier=1.0,
)
SUM = SumInputs(
    purpose="train",
    server_round=1,
    settings="s",
    params="p",
    total="t",
    count=0.0,
    noise_multiplier=1.0,
    clip=0.5,
    expected=4.0,
)
FIELDS = [(given_, f.name) for given_ in (TASK, SILO, SUM) for f in dataclasses.fields(given_)]


def other(value: Any) -> Any:
    if value is None:
        return 0.5
    if isinstance(value, float):
        return float(np.nextafter(value, 9.0))
    if isinstance(value, dict):
        return {**value, "more": 1}
    return value + {str: "x", int: 1, tuple: (3,)}[type(value)]


@pytest.mark.parametrize(("inputs", "name"), FIELDS, ids=lambda v: v if isinstance(v, str) else "")
def test_every_field_is_in_the_fingerprint(inputs: Any, name: str) -> None:
    changed = dataclasses.replace(inputs, **{name: other(getattr(inputs, name))})
    assert changed.fingerprint() != inputs.fingerprint()
    assert dataclasses.replace(inputs).fingerprint() == inputs.fingerprint()


def test_a_new_field_is_in_the_fingerprint_and_a_list_is_refused() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class More(ReleaseInputs):
        added: Any = 0

    plain = dataclasses.asdict(SILO)
    assert More(**plain).fingerprint() != More(**plain, added=1).fingerprint()
    with pytest.raises(TypeError, match="Expected str, int"):
        More(**plain, added=[1]).fingerprint()

    @dataclasses.dataclass(frozen=True)
    class MoreTask(SiloTask):
        added: Any = None

    tasks = [MoreTask(TASK.params, added=value) for value in (None, 0, torch.zeros(1), {"a": 0})]
    assert len({task.fingerprint() for task in tasks}) == len(tasks)


@dataclasses.dataclass(frozen=True)
class Pair(Fingerprinted):
    first: Any
    second: Any


BITS = st.lists(st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-23]), max_size=2)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.builds(torch.tensor, BITS, dtype=st.sampled_from([torch.float32, torch.float64])),
    lambda parts: (
        st.lists(parts, max_size=3).map(tuple) | st.dictionaries(st.text(), parts, max_size=3)
    ),
    max_leaves=6,
)


def exactly(value: Any) -> Any:
    """A value with its type: 1, 1.0 and True differ, and so do 0.0 and -0.0; the order of a mapping is nothing."""
    if isinstance(value, Tensor):
        return (Tensor, value.dtype, exactly(tuple(value.tolist())))
    if isinstance(value, dict):
        return {key: exactly(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(exactly(part) for part in value)
    return (type(value), value.hex() if isinstance(value, float) else value)


def changed_once(value: Any) -> st.SearchStrategy[Any]:
    """The value with one part of it, at any depth, replaced or removed."""
    if not isinstance(value, dict | tuple) or not value:
        return PLAIN.filter(lambda new: exactly(new) != exactly(value))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))

    def at(key: Any) -> st.SearchStrategy[Any]:
        def put(new: Any) -> Any:
            if isinstance(value, dict):
                return {**value, key: new}
            return (*value[:key], new, *value[key + 1 :])

        kept = [k for k in keys if k != key]
        without = (
            {k: value[k] for k in kept}
            if isinstance(value, dict)
            else tuple(value[k] for k in kept)
        )
        return changed_once(value[key]).map(put) | st.just(without)

    return st.sampled_from(keys).flatmap(at)


TENSORS = st.dictionaries(st.text(), st.builds(torch.tensor, BITS), max_size=2)
TASKS = st.builds(
    SiloTask,
    TENSORS,
    st.integers(0, 9),
    st.integers(0, 9),
    st.dictionaries(st.text(), PLAIN, max_size=3),
    st.text(),
)


@given(TASKS, st.data())
def test_a_task_that_differs_in_one_place_is_another_task(task: SiloTask, data: Any) -> None:
    name = data.draw(st.sampled_from([f.name for f in dataclasses.fields(task)]))
    value = data.draw(changed_once(getattr(task, name)))
    assert dataclasses.replace(task, **{name: value}).fingerprint() != task.fingerprint()


@given(PLAIN, PLAIN, PLAIN, PLAIN)
def test_two_fingerprints_are_equal_only_for_equal_values(a: Any, b: Any, c: Any, d: Any) -> None:
    same = exactly((a, b)) == exactly((c, d))
    assert (Pair(a, b).fingerprint() == Pair(c, d).fingerprint()) == same


def worker_of(settings: Any, folder: Path) -> SiloWorker:
    silo = next(s for s in load_federation(settings).silos if s.name == "alpha")
    return SiloWorker(settings, silo, run="r", ledger=folder / "ledger.sqlite")


def test_the_same_settings_on_another_model_machine_or_number_format_are_another_release(
    tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All with model.dtype=auto and model.device=auto, and so with equal settings."""
    settings = tiny_settings(**{"model.dtype": "auto", "model.device": "auto"})
    params = initial_params(shared_tunable(settings), settings)

    def digest(change: Callable[[Any], None] = lambda tunable: None) -> str:
        worker = worker_of(settings, tmp_path)
        tunable = worker.tunable
        backbone = load_backbone(settings.model.name, kind="encoder", device="cpu")
        worker.tunable = type(tunable)(backbone, tunable.task, tunable.adapter)
        change(worker.tunable.backbone)
        return worker.digest(SiloTask(params, 1), 1.0)

    def bfloat16(backbone: Any) -> None:
        backbone.dtype = torch.bfloat16

    def gpu(backbone: Any) -> None:
        backbone.device = torch.device("mps")

    def weights(backbone: Any) -> None:
        with torch.no_grad():
            next(backbone.model.parameters()).view(-1)[0] += 1

    def configuration(backbone: Any) -> None:
        backbone.model.config.layer_norm_eps *= 2

    found = {change: digest(change) for change in (bfloat16, gpu, weights, configuration)}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    found["threads"] = digest()
    monkeypatch.undo()
    monkeypatch.setattr("fedllm.budget.release_inputs._versions", lambda: {"torch": "9"})
    found["versions"] = digest()
    monkeypatch.undo()
    found["plain"] = digest()
    assert len(set(found.values())) == len(found)
    assert digest() == found["plain"]


def test_each_extra_of_a_task_is_another_release(tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings()
    worker = worker_of(settings, tmp_path)
    params = initial_params(worker.tunable, settings)
    extras: list[dict[str, Any]] = [
        {},
        {"codec-version": "v"},
        {"directions": "v"},
        {"duplicate": params},
        {"duplicate": {name: value + 1 for name, value in params.items()}},
        {"candidates": (0, 1)},
        {"candidates": (1, 0)},
        {"clip": 0.5},
    ]
    digests = {worker.digest(SiloTask(params, extras=extra), 1.0) for extra in extras}
    digests |= {worker.digest(SiloTask(params, kind=k), 1.0) for k in ("query.scores", "evaluate")}
    assert len(digests) == len(extras) + 2
    rounds = {worker.account(r).rounds for r in (3,)}
    assert rounds == {3}
    assert worker.digest(SiloTask(params), 1.0) not in digests, "the plan is in it"


def test_a_round_at_another_clipping_norm_is_another_release(
    tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(**{"clipping.form": "adaptive", "clipping.count_share": 0.2})
    worker = worker_of(settings, tmp_path)
    params = initial_params(worker.tunable, settings)
    for clip in (0.5, 0.25, 0.5):
        worker.train(SiloTask(params, 1, 3, {"clip": clip}))
    assert len(list(worker.ledger.entries())) == 2


def test_threads_change_bits_and_so_the_release(tiny_settings: Make) -> None:
    """Not on every machine and shape; the name of a release need not know where they do."""
    backbone = tiny_tunable("bert")[1].backbone
    before = machine(backbone)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert machine(backbone) != before
    finally:
        torch.set_num_threads(threads)
    assert machine(backbone) == before


def test_the_machine_tells_the_kernels_of_the_model_and_not_of_the_one_before() -> None:
    small, plain = (
        tiny_tunable("bert", dtype)[1].backbone for dtype in (torch.bfloat16, torch.float32)
    )
    told = [json.loads(machine(backbone))["mkldnn"] for backbone in (small, plain, small)]
    assert told == [False, True, False]


def test_digests_of_data_and_tensors_know_every_field_and_bit() -> None:
    base = Feature([1, 2], 0, None)
    others = [
        Feature([1, 3], 0),
        Feature([1, 2], 1),
        Feature([1, 2], 0, [0, 1]),
        Feature([1, 2], 0, meta={"prompt": [1]}),
    ]
    assert len({features_digest([f]) for f in [base, *others]}) == 5
    value = torch.tensor([1.0], dtype=torch.float64)
    near = torch.nextafter(value, torch.tensor(2.0, dtype=torch.float64))
    tensors = [value, near, value.float(), value.view(1, 1), torch.zeros(0)]
    assert len({params_digest({"a": t}) for t in tensors}) == 5
    assert params_digest({"a": value}) != params_digest({"b": value})


def test_model_inputs_are_the_resolved_ones(tiny_settings: Make) -> None:
    settings = tiny_settings(**{"model.dtype": "auto", "model.device": "auto"})
    backbone = shared_tunable(settings).backbone
    found = model_inputs(backbone)
    assert found["dtype"] == str(backbone.dtype) != "auto"
    assert found["weights"] == backbone.weights_digest
    assert "auto" not in found.values()
