"""Hostile settings: each limit of the silo passed, and values at which arithmetic ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from client.task_fields import EVALUATE, TRAIN
from fedllm import messages as names

BLACK_BOX = {"model.access": "black-box"}
TAMPERED: dict[str, dict[str, Any]] = {
    "more rounds": {"server.rounds": 6},
    "2^53 rounds": {"server.rounds": 2**53},
    "more steps": {"client.local_steps": 5},
    "10^15 steps": {"client.local_steps": 10**15},
    "every example": {"client.sampling_rate": 1.0},
    "a batch of all": {"client.batch_size": 2**53},
    "less noise": {"privacy.noise_multiplier": 0.1},
    "hardly any noise": {"privacy.noise_multiplier": 1e-300},
    "no privacy": {"privacy.mode": "none", "privacy.epsilon": 3.0},
    "raw counts": {"evaluation.clients": "raw", "evaluation.clients_holdout": 0.2},
    "a raw duplicate": {"teacher.kind": "nonprivate"},
    "another unit": {"privacy.unit": "client"},
    "noise by the server": {"privacy.unit": "client", "privacy.noise_by": "server"},
    "another relation": {"privacy.relation": "add-or-remove-one"},
    "an ascent without noise": {"awp.form": "batch"},
    "longer texts": {"task.max_length": 600},
    "2^53 tokens": {"task.max_length": 2**53},
    "a template without end": {
        "task.kind": "chat",
        "task.labels": None,
        "task.template": "{% for i in range(99999) %}{% for j in range(99999) %}a{% endfor %}{% endfor %}",
    },
    "numbers in place of classes": {
        "task.kind": "regression",
        "task.labels": None,
        "task.target_range": [0.0, 1e-300],
    },
    "tags in place of classes": {"task.kind": "tokens", "task.text": ["text"]},
    "another model": {"model.name": "minilm"},
    "a path as model": {"model.name": "/etc/passwd"},
    "another device": {"model.device": "cuda:7"},
    "an endpoint": {
        "model.access": "black-box",
        "prefix.length": 0,
        "endpoint.url": "http://localhost:1/v1",
        "task.prompt": "{text}",
        "task.label_words": ["w4", "w5"],
    },
    "another codec": {"codec.name": "int8"},
    "other classes": {"task.labels": ["low", "other"]},
    "9,000 classes": {"task.labels": ["low", "high", *(f"c{i}" for i in range(9000))]},
    "other columns": {"task.text": ["text", "answer"]},
    "9,000 columns": {"task.text": [f"c{i}" for i in range(9000)]},
    "a prefix of 10^9": {"prefix.length": 10**9},
    "a prefix of 2^53": {"prefix.length": 2**53},
    "a prefix of 3 million numbers": {"prefix.length": 400_000},
    "layers that are not there": {"prefix.layers": [5]},
    "9,000 layers": {"prefix.layers": list(range(9000))},
    "a phrase of 60,000 words": {"prefix.init": "phrase", "prefix.phrase": "w5 " * 20_000},
    "64 colluders": {"privacy.colluding": list(range(1, 65))},
    "a clip of 1e300": {"privacy.clip": 1e300},
    "a clip of 1e-300": {"privacy.clip": 1e-300},
    "noise of 1e300": {"privacy.noise_multiplier": 1e300},
    "noise of 1e30": {"privacy.noise_multiplier": 1e30},
    "a rate of 1e-300": {"client.sampling_rate": 1e-300},
    "a rate of 1e-9": {"client.sampling_rate": 1e-9},
    "a learning rate of 1e300": {"client.learning_rate": 1e300},
    "a learning rate of 1e-300": {"client.learning_rate": 1e-300},
    "a prefix scale of 1e300": {"privacy.prefix_scale": 1e300},
    "a prefix scale of 1e-300": {"privacy.prefix_scale": 1e-300},
    "parameters of any norm": {"client.parameter_norm": 1e300},
    "epsilon 1e300": {"privacy.epsilon": 1e300},
    "epsilon 1e-300, calibrated": {"privacy.epsilon": 1e-300, "privacy.noise_multiplier": None},
    "delta 1e-300, calibrated": {
        "privacy.epsilon": 1.0,
        "privacy.delta": 1e-300,
        "privacy.noise_multiplier": None,
    },
    "adaptive clipping, a share of 1e-300": {
        "clipping.form": "adaptive",
        "clipping.count_share": 1e-300,
    },
    "a perturbation of 1e300": {"awp.form": "per-example", "awp.gamma": 1e300},
    "steps of 10^6 fillers": {"client.max_batch": 10**6},
    "steps of 2^53 fillers": {"client.max_batch": 2**53},
    "10^6 directions": BLACK_BOX | {"zeroth_order.directions": 10**6},
    "2^53 directions": BLACK_BOX | {"zeroth_order.directions": 2**53},
    "a subspace of 2^53": BLACK_BOX | {"zeroth_order.subspace": 2**53},
    "a smoothing of 1e300": BLACK_BOX | {"zeroth_order.smoothing": 1e300},
    "a smoothing of 1e-300": BLACK_BOX | {"zeroth_order.smoothing": 1e-300},
    "1,000 spare rounds": {"privacy.spare_rounds": 1000},
    "Adam at 1e300": {"client.optimizer": "adam", "client.learning_rate": 1e300},
    "10^6 threads": {"simulation.threads": 10**6},
    "a seed of 4,000 digits": {"seed": int("9" * 4000)},
}
"""Settings that the server sends with a task of training; each is refused, or answered at no more than the silo allows."""

OF_OTHERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    EVALUATE: [
        ("noise of 1e300", {"evaluation.clients_noise": 1e300}),
        ("noise of 1e-300", {"evaluation.clients_noise": 1e-300}),
        ("no evaluation", {"evaluation.clients": "off"}),
        ("a holdout of its own", {"evaluation.clients_holdout": 0.9}),
    ],
    names.ASK_STATISTICS: [
        ("noise of 1e300", {"codec.statistics_noise": 1e300}),
        ("noise of 0.1", {"codec.statistics_noise": 0.1}),
        ("a clip of 1e300", {"privacy.clip": 1e300}),
        ("none asked for", {"codec.prior_source": "public"}),
        ("by coordinates", {"codec.prior": "coordinate"}),
        ("a rank of 2^53", {"codec.prior": "low-rank", "codec.rank": 2**53}),
    ],
    names.ASK_SCORES: [
        ("noise of 1e300", {"layers.noise": 1e300}),
        ("noise of 0.1", {"layers.noise": 0.1}),
        ("a bound of 1e300", {"layers.bound": 1e300}),
        ("2^53 examples", {"layers.examples": 2**53}),
        ("all kept", {"layers.keep": 2**53}),
        ("without noise", {"layers.form": "paper"}),
        ("votes of epsilon 1e300", {"layers.form": "private-top-k", "layers.epsilon": 1e300}),
    ],
}

TEXTS_ALONE: dict[str, Any] = {
    "20,000 colluders": ("privacy", "colluding", list(range(1, 20_001))),
    "65 colluders": ("privacy", "colluding", list(range(1, 66))),
    "a colluder of 1,000 digits": ("privacy", "colluding", [10**1000]),
    "20,000 silos' own values": (
        "privacy",
        "silos",
        {f"s{i}": {"epsilon": 1.0} for i in range(20_000)},
    ),
    "a class of 100,000 letters": ("task", "labels", ["low", "high", "a" * 100_000]),
    "20,000 classes": ("task", "labels", ["low", "high", *(f"c{i}" for i in range(20_000))]),
    "noise that nests": ("privacy", "noise", "[" * 60_000),
    "noise in a file": ("privacy", "noise", "/etc/passwd"),
    "rounds as text": ("server", "rounds", "three"),
    "rounds of 1e400": ("server", "rounds", "1e400"),
    "a section as a list": ("server", None, [1, 2]),
    "a section as text": ("privacy", None, "none"),
    "null": ("privacy", "clip", None),
    "truth": ("privacy", "clip", True),
    "negative": ("privacy", "clip", -1.0),
    "zero": ("privacy", "noise_multiplier", 0),
}
"""Section, key and value that no settings object can be made with."""


def tampered_settings(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was changed of the settings with which a task of this kind is answered, and the changes."""
    yield from TAMPERED.items() if kind == TRAIN else OF_OTHERS.get(kind, ())
