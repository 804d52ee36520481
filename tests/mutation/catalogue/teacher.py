"""The teacher on the server, and the public text that it may use."""

from __future__ import annotations

from ..mutation import Mutation

_RUNS = "tests/integration/test_teacher_runs.py"
_LABELLED = f"{_RUNS}::test_a_nonprivate_teacher_is_labelled_everywhere"
_PUBLIC = "tests/fedllm/data/test_public_data.py"

MUTATIONS = (
    Mutation(
        "duplicate-without-its-event",
        "fedllm/budget/account.py",
        "return self.mechanism.events(server_round) + self._beside",
        "return self.mechanism.events(server_round)",
        "The silos send raw updates of a duplicate, and the ledger states a finite epsilon.",
        (_LABELLED,),
    ),
    Mutation(
        "duplicate-without-being-asked-for",
        "fedllm/silo/silo_in_run.py",
        "        if set(task.extras) != expected:\n",
        "        if not set(task.extras) >= expected:\n",
        "A server gets raw updates from a silo whose settings, and so whose ledger, promise privacy.",
        (f"{_RUNS}::test_a_raw_update_is_not_given_unless_the_settings_say_so",),
    ),
    Mutation(
        "duplicate-of-a-silo-that-left",
        "server/strategy.py",
        "if c.silo not in self.left and moved]",
        "]",
        "A trusted server moves the teacher by updates of silos whose budget is spent; no row counts them.",
        (f"{_RUNS}::test_a_trusted_server_uses_no_duplicate_that_its_ledger_does_not_know",),
    ),
    Mutation(
        "unlabelled-duplicate-reported-as-private",
        "fedllm/report/build.py",
        "    defects += teacher_defects(run)\n",
        "",
        "Where the ledger's rows lack the event, the report states a finite epsilon for a run with a "
        "non-private teacher.",
        (f"{_RUNS}::test_the_report_says_it_even_where_the_ledger_does_not",),
    ),
    Mutation(
        "duplicate-stops-the-budget",
        "fedllm/budget/account.py",
        "        asked = {event: count for event, count in events.items() if is_private(event)}\n",
        "        asked = {} if not all(map(is_private, events)) else dict(events)\n",
        "A round with an event without a guarantee is not held against the budget at all.",
        (f"{_RUNS}::test_a_trusted_server_uses_no_duplicate_that_its_ledger_does_not_know",),
    ),
    Mutation(
        "evaluation-texts-are-public",
        "fedllm/data/public.py",
        "    kept = [record for record in records if key(record) not in judged]\n",
        "    kept = list(records)\n",
        "A teacher learns the texts that the model is judged by: the accuracy shown is not that of new text.",
        (f"{_PUBLIC}::test_texts_of_the_evaluation_are_left_out_and_counted",),
    ),
    Mutation(
        "only-shown-evaluation-texts-left-out",
        "fedllm/data/public.py",
        'model_copy(update={"max_examples": None})',
        "model_copy(update={})",
        "Evaluation texts beyond evaluation.max_examples are trained on, and a later evaluation on all is "
        "too good.",
        (f"{_PUBLIC}::test_texts_of_the_evaluation_are_left_out_and_counted",),
    ),
    Mutation(
        "silos-own-text-is-public",
        "fedllm/data/public.py",
        "    if shared > MOST_SHARED * len(dataset):\n",
        "    if False:\n",
        "A teacher trained without privacy on a file of the silos' own examples passes for a public one.",
        (f"{_PUBLIC}::test_what_the_silos_have_is_not_public",),
    ),
)
