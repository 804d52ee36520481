"""From the layers' scores to the layers that stay in the adapter, and the changes elsewhere.

Guarantee: everything here is post-processing of what was released, or of public text.

``layers.json`` in the run folder holds the :class:`Choice`: what was released at each step of the search,
and at last the ``kept`` layers. From then on the run's settings have ``prefix.layers`` = kept
(:meth:`Choice.settings`), and with them model, messages, noise and clipping norm have the smaller prefix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, model_validator

from fedllm.models.adapters.base import layer_of
from fedllm.settings.experiment import Settings
from fedllm.settings.section import Section

if TYPE_CHECKING:  # what only reads a run folder needs no torch
    from torch import Tensor

CHOICE = "layers.json"
_PREFIX = "prefix"


class Step(Section):
    """One measurement, as it was released, and what it dropped."""

    candidates: tuple[int, ...] = Field(description="Layers of the adapter before, ascending.")
    scores: dict[str, tuple[float, ...]] = Field(description="By silo, or of the public text.")
    sampling_rates: dict[str, float] = Field(
        description="In training, of the silos that were asked."
    )
    mean: tuple[float, ...]
    noise_std: float = Field(description="Of the noise in each mean score.")
    dropped: tuple[int, ...]
    seconds: float
    bytes_up: int
    bytes_down: int


class Choice(Section):
    """The content of ``layers.json``.

    Raises:
        ValueError: layers under ``kept`` or in a step that were never there.
    """

    form: str
    measure: str
    search: str
    round: int = Field(description="Rounds of training behind the parameters that are measured.")
    layers: tuple[int, ...] = Field(description="Those with a prefix before the choice, ascending.")
    keep: int
    releases: int | None
    steps: tuple[Step, ...] = ()
    kept: tuple[int, ...] | None = Field(None, description="None until the search is over.")

    @model_validator(mode="after")
    def _check(self) -> Choice:
        dropped = [layer for step in self.steps for layer in step.dropped]
        if len(set(dropped)) != len(dropped) or not set(dropped) <= set(self.layers):
            raise ValueError(f"Expected distinct layers among {self.layers}, got dropped={dropped}")
        if self.kept is not None and (self.kept != self.remaining or not self.kept):
            raise ValueError(f"Expected kept={self.remaining}, got kept={self.kept}")
        return self

    @classmethod
    def begin(cls, settings: Settings, layers: Sequence[int], server_round: int) -> Choice:
        """Before the first measurement, among ``layers``."""
        own = settings.layers
        return cls(
            form=own.form,
            measure=own.measure,
            search=own.search,
            round=server_round,
            layers=tuple(layers),
            keep=own.keep,
            releases=own.releases,
        )

    @property
    def remaining(self) -> tuple[int, ...]:
        """The layers that no step of the search has dropped yet, ascending."""
        dropped = {layer for step in self.steps for layer in step.dropped}
        return tuple(layer for layer in self.layers if layer not in dropped)

    def with_step(self, step: Step) -> Choice:
        """After another measurement; the search is over where no more than ``keep`` layers are left."""
        longer = self.model_copy(update={"steps": (*self.steps, step)})
        if len(longer.remaining) > self.keep:
            return longer
        return longer.model_copy(update={"kept": longer.remaining})

    def settings(self, started: Settings) -> Settings:
        """The settings of the run that was started with these; unchanged until the search is over."""
        if self.kept is None:
            return started
        layers = started.layers.model_copy(update={"releases": self.releases})
        return started.with_layers(self.kept).model_copy(update={"layers": layers})

    def settings_of(self, started: Settings, params: Mapping[str, Tensor]) -> Settings:
        """The settings of a checkpoint with these parameters: one of before the choice has the layers
        that the run was started with."""
        if self.kept is None:
            return started
        if _PREFIX in params:
            cut = params[_PREFIX].shape[0] == len(self.kept)
        else:
            found = {layer_of(name) for name in params} - {None}
            cut = bool(found) and found <= set(self.kept)
        return self.settings(started) if cut else started


def read_choice(path: Path) -> Choice | None:
    """The choice of the run folder ``path``; None where there is none.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        text = (path / CHOICE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return Choice.model_validate_json(text)


def settings_with_releases(settings: Settings, layers: Sequence[int]) -> Settings:
    """The settings with the number of releases that the search among ``layers`` makes of each silo.

    Raises:
        ValueError: as many layers are to be kept as there are, or more.
    """
    form, keep = settings.layers.form, settings.layers.keep
    if form == "none" or settings.layers.releases is not None:
        return settings
    if keep >= len(layers):
        raise ValueError(
            f"Expected layers.keep below {len(layers)}, the number of layers that carry a prefix "
            f"(layers.form={form}), got layers.keep={keep}"
        )
    releases = len(layers) - keep if settings.layers.search == "greedy" else 1
    changed = settings.layers.model_copy(update={"releases": releases})
    return settings.model_copy(update={"layers": changed})


def kept_in_a_step(candidates: int, keep: int, search: str) -> int:
    """Return the number of candidates that a step of the search keeps.

    Args:
        candidates: number of them.
        keep, search: of ``[layers]``.
    """
    return max(keep, candidates - 1) if search == "greedy" else keep


def mean_scores(scores: Mapping[str, Sequence[float]]) -> list[float]:
    """Mean over the silos with equal weights, in the order of their names.

    Raises:
        ValueError: no silo.
    """
    if not scores:
        raise ValueError("Expected the scores of at least one silo, got none")
    return [float(value) for value in np.mean([scores[name] for name in sorted(scores)], axis=0)]


def to_drop(candidates: Sequence[int], mean: Sequence[float], keep: int, search: str) -> list[int]:
    """The candidates to drop after a measurement: the flattest of them, ascending.

    One shot drops all but ``layers.keep``, greedy drops one. Of layers with the same score the lower
    ones are dropped (those near the input, whose prefix acts on the output through the others').
    """
    count = len(candidates) - kept_in_a_step(len(candidates), keep, search)
    order = sorted(range(len(candidates)), key=lambda place: (mean[place], candidates[place]))
    return sorted(candidates[place] for place in order[:count])


def kept_rows(
    tensors: Mapping[str, Tensor], layers: Sequence[int], kept: Sequence[int]
) -> dict[str, Tensor]:
    """The tensors without those of the dropped layers.

    Cut is every tensor named ``prefix`` or ``SOMETHING.prefix`` (a moment of an optimiser, an average)
    with a row for each of ``layers``; left out is every tensor whose name says that it belongs to a dropped layer.
    Others, and those cut before, stay.
    """
    rows = [list(layers).index(layer) for layer in kept]
    dropped = set(layers) - set(kept)
    result = {name: value for name, value in tensors.items() if layer_of(name) not in dropped}
    for name, value in result.items():
        if name.rpartition(".")[2] == _PREFIX and value.dim() and value.shape[0] == len(layers):
            result[name] = value[rows].clone()
    return result
