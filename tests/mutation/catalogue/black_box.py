"""Training through outputs alone: numbers along random directions."""

from __future__ import annotations

from ..mutation import Mutation

_CORE = "tests/fedllm/training/test_zeroth_order.py"
_ACCOUNTS = "tests/fedllm/training/test_zeroth_order_accounts.py"
_RUNS = "tests/integration/test_black_box_runs.py"
_STEP = f"{_CORE}::test_numbers_are_clipped_sums_over_the_expected_batch"
_BOUND = f"{_CORE}::test_one_example_changes_the_numbers_by_at_most_the_clip"
_LAW = f"{_CORE}::test_noise_that_leaves_has_the_promised_size_and_law"
_EVENTS = f"{_ACCOUNTS}::test_events_of_a_round"
_FILE = "fedllm/training/zeroth_order.py"
_EARLIER = (
    "tests/fedllm/report/test_searched_noise.py::"
    "test_a_run_that_chose_noise_for_its_numbers_opens_verifies_and_reports_the_same"
)

MUTATIONS = (
    Mutation(
        "directions-clipped-one-by-one-under-one-noise",
        _FILE,
        "total = clip_and_sum([rows], self.clip)",
        "total = clip_and_sum([rows], self.clip * rows.shape[1] ** 0.5)",
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
        'streams("noise", 0))',
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
        _FILE,
        "return multiset({event: self._releases})",
        "return multiset({event: self.estimates.plan.count})",
        "One number of a step is in the ledger, and all directions' leave.",
        (_EVENTS,),
    ),
    Mutation(
        "single-numbers-calibrated-as-one",
        _FILE,
        "return RoundCost(self._rate, self._releases, noise=unit)",
        "return RoundCost(self._rate, self.estimates.plan.count, noise=unit)",
        "The noise is calibrated for one direction a step: the budget stops the run long before its end.",
        (f"{_RUNS}::test_a_run_spends_its_target_and_sends_a_few_numbers[client-laplace]",),
    ),
    Mutation(
        "single-number-noise-of-another-size",
        "fedllm/training/noise.py",
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
        "server/extensions/factory.py",
        "CentralNoise(trusted, clip=numbers.clip, releases=client.local_steps)",
        "CentralNoise(trusted, clip=dict, releases=client.local_steps)",
        "A client that sends more than it may stands out of the trusted server's noise.",
        (f"{_RUNS}::test_a_trusted_server_clips_the_numbers_itself",),
    ),
    Mutation(
        "same-noise-along-other-directions",
        "fedllm/budget/release_id.py",
        "names = sorted(value)\n",
        'names = sorted(set(value) - {"directions"})\n',
        "A server that announces another seed for a repeated round sees two values with one noise.",
        (f"{_RUNS}::test_other_directions_are_another_release",),
    ),
    Mutation(
        "outputs-alone-with-a-graph",
        "fedllm/training/black_box/forward_only.py",
        "    @torch.no_grad()\n    def losses(self, params: Mapping[str, Tensor], batch: Batch)",
        "    def losses(self, params: Mapping[str, Tensor], batch: Batch)",
        "Activations are kept as for a backward pass: the memory of white-box training.",
        (f"{_CORE}::test_nothing_is_kept_for_a_backward_pass",),
    ),
    Mutation(
        "a-silos-budget-in-renyi-terms-takes-single-numbers",
        "client/limits.py",
        "    if noises_numbers(own) and silo.budget.accountant",
        "    if False and silo.budget.accountant",
        "A silo's own accountant cannot account for the noise that it is asked for.",
        (
            "tests/client/test_silo_limits.py::"
            "test_settings_beyond_a_limit_are_refused_before_any_data_is_read",
        ),
    ),
    Mutation(
        "earlier-noise-on-numbers-read-as-one-vector",
        "fedllm/run/folder.py",
        '    if order.get("noise") != "searched":\n        return tree\n',
        "    return tree\n",
        "A run that noised each number by itself is reported as one that clipped and noised a vector.",
        (_EARLIER,),
    ),
    Mutation(
        "earlier-numbers-clipped-like-the-vector",
        "fedllm/run/folder.py",
        '"noise": text, "clip": clip}',
        '"noise": text}',
        "The report of a run of an earlier version tells a larger bound of each number than the noise was for.",
        (_EARLIER,),
    ),
    Mutation(
        "endpoint-follows-redirects",
        "fedllm/models/endpoint.py",
        "build_opener(_NoRedirect)",
        "build_opener()",
        "Whoever answers for the endpoint sends the silo's key to an address of his own.",
        (
            "tests/fedllm/models/test_endpoint.py::test_a_redirect_takes_neither_the_key_nor_the_text_elsewhere",
        ),
    ),
    Mutation(
        "endpoint-answer-of-any-length",
        "fedllm/models/endpoint.py",
        "answer.read(_MOST + 1)",
        "answer.read()",
        "An endpoint's answer fills the silo's memory.",
        ("tests/fedllm/models/test_endpoint.py::test_an_answer_without_end_is_refused",),
    ),
)
