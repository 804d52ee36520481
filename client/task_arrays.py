"""Read a task's tensors: check names, shapes and dtypes before allocating any.

Flower sends an array as the bytes of numpy's own file format, with a shape in its head that nobody has checked, and
says shape and format beside it once more. Here the head is read alone first. A tensor is made only where the head, the
length of the bytes and what the model or codec needs agree, so that what a task can make this process hold is what an
honest task would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedllm.codec.downlink import SCALES, VALUES, Downlink, decode_params
from fedllm.codec.quantise import CHUNK
from fedllm.files.bounded_json import shortened
from fedllm.silo.task_form import ArrayForm
from fedllm.task_errors import TaskRefused, refusing

_HEAD = 4096
"""Bytes of a head at most; numpy writes 128 for the tensors here."""
MOST_DIMENSIONS = 8


def parameter_forms(initial: Mapping[str, Tensor], downlink: Downlink) -> dict[str, ArrayForm]:
    """The arrays in which parameters of these names and shapes travel (:mod:`fedllm.codec.downlink`)."""
    shapes = {name: tuple(value.shape) for name, value in initial.items()}
    if downlink != "int8":
        kind = "<f2" if downlink == "fp16" else "<f4"
        return {name: (shape, kind) for name, shape in shapes.items()}
    forms: dict[str, ArrayForm] = {}
    for name, shape in shapes.items():
        forms[VALUES + name] = (shape, "|i1")
        forms[SCALES + name] = ((-(-math.prod(shape) // CHUNK),), "<f4")
    return forms


def array_forms(record: ArrayRecord, what: str, most: int) -> dict[str, ArrayForm]:
    """Shape and format of each array of a record, by its bytes; makes no tensor.

    Args:
        what: they are, for messages.
        most: arrays at most.

    Raises:
        TaskRefused: too many, too long a name, or bytes that are no such array.
    """
    if len(record) > most:
        raise TaskRefused(f"Expected at most {most} arrays in {what}, got {len(record)}")
    return {name: _head(array, f"{what} {shortened(name)}")[0] for name, array in record.items()}


def read_arrays(
    record: ArrayRecord, needed: Mapping[str, ArrayForm], what: str
) -> dict[str, Tensor]:
    """The tensors of a record, which must be exactly those that are needed.

    Raises:
        TaskRefused: other names, shapes or formats, or bytes that are no such array.
    """
    if len(record) != len(needed) or set(record) != set(needed):
        given = ", ".join(shortened(name) for name in sorted(record)[:12])
        more = f" and {len(record) - 12} more" if len(record) > 12 else ""
        raise TaskRefused(
            f"Expected {what} named {', '.join(sorted(needed))}, got {given or 'none'}{more}"
        )
    found = {}
    for name, form in needed.items():
        given_form, start, by_columns = _head(record[name], f"{what} {name}")
        if given_form != form:
            raise TaskRefused(
                f"Expected {what} with {name} of shape {form[0]} in {form[1]}, got {given_form[0]} in "
                f"{given_form[1]}"
            )
        shape, kind = form
        values = np.frombuffer(record[name].data, np.dtype(kind), offset=start)
        array = values.reshape(shape, order="F" if by_columns else "C")
        found[name] = torch.from_numpy(np.array(array, order="C"))
    return found


def read_params(
    record: ArrayRecord, initial: Mapping[str, Tensor], downlink: Downlink, what: str
) -> dict[str, Tensor]:
    """Tensors with the names and shapes of the trained ones, float32, as they travel downwards.

    Raises:
        TaskRefused: others, or 8-bit codes that stand for no finite numbers.
    """
    tensors = read_arrays(record, parameter_forms(initial, downlink), what)
    if downlink == "none":
        return tensors
    with refusing():
        return decode_params(tensors, downlink)


def _head(array: Any, what: str) -> tuple[ArrayForm, int, bool]:
    """ArrayForm of an array, where its values begin, and whether they are column by column.

    Raises:
        TaskRefused: no numpy array in numbers, or more or fewer bytes than its shape says.
    """
    data = array.data
    if array.stype != "numpy.ndarray":
        raise TaskRefused(
            f"Expected {what} as numpy.ndarray, got {shortened(array.stype)} as its serialisation"
        )
    head = BytesIO(bytes(memoryview(data)[:_HEAD]))
    try:
        if np.lib.format.read_magic(head) != (1, 0):
            raise ValueError("another version of the format")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(head, max_header_size=_HEAD)
    except (
        Exception
    ) as error:  # of a literal that anybody wrote: also SyntaxError, RecursionError, ...
        raise TaskRefused(
            f"Expected {what} in numpy's format: {shortened(str(error), 200)}"
        ) from None
    start = head.tell()
    if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None:
        raise TaskRefused(f"Expected numbers in {what}, got {shortened(dtype.str)}")
    if len(shape) > MOST_DIMENSIONS or any(size < 0 for size in shape):
        raise TaskRefused(
            f"Expected {what} of at most {MOST_DIMENSIONS} dimensions, got {shortened(shape)}"
        )
    if len(data) - start != math.prod(shape) * dtype.itemsize:
        raise TaskRefused(
            f"Expected as many bytes in {what} as its shape {shortened(shape)} has in {dtype.str}, got "
            f"{len(data) - start}"
        )
    if tuple(array.shape) != tuple(shape) or str(dtype) != array.dtype:
        raise TaskRefused(
            f"Expected {what} to be what is said of it ({shortened(array.dtype)}, {shortened(array.shape)}), "
            f"got {dtype}, {shortened(shape)}"
        )
    return (tuple(shape), dtype.str), start, by_columns
