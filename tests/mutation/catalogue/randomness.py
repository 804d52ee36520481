"""Streams of random numbers: their keys, and who shares them."""

from __future__ import annotations

from ..mutation import Mutation

_RANDOMNESS = "tests/privacy/test_randomness.py"
_KEYSTREAM = "tests/privacy/test_keystream.py"
_DISCRETE = "tests/privacy/mechanisms/test_discrete_gaussian.py"
_NOISE = "tests/privacy/mechanisms/test_noise.py"
_WORKER = "tests/fedllm/silo/test_silo_worker.py"
_SHARED = f"{_WORKER}::test_no_two_silos_rounds_runs_or_values_share_noise"
_STREAMS = "tests/fedllm/silo/test_worker_streams.py"
_FIXED = "fixed = (self.silo.name, server_round, digest)"

MUTATIONS = (
    Mutation(
        "seed-of-32-bits",
        "privacy/randomness.py",
        "digest.digest()[:16]",
        "digest.digest()[:4]",
        "Noise keyed by 32 bits: whoever sees a release tries all keys and subtracts the noise.",
        (_RANDOMNESS,),
    ),
    Mutation(
        "labels-run-together",
        "privacy/randomness.py",
        'found.append(tag + len(content).to_bytes(8, "big") + content)',
        "found.append(tag + content)",
        "Labels without lengths: silo (a, bc) and silo (ab, c) draw the same noise.",
        ("tests/privacy/test_labels.py",),
    ),
    Mutation(
        "same-stream-at-two-silos",
        "fedllm/silo/silo_in_run.py",
        _FIXED,
        "fixed = (server_round, digest)",
        "Two silos with equal data draw equal noise: the difference of their updates is bare.",
        (_SHARED,),
    ),
    Mutation(
        "same-stream-in-two-rounds",
        "fedllm/silo/silo_in_run.py",
        _FIXED,
        "fixed = (self.silo.name, digest)",
        "Two rounds at the same parameters draw the same noise, and are counted as two releases.",
        (_SHARED,),
    ),
    Mutation(
        "same-noise-on-two-values",
        "fedllm/silo/silo_in_run.py",
        _FIXED,
        "fixed = (self.silo.name, server_round)",
        "A repeated round at other parameters or data draws the same noise: the difference is bare.",
        (_SHARED,),
    ),
    Mutation(
        "same-noise-at-two-scales",
        "fedllm/silo/silo_in_run.py",
        "noise_multiplier=float(noise_multiplier),",
        "noise_multiplier=0.0,",
        "Equal settings beside another history: the same noise at two scales, which cancels.",
        (f"{_WORKER}::test_equal_settings_at_another_scale_of_noise_meet_other_noise",),
    ),
    Mutation(
        "streams-blind-to-the-purpose",
        "fedllm/silo/silo_in_run.py",
        "generator(self.settings.seed, *fixed, purpose, step)",
        "generator(self.settings.seed, *fixed, step)",
        "Sampling and noise of a step come from one stream: who knows a batch knows its noise.",
        (_STREAMS,),
    ),
    Mutation(
        "unsecret-sampling",
        "fedllm/silo/silo_in_run.py",
        "            return lambda purpose, step: generator(None)\n",
        "            return lambda purpose, step: (\n"
        '                generator(self.settings.seed, purpose, step) if purpose == "sample" else generator(None)\n'
        "            )\n",
        "With randomness=os the batches still follow from the seed, which the server knows: no "
        "amplification by sampling.",
        (_STREAMS,),
    ),
    Mutation(
        "unsecret-noise",
        "fedllm/silo/silo_in_run.py",
        "            return lambda purpose, step: generator(None)\n",
        "            return lambda purpose, step: generator(self.settings.seed, purpose, step)\n",
        "With randomness=os the noise still follows from the seed, which the server knows.",
        (f"{_WORKER}::test_repetition_with_fresh_noise_costs_a_row",),
    ),
    Mutation(
        "secret-noise-of-32-bits",
        "privacy/randomness.py",
        "    if seed is None:\n        return SecretSource()\n",
        "    if seed is None:\n"
        '        key = int.from_bytes(SecretSource().bytes(4), "little")\n'
        "        return np.random.Generator(np.random.Philox(key=key))\n",
        "The default noise is one of 2^32: whoever sees a release tries them all.",
        (_RANDOMNESS, _KEYSTREAM),
    ),
    Mutation(
        "keystream-counter-reused",
        "privacy/keystream.py",
        "        cipher.update_into(_ZEROS, self._buffer.data)\n",
        "        cipher.update_into(_ZEROS, self._buffer.data)\n"
        "        self._buffer[:_KEY] = np.frombuffer(key, dtype=np.uint8)\n",
        "Each refill starts the same counter under the same key: noise repeats every 64 KiB, and the "
        "difference of two steps is bare.",
        (_KEYSTREAM, _RANDOMNESS),
    ),
    Mutation(
        "keystream-key-of-32-bits",
        "privacy/keystream.py",
        "np.frombuffer(os.urandom(_KEY), dtype=np.uint8)",
        "np.frombuffer(os.urandom(4) * (_KEY // 4), dtype=np.uint8)",
        "AES-256 under one of 2^32 keys.",
        ("tests/privacy/test_keystream_key.py",),
    ),
    Mutation(
        "keystream-shared-after-a-fork",
        "privacy/keystream.py",
        "        self._process = os.getpid()\n        self._buffer[:] = 0\n",
        "        self._process = os.getpid()\n"
        '        if hasattr(self, "_next"):\n            return\n        self._buffer[:] = 0\n',
        "Two silos forked from one process draw the same noise.",
        (_KEYSTREAM, _RANDOMNESS),
    ),
    Mutation(
        "keystream-remembers",
        "privacy/keystream.py",
        "                given[:] = 0\n",
        "                pass\n",
        "Noise that was handed out stays in memory, where a later break-in finds it.",
        (_KEYSTREAM, _RANDOMNESS),
    ),
    Mutation(
        "keystream-can-be-copied",
        "privacy/keystream.py",
        "    def __reduce_ex__(self, protocol: object) -> NoReturn:\n",
        "    def _refuse(self, protocol: object) -> NoReturn:\n",
        "A stream sent to two workers gives both the same noise.",
        (_KEYSTREAM, _RANDOMNESS),
    ),
    Mutation(
        "pairs-of-equal-samples",
        "privacy/randomness.py",
        "sine = torch.sin(angle[:second])",
        "sine = torch.cos(angle[:second])",
        "Each sample is drawn twice: the difference of two entries of a gradient is bare.",
        ("tests/privacy/mechanisms/test_secret_normals.py",),
    ),
    Mutation(
        "one-draw-a-sample",
        "privacy/mechanisms/gaussian.py",
        "_DRAWS = 4\n",
        "_DRAWS = 1\n",
        "The sampler can be inverted: the low-order bits of a noisy number tell the noiseless one.",
        (f"{_NOISE}::test_four_draws_make_a_sample", _NOISE),
    ),
    Mutation(
        "no-rounding-to-the-grid",
        "privacy/mechanisms/gaussian.py",
        "    noisy.div_(spacing).round_().mul_(spacing)",
        "    noisy.div_(spacing).mul_(spacing)",
        "The low-order bits of value and noise leave, and their precision tells the value.",
        (_NOISE,),
    ),
    Mutation(
        "discrete-gaussian-at-half-sigma",
        "privacy/mechanisms/discrete_gaussian.py",
        "    variance = _variance(sigma)\n",
        "    variance = _variance(sigma) / 4\n",
        "Whole numbers leave with half the noise that their event says.",
        (_DISCRETE,),
    ),
    Mutation(
        "discrete-gaussian-prefers-zero",
        "privacy/mechanisms/discrete_gaussian.py",
        "        kept = ~(negative & (value == 0))\n",
        "        kept = value >= 0\n",
        "Zero is drawn twice as often as it should be: the exact count shows through.",
        (_DISCRETE,),
    ),
    Mutation(
        "discrete-gaussian-for-sensitivity-one",
        "privacy/mechanisms/discrete_gaussian.py",
        "noise_multiplier * int(sensitivity), rng)",
        "noise_multiplier, rng)",
        "The noise does not grow with what one record can change.",
        (_DISCRETE,),
    ),
)
