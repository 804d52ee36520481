"""The report on training through outputs alone: what was clipped, what was sent, and what the noise was."""

from __future__ import annotations

from fedllm.settings import Settings
from fedllm.settings_zeroth_order import noises_numbers

DIRECTIONS = (
    "The directions of each round follow from a seed that the server announces, and are public, as are the "
    "model and the smoothing. Nothing of the guarantee rests on their being random: a server that chose "
    "them would learn other numbers with the same protection."
)

ENDPOINT = (
    "The texts of each silo's examples go to the completion endpoint that the silo uses, as they are. No epsilon "
    "here speaks about what the endpoint, its operator or the line to it sees: it is the silo's own, or one "
    "that the silo trusts with its data."
)


def clipping(settings: Settings) -> str:
    """What bounds the sensitivity, in words."""
    clip, order = settings.privacy.clip, settings.zeroth_order
    single = noises_numbers(settings)
    several = f"over the {order.directions} directions of a step together"
    if settings.privacy.unit == "example":
        how = f"each to [-{clip:g}, {clip:g}]" if single else f"to L2 norm {clip:g} {several}"
        return (
            "Each example's differences of losses along the random directions (over twice the smoothing "
            f"{order.smoothing:g}) are clipped, {how}; one that is not finite counts as zero. Each sum is "
            f"divided by the constant {settings.client.batch_size}, not by the number drawn."
        )
    numbers = order.directions * settings.client.local_steps
    how = f"each to [-{clip:g}, {clip:g}]" if single else f"as one vector to L2 norm {clip:g}"
    return (
        f"The {numbers} numbers that a silo sends in a round are clipped, {how}, before noise is added. They "
        "are averaged with equal weights, which do not depend on data."
    )
