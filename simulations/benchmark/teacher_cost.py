"""What a teacher on the server costs, against a plain private round.

    python -m simulations.benchmark.teacher_cost [--model minilm --model smollm2] [--json OUT]

Measured in turn in one process, on the batch of ``dp_tax``:

* ``silo, private step``: a silo's round of one private step, the plain round;
* ``silo, duplicate``: what ``teacher.kind = "nonprivate"`` adds at each silo;
* ``server, closeness``: one pull with closeness of weights and the average's own step (``ema``);
* ``server, distillation``: one pull with a step of distillation on as many public examples as a batch has;
* ``server, training step``: one step of a ``public`` teacher's training before the first round.

A round's silos work beside each other, and each pull comes after them: ratios are to one silo's private
step. Bytes are of all trained tensors in float32, to one silo and back.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fedllm.flatness.distillation import Distillation
from fedllm.flatness.duplicate import duplicate_update
from fedllm.flatness.public_teacher import public_teacher
from fedllm.flatness.teacher import EmaTeacher
from fedllm.inputs import Feature
from fedllm.models import load_backbone
from fedllm.settings import Settings
from fedllm.settings_flatness import TeacherSettings
from fedllm.tunable import Tunable, initial_params, make_tunable
from privacy.randomness import generator
from simulations.benchmark import dp_tax, timing
from simulations.benchmark.step_command import begin, each_model, step_parser

PLAIN = "silo, private step"
TRAINED = "server, training step"
STEPS = 4
"""Steps of one measured training on public text."""
COMPARED = ("silo, duplicate", "server, closeness", "server, distillation", TRAINED)


def variants(
    tunable: Tunable, features: list[Feature], settings: Settings, folder: Path
) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; ``TRAINED`` does ``STEPS`` steps a call."""
    params = initial_params(tunable, settings)
    device = tunable.backbone.device
    batch = int(settings.client.batch_size or 1)
    distillation = Distillation(tunable, features, 1.0, batch, settings.client.max_tokens, seed=0)
    trained = settings.model_copy(
        update={"teacher": TeacherSettings(public_steps=STEPS, batch_size=batch)}
    )

    def pull(weight: float) -> Callable[[], None]:
        section = TeacherSettings(kind="ema", distillation=weight)
        made = EmaTeacher(section, params, device=device, distillation=distillation)

        def call() -> None:
            made.observe(made.pull(params, 1))

        return call

    def train() -> None:
        file = folder / "teacher.safetensors"
        file.unlink(missing_ok=True)
        public_teacher(file, tunable, params, lambda: features, trained, lambda step, loss: None)

    return {
        PLAIN: dp_tax.our_step(tunable, features, settings).call,
        "silo, duplicate": partial(
            duplicate_update,
            tunable,
            params,
            features,
            settings,
            sampling_rate=1.0,
            streams=lambda purpose, step: generator(0, purpose, step),
        ),
        "server, closeness": pull(0.0),
        "server, distillation": pull(1.0),
        TRAINED: train,
    }


def measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one model, as plain values."""
    bench = dp_tax.Bench(model, options)
    backbone = load_backbone(bench.source.folder, device=bench.device)
    settings = bench.settings(backbone.kind, True)
    tunable = make_tunable(settings, backbone)
    features = tunable.task.features(bench.records)
    with tempfile.TemporaryDirectory() as folder:
        calls = variants(tunable, features, settings, Path(folder))
        seconds = timing.interleave(calls, options.repeats, device=bench.device)
    for times in (seconds[TRAINED].wall, seconds[TRAINED].cpu):
        times[:] = [value / STEPS for value in times]
    size = 4 * sum(value.numel() for value in initial_params(tunable, settings).values())
    return {
        "model": bench.source.note,
        "data": bench.origin,
        "batch_size": bench.batch_size,
        "prefix_length": bench.prefix_length,
        "bytes": {"plain": 2 * size, "ema": 2 * size, "public": 2 * size, "nonprivate": 4 * size},
        "seconds": {name: asdict(value) for name, value in seconds.items()},
        "ratios": _ratios({name: value.wall for name, value in seconds.items()}),
        "cpu_time_ratios": _ratios({name: value.cpu for name, value in seconds.items()})
        if bench.device.type == "cpu"
        else {},
    }


def report(result: dict[str, Any]) -> str:
    """The figures of one model as text."""
    rows = []
    for name, seconds in result["seconds"].items():
        s = timing.spread(seconds["wall"])
        row = [name, f"{s.median * 1e3:.2f}", f"{s.low * 1e3:.2f} - {s.high * 1e3:.2f}"]
        for ratios in (result["ratios"], result["cpu_time_ratios"]):
            ratio = ratios.get(name)
            row.append("" if ratio is None else f"{ratio['median']:.4f}")
        rows.append(row)
    sizes = ", ".join(f"{kind} {size:,}" for kind, size in result["bytes"].items())
    return "\n".join(
        [
            f"{result['model']}, {result['data']}: {result['batch_size']} examples a step, prefix "
            f"length {result['prefix_length']}",
            timing.table(["", "median ms", "quartiles", "over plain", "in CPU time"], rows),
            f"bytes a silo and round, both ways: {sizes}",
        ]
    )


def _ratios(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {n: asdict(timing.paired_ratio(values[n], values[PLAIN])) for n in COMPARED}


def parser() -> argparse.ArgumentParser:
    """Command line."""
    return step_parser("teacher_cost", __doc__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = parser().parse_args(arguments)
    each_model(options, begin(options), measure, report)


if __name__ == "__main__":
    main()
