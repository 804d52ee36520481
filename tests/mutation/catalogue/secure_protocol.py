"""The protocol of secure sums: what a silo refuses, what its masks are derived from, and what the server recovers."""

from __future__ import annotations

from ..mutation import Mutation

_FOLDER = "fedllm/secure/"
_TESTS = "tests/fedllm/secure/"
_SERVER = f"{_TESTS}test_malicious_server.py"
_MEMBER = f"{_TESTS}test_secure_member.py"
_TOTALS = f"{_TESTS}test_secure_totals.py"
_MISSING = "tests/privacy/secure_sum/test_most_missing.py"

MUTATIONS = (
    Mutation(
        "missing-silos-are-the-drop-outs",
        "privacy/secure_sum/shares.py",
        "    limit = min(honest - 1, ",
        "    limit = min(dropouts, ",
        "Different lists for different silos are not counted: fewer honest shares are in a sum than calibration assumes.",
        (f"{_MISSING}::test_closed_forms",),
    ),
    Mutation(
        "masked-twice",
        f"{_FOLDER}record.py",
        "        if session <= self.masked:\n",
        "        if session < self.masked:\n",
        "A silo masks a session twice: the difference of the two vectors has no mask.",
        (f"{_MEMBER}::test_no_session_is_masked_twice_or_backwards",),
    ),
    Mutation(
        "masked-before-the-record",
        f"{_FOLDER}member.py",
        "            change.keep(change.state.after_mask(number, shares))\n",
        "            change.state.after_mask(number, shares)\n",
        "A masked vector leaves, and the record does not say so.",
        (f"{_MEMBER}::test_no_session_is_masked_twice_or_backwards",),
    ),
    Mutation(
        "opened-before-the-record",
        f"{_FOLDER}member.py",
        "            change.keep(after)\n",
        "            pass\n",
        "A session is opened as often as the server asks: for another list each time, until both secrets of a silo are out.",
        (f"{_MEMBER}::test_no_session_is_opened_twice_and_shares_are_forgotten",),
    ),
    Mutation(
        "opened-below-the-threshold",
        f"{_FOLDER}member.py",
        "            if len(names) < roster.threshold:\n",
        "            if not names:\n",
        "A silo opens for a list of few silos: the sum has too few shares of the noise.",
        (f"{_SERVER}::test_fewer_than_the_threshold_open_nothing",),
    ),
    Mutation(
        "both-secrets-opened",
        f"{_FOLDER}member.py",
        "        private = {peer: pair[0] for peer, pair in state.shares.items() if peer not in names}\n",
        "        private = {peer: pair[0] for peer, pair in state.shares.items()}\n",
        "A silo reveals its shares of both secrets of a silo: the server unmasks its vector.",
        (f"{_SERVER}::test_both_secrets_of_a_silo_are_never_opened",),
    ),
    Mutation(
        "no-self-mask",
        f"{_FOLDER}member.py",
        "        masks.add_mask(masked, session.self_seed(own.seed, agreed_on, self.name))\n",
        "        session.self_seed(own.seed, agreed_on, self.name)\n",
        "A late vector of a silo that was declared dropped is in clear, once its pairwise masks are known.",
        (f"{_SERVER}::test_a_drop_out_that_answered_stays_masked",),
    ),
    Mutation(
        "context-not-in-the-masks",
        f"{_FOLDER}session.py",
        'return keys.digest("agreement", roster.digest, session, context, *told)',
        'return keys.digest("agreement", roster.digest, session, *told)',
        "Silos that were given different models or settings are summed together.",
        (f"{_SERVER}::test_different_contexts_cancel_nothing",),
    ),
    Mutation(
        "advances-not-in-the-masks",
        f"{_FOLDER}session.py",
        'return keys.digest("agreement", roster.digest, session, context, *told)',
        'return keys.digest("agreement", roster.digest, session, context)',
        "Masks of silos that were told different lists of advances cancel: smaller sums than the bound says can be learned.",
        (f"{_SERVER}::test_different_lists_of_advances_cancel_nothing",),
    ),
    Mutation(
        "roster-not-in-the-masks",
        f"{_FOLDER}session.py",
        'return keys.digest("agreement", roster.digest, session, context, *told)',
        'return keys.digest("agreement", session, context, *told)',
        "Silos with different plans, so with different noise, are summed together.",
        (f"{_SERVER}::test_silos_with_different_rosters_share_no_masks",),
    ),
    Mutation(
        "session-not-in-a-packet",
        f"{_FOLDER}packets.py",
        "    where = (roster, session, sender, receiver)\n",
        "    where = (roster, sender, receiver)\n",
        "Packets of an earlier session, whose secrets were opened, are taken for those of a new one.",
        (f"{_SERVER}::test_packets_of_another_session_are_refused",),
    ),
    Mutation(
        "signatures-not-checked",
        f"{_FOLDER}member.py",
        "            for member in roster.members if self._verify is not None else ():\n",
        "            for member in ():\n",
        "A server in the middle gives every silo its own key, and reads their vectors.",
        (f"{_SERVER}::test_swapped_keys_are_refused_by_pinned_keys",),
    ),
    Mutation(
        "another-roster-in-the-run",
        f"{_FOLDER}member.py",
        "                if Roster.from_text(state.roster).digest != roster.digest:\n",
        "                if False:\n",
        "A server changes the plan of a run, and the silo takes it for the one it joined.",
        (f"{_MEMBER}::test_the_roster_is_fixed_for_the_run",),
    ),
    Mutation(
        "quorums-without-a-common-honest-silo",
        f"{_FOLDER}roster.py",
        "        if 2 * self.drop_outs >= n - self.colluding:\n",
        "        if 2 * self.drop_outs > n:\n",
        "So many may drop out or collude that two groups of silos open both secrets of one.",
        (f"{_TESTS}test_secure_messages.py::test_a_roster_out_of_range_is_refused",),
    ),
    Mutation(
        "shares-below-the-threshold",
        f"{_FOLDER}shamir.py",
        "    drawn = stream.update(bytes(_COEFFICIENT_BYTES * (threshold - 1)))\n",
        "    drawn = stream.update(bytes(_COEFFICIENT_BYTES * max(threshold - 2, 0)))\n",
        "One share fewer than the threshold restores a secret.",
        (
            f"{_TESTS}test_secure_primitives.py::test_coefficients_are_as_many_as_the_threshold_and_differ_by_seed",
        ),
    ),
    Mutation(
        "record-readable-by-others",
        "fedllm/files/private.py",
        "            stream.flush()\n            os.fsync(stream.fileno())\n        os.replace(partial, path)",
        "            stream.flush()\n            os.fchmod(stream.fileno(), 0o644)\n        os.replace(partial, path)",
        "Other users of the silo's machine read the secrets of its masks.",
        (f"{_MEMBER}::test_the_record_is_private_and_of_one_silo_and_run",),
    ),
    Mutation(
        "record-without-a-lock",
        f"{_FOLDER}record.py",
        "            lock.acquire()\n",
        "            pass\n",
        "Two processes mask one session with different vectors.",
        (f"{_MEMBER}::test_of_processes_that_race_one_masks",),
    ),
    Mutation(
        "wrong-shares-taken",
        f"{_FOLDER}sums.py",
        "                    if got == mark:\n",
        "                    if got:\n",
        "One silo with a wrong share loses a sum that the others could open.",
        (f"{_TOTALS}::test_wrong_shares_are_left_out_where_enough_are_right",),
    ),
    Mutation(
        "wrong-secret-taken",
        f"{_FOLDER}sums.py",
        "        if not right:\n",
        "        if False:\n",
        "A dealer of wrong shares turns the sum into noise, and nobody is told.",
        (f"{_TOTALS}::test_a_dealer_whose_shares_restore_another_secret_is_named",),
    ),
    Mutation(
        "masks-of-drop-outs-left-in",
        f"{_FOLDER}sums.py",
        "            masks.add_mask(total, seed, -session.sign_of(name, gone))\n",
        "            masks.add_mask(total, seed, session.sign_of(name, gone))\n",
        "After a drop-out the sum is wrong.",
        (f"{_TOTALS}::test_every_sum_is_exact_while_at_most_t_silos_drop_out",),
    ),
)
