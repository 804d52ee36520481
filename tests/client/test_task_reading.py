"""A task is read as typed values: its fields by their list, its arrays by their heads, its size before it is made."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configured_silo import write_silo
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numbers

from client.config import load_silo
from client.limits import check_size
from client.task_arrays import array_forms, parameter_forms, read_arrays, read_params
from client.task_fields import QUERY, TRAIN, read_fields
from fedllm import messages as names
from fedllm.budget.local_policy import LimitRefused
from fedllm.codec.downlink import encode_params
from fedllm.settings.io import to_json
from fedllm.task_errors import TaskRefused
from fedllm.training.tunable import initial_params, shared_tunable, trained_size
from privacy.randomness import generator

Make = Callable[..., Any]
SHAPES = numbers.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@pytest.fixture(autouse=True)
def identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def task(kind: str, settings: Any, **fields: Any) -> Message:
    config = {names.SETTINGS: to_json(settings), **fields}
    records: dict[str, Any] = {names.CONFIG: ConfigRecord(config)}
    if kind == TRAIN:
        records[names.PARAMS] = ArrayRecord()
    return Message(RecordDict(records), dst_node_id=5, message_type=kind)


RUN: dict[str, Any] = {
    names.RUN_ID: "tiny-0123456789abcdef",
    names.RUN_FOLDER: "/a",
    names.ROUND: 2,
    names.PLANNED_ROUNDS: 3,
}


def test_a_task_has_its_fields_and_no_others(tiny_settings: Make) -> None:
    settings = tiny_settings()
    found = read_fields(task(TRAIN, settings, **RUN), TRAIN)
    assert (found.settings, found.run_id, found.round) == (settings, RUN[names.RUN_ID], 2)
    assert (found.backbone, found.extras) == ("", {})
    assert read_fields(task(QUERY, settings), QUERY).settings == settings
    for fields in (RUN | {"more": 1}, {**RUN, names.CANDIDATES: [0, 1]}):
        with pytest.raises(
            TaskRefused, match="Expected the fields of a train task: planned-rounds"
        ):
            read_fields(task(TRAIN, settings, **fields), TRAIN)
    for missing in RUN:
        fields = {name: value for name, value in RUN.items() if name != missing}
        with pytest.raises(TaskRefused, match=missing):
            read_fields(task(TRAIN, settings, **fields), TRAIN)
    with pytest.raises(TaskRefused, match="Expected the fields of a query task: settings"):
        read_fields(task(QUERY, settings, **RUN), QUERY)
    with pytest.raises(
        TaskRefused, match=r"Expected the records of a train task: config, params .*"
    ):
        read_fields(task(QUERY, settings, **RUN), TRAIN)


def test_a_refusal_quotes_little(tiny_settings: Make) -> None:
    fields = RUN | {names.RUN_ID: "r" * 10**7} | {f"more-{i}": 1 for i in range(5000)}
    with pytest.raises(TaskRefused) as raised:
        read_fields(task(TRAIN, tiny_settings(), **fields), TRAIN)
    assert len(str(raised.value)) < 1000
    with pytest.raises(TaskRefused, match=r"a run's id \(at most 128 .* \(10000000 characters\)"):
        read_fields(task(TRAIN, tiny_settings(), **(RUN | {names.RUN_ID: "r" * 10**7})), TRAIN)


@given(value=numbers.arrays(np.float32, SHAPES), by_columns=st.booleans())
def test_an_array_that_is_what_it_says_is_read(value: np.ndarray, by_columns: bool) -> None:
    given_array = np.asfortranarray(value).reshape(value.shape) if by_columns else value
    record = ArrayRecord({"a": Array(given_array)})
    (found,) = read_arrays(record, {"a": (value.shape, "<f4")}, "an example").values()
    np.testing.assert_array_equal(found.numpy(), value)
    found += 1  # its own memory, which may be written


@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_array_are_refused_by_name(data: bytes) -> None:
    record = ArrayRecord({"a": Array("float32", (2,), "numpy.ndarray", data)})
    with pytest.raises(TaskRefused, match="an example"):
        read_arrays(record, {"a": ((2,), "<f4")}, "an example")


@given(text=st.binary(max_size=200))
def test_heads_that_are_no_heads_are_refused_by_name(text: bytes) -> None:
    head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    record = ArrayRecord({"a": Array("float32", (2,), "numpy.ndarray", head + bytes(8))})
    with pytest.raises(TaskRefused, match="an example"):
        array_forms(record, "an example", 4)


def with_head(shape: tuple[int, ...], count: int) -> Array:
    buffer = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return Array("float32", shape, "numpy.ndarray", buffer.getvalue() + bytes(4 * count))


@pytest.mark.parametrize("count", [0, 1, 3, 5, 100])
def test_an_array_has_as_many_bytes_as_it_says(count: int) -> None:
    for shape in ((2, 2), (10**12,), (10**30, 10**30)):
        with pytest.raises(TaskRefused, match="as many bytes"):
            array_forms(ArrayRecord({"a": with_head(shape, count)}), "an example", 1)
    assert array_forms(ArrayRecord({"a": with_head((2, 2), 4)}), "x", 1) == {"a": ((2, 2), "<f4")}


def test_an_array_is_of_the_shape_and_format_that_is_needed() -> None:
    record = ArrayRecord({"a": Array(np.zeros((2, 3), np.float32))})
    for form in (((3, 2), "<f4"), ((6,), "<f4"), ((2, 3), "<f8"), ((2, 3, 1), "<f4")):
        with pytest.raises(TaskRefused, match=r"a of shape .* got \(2, 3\) in <f4"):
            read_arrays(record, {"a": form}, "an example")
    with pytest.raises(TaskRefused, match="at most 1 arrays in x, got 2"):
        array_forms(ArrayRecord({n: Array(np.zeros(1)) for n in "ab"}), "x", 1)


@pytest.mark.parametrize("downlink", ["none", "fp16", "int8"])
def test_parameters_are_read_as_they_travel(downlink: Any, tiny_settings: Make) -> None:
    settings = tiny_settings()
    start = initial_params(shared_tunable(settings), settings)
    sent = encode_params(start, downlink, generator(1, "rounding"))
    assert {
        name: (tuple(value.shape), value.numpy().dtype.str) for name, value in sent.items()
    } == parameter_forms(start, downlink)
    found = read_params(ArrayRecord(dict(sent)), start, downlink, "parameters")
    for name, value in start.items():
        torch.testing.assert_close(found[name], value, atol=0.02, rtol=1e-3)
    for other in {"none", "fp16", "int8"} - {downlink}:
        with pytest.raises(TaskRefused):
            read_params(ArrayRecord(dict(sent)), start, other, "parameters")  # type: ignore[arg-type]


def test_what_is_trained_is_counted_before_it_is_made(tiny_settings: Make, tmp_path: Path) -> None:
    base = tiny_settings()
    silo = load_silo(
        write_silo(tmp_path, base, tmp_path / "absent.jsonl", **{"limits.parameters": 1000})
    )
    for length in (1, 2, 8):
        settings = tiny_settings(**{"prefix.length": length})
        tunable = shared_tunable(settings)
        start = initial_params(tunable, settings)
        assert trained_size(tunable) == sum(value.numel() for value in start.values())
        check_size(silo, settings, tunable)
    huge = tiny_settings(**{"prefix.length": 10**9})
    with pytest.raises(LimitRefused, match=r"at most 1000 trained numbers \(limits\.parameters\)"):
        check_size(silo, huge, shared_tunable(huge))
