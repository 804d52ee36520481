"""A silo's account and its worker."""

from __future__ import annotations

from ..mutation import Mutation

_ACCOUNT = "tests/fedllm/budget/test_silo_account.py"
_WORKER = "tests/fedllm/silo/test_silo_worker.py"
_EXTENSIONS = "tests/integration/test_extensions.py"
_ON_DISK = f"{_WORKER}::test_row_is_on_disk_before_training_begins"

MUTATIONS = (
    Mutation(
        "training-not-recorded",
        "fedllm/silo/silo.py",
        "                account.spend_training(task.round, key)\n",
        "                pass\n",
        "Rounds leave no row: the report says that nothing was released.",
        (_ON_DISK,),
    ),
    Mutation(
        "recorded-after-training",
        "fedllm/silo/silo_in_run.py",
        """        record(release_key(self.settings, purpose, task.round, digest))
        streams = self.streams(task.round, digest)

        def made(make: Make) -> Any:
            return self._answered(lambda chosen: make(chosen, streams), features)

        return [made(make) for make in makes]
""",
        """        streams = self.streams(task.round, digest)

        def made(make: Make) -> Any:
            return self._answered(lambda chosen: make(chosen, streams), features)

        found = [made(make) for make in makes]
        record(release_key(self.settings, purpose, task.round, digest))
        return found
""",
        "The row is written after the noise was drawn: a crash in between under-counts.",
        (_ON_DISK,),
    ),
    Mutation(
        "refusal-ignored",
        "fedllm/silo/silo.py",
        "                account.spend_training(task.round, key)\n",
        "                try:\n                    account.spend_training(task.round, key)\n"
        "                except Exception:\n                    pass\n",
        "A silo trains on although its budget or its ledger refused.",
        (f"{_WORKER}::test_nothing_is_computed_where_the_ledger_refuses",),
    ),
    Mutation(
        "evaluation-not-recorded",
        "fedllm/silo/extensions/evaluation.py",
        "            account.spend_evaluation(task.round, key)\n",
        "            pass\n",
        "Counts on private held-out examples leave without an event.",
        (f"{_WORKER}::test_private_evaluation_is_noised_and_recorded",),
    ),
    Mutation(
        "raw-evaluation-costs-nothing",
        "fedllm/silo/evaluation.py",
        '        if self.form == "off":\n',
        '        if self.form != "private":\n',
        "Exact counts are sent, and the report still states a finite epsilon.",
        (
            f"{_ACCOUNT}::test_raw_evaluation_is_recorded_and_training_goes_on",
            f"{_WORKER}::test_raw_evaluation_is_exact_and_recorded_as_no_guarantee",
        ),
    ),
    Mutation(
        "evaluation-counted-as-one-number",
        "fedllm/silo/evaluation.py",
        "discrete_gaussian(self.sigma): 2})",
        "discrete_gaussian(self.sigma): 1})",
        "Two counts that one example changes both are recorded as one.",
        (f"{_WORKER}::test_private_evaluation_is_noised_and_recorded", _ACCOUNT),
    ),
    Mutation(
        "evaluation-at-half-sigma",
        "fedllm/silo/evaluation.py",
        "add_discrete_gaussian(pair, 1, self.sigma, streams",
        "add_discrete_gaussian(pair, 1, self.sigma / 2, streams",
        "The counts carry half of the noise that is recorded.",
        (f"{_WORKER}::test_private_evaluation_is_noised_and_recorded",),
    ),
    Mutation(
        "evaluation-without-noise-when-empty",
        "fedllm/silo/evaluation.py",
        "        if self.private:\n            pair = ",
        "        if features and self.private:\n            pair = ",
        "A silo without held-out examples says so exactly.",
        (f"{_WORKER}::test_empty_held_out_data_still_release_noise",),
    ),
    Mutation(
        "fewer-steps-recorded",
        "fedllm/training/dp_sgd.py",
        "multiset({self._step_event(): self.plan.count})",
        "multiset({self._step_event(): 1})",
        "Several local steps are taken and one is recorded.",
        ("tests/fedllm/budget/test_client_level_events.py",),
    ),
    Mutation(
        "client-level-amplified-by-the-batch",
        "fedllm/training/client_update.py",
        "            fraction=sampled_fraction(settings),\n",
        "            fraction=sampling_rate,\n",
        "A client's round is accounted as an example's sampled step: an epsilon far too small.",
        ("tests/fedllm/budget/test_client_level_events.py",),
    ),
    Mutation(
        "amplified-by-a-draw-that-the-server-sees",
        "fedllm/training/noise.py",
        'sampled = settings.privacy.noise_by == "server" and server.sampling == "poisson"',
        'sampled = server.sampling == "poisson"',
        "Silos that noise their own updates are amplified by a draw that the server makes itself.",
        (
            f"{_ACCOUNT}::test_poisson_sampling_of_clients_is_amplified_with_noise_by_the_server_alone",
        ),
    ),
    Mutation(
        "server-given-the-outsiders-event",
        "fedllm/budget/sums/views.py",
        'return with_colluders(seen, colluding) | {"outsider": event}',
        "return with_colluders(event, colluding)",
        "A server that sees bare updates is said to be protected against.",
        ("tests/server/test_central_noise.py", _ACCOUNT),
    ),
    Mutation(
        "other-runs-forgotten-by-the-budget",
        "fedllm/budget/silo_plan.py",
        "        if bound.this_run:\n            return",
        "        if True:\n            return",
        "Each experiment on a shared ledger gets the whole budget again.",
        (f"{_ACCOUNT}::test_second_run_on_the_same_data_gets_what_the_filter_leaves",),
    ),
    Mutation(
        "other-runs-forgotten-by-the-calibration",
        "fedllm/budget/calibration.py",
        "self._calibrate(bound, *admitted(bound))",
        "self._calibrate(bound, [], None)",
        "A second run's noise makes no room for the first: it is stopped, or overspends.",
        (f"{_ACCOUNT}::test_second_run_on_the_same_data_gets_what_the_filter_leaves",),
    ),
    Mutation(
        "own-target-of-a-silo-ignored",
        "fedllm/budget/account.py",
        "self.settings = settings = settings.for_silo(party)",
        "self.settings = settings",
        "A silo that asked for a smaller epsilon gets everybody's.",
        (f"{_ACCOUNT}::test_each_silo_is_calibrated_to_its_own_target_and_rate",),
    ),
    Mutation(
        "run-budget-not-asked",
        "fedllm/budget/limits.py",
        "        if epsilon is not None\n",
        "        if epsilon is not None and not this_run\n",
        "privacy.run_epsilon bounds nothing: one run may take what was kept for the next.",
        (f"{_ACCOUNT}::test_run_epsilon_bounds_each_run_and_epsilon_all_of_them",),
    ),
    Mutation(
        "noise-for-the-laxer-budget",
        "fedllm/budget/calibration.py",
        "return max(self._calibrate(bound, *admitted(bound)) for bound in finite)",
        "return min(self._calibrate(bound, *admitted(bound)) for bound in finite)",
        "With two budgets the noise fits the larger one: the run ends early or overspends.",
        (f"{_ACCOUNT}::test_run_epsilon_bounds_each_run_and_epsilon_all_of_them",),
    ),
    Mutation(
        "resumed-run-calibrates-anew",
        "fedllm/budget/account.py",
        """        if (stored := self.book.stored_noise()) is not None:
            return stored  # resumed: the run keeps the noise that it began with
        for entry in self.ledger.entries(party=self.party, run=self.run):
""",
        "        for entry in ():\n",
        "A resumed run takes a noise of its own, as if the rounds before had not been.",
        (f"{_ACCOUNT}::test_resumed_run_keeps_its_noise_and_its_plan",),
    ),
    Mutation(
        "restarted-silo-trains-without-noise",
        "fedllm/budget/account.py",
        "            return stored  # resumed: the run keeps the noise that it began with\n",
        "            return 1e-12\n",
        "Noise is attached in the first round only: a silo that restarts sends gradients bare.",
        (f"{_ACCOUNT}::test_resumed_run_keeps_its_noise_and_its_plan",),
    ),
    Mutation(
        "repetition-with-fresh-noise-is-free",
        "fedllm/budget/release_id.py",
        'nonce = "" if settings.privacy.randomness == "seeded" else f"/{os.urandom(16).hex()}"',
        'nonce = ""',
        "A round that is repeated with new noise counts once: averaging removes the noise.",
        (f"{_WORKER}::test_repetition_with_fresh_noise_costs_a_row",),
    ),
    Mutation(
        "extension-without-its-event",
        "fedllm/budget/account.py",
        "        self._beside = duplicate_events(settings) + events_beside(beside, settings.privacy.noise_by)\n",
        "        self._beside = duplicate_events(settings)\n",
        "What an extension from outside releases in a round is in no row.",
        (f"{_EXTENSIONS}::test_an_extension_of_the_silos_from_outside_works_through_a_run",),
    ),
    Mutation(
        "extension-without-room",
        "fedllm/budget/account.py",
        "        planned += planned_beside(self.beside, self.rounds, self.sampling_rate)\n",
        "",
        "The noise is calibrated as if an extension released nothing: the target is exceeded.",
        (f"{_EXTENSIONS}::test_the_budget_leaves_room_for_a_toy",),
    ),
    Mutation(
        "extension-not-asked-before-spending",
        "fedllm/silo/silo_in_run.py",
        "            extension.check(task)\n",
        "            pass\n",
        "Tensors that an extension must refuse are trained on, and paid for.",
        (
            f"{_EXTENSIONS}::test_a_toys_extras_are_held_against_its_form_and_are_in_the_fingerprint",
            "tests/fedllm/silo/test_server_tensors.py::test_a_duplicate_too",
        ),
    ),
    Mutation(
        "silo-weighs-by-its-number-of-examples",
        "fedllm/silo/silo.py",
        "            update=result.update,\n",
        "            update={n: v * (len(self.silo.train) / 50) for n, v in result.update.items()},\n",
        "Weights by number of examples: private numbers leave, and a large silo's update outgrows "
        "its noise's scale at the server.",
        ("tests/fedllm/training/test_recorded_mechanism.py",),
    ),
    Mutation(
        "number-of-examples-leaves",
        "client/app.py",
        "            names.STEPS: reply.steps,\n",
        '            names.STEPS: reply.steps,\n            "examples": len(worker.silo.train),\n',
        "A silo tells its exact number of examples where that is not public.",
        ("tests/client/test_client.py::test_only_trainable_tensors_and_public_numbers_leave",),
    ),
)
