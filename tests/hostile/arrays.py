"""Hostile arrays in the place of the parameters: names, shapes, formats, values, and bytes that are none."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from flwr.app import Array

NAME = "head.weight"
Values = dict[str, Any]
ChangeArrays = Callable[[Values], Any]


def hostile_arrays() -> Iterator[tuple[str, ChangeArrays, bool]]:
    """What is wrong, the change of the named tensors in place, and whether an answer is right as well."""
    yield "none", lambda t: t.clear(), False
    yield "one missing", lambda t: t.pop(NAME), False
    yield "a foreign one", _put("more", torch.zeros(1)), False
    yield "20 MB of foreign ones", _put("more", torch.zeros(5_000_000)), False
    yield (
        "5,000 foreign ones",
        lambda t: t.update({f"m{i}": torch.zeros(1) for i in range(5000)}),
        False,
    )
    yield "another name", lambda t: t.update({"head": t.pop(NAME)}), False
    yield "a name of a megabyte", _put("a" * 10**6, torch.zeros(1)), False
    changes: dict[str, Callable[[torch.Tensor], Any]] = {
        "transposed": lambda v: v.T.contiguous(),
        "flat": lambda v: v.reshape(-1),
        "0-d": lambda v: torch.tensor(1.0),
        "empty": lambda v: torch.zeros(0),
        "longer": lambda v: torch.cat([v, v]),
        "one dimension more": lambda v: v[None],
        "nine dimensions": lambda v: v.reshape(*([1] * 7), *v.shape),
        "float64": lambda v: v.double(),
        "float16": lambda v: v.half(),
        "int64": lambda v: v.long(),
        "bool": lambda v: v > 0,
        "complex": lambda v: v.to(torch.complex64),
        "NaN": lambda v: v + float("nan"),
        "infinity": lambda v: v + float("inf"),
        "1e38": lambda v: v + 1e38,
        "10,001 times the norm": lambda v: v + 1e5,
    }
    for what, change in changes.items():
        yield what, _changed(change), False
    # A server has no choice of where an array's columns lie in memory; both are honest.
    yield "column by column", _raw(lambda v: _bytes(np.asfortranarray(v))), True
    raw: dict[str, Callable[[np.ndarray], bytes]] = {
        "no bytes": lambda v: b"",
        "no numpy": lambda v: b"PK\x03\x04" + bytes(100),
        "a pickle": lambda v: b"\x80\x04\x95" + bytes(100),
        "objects": lambda v: _bytes(v, "|O"),
        "texts": lambda v: _bytes(v, "<U4"),
        "fields": lambda v: _bytes(v, [("a", "<f4")]),
        "big-endian": lambda v: _bytes(v.astype(">f4")),
        "a shape of 10^12": lambda v: _bytes(v, shape=(10**12,)),
        "a shape of 10^30": lambda v: _bytes(v, shape=(10**30,)),
        "a negative shape": lambda v: _bytes(v, shape=(-1, 16)),
        "a million dimensions": lambda v: _bytes(v, shape=(1,) * 1000),
        "cut off": lambda v: _bytes(v)[:-1],
        "bytes behind": lambda v: _bytes(v) + bytes(10**6),
        "a head that nests": lambda v: _head(b"(" * 3000),
        "a head of code": lambda v: _head(b"__import__('os').system('true')"),
        "a head of 60 kB": lambda v: _head(b" " * 60_000),
        "version 2": lambda v: _bytes(v).replace(b"NUMPY\x01", b"NUMPY\x02", 1),
    }
    for what, made in raw.items():
        yield what, _raw(made), False
    yield "another serialisation", _declared(stype="pickle"), False
    yield "another format said", _declared(dtype="float64"), False
    yield "another shape said", _declared(shape=(1, 1)), False
    yield "a format of a megabyte said", _declared(dtype="f" * 10**6), False
    yield "100,000 dimensions said", _declared(shape=(1,) * 100_000), False


def _put(name: str, value: Any) -> ChangeArrays:
    return lambda tensors: tensors.update({name: value})


def _changed(change: Callable[[torch.Tensor], Any]) -> ChangeArrays:
    return lambda tensors: tensors.update({NAME: change(tensors[NAME])})


def _raw(make: Callable[[np.ndarray], bytes]) -> ChangeArrays:
    def change(tensors: Values) -> None:
        value = tensors[NAME].numpy()
        tensors[NAME] = Array("float32", tuple(value.shape), "numpy.ndarray", make(value))

    return change


def _declared(**said: Any) -> ChangeArrays:
    def change(tensors: Values) -> None:
        value = tensors[NAME].numpy()
        whole = {
            "dtype": "float32",
            "shape": tuple(value.shape),
            "stype": "numpy.ndarray",
            "data": _bytes(value),
        }
        tensors[NAME] = Array(**(whole | said))

    return change


def _bytes(value: np.ndarray, descr: Any = None, shape: Any = None) -> bytes:
    """In numpy's format, with another format or shape in the head than the bytes have."""
    buffer = io.BytesIO()
    described = {
        "descr": value.dtype.str if descr is None else descr,
        "fortran_order": bool(value.flags.f_contiguous and not value.flags.c_contiguous),
        "shape": value.shape if shape is None else shape,
    }
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue() + value.tobytes(order="A")


def _head(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(128)
