"""Run one experiment; digests of the parameters and of the ledger that it leaves behind.

A seeded stream is labelled with the fingerprint of all that a release depends on: settings, versions, names of
fields. A setting that is removed changes each fingerprint and so each noise, and nothing else. So the
fingerprints in labels are replaced by one word while an experiment runs, unless the caller keeps them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from .experiments import COMMON, IF_KNOWN, ON_ENGINE, Changes
from .product import ROOT, product

RUN_ID = "seeded-run"
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_DETAILS = (
    *("noise_multiplier", "sampling_rate", "batch_size", "clip", "epsilon", "run_epsilon"),
    *("delta", "relation", "plan", "budgets"),
)
"""Details of a row that say what was released."""
_WORDS = ("reason", "setting")
"""Fields of events and budgets that hold prose or the name of a setting."""


def prepare(folder: Path) -> None:
    """Write the models and the texts that the experiments name."""
    for name, write, layers in (
        ("encoder", "save_encoder", 2),
        ("deep-encoder", "save_encoder", 4),
        ("decoder", "save_decoder", 2),
    ):
        (folder / name).mkdir(parents=True)
        product(write)(folder / name, layers)
    (folder / "words").mkdir()
    product("save_words")(folder / "words")
    public = product("make_records")(60, 1234, "public")
    text = "".join(json.dumps(row) + "\n" for row in public)
    (folder / "public.jsonl").write_text(text, encoding="utf-8")


def measure(
    name: str, changes: Changes, folder: Path, *, keep_fingerprints: bool = False
) -> dict[str, Any]:
    """Run an experiment in a folder that :func:`prepare` made.

    Args:
        name: of its run folder there.
        changes: what differs from `COMMON`.
        keep_fingerprints: draw the noise as the product does; see the module.

    Returns:
        ``parameters`` and ``ledger``, SHA-256 each, and ``rows``, what the latter is of.

    Raises:
        RuntimeError: the run did not finish.
    """
    run = folder / "runs" / name
    kept = contextlib.nullcontext() if keep_fingerprints else same_labels()
    with contextlib.chdir(folder), own_cache(folder / "cache" / name), kept:
        if name in ON_ENGINE:
            _on_engine(COMMON | changes, run)
        else:
            _in_process(COMMON | changes, run)
    rows = reduced_rows(run / "ledger.sqlite")
    text = json.dumps(rows, sort_keys=True)
    return {
        "parameters": parameters_digest(run),
        "ledger": hashlib.sha256(text.encode()).hexdigest(),
        "rows": rows,
    }


def _in_process(changes: Changes, path: Path) -> None:
    run_folder = product("RunFolder")
    created = run_folder.create(product("parse_settings")(tree(changes)), path)
    state = path / "state.json"
    told = json.loads(state.read_text(encoding="utf-8"))
    state.write_text(json.dumps(told | {"run_id": RUN_ID}), encoding="utf-8")
    run = run_folder.open(created.path)
    if (status := product("federate")(run)) != "finished":
        raise RuntimeError(f"{path.name}: {status}, {run.state()['message']}")


def _on_engine(changes: Changes, path: Path) -> None:
    """`fedllm run`, as pyproject.toml names it."""
    import tomli_w

    path.parent.mkdir(exist_ok=True)
    experiment = path.with_suffix(".toml")
    for name in ("model.name", "data.path"):
        changes[name] = str(Path(str(changes[name])).resolve())
    experiment.write_text(tomli_w.dumps(tree(changes)), encoding="utf-8")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = scripts["scripts"]["fedllm"].partition(":")
    command = f"from {module} import {function}; {function}()"
    done = subprocess.run(
        [sys.executable, "-c", command, "run", str(experiment), "--run", str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(f"{path.name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def tree(changes: Changes) -> dict[str, Any]:
    """Settings as nested tables, without what the product does not know (`IF_KNOWN`)."""
    known = product("parse_settings")({"task": {"labels": ["low", "high"]}})
    plain: dict[str, Any] = {}
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        if name in IF_KNOWN and not hasattr(getattr(known, section), key):
            continue
        (plain.setdefault(section, {}) if section else plain)[key] = value
    return plain


@contextlib.contextmanager
def same_labels() -> Iterator[None]:
    """Within it, seeded streams whose labels differ in a fingerprint alone are the same.

    Raises:
        LookupError: the product makes its streams in another way.
    """
    generator = product("generator")
    names = generator.__globals__
    several = "_encoded" in names  # earlier: one label a call
    name = "_encoded" if several else "_encode"
    encode = names.get(name)
    if encode is None:
        raise LookupError("Expected an _encoded of labels beside privacy's generator, found none")

    def same(labels: Any) -> Any:
        found = [
            "any" if _is_fingerprint(part) else part for part in (labels if several else [labels])
        ]
        return encode(found if several else found[0])

    names[name] = same
    try:
        first, second = (generator(1, letter * 64).bytes(16) for letter in "ab")
        if first != second:
            raise LookupError(f"Expected privacy's generator to encode its labels by {name}")
        yield
    finally:
        names[name] = encode


def _is_fingerprint(part: object) -> bool:
    return isinstance(part, str) and _FINGERPRINT.fullmatch(part) is not None


@contextlib.contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """Within it, what is slow to compute is computed, and not taken from what another commit left."""
    before = os.environ.get("FEDLLM_CACHE")
    os.environ["FEDLLM_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["FEDLLM_CACHE"]
        if before is not None:
            os.environ["FEDLLM_CACHE"] = before


def parameters_digest(run: Path) -> str:
    """SHA-256 of the last checkpoint's tensors: names, types, shapes, bytes."""
    last = max((run / "checkpoints").glob("round-*/params.safetensors"))
    digest = hashlib.sha256()
    for name, value in sorted(load_file(last).items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def reduced_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ledger without times, runs, keys, hashes and prose; sorted."""
    columns = ("party", "unit", "purpose", "round", "views", "details")
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        found = database.execute(f"SELECT {', '.join(columns)} FROM entries").fetchall()
    finally:
        database.close()
    rows = []
    for values in found:
        row = dict(zip(columns, values, strict=True))
        details = json.loads(row["details"])
        kept = {name: details[name] for name in _DETAILS if name in details}
        row["details"] = _without_words(kept)
        row["views"] = _without_words(json.loads(row["views"]))
        rows.append(row)
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


def _without_words(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("{", "[")):  # JSON within JSON
        return _without_words(json.loads(value))
    if isinstance(value, Mapping):
        return {k: _without_words(v) for k, v in value.items() if k not in _WORDS}
    return [_without_words(part) for part in value] if isinstance(value, list) else value
