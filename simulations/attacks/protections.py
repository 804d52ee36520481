"""The forms in which a client's gradient may leave, from bare to private."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from fedllm.codec.base import Codec, compressed_dimension
from fedllm.codec.identity import Half
from fedllm.codec.layout import Layout
from fedllm.codec.linear import Linear
from fedllm.codec.prior import prior_from_gradients
from fedllm.codec.random_projection import RandomProjection
from fedllm.codec.top_k import TopK
from privacy.calibration import calibrate_noise_multiplier
from privacy.mechanisms.gaussian import add_gaussian

CLIP = 0.5
DELTA = 1e-5


@dataclass(frozen=True)
class Protection:
    """Processing of a client's gradient before it leaves.

    The client holds one text; its message is its gradient, one local step. Unit client.

    Attributes:
        name: as in the tables.
        clip: L2 norm to which the gradient is cut; None: not.
        codec: how it travels; None: as it is, in float32. With noise the codec must have a known
            Lipschitz constant: the noise is then added in the code.
        noise_multiplier: noise standard deviation over the sensitivity ``clip``.
        epsilon: of one message at ``DELTA`` by the exact accountant of the Gaussian mechanism,
            zero-out client, against the server; None: no guarantee.

    Raises:
        ValueError: noise without clipping, or in a code of unknown Lipschitz constant.
    """

    name: str
    clip: float | None = None
    codec: Codec | None = None
    noise_multiplier: float = 0.0
    epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.noise_multiplier and self.clip is None:
            raise ValueError(f"Expected clip with noise, got clip=None for {self.name!r}")
        if self.noise_multiplier and self.codec is not None and self.codec.lipschitz is None:
            raise ValueError(
                f"Expected a codec of known Lipschitz constant with noise, got {self.codec.name}"
            )

    def visible(self, gradients: Tensor) -> Tensor:
        """Return the gradient that the server would decode without noise and rounding, (n, d)."""
        values = self._clipped(gradients)
        if self.codec is None:
            return values
        return self.codec.reconstruct(self.codec.project(values))

    def send(self, gradients: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the gradient that the server decodes, (n, d): each row a separate message."""
        values = self._clipped(gradients)
        sensitivity = float(self.clip or 1.0)
        if self.codec is None:
            return self._noisy(values, sensitivity, rng)
        sensitivity *= self.codec.lipschitz or 1.0
        if self.noise_multiplier:
            codes = self._noisy(self.codec.project(values), sensitivity, rng)
            messages = [self.codec.encode_code(code, rng) for code in codes]
        else:
            messages = [self.codec.encode(value, rng) for value in values]
        return torch.stack([self.codec.decode(message) for message in messages])

    def _clipped(self, gradients: Tensor) -> Tensor:
        if self.clip is None:
            return gradients
        norms = gradients.norm(dim=1, keepdim=True).clamp(min=1e-30)
        return gradients * (self.clip / norms).clamp(max=1.0)

    def _noisy(self, values: Tensor, sensitivity: float, rng: np.random.Generator) -> Tensor:
        if self.noise_multiplier == 0:
            return values
        return add_gaussian(values, sensitivity, self.noise_multiplier, rng)

    def identification_bound(self, candidates: int) -> float | None:
        """Return the theoretical upper bound of the probability to name the sender's text among equally likely ones.

        Let q_i be the probability of the answer i where no client takes part. Answer i has
        probability at most Phi(Phi^-1(q_i) + mu) where text i is sent (mu = 1 / noise multiplier:
        the message moves by at most ``clip``); the q_i sum to 1 and the bound is concave in q_i, so
        its mean is greatest at q_i = 1 / candidates. None if there is no guarantee.
        """
        if self.noise_multiplier == 0:
            return None
        return float(norm.cdf(norm.ppf(1 / candidates) + 1 / self.noise_multiplier))


def noise_for(epsilon: float) -> float:
    """Return the noise multiplier at which one message costs ``epsilon`` at ``DELTA`` (zero-out)."""
    found = calibrate_noise_multiplier(
        epsilon=epsilon, delta=DELTA, sampling_rate=1.0, steps=1, accountant="gdp-exact"
    )
    return found.noise_multiplier


def protections(
    dimension: int,
    epsilons: Sequence[float],
    ratio: float,
    layout: Layout | None = None,
    public: Tensor | None = None,
) -> list[Protection]:
    """Return the protections: none, clipping, codes without noise, noise, and noise in the code.

    Args:
        dimension: d, the length of a gradient.
        epsilons: of one message; noise in the code is shown for the first.
        ratio: compression of the codes.
        layout: of a gradient; with it and ``public`` there are rows of the linear code.
        public: gradients [n, d] of public text, to which the linear code is fitted (low-rank prior).
    """
    projection = RandomProjection(dimension, compressed_dimension(dimension, ratio), seed=0)
    sparse = TopK(dimension, compressed_dimension(dimension, ratio))
    noises = {epsilon: noise_for(epsilon) for epsilon in epsilons}
    found = [
        Protection("none"),
        Protection("clipped", clip=CLIP),
        Protection("clipped, 16 bits", clip=CLIP, codec=Half(dimension)),
        Protection(f"clipped, top-k {ratio:g}x", clip=CLIP, codec=sparse),
        Protection(f"clipped, random projection {ratio:g}x", clip=CLIP, codec=projection),
    ]
    codes: list[tuple[str, Codec]] = [("random projection", projection)]
    if layout is not None and public is not None:
        prior = prior_from_gradients("low-rank", layout, public, rank=projection.code_dimension)
        linear = Linear.from_prior(prior, projection.code_dimension, seed=0)
        codes.append(("linear", linear))
        found.append(Protection(f"clipped, linear {ratio:g}x", clip=CLIP, codec=linear))
    for epsilon, noise in noises.items():
        name = f"clipped, noise, epsilon={epsilon:g}"
        found.append(Protection(name, CLIP, None, noise, epsilon))
    for epsilon, noise in list(noises.items())[:1]:
        for code, codec in codes:
            name = f"{code} {ratio:g}x, noise in code, epsilon={epsilon:g}"
            found.append(Protection(name, CLIP, codec, noise, epsilon))
    return found
