"""Secure sums in a run: the silo's and the server's part around the protocol."""

from __future__ import annotations

from ..mutation import Mutation

_SILO = "tests/fedllm/silo/test_secure_sum.py"
_HOSTILE = "tests/hostile/test_hostile_sums.py"
_EXTENSION = "fedllm/silo/extensions/secure_sum.py"

MUTATIONS = (
    Mutation(
        "sum-leaves-unmasked",
        _EXTENSION,
        "        return replace(result, update={SUM: tensor_of(masked)})\n",
        "        return result\n",
        "The integers leave under the silo's own share alone.",
        (f"{_SILO}::test_what_leaves_is_masked_and_its_row_is_there_before",),
    ),
    Mutation(
        "sum-plan-not-in-fingerprint",
        _EXTENSION,
        "        return _Plan(roster.names, plan, roster.noise_multiplier).fingerprint()\n",
        "        return _Plan((), (), 1.0).fingerprint()\n",
        "With seeded randomness one noise meets two values: of two plans.",
        (f"{_SILO}::test_keys_and_packets_are_no_input_of_the_release",),
    ),
    Mutation(
        "sum-session-tried-after-the-row",
        _EXTENSION,
        "            self.member.require_ready(task.extras[names.SESSION], packets)\n",
        "",
        "A task that no mask can be made for spends.",
        (f"{_SILO}::test_a_session_is_masked_once_whichever_process_answers",),
    ),
    Mutation(
        "sum-plan-not-checked",
        _EXTENSION,
        "        if got != wanted:\n",
        "        if len(got) != len(wanted):\n",
        "The server chooses how many silos may be missing or collude.",
        (f"{_SILO}::test_a_plan_that_the_silo_does_not_have_is_refused",),
    ),
    Mutation(
        "sum-noise-not-common",
        _EXTENSION,
        "                self._fit(roster, account)\n                return\n",
        "                return\n",
        "An evaluation fixes a plan for other noise than that of the sums.",
        (f"{_SILO}::test_an_evaluation_is_planned_with_the_noise_of_the_sums",),
    ),
    Mutation(
        "peers-not-verified",
        "client/identity.py",
        "        return verifier(pinned)(name, text, signature)\n",
        "        return True\n",
        "A server that puts itself between two silos reads what they mask.",
        (f"{_HOSTILE}::test_a_swapped_key_an_unknown_silo_and_another_roster_are_refused",),
    ),
    Mutation(
        "sum-law-without-noise",
        "server/robust/sum_law.py",
        "    steps = noise.bound(records * plan.sensitivity, exponent)\n",
        "    steps = records * plan.sensitivity\n",
        "Sums of honest silos are refused.",
        ("tests/server/test_sum_law.py",),
    ),
)
