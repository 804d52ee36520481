"""The experiments: what each changes in the small one that they share.

All settings that matter are written out, so that a changed default changes no digest.
"""

from __future__ import annotations

import json
from typing import Any

Changes = dict[str, Any]

COMMON: Changes = {
    "name": "seeded",
    "seed": 7,
    "model.name": "encoder",
    "model.device": "cpu",
    "model.dtype": "float32",
    "prefix.length": 2,
    "prefix.layers": "all",
    "prefix.init": "random",
    "task.labels": ["low", "high"],
    "task.max_length": 16,
    "data.source": "files",
    "data.path": "words",
    "data.train": "train.jsonl",
    "data.validation": "validation.jsonl",
    "data.min_size": 1,
    "client.local_steps": 2,
    "client.batch_size": 8,
    "client.optimizer": "sgd",
    "client.learning_rate": 0.1,
    "client.max_tokens": 4096,
    "server.rounds": 3,
    "server.optimizer": "adam",
    "server.learning_rate": 0.05,
    "server.momentum": 0.9,
    "server.beta2": 0.99,
    "server.schedule": "linear",
    "server.final_rate": 0.1,
    "privacy.epsilon": 50.0,
    "privacy.delta": 1e-5,
    "privacy.noise_multiplier": 0.8,
    "privacy.clip": 0.5,
    "privacy.randomness": "seeded",
    "privacy.accountant": "rdp",
    "evaluation.every": 100,
    "simulation.workers": 1,
    "simulation.threads": 1,
    "output.tensorboard": False,
}
PUBLIC: Changes = {"public.source": "files", "public.path": "public.jsonl"}
CLIENT: Changes = {"privacy.unit": "client"}
CENTRAL: Changes = CLIENT | {"privacy.noise_by": "server"}
CALIBRATED: Changes = {"privacy.noise_multiplier": None, "privacy.accountant": "pld"}
LINEAR: Changes = {"codec.name": "linear", "codec.ratio": 4, "codec.statistics_noise": 4.0}
BLACK_BOX: Changes = {
    "model.access": "black-box",
    "zeroth_order.directions": 3,
    "zeroth_order.smoothing": 0.01,
    "zeroth_order.noise": "gaussian",
    "server.optimizer": "sgd",
    "server.learning_rate": 1.0,
    "server.momentum": 0.0,
    "privacy.accountant": "pld",
}
LAYERS: Changes = PUBLIC | {
    "model.name": "deep-encoder",
    "prefix.init": "phrase",
    "prefix.phrase": "w5 w9",
    "layers.keep": 2,
    "layers.radius": 0.002,
    "layers.examples": 16,
}
TEACHER: Changes = PUBLIC | {
    "teacher.strength": 0.3,
    "teacher.batch_size": 8,
    "teacher.learning_rate": 1.0,
    "teacher.temperature": 1.0,
}
ADAPTIVE: Changes = {
    "clipping.form": "adaptive",
    "clipping.quantile": 0.5,
    "clipping.learning_rate": 0.5,
    "clipping.count_share": 0.01,
    "privacy.clip": 5.0,
}
AWP: Changes = {"awp.gamma": 0.5, "awp.rounds": 2}
DECODER: Changes = {
    "model.name": "decoder",
    "task.prompt": "{text} is",
    "task.label_words": ["w4", "w5"],
}
LAPLACE: Changes = {
    "privacy.mechanism": "lmo",
    "privacy.noise": json.dumps({"family": "laplace", "parameters": {"scale": 1.0}}),
}
LMO: Changes = {
    "privacy.mechanism": "lmo",
    "privacy.noise": json.dumps(
        {
            "a1": 0.1,
            "a3": 0.1,
            "a4": 0.1,
            "gamma_shape": 1.0,
            "gamma_scale": 0.5,
            "exponential_rate": 5.0,
            "uniform_low": 1.0,
            "uniform_high": 2.0,
        }
    ),
}

EXPERIMENTS: dict[str, Changes] = {
    "example": {},
    "example-calibrated": CALIBRATED | {"privacy.epsilon": 4.0},
    "example-own-targets": CALIBRATED | {"privacy.silos": {"beta": {"epsilon": 2.0}}},
    "example-local-adam": {"client.optimizer": "adam", "client.learning_rate": 0.01},
    "example-noise-correction": {"server.noise_correction": True, "server.averaging": 0.5},
    "example-prefix-scale": {"privacy.prefix_scale": 0.5, "server.head_learning_rate": 0.1},
    "example-private-sizes": {
        "data.sizes": "private",
        "client.sampling_rate": 0.2,
        "privacy.relation": "add-or-remove-one",
    },
    "example-fixed-shape": {"client.max_batch": 24, "privacy.accountant": "pld"},
    "example-half-of-silos": {"server.fraction": 0.5, "server.rounds": 4},
    "example-median": {"server.aggregation": "median"},
    "example-trimmed-mean": {"server.aggregation": "trimmed-mean", "server.trim": 0.25},
    "example-norm-clipped-mean": {"server.aggregation": "norm-clipped-mean"},
    "without-privacy": {"privacy.mode": "none"},
    "client": CLIENT,
    "client-replace-one": CLIENT | CALIBRATED | {"privacy.relation": "replace-one"},
    "central": CENTRAL | {"server.sampling": "poisson", "server.fraction": 0.7},
    "central-calibrated": CENTRAL | CALIBRATED,
    "decoder": DECODER,
    "generation": DECODER
    | {
        "task.kind": "generation",
        "task.target": "answer",
        "task.labels": None,
        "task.label_words": None,
        "evaluation.generate": 4,
    },
    "codec-fp16": {"codec.name": "fp16"},
    "codec-int8": {"codec.name": "int8", "codec.downlink": "int8"},
    "codec-top-k": {"codec.name": "top-k", "codec.ratio": 4},
    "codec-random-projection": {
        "codec.name": "random-projection",
        "codec.ratio": 4,
        "codec.bits": 4,
    },
    "codec-statistics": LINEAR | {"codec.prior": "factored"},
    "codec-statistics-low-rank": LINEAR | {"codec.prior": "low-rank", "codec.rank": 2},
    "codec-public-prior": LINEAR | PUBLIC | {"codec.prior_source": "public"},
    "codec-in-code": LINEAR | {"codec.noise": "in-code"},
    "codec-central": CENTRAL | LINEAR | {"codec.noise": "in-code"},
    "codec-autoencoder": {
        "codec.name": "autoencoder",
        "codec.ratio": 4,
        "codec.steps": 20,
        "codec.width": 16,
    },
    "black-box": BLACK_BOX | {"zeroth_order.subspace": 5},
    "black-box-client": BLACK_BOX | CLIENT,
    "black-box-central": BLACK_BOX | CENTRAL,
    "black-box-laplace": BLACK_BOX | LAPLACE,
    "teacher-ema": TEACHER | {"teacher.kind": "ema", "teacher.decay": 0.7, "teacher.steps": 2},
    "teacher-public": TEACHER
    | {
        "teacher.kind": "public",
        "teacher.public_steps": 20,
        "teacher.public_learning_rate": 0.05,
        "teacher.distillation": 2.0,
    },
    "teacher-nonprivate": TEACHER | {"teacher.kind": "nonprivate"},
    "layers-public": LAYERS | {"layers.form": "public", "layers.search": "greedy"},
    "layers-private": LAYERS | {"layers.form": "private", "layers.after": 1, "layers.noise": 2.0},
    "layers-private-top-k": LAYERS | {"layers.form": "private-top-k", "layers.epsilon": 0.5},
    "awp-per-example": AWP | {"awp.form": "per-example"},
    "awp-batch": AWP | {"awp.form": "batch", "awp.head": True},
    "clipping-adaptive": ADAPTIVE,
    "clipping-adaptive-central": ADAPTIVE | CENTRAL | {"server.sampling": "poisson"},
    "lmo": LMO,
    "lmo-laplace-client": LAPLACE | CLIENT,
    "silo-evaluation": {
        "evaluation.clients": "private",
        "evaluation.clients_holdout": 0.3,
        "evaluation.clients_noise": 20.0,
        "evaluation.clients_family": "discrete-gaussian",
        "evaluation.every": 1,
    },
    "engine": {"privacy.mode": "none", "client.sampling_rate": 1.0},
}
"""By name, what differs from `COMMON`."""

IF_KNOWN = ("zeroth_order.noise", "evaluation.clients_family")
"""Left out where the product has no such setting: the value here is then its only one."""

ON_ENGINE = ("engine",)
"""Run by the command line on Flower's engine. Nothing in them is drawn by a fingerprint."""
