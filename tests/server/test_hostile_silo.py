"""The hostile silo: every field of every kind of reply forged in every way, against the server's own code.

Whole runs of real clients give honest replies of each kind; at the moment when the server reads the first of a
kind, each forgery of it (:mod:`forged_replies`) is given to the same reader in its place. A forgery is
*refused*, and then nothing that the server holds has changed, or *answered*: it is a value that an honest silo
could send. None raises anything else. `pytest -s tests/server/test_hostile_silo.py` prints the table.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deep import deep_settings
from flwr.app import ArrayRecord, Message, RecordDict
from forged_replies import LONG, VALUES, array, forged
from forged_results import Result, check, table
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import server.extensions.ask_silos
import server.strategy
from fedllm import messages as names
from fedllm.run.folder import RunFolder
from server.replies import Replies, ReplyRefused, sort_replies
from server.replies.arrays import tensors_of
from server.replies.refusal import one_line, shown
from server.round_update import RoundUpdate

SILOS = ["alpha", "beta", "delta", "gamma"]
ONE = {"server.rounds": 1}
COUNTS = {"evaluation.every": 1, "evaluation.clients_holdout": 0.2}
STATISTICS = {"codec.name": "linear", "codec.ratio": 4, "codec.prior": "factored"}
RUNS: dict[str, dict[str, Any]] = {
    "updates; counts with noise": COUNTS | {"evaluation.clients": "private"},
    "updates without noise; raw counts": COUNTS
    | {"privacy.mode": "none", "evaluation.clients": "raw"},
    "adaptive clipping": {"clipping.form": "adaptive", "privacy.clip": 50.0},
    "a duplicate without guarantee": {"teacher.kind": "nonprivate", "teacher.strength": 0.5},
    "codes; statistics": STATISTICS,
    "quantised codes": {"codec.name": "int8"},
    "the largest coordinates": {"codec.name": "top-k", "codec.ratio": 4},
    "numbers along directions": {
        "model.access": "black-box",
        "zeroth_order.directions": 3,
        "privacy.accountant": "pld",
    },
    "noise by the server": {"privacy.unit": "client", "privacy.noise_by": "server"},
    "layers' scores": {"layers.form": "private", "layers.examples": 16},
}


class Probe:
    """In the place of ``sort_replies``: sorts, and before that tries all forgeries of the first reply of a kind."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self._seen: set[str] = set()

    def __call__(
        self, asked: Sequence[str], replies: Sequence[Message | None], read: Any, timeout: float
    ) -> Replies[Any]:
        place = list(asked).index("beta")
        honest = replies[place]
        assert honest is not None
        kind = kind_of(honest.content)
        if kind not in self._seen:
            self._seen.add(kind)
            for name, content in forged(honest.content):
                self._try(kind, name, content, honest, read)
        return sort_replies(asked, replies, read, timeout)

    def _try(self, kind: str, name: str, content: RecordDict, honest: Message, read: Any) -> None:
        reading = getattr(read, "__self__", None)
        before = None
        if isinstance(reading, RoundUpdate):
            reading = replace(reading, spending=reading.spending.copy())
            read, before = reading.read, copy.deepcopy(reading.spending.to_plain())
        began = time.process_time()
        try:
            found = sort_replies(["beta"], [with_content(honest, content)], read, 1.0)
        except Exception as error:
            self.results.append(Result(kind, name, "crashed", type(error).__name__, 0.0))
            return
        seconds = time.process_time() - began
        if found.refused and before is not None:
            assert reading.spending.to_plain() == before, (kind, name, "changed what was spent")
        for accepted in found.accepted:
            assert_sound(accepted)
        self.results.append(Result(kind, name, *outcome_of(found), seconds))


def with_content(honest: Message, content: RecordDict) -> Message:
    message = copy.copy(honest)
    message.__dict__["_content"] = content
    return message


def kind_of(content: RecordDict) -> str:
    if names.UPDATE in content:
        return "training"
    for record in (names.STATISTICS, names.SCORES):
        if record in content:
            return record
    return "evaluation"


def outcome_of(found: Any) -> tuple[str, str]:
    for outcome, items in (
        ("refused", found.refused),
        ("word", found.failed),
        ("word", found.left),
    ):
        if items:
            (item,) = items
            assert item["silo"] == "beta"
            return outcome, item["reason"]
    return "answered", ""


def assert_sound(accepted: Any) -> None:
    """Whatever is accepted is finite, tensors and numbers."""
    if isinstance(accepted, torch.Tensor):
        assert bool(torch.isfinite(accepted).all())
    elif isinstance(accepted, float):
        assert abs(accepted) < 1e10
    elif isinstance(accepted, dict):
        assert_sound(list(accepted.values()))
    elif isinstance(accepted, list | tuple):
        for item in accepted:
            assert_sound(item)
    elif hasattr(accepted, "__dict__"):
        assert_sound(vars(accepted))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path_factory.getbasetemp() / "calibrations"))


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    made = Probe()
    monkeypatch.setattr(server.strategy, "sort_replies", made)
    monkeypatch.setattr(server.extensions.ask_silos, "sort_replies", made)
    return made


@pytest.mark.parametrize(
    "name", RUNS, ids=[name.partition(";")[0].replace(" ", "-") for name in RUNS]
)
def test_forged_replies_of_silos_are_refused_before_anything_changes(
    name: str,
    probe: Probe,
    in_process: Callable[..., str],
    tiny_settings: Callable[..., Any],
    word_files: Path,
    tmp_path: Path,
) -> None:
    make = deep_settings(tmp_path, word_files) if name == "layers' scores" else tiny_settings
    run = RunFolder.create(make(**(RUNS[name] | ONE)), tmp_path / "run")
    assert in_process(run) == "finished", run.state()["message"]
    print(f"\n{name}\n{table(probe.results)}")
    assert {r.kind for r in probe.results} >= {"training"}
    assert len(probe.results) > 200
    raw = {("metrics.correct", "minus one"), ("metrics.count", "minus one")}
    noiseless = {("metrics.noise-multiplier", how) for how in ("zero", "1e-300")}
    private = name not in ("updates without noise; raw counts", "noise by the server")
    check(probe.results, noiseless if private else raw)


@given(
    value=arrays(
        st.sampled_from(["float32", "float64", "float16", "int8", "uint8", "uint16", "int32"]),
        array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
        elements=st.integers(0, 100),
    ),
    by_columns=st.booleans(),
    cut=st.integers(-3, 3),
)
@settings(max_examples=60, deadline=None)
def test_arrays_are_read_as_numpy_reads_them(value: Any, by_columns: bool, cut: int) -> None:
    """What NumPy packs is read back, whatever its order in memory; with bytes more or less it is refused."""
    packed = array(np.asfortranarray(value) if by_columns else value)
    spec = {"a": (tuple(value.shape), torch.from_numpy(value).dtype)}
    content = RecordDict({"update": ArrayRecord({"a": packed})})
    read = tensors_of(content, "update", spec)["a"]
    assert read.is_contiguous()
    assert np.array_equal(read.numpy(), value)
    if value.dtype.kind == "f" and value.size:
        value.reshape(-1)[-1] = np.nan
        spoilt = RecordDict({"update": ArrayRecord({"a": array(value)})})
        with pytest.raises(ReplyRefused, match="finite numbers for a"):
            tensors_of(spoilt, "update", spec)
    if cut:
        packed.data = packed.data[:cut] if cut < 0 else packed.data + bytes(cut)
        content = RecordDict({"update": ArrayRecord({"a": packed})})
        with pytest.raises(ReplyRefused):
            tensors_of(content, "update", spec)


def test_what_a_stranger_sends_is_shown_in_one_bounded_line() -> None:
    for value in [*VALUES.values(), (10**5000,), ArrayRecord(), None, 1j]:
        assert shown(value).isprintable()
        assert len(shown(value)) < 500
    assert one_line("a\nb\x1b[0m\u202e") == "a b\\x1b[0m\\u202e"
    assert len(one_line(LONG)) == 2000
