"""The training steps, and parts of them, that :mod:`simulations.benchmarks.step_cost` compares: on one model and one batch."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor, nn

from fedllm.data.batches import Feature
from fedllm.flatness.distillation import Distillation
from fedllm.flatness.duplicate import duplicate_update
from fedllm.flatness.public_teacher import PublicTraining, public_teacher
from fedllm.flatness.teacher import EmaTeacher
from fedllm.models.backbone import load_backbone
from fedllm.models.loading.placement import resolve_device, resolve_dtype
from fedllm.settings.experiment import Settings
from fedllm.settings.flatness import TeacherSettings
from fedllm.training.black_box.directions import Directions, DirectionsPlan
from fedllm.training.mechanism import make_mechanism
from fedllm.training.steps import LocalWork, StepPlan
from fedllm.training.tunable import Tunable, initial_params, make_tunable
from privacy.mechanisms.gaussian import add_gaussian
from privacy.randomness import generator
from simulations.benchmarks import baseline as assembly
from simulations.benchmarks.support import workload

BASELINE = ("peft", "opacus")
# expected batch size and tokens of a micro-batch; on a CPU small micro-batches save padding (256 was
# the best of 64 ... 4096 for both models), on a GPU large ones fill the device
SIZES = {
    ("minilm", "cpu"): (64, 256),
    ("smollm2", "cpu"): (32, 256),
    ("minilm", "cuda"): (1024, 32768),
    ("smollm2", "cuda"): (256, 16384),
}
TEACHER_STEPS = 4
"""Steps of one measured training on public text."""
DIRECTIONS = 2
REFILL, REFILLS = 1 << 16, 512
"""Bytes of a cipher's refill, and refills that are timed together."""


@dataclass(frozen=True)
class Step:
    """A call on the fixed batch, the model that it runs, and how many steps the call takes."""

    call: Callable[[], Any]
    model: nn.Module
    count: int = 1


def sizes(model: str, device: torch.device) -> tuple[int, int]:
    """Return batch size and micro-batch tokens for a model on a device."""
    return SIZES.get((model, "cpu" if device.type == "cpu" else "cuda"), (32, 1024))


class Bench:
    """One model, one batch, and the steps on it."""

    def __init__(self, model: str, options: argparse.Namespace) -> None:
        self.device = resolve_device(options.device)
        self.source = workload.model_source(model)
        batch, tokens = sizes(model, self.device)
        self.batch_size = options.batch or batch
        self.max_tokens = options.max_tokens or tokens
        self.prefix_length = options.prefix_length
        self.adapter: dict[str, Any] = {"form": options.adapter}
        if options.adapter in ("lora", "ffa-lora"):
            self.adapter |= {"rank": options.rank, "alpha": 2.0 * options.rank}
        self.records, self.origin = workload.load_texts(self.batch_size, options.data)

    def steps(self, names: Sequence[str]) -> dict[str, Step]:
        """Return the steps by name; the baseline's have models of their own, ours share one."""
        scene = self.scene()
        return {name: MAKERS[name](scene) for name in names}

    def alone(self, name: str) -> Step:
        """Return one step with no other model in memory (for its peak memory).

        For the baseline our model makes the batch, so that it is the same one, and is let go.
        """
        scene = self.scene()
        if name in BASELINE:
            assert scene.tunable.task.shapes  # asks the model for the length that fits it
            unloaded = replace(scene.tunable.backbone, model=None)
            scene.tunable.backbone = scene.tunable.task.backbone = unloaded
        return MAKERS[name](scene)

    def scene(self) -> Scene:
        """Return the model, loaded anew, with its batch."""
        backbone = load_backbone(self.source.folder, device=self.device)
        settings = self.settings(backbone.kind, True)
        tunable = make_tunable(settings, backbone)
        return Scene(self, tunable, tunable.task.features(self.records), settings)

    def settings(self, kind: str, private: bool) -> Settings:
        """Return the settings of one local step on the whole batch, with privacy or without."""
        return workload.settings_for(
            self.source,
            kind,
            private=private,
            batch_size=self.batch_size,
            local_steps=1,
            max_tokens=self.max_tokens,
            prefix_length=self.prefix_length,
            device=str(self.device),
            adapter=self.adapter,
        )


@dataclass
class Scene:
    """A model with a batch of its examples, and the settings of a private step on it."""

    bench: Bench
    tunable: Tunable
    features: list[Feature]
    settings: Settings
    params: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        started = initial_params(self.tunable, self.settings)
        self.params = {name: value.to(self.bench.device) for name, value in started.items()}

    def changed(self, **sections: Mapping[str, Any]) -> Settings:
        """Return the settings with other sections."""
        return Settings.model_validate(self.settings.model_dump() | sections)

    def step(self, call: Callable[[], Any], count: int = 1) -> Step:
        """Return a step of this model."""
        return Step(call, self.tunable.backbone.model, count)


def our_step(scene: Scene, settings: Settings, *, seed: int | None = 0) -> Step:
    """Return one local step of ours on the whole batch (sampling rate 1); no seed: secret noise."""
    return _train(scene, settings, seed)


def _train(
    scene: Scene, settings: Settings, seed: int | None, directions: Directions | None = None
) -> Step:
    """Return a round of training with the mechanism of the settings."""
    noise = float(settings.privacy.noise_multiplier or 0.0)
    mechanism = make_mechanism(settings, sampling_rate=1.0, noise_multiplier=noise)
    streams = partial(generator, seed)
    work = LocalWork(scene.tunable, scene.params, scene.features, streams, directions=directions)
    return scene.step(partial(mechanism.train, work))


def plain_step(scene: Scene) -> Step:
    """Return the step without privacy."""
    return our_step(scene, scene.bench.settings(scene.tunable.backbone.kind, False))


def perturbed_step(form: str, scene: Scene) -> Step:
    """Return the private step with a form of ``awp``."""
    return our_step(scene, scene.changed(awp={"form": form}))


def forward_step(scene: Scene) -> Step:
    """Return one black-box step."""
    settings = scene.changed(
        model=scene.settings.model.model_dump() | {"access": "black-box"},
        zeroth_order={"directions": DIRECTIONS},
    )
    return _train(scene, settings, 0, Directions(DirectionsPlan.of(settings), scene.params, "0"))


def noise_alone(seed: int | None, scene: Scene) -> Step:
    """Return the noise for a sum as long as what is trained, from a source that is made anew; no seed: secret."""
    privacy = scene.settings.privacy
    total = torch.zeros(sum(v.numel() for v in scene.params.values()), device=scene.bench.device)
    multiplier = float(privacy.noise_multiplier or 0.0)
    return scene.step(
        lambda: add_gaussian(total, privacy.clip, multiplier, generator(seed, "noise"))
    )


def refills(make: Callable[[], Cipher[Any]], scene: Scene) -> Step:
    """Return a step that refills by a cipher, each time under a new key."""
    zeros, out = bytes(REFILL), bytearray(REFILL + 15)

    def call() -> None:
        for _ in range(REFILLS):
            make().encryptor().update_into(zeros, out)

    return scene.step(call)


def duplicate(scene: Scene) -> Step:
    """Return a silo's step on the duplicate that it trains without privacy."""
    streams = partial(generator, 0)
    call = partial(
        duplicate_update, scene.tunable, scene.params, scene.features, StepPlan.of(scene.settings)
    )
    return scene.step(partial(call, sampling_rate=1.0, streams=streams))


def pull(weight: float, scene: Scene) -> Step:
    """Return a pull on the server by a moving average, with a step of distillation where it has a weight."""
    tokens, batch = scene.settings.client.max_tokens, scene.bench.batch_size
    teacher = EmaTeacher(
        TeacherSettings(kind="ema", distillation=weight),
        scene.params,
        device=scene.bench.device,
        distillation=Distillation(scene.tunable, scene.features, 1.0, batch, tokens, seed=0),
    )
    return scene.step(lambda: teacher.observe(teacher.pull(scene.params, 1)))


def teacher_training(scene: Scene) -> Step:
    """Return a public teacher's training before the first round."""
    section = TeacherSettings(public_steps=TEACHER_STEPS, batch_size=scene.bench.batch_size)
    settings = scene.settings.model_copy(update={"teacher": section})

    def call() -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "teacher.safetensors"
            public_teacher(
                file,
                scene.tunable,
                scene.params,
                lambda: scene.features,
                PublicTraining.of(settings),
                lambda *_: None,
            )

    return scene.step(call, TEACHER_STEPS)


def assembly_step(private: bool, scene: Scene) -> Step:
    """Return the baseline's step, with a model of its own."""
    bench, settings, backbone = scene.bench, scene.settings, scene.tunable.backbone
    choice = assembly.Choice(
        folder=bench.source.folder,
        kind=backbone.kind,
        prefix_length=bench.prefix_length,
        max_length=settings.task.max_length,
        batch_size=bench.batch_size,
        local_steps=1,
        clip=settings.privacy.clip,
        noise_multiplier=1.0,
        learning_rate=settings.client.learning_rate,
        dtype=resolve_dtype("auto", bench.device),
        device=bench.device,
        adapter=scene.settings.adapter,
        targets=tuple(t.module for t in getattr(scene.tunable.adapter, "targets", ())),
        layers=scene.tunable.layers,
    )
    words = assembly.word_ids(choice, backbone.tokenizer)
    model = assembly.load_model(choice)
    make = assembly.opacus_step if private else assembly.peft_step
    call = make(choice, model, words, scene.tunable, scene.features, bench.max_tokens)
    return Step(call, model)


MAKERS: dict[str, Callable[[Scene], Step]] = {
    "plain": plain_step,
    "private": lambda scene: our_step(scene, scene.settings),
    "secret": lambda scene: our_step(scene, scene.settings, seed=None),
    "peft": partial(assembly_step, False),
    "opacus": partial(assembly_step, True),
    "noise": partial(noise_alone, None),
    "seeded noise": partial(noise_alone, 0),
    "AES-256-CTR": partial(
        refills, lambda: Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16)))
    ),
    "ChaCha20": partial(
        refills, lambda: Cipher(algorithms.ChaCha20(os.urandom(32), bytes(16)), None)
    ),
    "per-example": partial(perturbed_step, "per-example"),
    "batch": partial(perturbed_step, "batch"),
    "duplicate": duplicate,
    "closeness": partial(pull, 0.0),
    "distillation": partial(pull, 1.0),
    "training step": teacher_training,
    "black-box": forward_step,
}
"""Makers of steps, by name."""
