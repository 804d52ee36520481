"""The extensions of a run: the only place that asks the settings which optional parts are on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedllm.budget.round_draws import RoundDraws
from fedllm.run.folder import RunFolder
from fedllm.settings.checks.black_box import noises_numbers
from fedllm.settings.experiment import Settings
from fedllm.training.black_box.directions import DirectionsPlan
from server.extensions.adaptive_clip import AdaptiveClip
from server.extensions.base import RoundExtension
from server.extensions.central_noise import CentralNoise, make_central_release
from server.extensions.codec import EncodedUpdates
from server.extensions.fedsvd import FedSvd
from server.extensions.layers import LayerChoice
from server.extensions.principal import PrincipalStart
from server.extensions.secure_sum import SecureSums
from server.extensions.teacher import DuplicateTeacher, TeacherPull
from server.extensions.zeroth_order import ScalarEstimates

Make = Callable[[Settings, RunFolder], RoundExtension | None]
_registered: list[Make] = []


def register_extension(make: Make) -> Callable[[], None]:
    """Add an extension from outside of this package to the runs of this process.

    Args:
        make: called once a run with its settings and folder; returns None where its part is off.

    Returns:
        A function that takes it away again.

    >>> forget = register_extension(lambda settings, folder: None)
    >>> forget()
    """
    _registered.append(make)
    return lambda: _registered.remove(make)


def make_extensions(
    settings: Settings, folder: RunFolder, *, silos: Sequence[str], draws: RoundDraws
) -> list[RoundExtension]:
    """Return the extensions that the settings turn on, then those registered from outside; none for a plain run.

    Args:
        silos: names of the run's silos.
        draws: the silos of each round.

    Raises:
        ValueError: no noise multiplier of the server reaches the target.
    """
    client, found, numbers = settings.client, list[RoundExtension](), None
    trusted = make_central_release(
        settings, run=folder.run_id, silos=silos, draws=draws, ledger=folder.ledger_path
    )
    if settings.layers.form != "none":
        found.append(LayerChoice(folder))
    if settings.adapter.init == "principal":  # after the choice, which begins anew
        found.append(PrincipalStart())
    private, codec = settings.privacy.mode == "dp", None
    summed = private and settings.privacy.noise_by == "sum"
    if settings.codec.active:
        codec = EncodedUpdates(folder, trusted, summed=summed)
        found.append(codec)
    if summed:  # after the codec, whose length the silos agree on
        found.append(SecureSums(folder, codec))
    if settings.model.access == "black-box":
        numbers = ScalarEstimates(
            DirectionsPlan.of(settings),
            steps=client.local_steps,
            clip=settings.privacy.clip,
            alone=noises_numbers(settings),
        )
        found.append(numbers)
    if trusted is not None:
        found.append(
            CentralNoise(trusted)
            if numbers is None
            else CentralNoise(trusted, clip=numbers.clip, releases=client.local_steps)
        )
    clipping = settings.clipping
    if private and clipping.form == "adaptive":
        found.append(
            AdaptiveClip(
                quantile=clipping.quantile,
                learning_rate=clipping.learning_rate,
                told=not summed,
            )
        )
    if settings.adapter.form == "fedsvd":
        found.append(FedSvd())
    if settings.teacher.kind != "none":
        duplicate = settings.teacher.kind == "nonprivate"
        found.append(DuplicateTeacher(folder) if duplicate else TeacherPull(folder))
    found += [made for make in _registered if (made := make(settings, folder)) is not None]
    return found
