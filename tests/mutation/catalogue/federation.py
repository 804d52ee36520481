"""The server: checks, weights, and the trusted server's noise."""

from __future__ import annotations

from ..mutation import Mutation

_AGGREGATION = "tests/server/test_aggregation.py"
_TRUSTED = "tests/server/test_central_noise.py"
_SIZE = f"{_TRUSTED}::test_noise_and_divisor_do_not_depend_on_who_answered"
_RUN = "tests/integration/test_run.py"
_FAILURES = "tests/integration/test_run_failures.py"
_RELEASE = "flat = _central(mechanism).add_noise(flat, rng) / self.expected"

_DRAWS = "tests/server/test_silo_draws.py"

MUTATIONS = (
    Mutation(
        "repeated-round-replays-its-draw",
        "fedllm/budget/round_draws.py",
        """            self.draw = os.urandom(32).hex()
        seed = settings.seed if settings.privacy.randomness == "seeded" else None
""",
        """            self.draw = str(server_round)
        seed = settings.seed
""",
        "After a kill two releases of one secret sample of silos are counted as two samples.",
        (f"{_DRAWS}::test_the_ledger_is_the_truth_wherever_a_run_is_killed",),
    ),
    Mutation(
        "second-release-of-a-draw-amplified",
        "server/extensions/central_noise.py",
        "        if not mark or not self._released.get(draw, set()) - {key}:\n",
        "        if True:\n",
        "A seeded round that is repeated with other replies is counted as a sample of its own.",
        (f"{_DRAWS}::test_a_seeded_round_with_other_replies_is_a_second_release_of_one_draw",),
    ),
    Mutation(
        "seeded-draw-by-the-round-alone",
        "fedllm/budget/round_draws.py",
        "                params=params_digest(params),\n",
        '                params="",\n',
        "Repeated rounds at other parameters share the draw of the first time.",
        (
            f"{_DRAWS}::test_draws_are_poisson_samples_and_seeded_ones_depend_on_all_that_a_round_does",
        ),
    ),
    Mutation(
        "failures-as-a-share-of-the-drawn",
        "fedllm/budget/round_draws.py",
        "        return max(1.0, self.settings.server.fraction * len(self.names))\n",
        "        return asked\n",
        "A round with one more working silo is kept more often: it is drawn more often than recorded.",
        (f"{_DRAWS}::test_a_working_silo_does_not_decide_whether_a_round_is_kept",),
    ),
    Mutation(
        "weights-by-the-updates-size",
        "server/aggregation.py",
        "            total += contribution.update[name].double()\n",
        "            weight = 1 + len(contribution.silo) / 10\n"
        "            total += weight * contribution.update[name].double()\n",
        "Silos weigh differently: noise for equal weights does not cover the heaviest.",
        (
            f"{_AGGREGATION}::test_mean_has_equal_weights_and_does_not_depend_on_the_order_of_arrival",
        ),
    ),
    Mutation(
        "update-norm-not-checked",
        "server/aggregation.py",
        "    if norm > max_norm:\n",
        "    if False:\n",
        "One silo's huge update moves the model wherever it wants.",
        (f"{_AGGREGATION}::test_unusable_update_is_refused_by_name",),
    ),
    Mutation(
        "nonfinite-update-accepted",
        "server/aggregation.py",
        "        if not bool(torch.isfinite(value).all()):\n",
        "        if False:\n",
        "One silo's NaN destroys the model of all.",
        (f"{_AGGREGATION}::test_unusable_update_is_refused_by_name",),
    ),
    Mutation(
        "server-does-not-clip",
        "server/aggregation.py",
        "    flat, _, _ = clip_vector(flat, clip)\n",
        "",
        "The sensitivity of the trusted server's sum hangs on each client's word.",
        (f"{_AGGREGATION}::test_server_clip_is_total",),
    ),
    Mutation(
        "server-sums-unclipped-updates",
        "server/extensions/central_noise.py",
        "return clip_update(update, self.run.clip) if self.clip is None else self.clip(update)",
        "return update if self.clip is None else self.clip(update)",
        "A client that sends more than it may stands out of the trusted server's noise.",
        (f"{_RUN}::test_client_level_with_noise_by_the_server",),
    ),
    Mutation(
        "update-of-another-round-passes",
        "server/replies/training.py",
        "names.ROUND: form.server_round, ",
        "",
        "An answer that is given again is in the model twice.",
        (f"{_FAILURES}::test_unusable_replies_are_refused_by_name_and_the_round_goes_on",),
    ),
    Mutation(
        "trusted-noise-missing",
        "server/extensions/central_noise.py",
        _RELEASE,
        "flat = flat / self.expected",
        "The trusted server adds no noise: the released model shows each client.",
        (_SIZE,),
    ),
    Mutation(
        "trusted-noise-too-small",
        "server/extensions/central_noise.py",
        _RELEASE,
        "bare = flat\n"
        "        flat = _central(mechanism).add_noise(flat, rng)\n"
        "        flat = (bare + (flat - bare) / self.expected) / self.expected",
        "The mean's noise on the sum: too small by the number of clients.",
        (_SIZE,),
    ),
    Mutation(
        "trusted-divisor-is-who-answered",
        "server/extensions/central_noise.py",
        "            if not refused:\n",
        "            if not refused:\n                self.expected = float(max(1, len(staying)))\n",
        "The divisor tells how many were drawn, and changes everybody's weight with one client.",
        (_SIZE,),
    ),
    Mutation(
        "trusted-noise-of-the-least-demanding",
        "server/extensions/central_noise.py",
        "self.noise_multiplier = max(asked",
        "self.noise_multiplier = min(asked",
        "The one noise serves the silo that needs least: the others overspend.",
        (f"{_TRUSTED}::test_one_noise_serves_the_silo_with_the_longest_history",),
    ),
    Mutation(
        "trusted-round-recorded-for-those-who-answered",
        "server/extensions/central_noise.py",
        "parties = [self.accounts[name] for name in counted]",
        "parties = [self.accounts[c.silo] for c in staying]",
        "Clients that could have been drawn and were not have no row: their absence was shown free.",
        (_TRUSTED,),
    ),
    Mutation(
        "trusted-release-without-a-row",
        "server/extensions/central_noise.py",
        "refused = spend_together(parties, server_round, key)",
        "refused = {}",
        "The trusted server's releases are not in the ledger.",
        (f"{_TRUSTED}::test_no_noise_is_drawn_without_a_row",),
    ),
    Mutation(
        "trusted-statistics-not-clipped",
        "server/extensions/central_noise.py",
        "rows = [clip_vector(received[name], 1.0)[0] for name in counted if name in received]",
        "rows = [received[name] for name in counted if name in received]",
        "The statistics' sensitivity hangs on a silo's word.",
        (f"{_TRUSTED}::test_noise_on_statistics_is_for_one_silo_whatever_they_send",),
    ),
    Mutation(
        "trusted-statistics-without-a-row",
        "server/extensions/central_noise.py",
        "refused = spend_together(accounts, 0, key, statistics=True)",
        "refused = {}",
        "The sum of the statistics is released without a record.",
        (f"{_TRUSTED}::test_statistics_have_their_row_before_their_noise",),
    ),
    Mutation(
        "trusted-noise-at-two-scales",
        "server/extensions/central_noise.py",
        "noise_multiplier=float(self.noise_multiplier),",
        "noise_multiplier=0.0,",
        "The same sum beside a longer history gets the same noise, larger: the difference is bare.",
        (f"{_TRUSTED}::test_seeded_noise_of_another_size_is_other_noise",),
    ),
    Mutation(
        "trusted-noise-by-the-round-alone",
        "server/extensions/central_noise.py",
        'labels = ("trusted-noise", server_round, digest)',
        'labels = ("trusted-noise", server_round)',
        "A repeated round with other replies gets the same noise: the difference is bare.",
        (f"{_TRUSTED}::test_seeded_noise_is_tied_to_the_sum_and_to_the_round",),
    ),
    Mutation(
        "live-view-counts-one-step",
        "server/spending.py",
        '{"local_steps": steps}',
        '{"local_steps": 1}',
        "The epsilon shown while a run goes on is too small: people stop too late.",
        ("tests/server/test_spending_view.py",),
    ),
)
