"""Keys, masks, packets and shares: standard vectors, independent oracles, bounds."""

from __future__ import annotations

import hmac
from hashlib import sha256
from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.secure import keys, masks, packets, shamir
from fedllm.secure.errors import SumRefused

SEED = bytes(range(32))


def test_agreement_is_x25519():
    """RFC 7748, section 6.1."""
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert keys.agree(alice, keys.public_key(bob)).hex() == shared
    assert keys.agree(bob, keys.public_key(alice)).hex() == shared


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31)])
def test_a_key_of_small_order_is_refused(point):
    with pytest.raises(SumRefused, match="full order"):
        keys.agree(SEED, point)


def test_derivation_is_hkdf_sha256():
    """RFC 5869 by hand: extract, then one block of expand."""
    info = b"".join(len(p).to_bytes(8, "big") + p for p in (b"why", b"12", b"\xff"))
    extracted = hmac.digest(b"fedllm secure sum v1", SEED, sha256)
    assert keys.derive(SEED, "why", 12, b"\xff") == hmac.digest(extracted, info + b"\1", sha256)


@given(st.lists(st.text(max_size=3), max_size=3), st.lists(st.text(max_size=3), max_size=3))
def test_joined_parts_tell_where_they_begin(one, other):
    assert (keys.joined(*one) == keys.joined(*other)) == (one == other)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("size", [0, 1, 5, (1 << 20) // 8, (1 << 18) + 3])
def test_a_mask_is_the_key_stream_and_goes_away(bits, size):
    word = bits // 8
    counters = b"".join(i.to_bytes(16, "big") for i in range(-(-size * word // 16)))
    block = Cipher(algorithms.AES256(SEED), modes.ECB()).encryptor()
    wanted = np.frombuffer(block.update(counters)[: size * word], f"<u{word}")
    vector = np.random.default_rng(1).integers(0, 2**bits, size, f"uint{bits}")
    total = vector.copy()
    masks.add_mask(total, SEED)
    assert (total - vector == wanted).all()
    masks.add_mask(total, SEED, -1)
    assert (total == vector).all()


def test_the_field_is_of_prime_size_just_above_256_bits():
    assert shamir.PRIME > 2**256
    for base in range(2, 60):  # Miller-Rabin
        odd, twos = shamir.PRIME - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        seen = [pow(base, odd * 2**i, shamir.PRIME) for i in range(twos)]
        assert seen[0] == 1 or shamir.PRIME - 1 in seen


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.data())
def test_k_shares_restore_a_secret(secret, n, data):
    k = data.draw(st.integers(1, n))
    shares = shamir.split(secret, n, k, SEED)
    assert shares == shamir.split(secret, n, k, SEED)
    points = data.draw(st.permutations(range(1, n + 1)))[:k]
    weights = shamir.weights_at_zero(points)
    assert shamir.restore({p: shares[p - 1] for p in points}, weights) == secret


@pytest.mark.parametrize("k", [2, 3, 4])
def test_fewer_shares_than_k_fit_every_secret(k):
    """k - 1 shares and any other secret lie on one polynomial of degree k - 1 too; so k - 1 shares tell nothing."""
    secret, other = b"\x01" * 32, b"\xfe" * 32
    for kind in (SEED, bytes(32)):
        shares = shamir.split(secret, 5, k, kind)
        for points in combinations(range(1, 6), k - 1):
            free = next(p for p in range(1, 6) if p not in points)
            weights = shamir.weights_at_zero([*points, free])
            known = sum(int.from_bytes(shares[p - 1], "big") * weights[p] for p in points)
            left = int.from_bytes(other, "big") - known
            value = left * pow(weights[free], -1, shamir.PRIME) % shamir.PRIME
            forged = {p: shares[p - 1] for p in points} | {free: value.to_bytes(33, "big")}
            assert shamir.restore(forged, weights) == other


def test_coefficients_are_as_many_as_the_threshold_and_differ_by_seed():
    one, other = (shamir.split(b"\x05" * 32, 6, 3, seed) for seed in (SEED, bytes(32)))
    assert not set(one) & set(other)
    for points in combinations(range(1, 7), 2):  # two shares of three give another value
        weights = shamir.weights_at_zero(points)
        value = sum(int.from_bytes(one[p - 1], "big") * w for p, w in weights.items())
        assert value % shamir.PRIME != int.from_bytes(b"\x05" * 32, "big")


@pytest.mark.parametrize(("secret", "n", "k"), [(b"", 3, 2), (SEED, 3, 0), (SEED, 3, 4)])
def test_bad_parameters_of_shares_are_refused(secret, n, k):
    with pytest.raises(ValueError, match="Expected"):
        shamir.split(secret, n, k, SEED)


def test_shares_of_no_secret_are_refused():
    with pytest.raises(SumRefused, match="another value"):
        shamir.restore({1: (2**256 + 5).to_bytes(33, "big")}, shamir.weights_at_zero([1]))


def test_a_packet_opens_for_whom_it_was_sealed_alone():
    right = (SEED, b"roster", 3, "a", "b")
    packet = packets.seal(*right, b"text")
    assert packets.unseal(*right, packet) == b"text"
    for place, other in enumerate((bytes(32), b"r", 4, "c", "a")):
        wrong = [*right[:place], other, *right[place + 1 :]]
        with pytest.raises(SumRefused, match="Expected a packet of silo"):
            packets.unseal(*wrong, packet)
    for damaged in (b"", packet[:-1], packet[:-1] + bytes([packet[-1] ^ 1]), bytes(len(packet))):
        with pytest.raises(SumRefused, match="Expected a packet of silo"):
            packets.unseal(*right, damaged)
