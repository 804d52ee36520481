"""The teacher that the server trains by itself on public text, once, before the first round.

It has the prefix's shape of the model and starts where the model starts. Guarantee: a function of public
text, the settings and the frozen model alone; no silo is asked, and no ledger.

``teacher.safetensors`` holds the weights, Adam's moments and the number of steps done; it is written while
training too, so that an interrupted training goes on where it was, to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.files.durable import write_bytes
from fedllm.flatness.layer_choice import kept_rows
from fedllm.settings.experiment import Settings
from fedllm.training.tunable import Tunable
from privacy.randomness import generator

SAVE_EVERY = 25
"""Steps between two writes of an unfinished training."""
Tell = Callable[[int, float], None]
"""``tell(step, loss)`` after each step; what it raises ends the training, which is saved before."""


class TeacherError(ValueError):
    """There is no teacher: its training diverged, or the one in the run folder is damaged or of another
    model; the message says which."""


@dataclass(frozen=True)
class PublicTraining:
    """The numbers of the teacher's training.

    Attributes:
        steps, learning_rate: of Adam.
        batch_size: public examples of a step.
        seed: of the batches; public.
        max_tokens: padded tokens of a micro-batch.
    """

    steps: int
    learning_rate: float
    batch_size: int
    seed: int
    max_tokens: int

    @classmethod
    def of(cls, settings: Settings) -> PublicTraining:
        """Return the training that the settings ask for."""
        teacher = settings.teacher
        return cls(
            steps=teacher.public_steps,
            learning_rate=teacher.public_learning_rate,
            batch_size=teacher.batch_size,
            seed=settings.seed,
            max_tokens=settings.client.max_tokens,
        )


@dataclass
class _State:
    """Weights and Adam's moments on the CPU, and the steps behind them."""

    weights: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    steps: int

    def tensors(self, layers: Sequence[int]) -> dict[str, Tensor]:
        parts = {"weights": self.weights, "first": self.first, "second": self.second}
        found = {f"{part}.{n}": v for part, values in parts.items() for n, v in values.items()}
        found["steps"] = torch.tensor(self.steps)
        found["layers"] = torch.tensor(list(layers), dtype=torch.long)
        return {name: value.detach().cpu().contiguous().clone() for name, value in found.items()}


def public_teacher(
    file: Path,
    tunable: Tunable,
    start: Mapping[str, Tensor],
    features: Callable[[], Sequence[Feature]],
    plan: PublicTraining,
    tell: Tell,
) -> dict[str, Tensor]:
    """The teacher's weights: the file's, or (the rest of) a training that writes the file.

    ``teacher.public_steps`` steps of Adam (Kingma and Ba 2015) on the mean loss of
    ``teacher.batch_size`` public examples each, drawn without replacement by the seed and the step.

    Args:
        file: ``teacher.safetensors`` of the run folder.
        start: the model before training, float32 on the CPU.
        features: gives the public examples; asked only where there is something to train.

    Returns:
        Float32 tensors on the CPU, shaped as ``start``; of a file that was written before layers were
        dropped, the layers that are left.

    Raises:
        TeacherError: the file is damaged or of another model, or the training diverges.
    """
    layers = tunable.layers
    state = _read(file, start, layers)
    if state.steps < plan.steps:
        state = _train(file, tunable, state, list(features()), plan, tell, layers)
    return state.weights


def _train(
    file: Path,
    tunable: Tunable,
    state: _State,
    features: list[Feature],
    plan: PublicTraining,
    tell: Tell,
    layers: Sequence[int],
) -> _State:
    device = tunable.backbone.device
    weights = {n: v.to(device).clone().requires_grad_(True) for n, v in state.weights.items()}
    optimizer = torch.optim.Adam(list(weights.values()), lr=plan.learning_rate)
    for name, value in weights.items():
        optimizer.state[value] = {
            "step": torch.tensor(float(state.steps)),
            "exp_avg": state.first[name].to(device, copy=True),
            "exp_avg_sq": state.second[name].to(device, copy=True),
        }

    def current() -> _State:
        moments = {
            key: {n: optimizer.state[v][key].cpu().clone() for n, v in weights.items()}
            for key in ("exp_avg", "exp_avg_sq")
        }
        plain = {name: value.detach().cpu().clone() for name, value in weights.items()}
        return _State(plain, moments["exp_avg"], moments["exp_avg_sq"], done)

    done, saved = state.steps, state.steps
    size = min(plan.batch_size, len(features))
    try:
        while done < plan.steps:
            rng = generator(plan.seed, "public-teacher", done)
            drawn = sorted(rng.choice(len(features), size=size, replace=False).tolist())
            batch = [features[i] for i in drawn]
            loss = _set_gradient(tunable, weights, batch, plan.max_tokens)
            if not math.isfinite(loss):
                raise TeacherError(
                    f"Expected a finite loss of the teacher on public text, got {loss} in step "
                    f"{done + 1}; lower teacher.public_learning_rate="
                    f"{plan.learning_rate:g}"
                )
            optimizer.step()
            done += 1
            if done % SAVE_EVERY == 0:
                _write(file, current(), layers)
                saved = done
            tell(done, loss)
    except Exception:  # a wish to stop, too: all of these come between two steps
        if done > saved:
            _write(file, current(), layers)
        raise
    _write(file, current(), layers)
    return current()


def _set_gradient(
    tunable: Tunable, weights: Mapping[str, Tensor], batch: Sequence[Feature], max_tokens: int
) -> float:
    """Leave the gradient of the batch's mean loss in the weights; the loss."""
    mean = 0.0
    for value in weights.values():
        value.grad = torch.zeros_like(value)
    for group in tunable.task.batches(batch, max_tokens):
        part = tunable.task.collate([batch[i] for i in group])
        loss = tunable.losses(tunable.expanded(weights, len(part)), part).sum() / len(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        mean += float(loss.detach())
    return mean


def _write(file: Path, state: _State, layers: Sequence[int]) -> None:
    write_bytes(file, save(state.tensors(layers)))


def _read(file: Path, start: Mapping[str, Tensor], layers: Sequence[int]) -> _State:
    """The state in the file, cut to the layers that still carry a prefix; or the beginning."""
    if not file.is_file():
        weights = {name: start[name].clone() for name in sorted(start)}
        first, second = (
            {name: torch.zeros_like(value) for name, value in weights.items()} for _ in range(2)
        )
        return _State(weights, first, second, 0)
    try:
        tensors = load(file.read_bytes())
        written = tensors["layers"].tolist()
        parts = []
        for part in ("weights", "first", "second"):
            all_of_part = {
                name.removeprefix(f"{part}."): value
                for name, value in tensors.items()
                if name.startswith(f"{part}.")
            }
            found = kept_rows(all_of_part, written, layers)
            found = {name: found[name] for name in sorted(start)}
            for name, value in found.items():
                if value.shape != start[name].shape:
                    raise ValueError(f"{part}.{name} has the shape {tuple(value.shape)}")
            parts.append(found)
        return _State(parts[0], parts[1], parts[2], int(tensors["steps"]))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise TeacherError(f"Expected the teacher of this run in {file}: {error}") from None
