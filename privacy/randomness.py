"""Independent random streams, keyed by a seed and by labels.

Every use of randomness names its stream by labels (run, client, round, purpose), so that no two
clients and no two rounds ever draw the same noise. The streams are Philox-4x64 counters (Salmon et
al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with a 128-bit key.

Limits, to be stated wherever a guarantee is reported:

* A seeded stream is reproducible: whoever knows the seed can subtract the noise. It is for tests
  and for reproducible simulation, and protects nobody from those who know the seed.
* Philox passes statistical tests but is not proven to be cryptographically secure.
"""

from __future__ import annotations

import hashlib
import secrets

import numpy as np

_DOMAIN = b"fedllm.privacy.randomness.v1"
_MAX_SEED_BITS = 256


def _encode(part: str | int | bytes) -> bytes:
    """Return an injective encoding of one label: a type letter, a length and the content."""
    if isinstance(part, bool):
        raise ValueError(f"Expected a label of type str, int or bytes, got {part!r}")
    if isinstance(part, str):
        tag, content = b"s", part.encode("utf-8", "surrogatepass")
    elif isinstance(part, bytes):
        tag, content = b"b", part
    elif isinstance(part, (int, np.integer)):
        tag, content = b"i", str(int(part)).encode("ascii")
    else:
        raise ValueError(f"Expected a label of type str, int or bytes, got {part!r}")
    return tag + len(content).to_bytes(8, "big") + content


def generator(seed: int | None, *labels: str | int | bytes) -> np.random.Generator:
    """Return the random stream that belongs to a seed and to a tuple of labels.

    Args:
      seed: A whole number from 0 to 2^256 - 1: the stream is then a deterministic function of the
        seed and the labels, with a 128-bit Philox key, SHA-256(seed, labels) truncated. Different
        label tuples give independent streams; labels are length-prefixed and typed, so that
        ("ab", "c"), ("a", "bc"), (1,) and ("1",) all differ. None: 128 fresh bits from the
        operating system at each call; the labels then only document the use.
      labels: What the stream is for, for example ("noise", client, round).

    Returns:
      A numpy generator over a Philox bit generator.

    Raises:
      ValueError: The seed is negative or longer than 256 bits, or a label has another type.
    """
    encoded = [_encode(label) for label in labels]
    if seed is None:
        return np.random.Generator(np.random.Philox(key=secrets.randbits(128)))
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise ValueError(f"Expected seed to be a whole number or None, got seed={seed!r}")
    seed = int(seed)
    if seed < 0 or seed.bit_length() > _MAX_SEED_BITS:
        raise ValueError(f"Expected 0 <= seed < 2^{_MAX_SEED_BITS}, got seed={seed}")
    digest = hashlib.sha256(_DOMAIN)
    digest.update(_encode(seed))
    digest.update(len(encoded).to_bytes(8, "big"))
    for part in encoded:
        digest.update(part)
    key = int.from_bytes(digest.digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))
