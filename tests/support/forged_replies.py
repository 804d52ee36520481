"""Forged answers of a hostile silo, made systematically of an honest one.

Each field of each record is left out, and given each value of :data:`VALUES`; each tensor is left out, renamed and
given each of :func:`arrays`; each record is left out, emptied, replaced and doubled. What Flower's records do
not let in, and its wire would (announced shapes, lone surrogates), is put there past its checks.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

LONG = "x" * 10_000_000
DEEP = "[" * 100_000
VALUES: dict[str, Any] = {
    "a truth value": True,
    "a text": "0.5",
    "an empty text": "",
    "bytes": b"\xff\xfe\x00",
    "an empty list": [],
    "a list of numbers": [0.5, 0.5],
    "a list of texts": ["a", "b"],
    "a long list": [0.0] * 200_000,
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "minus one": -1,
    "zero": 0,
    "one": 1,
    "two": 2,
    "1e-300": 1e-300,
    "1e300": 1e300,
    "10^15": 10**15,
    "2^63 - 1": 2**63 - 1,
    "2^64": 2**64,
    "10^5000": 10**5000,
    "10 MB of text": LONG,
    "deep JSON": DEEP,
    "another silo": "gamma",
    "a terminal's escape": "\x1b[2J\x07\r\nround 1: 4 of 4 silos",
    "a lone surrogate": "\ud800",
    "text from right to left": "\u202eatled",
    "a path": "../../etc/passwd",
}
"""What is put in the place of each field, by name."""


def forged(content: RecordDict) -> Iterator[tuple[str, RecordDict]]:
    """Each forgery of an honest reply's content, with its name: ``record.field: value``."""
    yield from _records(content)
    for record in content:
        part = content[record]
        if isinstance(part, ArrayRecord):
            yield from _tensors(content, record, part)
        else:
            yield from _fields(content, record)


def _records(content: RecordDict) -> Iterator[tuple[str, RecordDict]]:
    yield "nothing at all", RecordDict()
    yield "10,000 records", _changed(content, {f"r{i}": MetricRecord() for i in range(10_000)})
    yield "a record more", _changed(content, {"foreign": MetricRecord({"a": 1.0})})
    foreign = ArrayRecord({"foreign": array(np.zeros(5_000_000, np.float32))})
    yield "20 MB of foreign tensors", _changed(content, {"foreign": foreign})
    for record in content:
        yield f"{record}: missing", _changed(content, {}, without=record)
        yield f"{record}: renamed", _changed(content, {LONG: content[record]}, without=record)
        kinds = {"numbers": MetricRecord(), "texts": ConfigRecord(), "tensors": ArrayRecord()}
        for kind, empty in kinds.items():
            yield f"{record}: no {kind} in it", _changed(content, {record: empty})
        for other in content:
            if other != record:
                yield f"{record}: {other} in its place", _changed(content, {record: content[other]})


def _fields(content: RecordDict, record: str) -> Iterator[tuple[str, RecordDict]]:
    honest = dict(content[record])
    kind = type(content[record])
    for field in honest:
        rest = {name: value for name, value in honest.items() if name != field}
        yield f"{record}.{field}: missing", _changed(content, {record: kind(rest)})
        for name, value in VALUES.items():
            yield (
                f"{record}.{field}: {name}",
                _changed(content, {record: _raw(kind, honest, field, value)}),
            )
    for name in ("foreign", "", LONG, "\x1b[2J", "\ud800"):
        more = _raw(kind, honest, name, 1.0)
        yield f"{record}: the field {name[:9]!a} more", _changed(content, {record: more})
    many = kind({**honest, **{f"noise-std.{i}": 1.0 for i in range(10_000)}})
    yield f"{record}: 10,000 fields more", _changed(content, {record: many})


def _raw(kind: Any, honest: dict[str, Any], field: str, value: Any) -> Any:
    """A record with a value that its own checks may not let in."""
    made = kind(honest)
    made.__dict__["_data"][field] = value
    return made


def _tensors(
    content: RecordDict, record: str, part: ArrayRecord
) -> Iterator[tuple[str, RecordDict]]:
    honest = dict(part)
    more = {"foreign": array(np.zeros(3, np.float32))}
    yield f"{record}: a tensor more", _changed(content, {record: _record(honest | more)})
    many = {f"t{i}": more["foreign"] for i in range(10_000)}
    yield f"{record}: 10,000 tensors more", _changed(content, {record: _record(honest | many)})
    for name, value in honest.items():
        rest = {other: kept for other, kept in honest.items() if other != name}
        yield f"{record}.{name}: missing", _changed(content, {record: _record(rest)})
        for new in (name.upper() + "'", "", LONG, "\ud800"):
            renamed = _record(rest | {new: value})
            yield f"{record}.{name}: named {new[:9]!a}", _changed(content, {record: renamed})
        for what, made in arrays(value).items():
            yield (
                f"{record}.{name}: {what}",
                _changed(content, {record: _record(honest | {name: made})}),
            )


def arrays(honest: Array) -> dict[str, Array]:
    """Arrays in the place of an honest one, by what is wrong with them."""
    value = honest.numpy()
    floating = np.issubdtype(value.dtype, np.floating)
    other = value.dtype.newbyteorder()
    made: dict[str, Array] = {
        "an empty array": array(value.reshape(-1)[:0]),
        "a 0-d array": array(np.asarray(value.reshape(-1)[0])),
        "one dimension more": array(value[None]),
        "flat": array(np.append(value.reshape(-1), value.reshape(-1)[:1])),
        "of 32 dimensions": array(value.reshape(-1)[:1].reshape((1,) * 32)),
        "complex": array(value.astype(np.complex64)),
        "truth values": array(value != 0),
        "texts": array(value.astype("U4")),
        "dates": array(np.zeros(value.shape, "M8[s]")),
        "a structured dtype": array(np.zeros(value.shape, [("a", value.dtype)])),
        "stored by columns": array(np.asfortranarray(value)),
        "every second of twice as many": array(np.repeat(value, 2, axis=0)[::2]),
        "no bytes": _told(honest, data=b""),
        "half of its bytes": _told(honest, data=honest.data[: len(honest.data) // 2]),
        "a byte too few": _told(honest, data=honest.data[:-1]),
        "a byte too many": _told(honest, data=honest.data + b"\0"),
        "10 MB too many": _told(honest, data=honest.data + bytes(10_000_000)),
        "zeros": _told(honest, data=bytes(len(honest.data))),
        "a pickle": _told(honest, data=pickle.dumps(value)),
        "pickled objects": _told(honest, data=_pickled(value)),
        "another format": _told(honest, stype="pickle"),
        "a format of 10 MB": _told(honest, stype=LONG),
        "a dtype of 10 MB": _told(honest, dtype=LONG),
        "an unknown dtype": _told(honest, dtype="float33"),
        "a lone surrogate as dtype": _told(honest, dtype="\ud800"),
        "a negative shape": _told(honest, shape=(-1,)),
        "a shape of 10^12": _told(honest, shape=(10**12,)),
        "a shape of 100,000 dimensions": _told(honest, shape=(1,) * 100_000),
        "10^12 in the header": _told(honest, data=_headed(value, shape=(10**12,))),
        "another dtype in the header": _told(honest, data=_headed(value, descr="|O")),
        "a shape of texts in the header": _told(honest, data=_headed(value, shape=("a",))),
        "version 2 of the format": _told(honest, data=b"\x93NUMPY\x02\x00" + honest.data[8:]),
        "version 9 of the format": _told(honest, data=b"\x93NUMPY\x09\x00" + honest.data[8:]),
        "a deep header": _told(honest, data=_header(honest, "(" * 400)),
        "a header of code": _told(honest, data=_header(honest, "__import__('os').getpid()")),
        "a header of minus signs": _told(honest, data=_header(honest, "-" * 900 + "1")),
    }
    if other != value.dtype:  # one byte has no order
        made["of the other byte order"] = _told(array(value.astype(other)), dtype=honest.dtype)
    for dtype in ("float64", "float32", "float16", "int64", "int8", "uint8"):
        if dtype != honest.dtype:
            made[dtype] = array(value.astype(dtype))
            made[f"{dtype}, announced as {honest.dtype}"] = _told(made[dtype], dtype=honest.dtype)
    if floating:
        for name, bad in {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf}.items():
            changed = value.copy()
            changed.reshape(-1)[0] = bad
            made[f"{name} in one place"] = array(changed)
        made["the largest numbers"] = array(np.full_like(value, np.finfo(value.dtype).max))
    return made


def array(value: np.ndarray[Any, Any]) -> Array:
    """An array as an honest silo's program packs it."""
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=False)
    return Array(str(value.dtype), tuple(value.shape), "numpy.ndarray", stream.getvalue())


def _told(honest: Array, **changes: Any) -> Array:
    fields = {
        "dtype": honest.dtype,
        "shape": honest.shape,
        "stype": honest.stype,
        "data": honest.data,
    }
    return Array(**(fields | changes))


def _pickled(value: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value.astype(object), allow_pickle=True)
    return stream.getvalue()


def _headed(value: np.ndarray[Any, Any], **changes: Any) -> bytes:
    """The same numbers under a header that tells something else."""
    header = {"descr": value.dtype.str, "fortran_order": False, "shape": value.shape} | changes
    text = repr(header).encode("latin1")
    text += b" " * (118 - len(text)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + value.tobytes()


def _header(honest: Array, text: str) -> bytes:
    """Bytes of the same number under a header of any text."""
    head = text.encode("latin1")[:950]
    start = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head
    size = math.prod(honest.shape) * np.dtype(honest.dtype).itemsize
    return start + bytes(size)


def _record(tensors: dict[str, Array]) -> ArrayRecord:
    made = ArrayRecord()
    made.__dict__["_data"].update(tensors)
    return made


def _changed(content: RecordDict, changes: dict[str, Any], *, without: str = "") -> RecordDict:
    made = RecordDict()
    kept = {name: content[name] for name in content if name != without}
    made.__dict__["_data"].update(kept | changes)
    return made
