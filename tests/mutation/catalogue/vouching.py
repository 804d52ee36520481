"""Signed extracts of the silos' ledgers: who is believed, what is stated, what verification finds."""

from __future__ import annotations

from ..mutation import Mutation

_FOLDER = "fedllm/report/extract"
_REPORT = "tests/fedllm/report/test_extract_report.py"
_COVERAGE = "tests/fedllm/report/test_extract_coverage.py"
_VERIFY = "tests/fedllm/report/test_extract_verify.py"
_SERVER = "tests/server/test_extract_server.py"
_STATEMENT = "tests/fedllm/report/test_extract_statement.py"

MUTATIONS = (
    Mutation(
        "any-signature-is-good",
        f"{_FOLDER}/keys.py",
        "        except (InvalidSignature, ValueError):\n            return False\n",
        "        except (InvalidSignature, ValueError):\n            return True\n",
        "Whoever can write a file vouches for a silo.",
        (f"{_STATEMENT}::test_a_signature_is_of_one_text_one_key_and_one_kind",),
    ),
    Mutation(
        "extract-read-without-its-signature",
        f"{_FOLDER}/store.py",
        "    if not key.verifies(EXTRACT, signed.text, signed.signature):\n",
        "    if False:\n",
        "A server takes an extract that the silo never signed, and the report states its epsilon.",
        (f"{_REPORT}::test_forged_swapped_and_damaged_extracts_do_not_count",),
    ),
    Mutation(
        "extract-of-another-silo-counts",
        f"{_FOLDER}/store.py",
        "    if extract.silo != silo:\n",
        "    if False:\n",
        "A silo that holds another name's key vouches with the extract of a third.",
        (f"{_REPORT}::test_forged_swapped_and_damaged_extracts_do_not_count",),
    ),
    Mutation(
        "extract-of-another-run-counts",
        f"{_FOLDER}/store.py",
        "    if run is not None and extract.run != run:\n",
        "    if False:\n",
        "Yesterday's run, which cost less, is reported for today's.",
        (f"{_REPORT}::test_forged_swapped_and_damaged_extracts_do_not_count",),
    ),
    Mutation(
        "smaller-of-two-figures",
        f"{_FOLDER}/compose.py",
        "        return again if theirs >= mine else",
        "        return again if theirs <= mine else",
        "A silo that states less than its events cost has its number in the report.",
        (f"{_REPORT}::test_a_silo_that_states_less_than_its_events_cost_is_found",),
    ),
    Mutation(
        "silo-says-what-is-a-bound",
        f"{_FOLDER}/compose.py",
        "        bound = KNOWN[name].is_bound\n",
        "        bound = KNOWN[name].is_bound if claimed is None else claimed.bound\n",
        "An approximation is stated as a proven bound, because a silo says so.",
        (f"{_REPORT}::test_what_a_silo_writes_does_not_reach_the_first_line_as_the_reports_own",),
    ),
    Mutation(
        "told-releases-not-held-against-the-extract",
        f"{_FOLDER}/coverage.py",
        "            raise ExtractError(LEFT_OUT)\n",
        "            return\n",
        "An extract without the last rounds is stated as the whole.",
        (f"{_COVERAGE}::test_an_older_extract_leaves_out_what_the_silo_told",),
    ),
    Mutation(
        "lagging-rows-stated-as-all",
        f"{_FOLDER}/coverage.py",
        "        if not compared and not _counts_all(silo, adversary, sent):\n",
        "        if False:\n",
        "The epsilon of the rows at the time of an extract is stated, and the server received more.",
        (
            f"{_COVERAGE}::test_a_lagging_extract_without_an_epsilon_of_its_plan_does_not_count",
            f"{_COVERAGE}::test_a_lagging_extract_without_events_counts_where_it_can_be_compared",
            f"{_COVERAGE}::test_of_a_run_without_an_end_only_a_plan_or_a_budget_counts",
        ),
    ),
    Mutation(
        "this-run-stated-as-the-whole-ledger",
        f"{_FOLDER}/compose.py",
        "            return self._none_of_all(name, WITHHELD)\n",
        "            return again or self._claimed(name, claimed)\n",
        "A silo that withholds what its ledger cost has this run's epsilon in the report.",
        (f"{_COVERAGE}::test_this_run_alone_is_never_stated_as_the_whole_ledger",),
    ),
    Mutation(
        "kept-events-not-held-against-what-was-told",
        f"{_FOLDER}/coverage.py",
        "    if cost is not None and cost.epsilon_or_inf > stated.epsilon * (1 + SAME) + SAME:\n",
        "    if False:\n",
        "A silo that keeps its events may state any small epsilon.",
        (f"{_REPORT}::test_a_silo_that_states_less_than_its_events_cost_is_found",),
    ),
    Mutation(
        "extract-for-another-delta-counts",
        f"{_FOLDER}/compose.py",
        " or extract.delta > delta:\n",
        ":\n",
        "The epsilon of a larger delta is stated for a smaller one.",
        (f"{_REPORT}::test_terms_that_are_not_the_reports_do_not_count",),
    ),
    Mutation(
        "extract-without-other-runs",
        f"{_FOLDER}/make.py",
        "    entries = [row for row in ledger.entries(party=silo) if (row.id or 0) <= rows]\n",
        "    entries = [row for row in ledger.entries(party=silo, run=run) if (row.id or 0) <= rows]\n",
        "What a silo spent on other runs is not in what it vouches for.",
        (f"{_REPORT}::test_other_runs_on_the_ledger_count_on_the_silos_word",),
    ),
    Mutation(
        "silo-passed-over-in-silence",
        "fedllm/report/vouched.py",
        "        run.extracts.silos.setdefault(name, missing)\n",
        "        pass\n",
        "A silo that took part and is missing from the index is not named, and the others' epsilon is stated for all.",
        (f"{_REPORT}::test_a_silo_that_nobody_expected_to_vouch_is_not_passed_over",),
    ),
    Mutation(
        "finite-epsilon-without-a-silo",
        "fedllm/report/vouched.py",
        "        epsilon=math.inf,\n",
        "",
        "A program that reads the report's epsilon takes that of some silos for that of all.",
        (f"{_REPORT}::test_a_silo_without_an_extract_is_named_and_nothing_is_stated_for_it",),
    ),
    Mutation(
        "ledger-set-back-not-noticed-by-the-server",
        f"{_FOLDER}/memory.py",
        "    if head.made > before.made:\n        raise",
        "    if False:\n        raise",
        "A silo goes on with yesterday's ledger, and its older extract is stated as if it held all.",
        (
            f"{_SERVER}::test_a_ledger_that_was_set_back_is_noticed",
            f"{_SERVER}::test_two_ledgers_of_one_silo_are_noticed",
        ),
    ),
    Mutation(
        "any-head-is-set-aside",
        f"{_FOLDER}/memory.py",
        "    if old in head.set_aside and head.made > before.made:\n",
        "    if head.made > before.made:\n",
        "A ledger that was set back without a word vouches on.",
        (f"{_SERVER}::test_a_ledger_that_was_set_back_is_noticed",),
    ),
    Mutation(
        "older-extract-in-the-newer-ones-place",
        "server/extracts.py",
        "        if before is not None and not newer(head, before.head):\n",
        "        if before is not None and newer(head, before.head) is None:\n",
        "An answer that comes late, or is replayed, takes rows away from what a silo vouches for.",
        (f"{_SERVER}::test_the_newest_extract_is_kept",),
    ),
    Mutation(
        "verify-with-any-key",
        f"{_FOLDER}/check.py",
        "    able = [key for key in keys if key.verifies(EXTRACT, signed.text, signed.signature)]\n",
        "    able = list(keys)\n",
        "`fedllm verify` passes extracts that no registered node signed.",
        (
            f"{_VERIFY}::test_keys_of_others_are_told",
            f"{_VERIFY}::test_a_swapped_extract_is_told",
        ),
    ),
    Mutation(
        "verify-passes-an-older-extract",
        f"{_FOLDER}/check.py",
        "    if kept is not None and kept.run == run and kept.head.ledger.rows > rows:\n",
        "    if False:\n",
        "A report made of an older extract, with fewer releases, verifies.",
        (f"{_VERIFY}::test_an_older_extract_is_told_although_the_report_was_made_of_it",),
    ),
    Mutation(
        "verify-passes-other-numbers",
        f"{_FOLDER}/check.py",
        "    other = [part for part in _SAME_PARTS if again[part] != report.get(part)]\n",
        "    other: list[str] = []\n",
        "A report whose numbers no extract gives verifies, and can be signed.",
        (f"{_VERIFY}::test_a_report_that_states_other_numbers_is_told",),
    ),
    Mutation(
        "signed-extracts-not-compared",
        f"{_FOLDER}/check.py",
        '        if digest != item["sha256"]:\n',
        "        if False:\n",
        "The extracts are exchanged after a report was signed, and its signature still verifies.",
        (f"{_VERIFY}::test_an_altered_extract_is_told",),
    ),
    Mutation(
        "head-in-a-task-makes-it-another",
        "client/replies.py",
        " if name != names.LEDGER}",
        "}",
        "A task that comes again is computed anew, and each repetition costs a release.",
        (f"{_SERVER}::test_the_head_in_a_task_does_not_make_it_another_task",),
    ),
)
