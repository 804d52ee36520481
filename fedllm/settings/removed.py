"""Settings of earlier versions: refused in an experiment, dropped when an old run is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedllm.files.bounded_json import shortened


@dataclass(frozen=True)
class Removed:
    """A key, or a value of a key, that no run can have any more.

    Attributes:
        instead: what replaces it, for the user.
        unused: of a removed key, the values with which an earlier run is as one without it.
    """

    instead: str
    unused: tuple[Any, ...] = (None,)


_ONE_VECTOR = (
    "the scalar estimates of a step have Gaussian noise as one vector; for independent noise on each set "
    "privacy.mechanism=lmo and privacy.noise to what `fedllm noise-search` wrote"
)
_COUNTS = "the counts have discrete Gaussian noise, see evaluation.clients_noise"
_PERTURBED = "awp.form=per-example keeps the guarantee too"
REMOVED: dict[str, Removed] = {
    "awp.form=previous": Removed(_PERTURBED),
    "awp.form=private-ascent": Removed(_PERTURBED),
    "codec.error_feedback": Removed(
        "leave it out, a smaller codec.ratio or codec.name=random-projection loses less", (False,)
    ),
    "privacy.calibrate_to": Removed(
        "privacy.noise_scale gives LMO noise by hand, `fedllm lmo-check` prints the scale that LMO-DP claims to be "
        "enough for an epsilon",
        ("proven",),
    ),
    "evaluation.clients_family": Removed(_COUNTS, ("auto",)),
    "evaluation.clients_scalar": Removed(_COUNTS),
    "zeroth_order.noise": Removed(_ONE_VECTOR, ("gaussian", "searched")),
    "zeroth_order.number_noise": Removed(_ONE_VECTOR),
}
"""By dotted key (``codec.name``), or key and value (``codec.name=fp16``). The section itself stays."""


def refusals(tree: Mapping[str, Any]) -> list[str]:
    """Say of each removed setting in a tree of plain values what replaces it, one line each."""
    lines = []
    for name, value in _found(tree):
        key, sign, _ = name.partition("=")
        expected = f"another {key}" if sign else f"no {key}"
        instead = REMOVED[name].instead
        lines.append(f"Expected {expected} (removed: {instead}), got {key}={shortened(value, 60)}")
    return lines


def removed_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the removed settings that the run of an earlier version used, by dotted key."""
    used = ((name, value) for name, value in _found(tree) if value not in REMOVED[name].unused)
    return {name.partition("=")[0]: value for name, value in used}


def without_removed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree with none of the removed settings: what such a key has then is its default."""
    kept = {k: dict(v) if isinstance(v, Mapping) else v for k, v in tree.items()}
    for name, _ in _found(tree):
        section, _, key = name.partition("=")[0].partition(".")
        kept[section].pop(key, None)
    return kept


def _found(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names in `REMOVED` that a tree holds, with their values."""
    for name in REMOVED:
        dotted, sign, value = name.partition("=")
        section, _, key = dotted.partition(".")
        values = tree.get(section)
        if isinstance(values, Mapping) and key in values and (not sign or values[key] == value):
            yield name, values[key]
