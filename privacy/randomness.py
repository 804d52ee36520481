"""Random streams: secret by default, or reproducible from a seed and labels.

Without a seed a stream is secret: the keystream of a cipher under a key that the operating system
gave for this stream alone (`keystream.py`). With a seed it is a Philox-4x64 counter (Salmon et al.
2011, "Parallel random numbers: as easy as 1, 2, 3") with a 128-bit key; every use names its stream by
labels (run, client, round, purpose), so that no two clients and no two rounds draw the same noise.

Limits of a seeded stream, to be stated wherever a guarantee is reported:

* It is reproducible: anyone who knows the seed can subtract the noise. It is for tests and for
  reproducible simulation, and protects no one from those who know the seed.
* Philox passes statistical tests but is not proven to be cryptographically secure.
"""

from __future__ import annotations

import builtins
import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Protocol, overload

import numpy as np
import numpy.typing as npt
import torch

from privacy.keystream import KeyStream

Size = int | Sequence[int]
_DOMAIN = b"fedllm.privacy.randomness.v1"
_MAX_SEED_BITS = 256
_PAIRS = 1 << 14  # normals are made in chunks that stay in the cache, and below torch's thread pool


class RandomSource(Protocol):
    """Source of randomness for noise and sampling, such as numpy's `Generator` or `SecretSource`."""

    def bytes(self, length: int) -> builtins.bytes:
        """Return uniform bytes."""
        ...

    def random(self, size: Size) -> npt.NDArray[np.float64]:
        """Return uniform multiples of 2^-53 in [0, 1), float64."""
        ...

    def standard_normal(self, size: Size) -> npt.NDArray[np.float64]:
        """Return independent N(0, 1) samples, float64."""
        ...


class SecretSource:
    """Random numbers from a private keystream: no one can predict or reproduce them.

    Not picklable; safe after a fork and between threads (see `KeyStream`).
    """

    def __init__(self) -> None:
        self._stream = KeyStream()

    def bytes(self, length: int) -> builtins.bytes:
        """Return uniform bytes."""
        out = np.empty(length, dtype=np.uint8)
        self._stream.fill(out)
        return out.tobytes()

    def random(self, size: Size) -> npt.NDArray[np.float64]:
        """Return uniform multiples of 2^-53 in [0, 1), float64, of shape `size`."""
        count = size if isinstance(size, int) else math.prod(size)
        out = (self._words(count) >> np.uint64(11)).astype(np.float64)
        out *= 2.0**-53
        return out.reshape(size)

    def standard_normal(self, size: Size) -> npt.NDArray[np.float64]:
        """Return independent N(0, 1) samples, float64, of shape `size`.

        By Box and Muller (1958): sqrt(-2 ln u) * (cos, sin)(2 pi v). u is (w + 1/2) / 2^64 for a
        uniform 64-bit word w, so at least 2^-65 and never 0: no sample is beyond 9.5, and the mass
        that a true Gaussian has there is 2e-21. v has 53 bits. There is no rejection, so that the
        number of operations does not depend on the values.
        """
        out = np.empty(size, dtype=np.float64)
        flat = out.reshape(-1)
        for start in range(0, flat.size, 2 * _PAIRS):
            part = flat[start : start + 2 * _PAIRS]
            half = (part.size + 1) // 2
            part[:half], part[half:] = self._normal_pairs(half, part.size - half)
        return out

    def _normal_pairs(
        self, count: int, second: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the first numbers of `count` pairs, and the second ones of the first `second` pairs."""
        u = self._words(count).astype(np.float64)
        u += 0.5
        u *= 2.0**-64
        # torch's vectorised functions are several times as fast as numpy's
        radius = torch.from_numpy(u).log_().mul_(-2.0).sqrt_()
        angle = torch.from_numpy(self.random(count)).mul_(2.0 * math.pi)
        sine = torch.sin(angle[:second]).mul_(radius[:second])
        return angle.cos_().mul_(radius).numpy(), sine.numpy()

    def _words(self, count: int) -> npt.NDArray[np.uint64]:
        """Return uniform 64-bit words."""
        words = np.empty(count, dtype=np.uint64)
        self._stream.fill(words.view(np.uint8))
        return words

    def __repr__(self) -> str:
        return f"SecretSource({self._stream!r})"


def _encoded(parts: Iterable[str | int | bytes]) -> list[bytes]:
    """Return an injective encoding of each label: a type letter, a length and the content."""
    found = []
    for part in parts:
        if isinstance(part, str):
            tag, content = b"s", part.encode("utf-8", "surrogatepass")
        elif isinstance(part, bytes):
            tag, content = b"b", part
        elif isinstance(part, (int, np.integer)) and not isinstance(part, bool):
            tag, content = b"i", str(int(part)).encode("ascii")
        else:
            raise ValueError(f"Expected a label of type str, int or bytes, got {part!r}")
        found.append(tag + len(content).to_bytes(8, "big") + content)
    return found


@overload
def generator(seed: int, *labels: str | int | bytes) -> np.random.Generator: ...
@overload
def generator(seed: None, *labels: str | int | bytes) -> SecretSource: ...
@overload
def generator(
    seed: int | None, *labels: str | int | bytes
) -> np.random.Generator | SecretSource: ...
def generator(seed: int | None, *labels: str | int | bytes) -> np.random.Generator | SecretSource:
    """Return the random stream that belongs to a seed and to a tuple of labels.

    Args:
      seed: A whole number from 0 to 2^256 - 1: the stream is then a deterministic function of the
        seed and the labels, with a 128-bit Philox key, SHA-256(seed, labels) truncated. Different
        label tuples give independent streams; labels are length-prefixed and typed, so that
        ("ab", "c"), ("a", "bc"), (1,) and ("1",) all differ. None: a secret stream under a fresh
        256-bit key from the operating system at each call; the labels only document the use.
      labels: What the stream is for, for example ("noise", client, round).

    Returns:
      A numpy generator over a Philox bit generator, or a `SecretSource`.

    Raises:
      ValueError: The seed is negative or longer than 256 bits, or a label has another type.
    """
    encoded = _encoded(labels)
    if seed is None:
        return SecretSource()
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ValueError(f"Expected seed to be a whole number or None, got seed={seed!r}")
    seed = int(seed)
    if seed < 0 or seed.bit_length() > _MAX_SEED_BITS:
        raise ValueError(f"Expected 0 <= seed < 2^{_MAX_SEED_BITS}, got seed={seed}")
    digest = hashlib.sha256(_DOMAIN)
    digest.update(_encoded([seed])[0])
    digest.update(len(encoded).to_bytes(8, "big"))
    for part in encoded:
        digest.update(part)
    key = int.from_bytes(digest.digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))
