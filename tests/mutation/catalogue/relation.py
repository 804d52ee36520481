"""The neighbouring relation, and copies of a record."""

from __future__ import annotations

from ..mutation import Mutation

_RELATION = "tests/privacy/test_relation.py"
_RUNS = "tests/fedllm/budget/test_relation.py"
_COPIES = "tests/privacy/test_copies.py"
_COMMANDS = "tests/simulations/test_copies_commands.py"
_PAIR = f"{_RELATION}::test_zero_out_has_the_pair_of_add_or_remove_one_or_is_refused_as_well"

MUTATIONS = (
    Mutation(
        "zero-out-as-replace-one",
        "privacy/guarantee.py",
        "        return self is Relation.REPLACE_ONE\n",
        "        return self is not Relation.ADD_OR_REMOVE_ONE\n",
        "Zero-out is accounted as replacing: twice the true sensitivity, or refused.",
        (_PAIR,),
    ),
    Mutation(
        "replace-one-as-zero-out",
        "privacy/guarantee.py",
        "        return self is Relation.REPLACE_ONE\n",
        "        return False\n",
        "Replacing a record is accounted as zeroing it out: half the true sensitivity.",
        (f"{_RELATION}::test_replacing_costs_more_than_zeroing_out",),
    ),
    Mutation(
        "zero-out-implies-add-or-remove-one",
        "privacy/guarantee.py",
        "return self is other or (self is Relation.ADD_OR_REMOVE_ONE and other is Relation.ZERO_OUT)",
        "return self is other or Relation.REPLACE_ONE not in (self, other)",
        "Rows with a public number of examples count as proofs for adding or removing one.",
        (f"{_RELATION}::test_only_add_or_remove_one_implies_another_relation", _RUNS),
    ),
    Mutation(
        "null-answer-of-randomised-response",
        "privacy/accountants/rdp.py",
        "        if self.relation is Relation.ZERO_OUT and isinstance(event, dp.RandomizedResponseDpEvent):\n",
        "        if False:\n",
        "Randomised response, which answers for the null record as well, is accounted under zero-out.",
        (f"{_RELATION}::test_a_mechanism_without_a_null_record_is_refused_by_name",),
    ),
    Mutation(
        "add-or-remove-one-with-public-sizes",
        "fedllm/settings/checks/sections.py",
        '    if settings.data.sizes == "public":\n        raise ValueError(\n            "Expected privacy.relation',
        '    if False:\n        raise ValueError(\n            "Expected privacy.relation',
        "A run that tells its number of examples states a guarantee for adding or removing one.",
        (f"{_RUNS}::test_what_is_not_proven_is_refused_with_what_to_write",),
    ),
    Mutation(
        "add-or-remove-one-silo-that-takes-part-openly",
        "fedllm/settings/checks/sections.py",
        '    if privacy.unit == "client":\n        raise ValueError(\n            "Expected privacy.relation',
        '    if False:\n        raise ValueError(\n            "Expected privacy.relation',
        "A guarantee for adding or removing a silo whose name is in the report.",
        (f"{_RUNS}::test_what_is_not_proven_is_refused_with_what_to_write",),
    ),
    Mutation(
        "own-budget-for-adding-with-public-sizes",
        "fedllm/budget/local_policy.py",
        '        if self.relation == "add-or-remove-one" and settings.data.sizes != "private":\n',
        "        if False:\n",
        "A silo's budget for adding or removing admits runs that tell its number of examples.",
        (f"{_RUNS}::test_a_silo_that_tells_its_size_has_no_budget_for_adding_or_removing",),
    ),
    Mutation(
        "own-file-that-tells-the-size",
        "client/config.py",
        '        if "size" in self.limits.quantities:\n',
        "        if False:\n",
        "A silo's file allows its size to leave and promises to hide whether one more is there.",
        (f"{_RUNS}::test_a_silo_that_tells_its_size_has_no_budget_for_adding_or_removing",),
    ),
    Mutation(
        "earlier-rows-as-recorded",
        "fedllm/budget/recorded_rows.py",
        '    if relation is Relation.ADD_OR_REMOVE_ONE and row.details.get(SIZES) != "private":\n',
        "    if False:\n",
        "Rows of earlier versions count as proofs for adding or removing one.",
        (f"{_RUNS}::test_an_earlier_ledger_alone_is_accounted_as_what_it_proves",),
    ),
    Mutation(
        "ledger-with-public-numbers-for-adding",
        "fedllm/budget/account.py",
        "            refuse_public_sizes(ledger, party, self.unit)\n",
        "            pass\n",
        "A run for adding or removing goes on from a ledger whose runs told the number of examples.",
        (f"{_RUNS}::test_a_ledger_with_public_numbers_is_none_for_adding_or_removing",),
    ),
    Mutation(
        "null-record-counted-by-adaptive-clipping",
        "privacy/mechanisms/adaptive_clipping.py",
        "    return below - SENSITIVITY * norms.numel()\n",
        "    return float(below)\n",
        "A record or none in its place moves the count by 1, its noise is for 1/2.",
        (
            f"{_RELATION}::test_the_null_record_adds_nothing_and_a_record_in_its_place_at_most_its_bound",
        ),
    ),
    Mutation(
        "copies-counted-as-one",
        "privacy/copies.py",
        "        result[_of_copies(event, int(copies)) if is_private(event) else event] += count\n",
        "        result[event] += count\n",
        "A record that is there k times is said to cost what one costs.",
        (f"{_COPIES}::test_reference_figures", f"{_COMMANDS}::test_account_of_copies"),
    ),
    Mutation(
        "copies-never-sampled-together",
        "privacy/copies.py",
        "    weights = [float(binom.pmf(j, copies, rate)) for j in numbers]\n",
        "    weights = [0.0, copies * rate] + [0.0] * (copies - 1)\n",
        "Two copies in one sample are left out of the account.",
        (f"{_COPIES}::test_one_and_two_steps_against_quadrature",),
    ),
    Mutation(
        "sampled-number-of-copies-at-the-rate-of-one",
        "privacy/copies.py",
        "            some = -math.expm1(copies * math.log1p(-rate)) if rate < 1 else 1.0\n",
        "            some = rate\n",
        "That one of k copies is in the sample is taken to be as likely as that one record is.",
        (f"{_COPIES}::test_other_kinds",),
    ),
    Mutation(
        "record-at-two-silos-as-the-larger",
        "simulations/plans/accounting_figures.py",
        '        rows = {" and ".join(together): _rows_together(path, together)}\n',
        '        rows = {" and ".join(together): _rows_together(path, together[:1])}\n',
        "A record that two silos hold is said to cost what it costs at one.",
        (f"{_COMMANDS}::test_a_record_at_two_silos_costs_the_sum_of_their_events",),
    ),
    Mutation(
        "repeated-records-not-counted",
        "fedllm/silo/silo_in_run.py",
        "            self._append_to_log(repeats(self._opened.silo, task.columns.names))\n",
        "",
        "A silo never learns that a record is in its data several times.",
        (
            "tests/fedllm/data/test_repeated_records.py::test_opening_a_silo_writes_the_count_into_its_own_log",
        ),
    ),
    Mutation(
        "report-says-copies-cost-as-one",
        "fedllm/report/sections/copies.py",
        "            epsilon = accountant.epsilon(events_of_copies(events, number), delta)\n",
        "            epsilon = accountant.epsilon(events_of_copies(events, 1), delta)\n",
        "The report states the epsilon of one copy for four.",
        ("tests/fedllm/data/test_repeated_records.py::test_the_report_says_what_copies_cost",),
    ),
)
