"""A grid of settings, and what one round of training costs under each: event JSON and count."""

from __future__ import annotations

from typing import Any

_LAPLACE = '{"family": "laplace", "parameters": {"scale": 1.0}}'
_LMO: dict[str, Any] = {"privacy.mechanism": "lmo", "privacy.noise": _LAPLACE}
_CLIENT: dict[str, Any] = {"privacy.unit": "client"}
_CENTRAL: dict[str, Any] = _CLIENT | {"privacy.noise_by": "server"}
_SAMPLED: dict[str, Any] = _CENTRAL | {"server.sampling": "poisson", "server.fraction": 0.3}
_ADAPTIVE: dict[str, Any] = {"clipping.form": "adaptive", "clipping.count_share": 0.2}
_OFF: dict[str, Any] = {"privacy.mode": "none"}
_BLACK_BOX: dict[str, Any] = {"model.access": "black-box", "zeroth_order.directions": 3}
_NUMBERS: dict[str, Any] = _BLACK_BOX | _LMO | {"privacy.accountant": "pld"}
_TRUNCATED: dict[str, Any] = {
    "client.max_batch": 12,
    "client.batch_size": 8,
    "data.sizes": "public",
    "privacy.relation": "zero-out",
    "privacy.accountant": "pld",
}

GRID: dict[str, dict[str, Any]] = {
    "example": {},
    "one step": {"client.local_steps": 1},
    "example, lmo": _LMO,
    "adaptive": _ADAPTIVE,
    "truncated": _TRUNCATED,
    "per-example ascent": {"awp.form": "per-example"},
    "batch ascent": {"awp.form": "batch", "awp.rounds": 2},
    "client": _CLIENT,
    "client, lmo": _CLIENT | _LMO,
    "client, adaptive": _CLIENT | _ADAPTIVE,
    "client, batch ascent": _CLIENT | {"awp.form": "batch"},
    "client, by server": _CENTRAL,
    "client, sampled by server": _SAMPLED,
    "client, sampled by server, adaptive": _SAMPLED | _ADAPTIVE,
    "client, sampled by server, lmo": _SAMPLED | _LMO,
    "no privacy": _OFF,
    "no privacy, client": _OFF | _CLIENT,
    "no privacy, batch ascent": _OFF | {"awp.form": "batch"},
    "vector": _BLACK_BOX,
    "vector, client": _BLACK_BOX | _CLIENT,
    "vector, sampled by server": _BLACK_BOX | _SAMPLED,
    "numbers": _NUMBERS,
    "numbers, client": _NUMBERS | _CLIENT,
    "numbers, by server": _NUMBERS | _CENTRAL,
    "number, sampled by server": _NUMBERS
    | _SAMPLED
    | {"zeroth_order.directions": 1, "client.local_steps": 1},
    "no privacy, outputs alone": _BLACK_BOX | _OFF,
    "duplicate": {"teacher.kind": "nonprivate"},
    "duplicate, client, by server": _CENTRAL | {"teacher.kind": "nonprivate"},
    "duplicate, no privacy": _OFF | {"teacher.kind": "nonprivate"},
}
ROUNDS = (1, 3)
RATES = (1.0, 0.1)
NOISE = 1.3
