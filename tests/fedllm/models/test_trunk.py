"""States of the frozen trunk: the same gradients, and nothing computed twice."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.models.trunk.skip import Start, install, pass_of, states_entering
from fedllm.models.trunk.store import DiskStore, MemoryStore
from fedllm.settings.io import SettingsError, parse_settings
from fedllm.training.gradients import per_example_gradients
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from simulations.attacks.batch_mates.architectures import (
    random_records,
    tiny_backbone,
    tiny_tunable,
)

CASES = [
    ("bert", "classification", "lora"),
    ("roberta", "classification", "prefix"),
    ("llama", "classification", "ffa-lora"),
    ("llama", "generation", "bitfit"),
    ("gpt2", "generation", "lora"),
    ("gpt_neox", "classification", "prefix"),
    ("bert", "classification", "head"),
]


def tree(architecture: str, task: str, form: str, **model: Any) -> dict[str, Any]:
    """The settings of the tiny model that trains its upper layer alone."""
    settings, _ = tiny_tunable(architecture, torch.float32, task, "lora")
    plain: dict[str, Any] = settings.model_dump(mode="json")
    where = "prefix" if form == "prefix" else "adapter"
    plain["adapter"] |= {"form": form}
    plain[where]["layers"] = [1]
    plain["model"] |= {"reuse": "memory", "reuse_gib": 0.01} | model
    return plain


def made(architecture: str, task: str, form: str, **model: Any) -> tuple[Any, Tunable]:
    settings = parse_settings(tree(architecture, task, form, **model))
    return settings, make_tunable(settings, tiny_backbone(architecture, torch.float32))


def gradients(tunable: Tunable, params: dict[str, Tensor], features: list[Feature]) -> list[Any]:
    rows: list[Any] = [None] * len(features)
    for group in tunable.task.batches(features, 512):
        found = per_example_gradients(
            tunable, params, tunable.task.collate([features[i] for i in group])
        )
        for place, row in enumerate(group):
            rows[row] = {name: value[place] for name, value in found.items()}
    return rows


def moved(tunable: Tunable, settings: Any) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(3)
    start = initial_params(tunable, settings)
    return {n: v + 0.3 * torch.randn(v.shape, generator=rng) for n, v in start.items()}


@pytest.mark.parametrize(("architecture", "task", "form"), CASES)
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_gradients_are_the_same_bits(architecture: str, task: str, form: str, where: str) -> None:
    settings, tunable = made(architecture, task, form, reuse=where)
    trunk = tunable.task.trunk
    assert trunk is not None
    params = moved(tunable, settings)
    features = tunable.task.features(random_records([3, 6, 4, 5, 17, 2], 1))
    whole = gradients(tunable.without_reuse(), params, features)
    first = gradients(tunable, params, features[:4])
    assert trunk.computed >= 4
    computed = trunk.computed
    again = gradients(tunable, params, features)  # some are kept, some are not
    assert trunk.computed == computed + 2
    for expected, a, b in zip(whole, [*first, None, None], again, strict=True):
        for name, value in expected.items():
            assert torch.equal(b[name], value), name
            assert a is None or torch.equal(a[name], value), name
    metrics = tunable.evaluate(params, features, 512)
    assert metrics == tunable.without_reuse().evaluate(params, features, 512)


def test_the_lower_layers_are_not_computed_again() -> None:
    settings, tunable = made("bert", "classification", "lora")
    features = tunable.task.features(random_records([3, 6, 4], 1))
    params = moved(tunable, settings)
    gradients(tunable, params, features)
    calls = []
    lower = tunable.backbone.model.encoder.layer[0].attention
    lower.register_forward_hook(lambda *args: calls.append(1))
    gradients(tunable, params, features)
    assert not calls
    gradients(tunable.without_reuse(), params, features)
    assert calls


def test_what_does_not_fit_is_computed_anew() -> None:
    settings, tunable = made("bert", "classification", "lora", reuse_gib=1e-6)  # 1073 bytes
    trunk = tunable.task.trunk
    assert trunk is not None
    params = moved(tunable, settings)
    features = tunable.task.features(random_records([3, 6, 4, 5], 1))
    expected = gradients(tunable.without_reuse(), params, features)
    for _ in range(2):
        found = gradients(tunable, params, features)
        assert all(torch.equal(f[n], e[n]) for f, e in zip(found, expected, strict=True) for n in e)
    assert 0 < trunk.store.used <= 1073
    assert trunk.reused > 0


def test_states_of_half_the_size_differ_by_their_rounding() -> None:
    settings, tunable = made("bert", "classification", "lora", reuse_dtype="float16")
    params = moved(tunable, settings)
    features = tunable.task.features(random_records([3, 6, 4, 5], 1))
    exact = gradients(tunable.without_reuse(), params, features)
    rounded = gradients(tunable, params, features)
    off = [
        float((r["head.weight"] - e["head.weight"]).norm() / e["head.weight"].norm())
        for r, e in zip(rounded, exact, strict=True)
    ]
    assert 1e-6 < max(off) < 5e-3


def test_a_damaged_file_is_computed_anew() -> None:
    store = DiskStore(1 << 20)
    store.put(b"a", torch.ones(3, 4))
    store.put(b"b", torch.zeros(2, 4))
    found = store.get(b"a")
    assert found is not None
    assert torch.equal(found, torch.ones(3, 4))
    store._file.truncate(48)
    assert store.get(b"b") is None
    store.put(b"b", torch.zeros(2, 4))
    assert store.get(b"a") is not None


@pytest.mark.parametrize("kind", [MemoryStore, DiskStore])
def test_threads_get_the_states_of_their_own_example(kind: Any) -> None:
    """The states of another example would give it this one's place in the gradient."""
    store, wrong = kind(1 << 24), []

    def work(first: int) -> None:
        for turn in range(200):
            for number in range(first, first + 8):
                store.put(b"%d" % number, torch.full((64, 16), float(number)))
                found = store.get(b"%d" % number)
                if found is None or not bool((found == number).all()):
                    wrong.append((turn, number))

    threads = [threading.Thread(target=work, args=(8 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert store.used == 32 * 64 * 16 * 4


@pytest.mark.parametrize("kind", [MemoryStore, DiskStore])
def test_a_store_keeps_no_more_than_its_limit(kind: Any) -> None:
    store = kind(100)
    for key in (b"a", b"b", b"c"):
        store.put(key, torch.ones(3, 4))  # 48 bytes
    assert [store.get(key) is not None for key in (b"a", b"b", b"c")] == [True, True, False]
    assert store.used == 96


def test_examples_that_differ_in_a_segment_or_a_token_are_two() -> None:
    _, tunable = made("bert", "classification", "lora")
    trunk = tunable.task.trunk
    assert trunk is not None
    before = trunk.computed
    for ids, segments in (([4, 5, 6], [0, 0, 0]), ([4, 5, 7], [0, 0, 0]), ([4, 5, 6], [0, 0, 1])):
        feature = Feature(ids, target=0, segments=segments)
        with torch.no_grad():
            tunable.task.run(tunable.task.collate([feature]))
    assert trunk.computed == before + 3


def test_a_model_that_is_no_plain_chain_is_computed_as_a_whole(caplog: Any) -> None:
    backbone = tiny_backbone("bert", torch.float32)
    second = backbone.model.encoder.layer[1]
    whole = second.forward
    kept: list[Tensor] = []
    backbone.model.encoder.layer[0].attention.register_forward_hook(
        lambda module, args, output: kept.append(output[0])
    )

    backbone.model.embeddings.register_forward_hook(lambda *args: kept.clear())

    def reads_below(states: Tensor, *args: Any, **options: Any) -> Any:
        return whole(states + (kept.pop().abs().mean() if kept else 0), *args, **options)

    second.forward = reads_below
    settings = parse_settings(tree("bert", "classification", "lora"))
    with caplog.at_level("WARNING", logger="fedllm"):
        tunable = make_tunable(settings, backbone)
    assert tunable.task.trunk is None
    assert "model.reuse=memory is off for model=bert: a pass that starts at layer 1" in caplog.text


def test_all_layers_trained_leave_nothing_to_keep() -> None:
    plain = tree("bert", "classification", "lora")
    plain["adapter"]["layers"] = "all"
    tunable = make_tunable(parse_settings(plain), tiny_backbone("bert", torch.float32))
    assert tunable.task.trunk is None


def test_fixed_shapes_and_reuse_are_refused_together() -> None:
    plain = tree("bert", "classification", "lora")
    plain["client"]["max_batch"] = 256
    plain["privacy"]["accountant"] = "pld"
    with pytest.raises(SettingsError, match=r"model\.reuse=off for client\.max_batch"):
        parse_settings(plain)


def test_a_copied_model_starts_by_itself() -> None:
    backbone = tiny_backbone("llama", torch.float32)
    assert install(backbone.model) == install(backbone.model) == 2
    ids = torch.arange(4, 12)[None]
    whole = backbone.model(input_ids=ids).logits
    states = states_entering(backbone.model, 1, lambda: backbone.model(input_ids=ids))
    twin = copy.deepcopy(backbone.model)
    with pass_of(twin, Start(1, states)):
        assert torch.equal(twin(input_ids=ids).logits, whole)
    with pass_of(twin, Start(1, states * 2)):
        assert not torch.allclose(twin(input_ids=ids).logits, whole)
        assert torch.equal(backbone.model(input_ids=ids).logits, whole)
