"""Encode a silo's update: noise first and then the code, or noise in the code.

Coordinates. A codec sees one vector of d numbers: the update's tensors in the order of
:class:`fedllm.codec.Layout`, each times its scale (``privacy.prefix_scale`` for the prefix), as they are
when they are clipped. The server divides by the scales again.

**noise = "before-encoding"** (the paper). The update is released as without a codec: clipped and noised
in d dimensions. Encoding is post-processing: same events, same guarantee.

**noise = "in-code"**. What is clipped to ``clip`` and gets the noise is the code, a vector of k numbers.

*Unit client.* z = clip(project(update)) has norm at most ``clip``, whatever the update and the codec (which
is fixed before the round and public): adding or removing the silo moves what is released by at most ``clip``,
replacing it by twice that, as without a codec.
*Unit example.* In each local step z_t = (sum over the Poisson batch of clip(project(g_i))) + noise. An
example enters one summand, of norm at most ``clip``: the sensitivity to adding or removing it is ``clip``,
and a step is the same Poisson-sampled Gaussian mechanism as without a codec. The step moves the weights
by -rate * R z_t / B, R being the linear ``reconstruct``. So the update of the round is
-rate/B * sum_t R z_t = R(-rate/B * sum_t z_t): the code that is sent is this sum of released values, exactly
(in real arithmetic) what moved the weights, and is not projected a second time. It takes a linear
``reconstruct``, and plain SGD (the settings refuse Adam).
**Noise by the server** (unit client): the silo sends the clipped update's code, or its clipped code,
without noise. The server clips what it decodes once more, so that the sensitivity is its own.

Rounding to fewer bits comes after the noise, and is post-processing too; with noise by the server it comes
before, and the server's clipping covers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from fedllm.codec.base import Code, Codec
from fedllm.codec.layout import Layout
from fedllm.codec.quantise import Quantised
from fedllm.settings.experiment import Settings
from fedllm.training.gradients import gradient_scales
from fedllm.training.noise import Noise
from privacy.mechanisms.clipping import clip_vector
from privacy.randomness import RandomSource


@dataclass(frozen=True)
class Encoding:
    """A codec in the coordinates of one run.

    Attributes:
        codec: fixed before training, and public.
        version: of the codec.
        layout: of the trainable tensors.
        scales: public factor of each tensor before clipping.
        in_code: whether clipping and noise are in the code.

    Raises:
        ValueError: a codec of another dimension than the layout's, or one that is not linear for
            noise in the code.
    """

    codec: Codec
    version: str
    layout: Layout
    scales: Mapping[str, float]
    in_code: bool

    def __post_init__(self) -> None:
        if self.codec.dimension != self.layout.dimension:
            raise ValueError(
                f"Expected a codec for the {self.layout.dimension} trained numbers, got one for "
                f"{self.codec.dimension}"
            )
        if self.in_code and not self.codec.linear:
            raise ValueError(f"Expected a linear codec for codec.noise=in-code, got {self.codec}")

    @classmethod
    def of(
        cls, codec: Codec, version: str, settings: Settings, like: Mapping[str, Tensor]
    ) -> Encoding:
        """Make the encoding for tensors ``like`` these, under these settings.

        Guarantee: noise in the code is added only to codes that a bounded map makes. A codec comes from the
        server, and one that chooses coordinates by the data would carry the choice in addition to the noise.

        Raises:
            ValueError: the codec is not the one that the settings name, or has no Lipschitz constant where
                the noise is in the code.
        """
        in_code = settings.privacy.mode == "dp" and settings.codec.noise == "in-code"
        inner = codec.inner if type(codec) is Quantised else codec  # int8 is a kind of its own
        if inner.name != settings.codec.name or (in_code and codec.lipschitz is None):
            raise ValueError(
                f"Expected a codec for codec.name={settings.codec.name}, codec.noise="
                f"{settings.codec.noise}, got {inner.name}"
            )
        scales = gradient_scales(settings.privacy.prefix_scale, like)
        return cls(codec, version, Layout.of(like), scales, in_code)

    def flatten(self, update: Mapping[str, Tensor]) -> Tensor:
        """Return the update as the codec sees it, float32 [d]."""
        scaled = {name: value * self.scales[name] for name, value in update.items()}
        return self.layout.flatten(scaled)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the inverse of :meth:`flatten`."""
        parts = self.layout.unflatten(vector)
        return {name: value / self.scales[name] for name, value in parts.items()}

    @cached_property
    def float32_bytes(self) -> int:
        """Bytes of an update without a codec."""
        return 4 * self.layout.dimension


def encode_client_update(
    update: Mapping[str, Tensor],
    encoding: Encoding,
    *,
    clip: float,
    noise: Noise | None,
    rng: RandomSource,
    rounding: RandomSource,
) -> tuple[Code, bool, bool]:
    """Clip a client's update, add noise (before or after encoding) and encode it.

    Args:
        update: new minus old parameters; private.
        clip: the clipping norm.
        noise: None where the server adds it.
        rng: what the noise is drawn from.

    Returns:
        The message, whether the update was clipped, whether it was not finite and counts as zero.
    """
    vector = encoding.flatten(update)
    bad = not bool(vector.isfinite().all())
    if bad:
        vector = vector.new_zeros(vector.shape)
    if encoding.in_code:
        vector = encoding.codec.project(vector)
    code, clipped, _ = clip_vector(vector, clip)
    if noise is not None:
        code = noise.add(code, clip, rng)
    if encoding.in_code:
        return encoding.codec.encode_code(code, rounding), clipped, bad
    return encoding.codec.encode(code, rounding), clipped, bad


def encode_released_update(
    update: Mapping[str, Tensor],
    encoding: Encoding,
    *,
    rounding: RandomSource,
) -> Code:
    """Encode an update that carries its noise already (or has no guarantee): post-processing."""
    return encoding.codec.encode(encoding.flatten(update), rounding)
