"""Dividing one data set among silos, for simulations.

The synthetic partitions (Dirichlet, pathological, shards) are those of flwr-datasets, which is
imported only when one is asked for; it assigns examples of one class in the order of the data, so
the data is shuffled first. Sizes and names of the silos that come out depend on the whole data set:
that is a property of a simulation, not of silos that bring their own data.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedllm.data.formats.records import DataError, TextDataset, require_columns
from fedllm.data.holdout import text_hash
from fedllm.data.labels import class_text

Small = Literal["error", "drop", "merge"]
MERGED = "merged"


@dataclass(frozen=True)
class Partition:
    """One silo: its name and the ascending indices of its examples in the data set."""

    name: str
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)


def partition(
    dataset: TextDataset,
    *,
    kind: str,
    n_parts: int | None = None,
    seed: int,
    min_size: int = 1,
    small: Small | None = None,
    **opts: Any,
) -> list[Partition]:
    """Divide ``dataset`` into silos without overlap; the same for the same data and ``seed``.

    Kinds and their options:

    - ``hash``: ``n_parts`` of about equal size, by a keyed hash of the record's ``columns`` alone: copies of a
      text share a silo, and no record moves another.
    - ``iid``: ``n_parts`` of equal size (to within one), at random.
    - ``natural``: ``column``; one silo a value, largest first (ties by name). ``n_parts`` keeps the
      largest ones (None: all); ``names`` keeps these values only, in this order. No randomness.
    - ``dirichlet``: ``column`` (the labels), ``alpha`` (0.5); each class is divided by a draw from
      Dirichlet(alpha) (Yurochkin et al. 2019).
    - ``pathological``: ``column``, ``classes`` (2) classes a silo (McMahan et al. 2017 in spirit).
    - ``shard``: ``column``, ``shards`` (2) shards of label-sorted data a silo (McMahan et al. 2017).

    Not every example need land in a silo: ``pathological`` leaves out classes that no silo draws
    (n_parts * classes below their number), ``shard`` the remainder of the division into shards.

    Silos with fewer than ``min_size`` examples are an error, dropped, or merged into one silo named
    ``merged`` (dropped too where still too small), as ``small`` says; the default is to drop them
    for ``natural`` and an error otherwise.
    With ``small="error"``, ``dirichlet`` draws up to 10 times more to reach ``min_size``. With
    ``natural``, ``names`` and ``min_size`` apply before the ``n_parts`` largest are kept.

    Raises DataError for an unknown kind or option, a missing column or value, an unknown name, too
    few examples, and where no silo is left.
    """
    divide = _KINDS.get(kind)
    if divide is None:
        raise DataError(f"Expected a partition kind among {', '.join(_KINDS)}, got kind={kind}")
    allowed = [name for name in inspect.signature(divide).parameters if name not in _COMMON]
    for name in opts:
        if name not in allowed:
            raise DataError(
                f"Expected options among {', '.join(allowed) or '(none)'} for kind={kind}, got "
                f"{name}={opts[name]!r}"
            )
    if "column" in allowed and "column" not in opts:
        raise DataError(f"Expected option column for kind={kind}, got none")
    if min_size < 1:
        raise DataError(f"Expected min_size >= 1, got min_size={min_size}")
    how = small if small is not None else ("drop" if kind == "natural" else "error")
    if how not in ("error", "drop", "merge"):
        raise DataError(f"Expected small to be error, drop or merge, got small={small}")
    if not len(dataset):
        raise DataError(f"Expected examples to divide in {dataset.name}, got none")
    if n_parts is None and kind != "natural":
        raise DataError(f"Expected n_parts >= 1 for kind={kind}, got none")
    if n_parts is not None and not 1 <= n_parts <= len(dataset):
        raise DataError(
            f"Expected 1 <= n_parts <= {len(dataset)} (the examples of {dataset.name}), got "
            f"n_parts={n_parts}"
        )
    floor = min_size if how == "error" else 0
    parts = divide(dataset, n_parts=n_parts, seed=seed, floor=floor, **opts)
    parts = _without_small(parts, min_size, how, f"kind={kind} of {dataset.name}")
    if kind == "natural" and n_parts is not None:
        if n_parts > len(parts):
            raise DataError(
                f"Expected n_parts <= {len(parts)} (the silos of {dataset.name} with at least "
                f"min_size={min_size} examples), got n_parts={n_parts}"
            )
        largest = {part.name for part in sorted(parts, key=_by_size)[:n_parts]}
        parts = [part for part in parts if part.name in largest]
    return parts


def _without_small(parts: list[Partition], min_size: int, how: Small, what: str) -> list[Partition]:
    below = [part for part in parts if len(part) < min_size]
    if not below:
        return parts
    if how == "error":
        raise DataError(
            f"Expected at least min_size={min_size} examples in every silo, got {len(below[0])} in "
            f"silo '{below[0].name}' ({len(below)} silos too small; {what})"
        )
    kept = [part for part in parts if len(part) >= min_size]
    if how == "merge":
        if any(part.name == MERGED for part in kept):
            raise DataError(f"Expected no silo named '{MERGED}' with small=merge, got one ({what})")
        together = tuple(sorted(index for part in below for index in part.indices))
        if len(together) >= min_size:
            kept.append(Partition(MERGED, together))
    if not kept:
        raise DataError(
            f"Expected a silo with at least min_size={min_size} examples, got none; the largest of "
            f"{len(parts)} has {max(len(part) for part in parts)} ({what})"
        )
    return kept


def _by_size(part: Partition) -> tuple[int, str]:
    return -len(part), part.name


def _iid(dataset: TextDataset, *, n_parts: int, seed: int, floor: int) -> list[Partition]:
    order = np.random.default_rng(seed).permutation(len(dataset))
    return _named("iid", [piece.tolist() for piece in np.array_split(order, n_parts)])


def _hash(
    dataset: TextDataset, *, n_parts: int, seed: int, floor: int, columns: Sequence[str] = ("text",)
) -> list[Partition]:
    require_columns(dataset, columns)
    pieces: list[list[int]] = [[] for _ in range(n_parts)]
    for row, record in enumerate(dataset.records):
        # Another key than a holdout's: those left by it have hashes above its share.
        pieces[int(text_hash(record, columns, seed + 4) * n_parts)].append(row)
    return _named("hash", pieces)


def _natural(
    dataset: TextDataset,
    *,
    n_parts: int | None,
    seed: int,
    floor: int,
    column: str,
    names: Sequence[str] | None = None,
) -> list[Partition]:
    groups: dict[str, list[int]] = {}
    for row, value in enumerate(_values(dataset, column)):
        groups.setdefault(value, []).append(row)
    parts = sorted((Partition(name, tuple(rows)) for name, rows in groups.items()), key=_by_size)
    if names is None:
        return parts
    if not names or len(set(names)) != len(names):
        raise DataError(f"Expected one or more distinct silo names, got names={list(names)}")
    for name in names:
        if name not in groups:
            known = ", ".join(part.name for part in parts[:30])
            raise DataError(
                f"Expected silo names that occur in column '{column}' of {dataset.name} ({known}), "
                f"got '{name}'"
            )
    return [Partition(name, tuple(groups[name])) for name in names]


def _dirichlet(
    dataset: TextDataset, *, n_parts: int, seed: int, floor: int, column: str, alpha: float = 0.5
) -> list[Partition]:
    if not (math.isfinite(alpha) and alpha > 0):
        raise DataError(f"Expected a finite alpha > 0 for kind=dirichlet, got alpha={alpha}")
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions=n_parts,
        partition_by="label",
        alpha=float(alpha),
        min_partition_size=floor,
        self_balancing=False,
        shuffle=False,
        seed=_small_seed(seed),
    )
    what = f"kind=dirichlet with n_parts={n_parts}, alpha={alpha}, min_size={floor}"
    return _by_flower("dirichlet", partitioner, dataset, column, n_parts, seed, what)


def _pathological(
    dataset: TextDataset, *, n_parts: int, seed: int, floor: int, column: str, classes: int = 2
) -> list[Partition]:
    known = len(set(_values(dataset, column)))
    if not 1 <= classes <= known:
        raise DataError(
            f"Expected 1 <= classes <= {known} (the classes in column '{column}' of "
            f"{dataset.name}), got classes={classes}"
        )
    from flwr_datasets.partitioner import PathologicalPartitioner

    partitioner = PathologicalPartitioner(
        num_partitions=n_parts,
        partition_by="label",
        num_classes_per_partition=classes,
        class_assignment_mode="first-deterministic",
        shuffle=False,
        seed=_small_seed(seed),
    )
    what = f"kind=pathological with n_parts={n_parts}, classes={classes}"
    return _by_flower("pathological", partitioner, dataset, column, n_parts, seed, what)


def _shard(
    dataset: TextDataset, *, n_parts: int, seed: int, floor: int, column: str, shards: int = 2
) -> list[Partition]:
    if shards < 1 or shards * n_parts > len(dataset):
        raise DataError(
            f"Expected 1 <= shards <= {len(dataset) // n_parts} for n_parts={n_parts}, got "
            f"shards={shards}"
        )
    from flwr_datasets.partitioner import ShardPartitioner

    partitioner = ShardPartitioner(
        num_partitions=n_parts,
        partition_by="label",
        num_shards_per_partition=shards,
        shard_size=None,
        shuffle=False,
        seed=_small_seed(seed),
    )
    what = f"kind=shard with n_parts={n_parts}, shards={shards}"
    return _by_flower("shard", partitioner, dataset, column, n_parts, seed, what)


_COMMON = ("dataset", "n_parts", "seed", "floor")
_KINDS: dict[str, Callable[..., list[Partition]]] = {
    "hash": _hash,
    "iid": _iid,
    "natural": _natural,
    "dirichlet": _dirichlet,
    "pathological": _pathological,
    "shard": _shard,
}


def _by_flower(
    prefix: str,
    partitioner: Any,
    dataset: TextDataset,
    column: str,
    n_parts: int,
    seed: int,
    what: str,
) -> list[Partition]:
    """Run a partitioner of flwr-datasets on (place, label) alone, in shuffled order."""
    import datasets

    labels = _values(dataset, column)
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    table = {"place": order, "label": [labels[row] for row in order]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            partitioner.dataset = datasets.Dataset.from_dict(table)
            pieces = [partitioner.load_partition(part)["place"] for part in range(n_parts)]
    except ValueError as error:
        raise DataError(
            f"Expected a partition of {dataset.name} ({len(dataset)} examples) that {what} allows, "
            f"got: {error}"
        ) from error
    return _named(prefix, pieces)


def _named(prefix: str, pieces: Sequence[Sequence[int]]) -> list[Partition]:
    width = len(str(len(pieces) - 1))
    return [
        Partition(f"{prefix}-{number:0{width}d}", tuple(sorted(int(row) for row in piece)))
        for number, piece in enumerate(pieces)
    ]


def _values(dataset: TextDataset, column: str) -> list[str]:
    """Return the column as strings; raises DataError for a missing column or value."""
    require_columns(dataset, (column,))
    values = dataset.column(column)
    for row, value in enumerate(values):
        if class_text(value) in (None, ""):
            raise DataError(
                f"Expected a string or an integer in column '{column}' of {dataset.name}, got "
                f"{value!r} in record {row} (counted from 0)"
            )
    return [str(class_text(value)) for value in values]


def _small_seed(seed: int) -> int:
    return int(np.random.SeedSequence(seed).generate_state(1)[0])
