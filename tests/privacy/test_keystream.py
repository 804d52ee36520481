"""The secret source: a cipher's keystream that is never repeated, shared, saved or seeded."""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
import random
import signal
import sys
import threading
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from privacy.keystream import KeyStream
from privacy.mechanisms.gaussian import gaussian
from privacy.randomness import SecretSource, generator

REFILL = 1 << 16
CHUNK = 1 << 15
RARE = 1e-7  # of a false alarm: the source cannot be seeded
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def take(stream: KeyStream, count: int) -> bytes:
    out = np.empty(count, dtype=np.uint8)
    stream.fill(out)
    return out.tobytes()


def blocks(data: bytes) -> np.ndarray:
    """The blocks of 16 bytes, each as one value."""
    return np.frombuffer(data, dtype=np.dtype("V16"))


def distinct(*data: bytes) -> bool:
    every = np.concatenate([blocks(d) for d in data])
    return len(set(every.tolist())) == len(every)


def expected(key: bytes, refills: int) -> bytes:
    """What the docstring says, by other means: the blocks 0, 1, 2, ... encrypted one by one."""
    found = b""
    for _ in range(refills):
        counters = b"".join(i.to_bytes(16, "big") for i in range((32 + REFILL) // 16))
        out = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters)
        key, handed_out = out[:32], out[32:]
        found += handed_out
    return found


def test_bytes_are_those_of_aes_256_in_counter_mode_with_key_erasure():
    stream = KeyStream()
    key = stream._buffer[:32].tobytes()
    sizes = [1, 16, 7, REFILL - 24, 0, 5, 2 * REFILL + 3]
    got = b"".join(take(stream, n) for n in sizes)
    assert len(got) > 3 * REFILL
    assert got == expected(key, 4)[: len(got)]


def test_no_block_comes_twice_from_one_stream_or_from_two():
    assert distinct(*(take(KeyStream(), 8 * REFILL) for _ in range(4)))
    assert distinct(*(take(KeyStream(), 32) for _ in range(2000)))


def in_child(draw: Callable[[], bytes], fork: Callable[[], int] = os.fork) -> bytes:
    """What a forked process gets."""
    read, write = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            signal.alarm(30)  # a child that waits for a lock for ever
            os.write(write, draw())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        got = pipe.read()
    os.waitpid(pid, 0)
    return got


@needs_fork
@pytest.mark.parametrize("used", [0, 100, REFILL])
def test_two_processes_after_a_fork_share_nothing(used):
    stream = KeyStream()
    take(stream, used)
    first, second = (in_child(lambda: take(stream, 4096)) for _ in range(2))
    # and a grandchild
    third = in_child(lambda: in_child(lambda: take(stream, 4096)))
    assert len(first) == len(second) == len(third) == 4096
    assert distinct(first, second, third, take(stream, 4 * REFILL))


@needs_fork
def test_a_source_in_use_gives_a_child_other_normals():
    source = generator(None)
    source.standard_normal(3)
    child = np.frombuffer(in_child(lambda: source.standard_normal(500).tobytes()))
    parent = source.standard_normal(500)
    assert child.size == 500
    assert not set(child.tolist()) & set(parent.tolist())


@needs_fork
def test_a_fork_while_another_thread_draws_neither_hangs_nor_shares():
    stream = KeyStream()
    take(stream, 16)
    stream._lock.acquire()
    child = in_child(lambda: take(stream, 4096))
    stream._lock.release()
    assert len(child) == 4096
    assert distinct(child, take(stream, 2 * REFILL))


@pytest.mark.skipif(sys.platform != "linux", reason="calls the C library's fork")
def test_a_fork_that_python_is_not_told_of():
    fork = ctypes.PyDLL(None).fork
    stream = KeyStream()
    take(stream, 16)
    child = in_child(lambda: take(stream, 4096), fork)
    assert len(child) == 4096
    assert distinct(child, take(stream, 2 * REFILL))


def test_threads_draw_different_bytes():
    stream = KeyStream()
    got: list[bytes] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda: got.extend(take(stream, 4096) for _ in range(400)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(got) == 1600
    assert distinct(*got)


@pytest.mark.parametrize("make", [KeyStream, SecretSource, lambda: [generator(None)]])
def test_nothing_can_pickle_it(make):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            pickle.dumps(make(), protocol)
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        copy.deepcopy(make())


def test_a_stream_cannot_be_copied_and_a_copied_source_is_the_same_stream():
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        copy.copy(KeyStream())
    source = SecretSource()
    assert distinct(source.bytes(4096), copy.copy(source).bytes(4096), source.bytes(4096))


def test_keys_and_what_was_handed_out_are_overwritten():
    stream = KeyStream()
    buffer = stream._buffer
    keys, given = [buffer[:32].tobytes()], []
    for _ in range(3):
        given.append(take(stream, REFILL))
        keys.append(buffer[:32].tobytes())
        memory = buffer.tobytes()
        assert all(old not in memory for old in keys[:-1])
        assert not distinct(given[-1], given[-1])
        assert not buffer[32:].any()
    assert keys[-1].hex() not in repr(stream) + str(SecretSource())
    assert "AES-256-CTR" in repr(stream)
    del stream
    assert not buffer.any()


def test_no_seed_of_any_library_is_used():
    def draws() -> list[float]:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        source = generator(None, "noise", 1)
        return [*source.standard_normal(50), *source.random(50), *gaussian(50, 1.0, source)]

    first, second = draws(), draws()
    assert isinstance(generator(None), SecretSource)
    assert not set(first) & set(second)


def test_uniform_numbers_have_53_balanced_bits():
    sample = SecretSource().random((1000, 1000))
    assert sample.shape == (1000, 1000)
    assert sample.min() >= 0
    assert sample.max() < 1
    whole = sample.ravel() * 2.0**53
    assert np.array_equal(whole, np.floor(whole))
    assert stats.kstest(sample.ravel(), "uniform").pvalue > RARE
    words = whole.astype(np.uint64)
    ones = [int(((words >> np.uint64(bit)) & np.uint64(1)).sum()) for bit in range(53)]
    assert np.abs(np.array(ones) - 5e5).max() < 6 * 500


def faults(sample: np.ndarray) -> list[str]:
    """Names of the tests that a sequence of about 10^6 independent N(0, 1) samples would fail."""
    n = sample.size
    sphere = 6 / n**0.5
    low, high = stats.chi2.ppf([RARE, 1 - RARE], n)
    tails = [3.0, 4.0, 4.6]
    seen = [int((np.abs(sample) > t).sum()) for t in tails]
    rows = sample[: n // 50 * 50].reshape(-1, 50)
    covariance = np.linalg.eigvalsh(rows.T @ rows / len(rows))
    edge = (50 / len(rows)) ** 0.5
    squares = sample**2 - 1
    lags = [1, 2, 3, CHUNK // 2, CHUNK]
    found = {
        "distribution": stats.kstest(sample, "norm").pvalue < RARE,
        "mean": abs(sample.mean()) > sphere,
        "variance": not low < float((sample**2).sum()) < high,
        "kurtosis": abs((sample**4).mean() - 3) > sphere * 96**0.5,
        "tails": any(
            stats.binomtest(k, n, 2 * stats.norm.sf(t)).pvalue < RARE
            for k, t in zip(seen, tails, strict=True)
        ),
        "correlation": any(abs((sample[k:] * sample[:-k]).mean()) > sphere for k in lags),
        "radius": any(abs((squares[k:] * squares[:-k]).mean()) > 2 * sphere for k in lags),
        "covariance": covariance[0] < (1 - edge) ** 2 - 0.04
        or covariance[-1] > (1 + edge) ** 2 + 0.04,
        "repetition": len(np.unique(sample)) < n,
    }
    return [name for name, failed in found.items() if failed]


def test_normals_pass():
    assert faults(SecretSource().standard_normal(1_000_000)) == []


def test_normals_of_many_small_requests_pass():
    source = SecretSource()
    assert faults(np.concatenate([source.standard_normal(n) for n in [99, 100, 101] * 3334])) == []


def test_sums_of_four_pass():
    assert faults(gaussian(1_000_000, 1.0, SecretSource())) == []


def damaged() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    z = rng.standard_normal(1_000_000)
    angles = 2 * np.pi * rng.random((500_000, 2))
    radius = np.sqrt(-2 * np.log1p(-rng.random((500_000, 1))))
    return {
        "variance": z * 1.005,
        "mean": z + 0.007,
        "distribution": np.round(z * 64) / 64,
        "kurtosis": rng.standard_t(50, size=z.size) * (48 / 50) ** 0.5,
        "tails": np.clip(z, -3.9, 3.9),
        "correlation": (z + 0.01 * np.roll(z, 1)) / (1 + 1e-4) ** 0.5,
        # one radius with two angles that are not a right angle apart
        "radius": (radius * np.cos(angles)).ravel(),
        "covariance": (z.reshape(-1, 50) + 0.1 * z.reshape(-1, 50)[:, :1]).ravel(),
        "repetition": np.concatenate([z[:999_000], z[:1000]]),
    }


def test_each_of_these_tests_finds_its_fault():
    missed = {name for name, sample in damaged().items() if name not in faults(sample)}
    assert missed == set()


@pytest.mark.parametrize("size", [0, 1, 2, 3, (), (3, 5), (0, 4), CHUNK + 1, 2 * CHUNK - 1])
def test_shapes(size):
    for draw in (SecretSource().standard_normal, SecretSource().random):
        sample = draw(size)
        assert sample.shape == np.empty(size).shape
        assert sample.dtype == np.float64
        assert np.all(np.isfinite(sample))
        assert len(np.unique(sample)) == sample.size


@pytest.mark.parametrize(("byte", "largest"), [(0x00, 9.49258), (0xFF, 0.0)])
def test_extreme_words_give_finite_normals(byte, largest):
    """The smallest and the largest word: the logarithm of 0 is never taken."""

    class Constant(KeyStream):
        def fill(self, out):
            out[:] = byte

    source = SecretSource()
    source._stream = Constant()
    assert np.abs(source.standard_normal(8)).max() == pytest.approx(largest, abs=1e-4)
    assert source.random(3).tolist() == [0.0 if byte == 0 else 1 - 2.0**-53] * 3


def test_memory_is_bounded_by_the_result():
    source = SecretSource()
    tracemalloc.start()
    source.standard_normal(4_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 32e6 <= peak < 33e6
