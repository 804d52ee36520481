"""The extensions of a silo: the only place of a silo that asks the settings which optional parts are on."""

from __future__ import annotations

from collections.abc import Callable

from fedllm.settings.experiment import Settings
from fedllm.silo.extensions.adaptive_clip import SiloClip
from fedllm.silo.extensions.base import SiloExtension
from fedllm.silo.extensions.codec import SiloCodec
from fedllm.silo.extensions.duplicate import SiloDuplicate
from fedllm.silo.extensions.evaluation import SiloEvaluation
from fedllm.silo.extensions.layers import SiloScores
from fedllm.silo.extensions.secure_sum import SecureSum
from fedllm.silo.extensions.zeroth_order import SiloDirections
from fedllm.training.black_box.directions import DirectionsPlan
from fedllm.training.steps import StepPlan

MakeExtension = Callable[[Settings], SiloExtension | None]
_registered: list[MakeExtension] = []


def register_silo_extension(make: MakeExtension) -> Callable[[], None]:
    """Add an extension from outside of this package to the silos of this process.

    Args:
        make: called with a silo's settings, for each task and once a run; returns None where its part is off.

    Returns:
        A function that takes it away again.

    >>> forget = register_silo_extension(lambda settings: None)
    >>> forget()
    """
    _registered.append(make)
    return lambda: _registered.remove(make)


def make_silo_extensions(settings: Settings) -> list[SiloExtension]:
    """Return the extensions that the settings turn on, then those registered from outside; none for a plain run."""
    private, found = settings.privacy.mode == "dp", list[SiloExtension]()
    if settings.layers.asks_silos:
        found.append(SiloScores(settings.layers.keep))
    if settings.codec.active:
        found.append(SiloCodec(settings.codec))
    if settings.model.access == "black-box":
        found.append(SiloDirections(DirectionsPlan.of(settings)))
    if private and settings.privacy.noise_by == "sum":
        found.append(SecureSum(settings.secure))
    if private and settings.clipping.form == "adaptive":
        found.append(SiloClip())
    if settings.teacher.kind == "nonprivate":
        found.append(SiloDuplicate(StepPlan.of(settings)))
    if settings.evaluation.by_silos:
        found.append(SiloEvaluation())
    found += [made for make in _registered if (made := make(settings)) is not None]
    return found
