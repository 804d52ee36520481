"""The tensors of a reply: checked by what is announced and by their own header, before any is allocated."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, RecordDict
from numpy.lib import format as npy
from torch import Tensor

from fedllm.codec.base import Spec
from server.replies.refusal import ReplyRefused, shown

_LONGEST_HEADER = 1024
"""Bytes of the header of numpy's format that are looked at; one that NumPy writes has 128."""


def spec_of(tensors: Mapping[str, Tensor]) -> Spec:
    """Return shapes and dtypes by name."""
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


def tensors_of(content: RecordDict, record: str, spec: Spec) -> dict[str, Tensor]:
    """Return the tensors of a record, as the specification says, finite, in its order.

    Shapes, dtypes and sizes are compared first, so that no node decides how much memory is used.

    Raises:
        ReplyRefused: the record is missing; a tensor is missing or unknown, of another shape or dtype, not
            finite, or not in NumPy's format.
    """
    found = content.get(record)
    if not isinstance(found, ArrayRecord):
        kind = "none" if found is None else f"a {type(found).__name__}"
        raise ReplyRefused(f"Expected the record {record} with tensors, got {kind}")
    if len(found) != len(spec) or any(name not in spec for name in found):
        raise ReplyRefused(f"Expected the tensors {sorted(spec)} in {record}, got {_names(found)}")
    kinds = {name: (shape, _numpy(dtype)) for name, (shape, dtype) in spec.items()}
    _check_announced(found, kinds)
    return {name: _tensor(name, found[name].data, *kind) for name, kind in kinds.items()}


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of all the tensors."""
    return sum(value.numel() * value.element_size() for value in tensors.values())


def _names(found: ArrayRecord) -> str:
    if len(found) > 50:
        return f"{len(found)} tensors"
    return "[" + ", ".join(shown(name) for name in sorted(found)) + "]"


@cache
def _numpy(dtype: torch.dtype) -> np.dtype[Any]:
    return np.dtype(torch.zeros(0, dtype=dtype).numpy().dtype)


def _check_announced(
    found: ArrayRecord, kinds: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
) -> None:
    for name, (shape, dtype) in kinds.items():
        array = found[name]
        if array.stype != "numpy.ndarray":
            raise ReplyRefused(f"Expected {name} in NumPy's format, got {shown(array.stype)}")
        if array.dtype != dtype.name:
            raise ReplyRefused(f"Expected {dtype.name} for {name}, got {shown(array.dtype)}")
        if tuple(array.shape) != shape:
            told = shown(tuple(array.shape))
            raise ReplyRefused(f"Expected shape {shape} for {name}, got {told}")
        size, got = math.prod(shape) * dtype.itemsize, len(array.data)
        if not size <= got <= size + _LONGEST_HEADER:
            raise ReplyRefused(f"Expected {size} bytes for {name} and a header, got {got}")


def _tensor(name: str, data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
    """Return a tensor of its own memory, made of the bytes that ``numpy.save`` wrote."""
    stream = io.BytesIO(data)
    try:
        if npy.read_magic(stream) != (1, 0):
            raise ValueError("another version of the format")
        told, fortran, kind = npy.read_array_header_1_0(stream, _LONGEST_HEADER)
    except Exception as error:  # whatever a stranger's header makes of the reader
        raise ReplyRefused(
            f"Expected a header of NumPy's format for {name}, got another: {type(error).__name__}"
        ) from None
    if kind != dtype:
        raise ReplyRefused(
            f"Expected {dtype.name} for {name}, got {shown(str(kind))} in its header"
        )
    if told != shape:
        raise ReplyRefused(f"Expected shape {shape} for {name}, got {shown(told)} in its header")
    start, size = stream.tell(), math.prod(shape) * dtype.itemsize
    if len(data) != start + size:
        raise ReplyRefused(f"Expected {size} bytes for {name}, got {len(data) - start}")
    flat = np.frombuffer(data, dtype, math.prod(shape), start)
    ordered = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    tensor = torch.from_numpy(ordered.copy(order="C"))
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ReplyRefused(f"Expected finite numbers for {name}, got NaN or infinity")
    return tensor
