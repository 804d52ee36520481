"""The choice of layers: scores, votes, and what is recorded of them."""

from __future__ import annotations

from ..mutation import Mutation

_RELEASE = "tests/fedllm/flatness/test_layer_release.py"
_SELECTION = "tests/privacy/mechanisms/test_selection.py"
_RUNS = "tests/integration/test_layer_runs.py"
_SENSITIVITY = f"{_RELEASE}::test_one_example_moves_the_sum_by_no_more_than_the_sensitivity"
_NOISE = f"{_RELEASE}::test_the_noise_is_what_the_event_says"
_ROW = f"{_RELEASE}::test_the_row_is_on_disk_before_the_scores_are_measured"
_ROOM = f"{_RELEASE}::test_calibration_leaves_room_for_all_releases"
_PURE = f"{_SELECTION}::test_pure_privacy_costs_what_randomised_response_costs"

MUTATIONS = (
    Mutation(
        "scores-along-the-batchs-gradient",
        "fedllm/flatness/layer_scores.py",
        "        moved = point + reduced.steps(gradient)\n",
        "        moved = point + reduced.steps(gradient.sum(0, keepdim=True))\n",
        "One example moves the perturbation, and with it every example's clipped difference.",
        ("tests/fedllm/flatness/test_layer_scores.py::test_an_example_moves_its_own_row_alone",),
    ),
    Mutation(
        "scores-not-clipped",
        "fedllm/flatness/layer_release.py",
        "        total = clip_and_sum([differences], sensitivity).sums[0].double()\n",
        "        total = differences.sum(0)\n",
        "One example with a steep loss outweighs the noise.",
        (_SENSITIVITY,),
    ),
    Mutation(
        "scores-of-a-silo-clipped-one-by-one",
        "fedllm/flatness/layer_release.py",
        "            differences = differences.sum(0, keepdim=True) / max(1, len(sample))\n",
        "            pass\n",
        "At unit client a silo with many examples stands out of the noise.",
        (f"{_RELEASE}::test_a_whole_silo_moves_its_vector_by_the_sensitivity",),
    ),
    Mutation(
        "scores-noised-for-one-layer",
        "fedllm/flatness/layer_release.py",
        "add_gaussian(total, sensitivity, self.noise",
        "add_gaussian(total, self.bound or 1.0, self.noise",
        "The noise covers one entry of the vector, an example moves all of them.",
        (_NOISE,),
    ),
    Mutation(
        "scores-on-more-examples-than-recorded",
        "fedllm/silo/extensions/layers.py",
        "                sampling_rate=account.scores.rate(account.sampling_rate),\n",
        "                sampling_rate=1.0,\n",
        "The event is that of a small sample, all examples are in it.",
        (_ROW,),
    ),
    Mutation(
        "scores-not-recorded",
        "fedllm/silo/extensions/layers.py",
        "            account.spend_scores(task.round, key)\n",
        "            pass\n",
        "Scores of private text leave without a row.",
        (_ROW, f"{_RELEASE}::test_no_budget_no_scores"),
    ),
    Mutation(
        "scores-of-each-step-under-one-key",
        "fedllm/budget/release_id.py",
        "names = sorted(value)\n",
        'names = sorted(set(value) - {"candidates"})\n',
        "A greedy search's releases are counted once, and the same noise meets several values.",
        (_ROW,),
    ),
    Mutation(
        "scores-not-in-the-plan",
        "fedllm/budget/account.py",
        "        planned += self.scores.planned(self.sampling_rate)\n",
        "",
        "The noise is calibrated as if nothing was released for the choice: the target is passed.",
        (_ROOM,),
    ),
    Mutation(
        "one-release-of-a-greedy-search-planned",
        "fedllm/flatness/layer_release.py",
        "count * (self.releases or 1)",
        "count",
        "A search that asks several times is calibrated for one answer.",
        (_ROOM,),
    ),
    Mutation(
        "raw-scores-as-private-ones",
        "fedllm/flatness/layer_release.py",
        '            return multiset({no_guarantee("layers.form=paper: layers\' scores sent as they are"): 1})\n',
        "            pass\n",
        "Raw scores are accounted as if they had noise.",
        (f"{_RUNS}::test_scores_as_they_are_take_the_guarantee_away",),
    ),
    Mutation(
        "report-of-scores-without-a-row",
        "fedllm/report/build.py",
        "        defects += unrecorded_scores(run)\n",
        "",
        "A guarantee is stated although scores were released that the ledger has no row of.",
        (f"{_RUNS}::test_scores_without_a_row_take_the_guarantee_away",),
    ),
    Mutation(
        "choice-not-kept",
        "server/extensions/layers.py",
        '        folder.write_json(CHOICE, choice.model_dump(mode="json"))\n',
        "",
        "An interrupted run asks the silos again, and spends again.",
        (f"{_RUNS}::test_a_run_that_was_interrupted_at_the_choice_gives_the_same_bits",),
    ),
    Mutation(
        "choice-for-half-the-sensitivity",
        "privacy/mechanisms/permute_and_flip.py",
        "int(utilities[place])) / (2 * sensitivity)",
        "int(utilities[place])) / sensitivity",
        "A noisy choice costs twice the epsilon that is recorded.",
        (f"{_SELECTION}::test_a_choice_has_the_distribution_of_brute_force",),
    ),
    Mutation(
        "each-choice-at-the-whole-epsilon",
        "privacy/mechanisms/permute_and_flip.py",
        "exact / picks, rng",
        "exact, rng",
        "Several choices are recorded as one.",
        (f"{_SELECTION}::test_several_choices_have_the_distribution_of_brute_force",),
    ),
    Mutation(
        "silos-choice-amplified-by-its-examples",
        "fedllm/flatness/layer_release.py",
        "            rate = 1.0 if self.by_client else sampling_rate\n",
        "            rate = sampling_rate\n",
        "At unit client the sample of a silo's own examples hides nothing of the silo.",
        (f"{_RELEASE}::test_a_sampled_choice_costs_what_is_recorded",),
    ),
    Mutation(
        "choice-amplified-twice",
        "privacy/mechanisms/permute_and_flip.py",
        "math.expm1(epsilon) / rate)",
        "math.expm1(epsilon) / rate**2)",
        "The choice on a sample costs more than is recorded.",
        (f"{_SELECTION}::test_a_sample_amplifies_to_what_was_asked_for",),
    ),
    Mutation(
        "pure-privacy-at-half-its-loss",
        "privacy/accountants/pld.py",
        "    steps = math.ceil(epsilon / interval)\n",
        "    steps = math.ceil(epsilon / interval / 2)\n",
        "Noisy choices cost half.",
        (_PURE,),
    ),
    Mutation(
        "pure-privacy-replaced-as-removed",
        "privacy/accountants/pld.py",
        "pure_losses(event.epsilon * (2 if replace else 1), interval)",
        "pure_losses(event.epsilon, interval)",
        "Under replace-one a noisy choice costs half.",
        (_PURE,),
    ),
)
