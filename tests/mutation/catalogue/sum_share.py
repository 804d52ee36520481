"""A silo's share of a sum: its integers, its noise, its count, its views and the terms it keeps to."""

from __future__ import annotations

from ..mutation import Mutation

_MECHANISM = "fedllm/training/sum_share/mechanism.py"
_TESTS = "tests/fedllm/training/test_sum_share.py"
_ROUNDING = "tests/privacy/secure_sum/test_contributions.py"
_ACCOUNT = "tests/fedllm/budget/test_sum_account.py"
_COST = f"{_TESTS}::test_a_round_costs_at_most_the_gaussian_that_was_calibrated_and_hardly_less"
_MOVES = f"{_TESTS}::test_one_example_moves_a_silo_s_integers_by_at_most_the_sensitivity"

MUTATIONS = (
    Mutation(
        "share-of-more-silos-than-there-are",
        _MECHANISM,
        "            self.silos,\n            dropouts=self.dropouts,\n",
        "            self.silos + 1,\n            dropouts=self.dropouts,\n",
        "Shares are made for one silo more: the sum has less noise than is recorded.",
        (f"{_TESTS}::test_the_share_is_what_the_event_says", _COST),
    ),
    Mutation(
        "share-smaller-than-its-event",
        _MECHANISM,
        "draw_share(self.entries, plan.sigma, rng)",
        "draw_share(self.entries, plan.sigma * 9 // 10, rng)",
        "The share that is drawn is smaller than the one in the ledger.",
        (f"{_TESTS}::test_the_mean_of_a_sum_is_that_of_clipped_updates_and_its_noise",),
    ),
    Mutation(
        "count-with-the-weight-of-a-vector",
        _MECHANISM,
        "        steps = math.floor(math.ldexp(count_weight(self.count_share), -self.shares.exponent))\n",
        "        steps = math.floor(math.ldexp(1.0, -self.shares.exponent))\n",
        "The count moves by more than the noise was made for.",
        (_MOVES,),
    ),
    Mutation(
        "count-left-out-of-the-norm",
        _MECHANISM,
        "            norm *= math.sqrt(1 + count_weight(self.count_share) ** 2)\n",
        "            norm *= 1.0\n",
        "Vector and count together are longer than the sensitivity.",
        (_MOVES,),
    ),
    Mutation(
        "count-weight-of-another-share",
        "privacy/secure_sum/contributions.py",
        "    return math.sqrt(share / (1 - share))\n",
        "    return share / (1 - share)\n",
        "The count gets another part of the cost than the settings say.",
        (f"{_ROUNDING}::test_vector_and_count_are_one_vector_within_the_sensitivity",),
    ),
    Mutation(
        "records-not-clipped-before-rounding",
        "privacy/secure_sum/contributions.py",
        "        scale = coefficients * factor / clip * 2.0**-exponent  # the power of two is exact\n",
        "        scale = torch.ones_like(coefficients) * factor / clip * 2.0**-exponent\n",
        "A record's integers are as long as it likes.",
        (f"{_ROUNDING}::test_one_record_moves_the_sum_by_its_own_integers_alone", _MOVES),
    ),
    Mutation(
        "server-given-the-view-of-sums",
        "privacy/events/views.py",
        '    views = {"outsider": whole, "sum-only": whole, "server": alone}\n',
        '    views = {"outsider": whole, "sum-only": whole, "server": whole}\n',
        "A server that sees each message is said to face the noise of the whole sum.",
        (f"{_ACCOUNT}::test_the_budget_is_used_up_against_the_server_that_learns_sums",),
    ),
    Mutation(
        "colluding-silos-share-counted-in-sums",
        "privacy/events/views.py",
        '        views[Adversary(f"sum-only:{m}")] = seen(unknown_shares(silos, dropouts, m))\n',
        '        views[Adversary(f"sum-only:{m}")] = whole\n',
        "Silos that collude are said not to know their own noise.",
        (f"{_ACCOUNT}::test_the_budget_is_used_up_against_the_server_that_learns_sums",),
    ),
    Mutation(
        "common-noise-below-the-silo-s-own",
        "fedllm/budget/sums/terms.py",
        "        if not self.noise_multiplier >= own:\n",
        "        if False:\n",
        "The server names less noise than the silo's budget asks for, and the silo adds it.",
        (f"{_ACCOUNT}::test_a_common_noise_is_never_below_the_silo_s_own",),
    ),
    Mutation(
        "other-terms-after-a-resume",
        "fedllm/budget/sums/terms.py",
        "        if stored is not None and stored.text() != self.text():\n",
        "        if False:\n",
        "A resumed run goes on with another number of silos, and so with smaller shares.",
        (f"{_ACCOUNT}::test_a_resumed_run_keeps_its_terms",),
    ),
    Mutation(
        "own-budget-against-sums-without-being-asked",
        "fedllm/budget/local_policy.py",
        '            SERVER if self.against == "server" else sum_only(self.colluding),\n',
        "            sum_only(self.colluding),\n",
        "A silo that trusts no protocol has its budget kept by the noise of others.",
        (
            f"{_ACCOUNT}::test_a_silo_s_own_budget_holds_by_its_share_alone_unless_it_says_otherwise",
        ),
    ),
    Mutation(
        "several-steps-in-a-sum",
        "fedllm/settings/checks/secure_sum.py",
        "            example and client.local_steps != 1,\n",
        "            False,\n",
        "A second local step amplifies the first one under one share of noise alone.",
        ("tests/fedllm/training/test_two_steps.py::test_the_settings_refuse_it",),
    ),
)
