"""Training through outputs alone: numbers along random directions."""

from __future__ import annotations

from ..mutation import Mutation

_CORE = "tests/core/test_zeroth_order.py"
_ACCOUNTS = "tests/core/test_zeroth_order_accounts.py"
_RUNS = "tests/federation/test_black_box_runs.py"
_STEP = f"{_CORE}::test_numbers_are_clipped_sums_over_the_expected_batch"
_BOUND = f"{_CORE}::test_one_example_changes_the_numbers_by_at_most_the_clip"
_LAW = f"{_CORE}::test_noise_that_leaves_has_the_promised_size_and_law"
_EVENTS = f"{_ACCOUNTS}::test_events_of_a_round"
_FILE = "fedllm/zeroth_order.py"
_CHOICE = "tests/privacy/test_privacy_number_choice.py"
_CHOOSING = "tests/federation/test_number_choice_runs.py"
_RESUMED = (
    f"{_CHOOSING}::test_the_choice_is_in_every_silos_rows_in_the_report_and_holds_at_a_resume"
)

MUTATIONS = (
    Mutation(
        "directions-clipped-one-by-one-under-one-noise",
        _FILE,
        "total = clip_and_sum([rows], settings.privacy.clip)",
        "total = clip_and_sum([rows], settings.privacy.clip * rows.shape[1] ** 0.5)",
        "An example moves the vector of all directions by the root of their number more than the noise is for.",
        (_BOUND, _STEP),
    ),
    Mutation(
        "single-numbers-of-a-common-batch",
        _FILE,
        'streams("sample", place))',
        'streams("sample", step))',
        "Numbers that are recorded as of Poisson batches of their own share one: the sampling is counted as "
        "independent, and is not.",
        (_STEP,),
    ),
    Mutation(
        "directions-share-their-noise",
        _FILE,
        'streams("noise", place))',
        'streams("noise", step))',
        "Several numbers carry the same noise: their differences are bare.",
        (_LAW,),
    ),
    Mutation(
        "a-silos-number-without-a-bound",
        _FILE,
        "return kept.clamp(-clip, clip), ",
        "return kept, ",
        "At unit client a silo's number may be as large as it is, and the noise is for the clip.",
        (
            f"{_ACCOUNTS}::test_a_silos_numbers_are_clipped_whatever_they_are",
            f"{_CORE}::test_what_a_silo_adds_at_unit_client_is_bounded",
        ),
    ),
    Mutation(
        "single-numbers-recorded-as-one",
        "fedllm/silo_bounds.py",
        "return multiset({event: steps * settings.zeroth_order.directions})",
        "return multiset({event: steps})",
        "One number of a step is in the ledger, and all directions' leave.",
        (_EVENTS,),
    ),
    Mutation(
        "single-numbers-calibrated-as-one",
        "fedllm/silo_account.py",
        "return steps * self.settings.zeroth_order.directions",
        "return steps",
        "The noise is calibrated for one direction a step: the budget stops the run long before its end.",
        (f"{_RUNS}::test_a_run_spends_its_target_and_sends_a_few_numbers[client-laplace]",),
    ),
    Mutation(
        "single-number-noise-of-another-size",
        "fedllm/mechanism.py",
        "return noise.scaled(1 / _size(noise))",
        "return noise.scaled(0.5 / _size(noise))",
        "A noise multiplier of 1 is half a clipping norm of noise.",
        (_EVENTS, _LAW),
    ),
    Mutation(
        "calibrated-noise-of-another-family",
        "privacy/calibration.py",
        "multiset(scalar_noise(noise.scaled(multiplier), steps, sampling_rate))",
        "multiset(dp_sgd(sampling_rate, multiplier, steps))",
        "Laplace noise gets the standard deviation that Gaussian noise would need: over the target where that "
        "is less.",
        (f"{_ACCOUNTS}::test_calibration_of_a_number_keeps_to_its_target",),
    ),
    Mutation(
        "trusted-server-takes-a-silos-numbers-as-they-are",
        "server/round_update.py",
        "Contribution(c.silo, along.clip(c.update), None)",
        "Contribution(c.silo, c.update, None)",
        "A client that sends more than it may stands out of the trusted server's noise.",
        (f"{_RUNS}::test_a_trusted_server_clips_the_numbers_itself",),
    ),
    Mutation(
        "same-noise-along-other-directions",
        "fedllm/silo_worker.py",
        "            directions=directions,\n            clip=clip,\n",
        "            clip=clip,\n",
        "A server that announces another seed for a repeated round sees two values with one noise.",
        (f"{_RUNS}::test_other_directions_are_another_release",),
    ),
    Mutation(
        "outputs-alone-with-a-graph",
        "fedllm/forward_only.py",
        "    @torch.no_grad()\n    def losses(self, params: Mapping[str, Tensor], batch: Batch)",
        "    def losses(self, params: Mapping[str, Tensor], batch: Batch)",
        "Activations are kept as for a backward pass: the memory of white-box training.",
        (f"{_CORE}::test_nothing_is_kept_for_a_backward_pass",),
    ),
    Mutation(
        "numbers-searched-as-one-a-step",
        "privacy/number_choice.py",
        "steps=steps * numbers,",
        "steps=steps,",
        "Noise on each number is compared as if one direction a step were released: it looks better than it is.",
        (
            f"{_CHOICE}::test_few_numbers_of_small_samples_get_noise_of_their_own",
            f"{_CHOICE}::test_many_numbers_of_everybody_stay_one_vector",
        ),
    ),
    Mutation(
        "numbers-judged-by-the-rows-that-suit-them",
        "privacy/number_choice.py",
        "advantage = ratio * least_signal(numbers)",
        "advantage = ratio",
        "What clipping one by one costs where rows are hardly clipped is left out of the comparison.",
        (f"{_CHOICE}::test_the_ratio_is_never_better_than_what_is_measured",),
    ),
    Mutation(
        "chosen-numbers-clipped-like-the-vector",
        "fedllm/settings_zeroth_order.py",
        'update={"clip": clip}',
        'update={"clip": settings.privacy.clip}',
        "Each number may be as large as the whole vector: noise and signal are not those that were compared.",
        (_RESUMED,),
    ),
    Mutation(
        "resumed-run-forgets-its-choice",
        "fedllm/run_folder.py",
        "        started = with_chosen_numbers(self._settings, self.path)\n"
        "        return started if choice is None else choice.settings(started)",
        "        started = self._settings\n"
        "        return started if choice is None else choice.settings(started)",
        "A resumed run goes on with one vector, and noise that was calibrated for single numbers.",
        (_RESUMED,),
    ),
    Mutation(
        "a-silos-limit-on-noise-that-no-choice-meets",
        "client/limits.py",
        "    if chooses_noise(own) or own.zeroth_order.number_noise is not None:\n"
        '        mechanism = "searched"\n',
        "",
        "A silo that allows Gaussian noise alone gets what the server chose.",
        (f"{_CHOOSING}::test_a_silo_that_allows_gaussian_noise_alone_takes_no_other",),
    ),
    Mutation(
        "endpoint-follows-redirects",
        "fedllm/endpoint.py",
        "build_opener(_NoRedirect)",
        "build_opener()",
        "Whoever answers for the endpoint sends the silo's key to an address of his own.",
        (
            "tests/core/test_endpoint.py::test_a_redirect_takes_neither_the_key_nor_the_text_elsewhere",
        ),
    ),
    Mutation(
        "endpoint-answer-of-any-length",
        "fedllm/endpoint.py",
        "answer.read(_MOST + 1)",
        "answer.read()",
        "An endpoint's answer fills the silo's memory.",
        ("tests/core/test_endpoint.py::test_an_answer_without_end_is_refused",),
    ),
)
