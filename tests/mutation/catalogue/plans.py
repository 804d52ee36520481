"""The plan of a run, and the filter over the plans on a ledger."""

from __future__ import annotations

from ..mutation import Mutation

_FILTER = "tests/privacy/test_plan_filter.py"
_BUDGET = "tests/privacy/test_budget.py"
_PLAN = "tests/fedllm/budget/test_silo_plan.py"
_ACCOUNT = "tests/fedllm/budget/test_silo_account.py"
_ATTACK = (
    "tests/privacy/test_filter_attack.py::test_the_rule_of_before_is_exceeded_and_the_filter_is_not"
)
_MATHS = f"{_FILTER}::test_after_a_plain_gaussian_the_limit_is_what_is_missing_in_squares"
_FULL = f"{_BUDGET}::test_later_plans_are_admitted_up_to_the_limit_and_no_further"
_HELD = "tests/fedllm/report/test_held.py"
_SO_FAR = "tests/fedllm/budget/test_released_so_far.py"

MUTATIONS = (
    Mutation(
        "release-of-a-run-that-plans-none",
        "fedllm/budget/silo_plan.py",
        "        if proposal is None and stored is None:\n            raise OutsidePlan(",
        "        if proposal is None and stored is None:\n            raise StalePlan(",
        "A server that plans no round and asks for one keeps the silo busy for ever.",
        (f"{_PLAN}::test_a_release_of_a_run_that_plans_none_is_refused_at_once",),
    ),
    Mutation(
        "plan-not-checked",
        "fedllm/budget/account.py",
        "        self.book.check_within(plan, purpose, Counter(asked), self.bounds)\n",
        "",
        "A server asks for more rounds, another batch or less noise than was planned, and gets it.",
        (f"{_PLAN}::test_a_task_outside_of_the_plan_is_refused_and_records_nothing",),
    ),
    Mutation(
        "plan-without-what-was-released",
        "fedllm/budget/silo_plan.py",
        "event = outside(room, released + asked)",
        "event = outside(room, asked)",
        "Each task is held against the whole plan: any number of rounds fits.",
        (f"{_PLAN}::test_a_task_outside_of_the_plan_is_refused_and_records_nothing",),
    ),
    Mutation(
        "plan-read-again-from-the-settings",
        "fedllm/budget/account.py",
        "        plan = self.book.fixed(proposal, self.bounds)\n",
        "        plan = self._plan_of(self.rounds)\n",
        "A resumed run, or a task with other rounds, moves the plan.",
        (f"{_ACCOUNT}::test_resumed_run_keeps_its_noise_and_its_plan",),
    ),
    Mutation(
        "plan-not-recorded",
        "fedllm/budget/account.py",
        "        entries = [entry] if proposal is None else [proposal.entry, entry]\n",
        "        entries = [entry]\n",
        "The plan is nowhere: each task brings its own.",
        (f"{_PLAN}::test_the_plan_is_there_with_the_first_release_and_is_the_whole_run",),
    ),
    Mutation(
        "less-noise-than-planned-is-within",
        "privacy/run_plan.py",
        "if value <= noise * (1 + _SAME))",
        "if value >= noise * (1 - _SAME))",
        "A release with less noise takes the place of a planned one.",
        (f"{_PLAN}::test_outside_is_a_matching",),
    ),
    Mutation(
        "stale-proposal-recorded",
        "fedllm/budget/silo_plan.py",
        "        if self._recorded(bounds, proposal.plan) != proposal.plan.budgets:\n",
        "        if False:\n",
        "A plan that was proposed before another run began records a filter of its own choice.",
        (f"{_PLAN}::test_a_plan_that_was_proposed_before_another_run_began_is_proposed_again",),
    ),
    Mutation(
        "runs-of-an-old-ledger-forgotten",
        "privacy/run_plan.py",
        "        if not released:\n            continue\n",
        "        continue\n",
        "What was released before plans were kept counts nothing.",
        (f"{_PLAN}::test_runs_of_an_old_ledger_count_together_as_the_first_plan",),
    ),
    Mutation(
        "filter-ignores-later-plans",
        "privacy/budget.py",
        "        first, later = plans[0], plans[1:]\n",
        "        first, later = plans[0], plans[:0]\n",
        "Any number of further runs fits beside the first.",
        (_FULL,),
    ),
    Mutation(
        "filter-adds-mu-unsquared",
        "privacy/plan_filter.py",
        "return math.inf if mu is None else mu**2",
        "return math.inf if mu is None else mu",
        "The limit is one of squares, and what is held against it is not.",
        (_MATHS,),
    ),
    Mutation(
        "filter-without-the-first-plan",
        "privacy/plan_filter.py",
        "    parts = _atoms(frozenset(first.items()), relation)\n    rest = delta - reserve\n",
        "    parts = _atoms(frozenset(), relation)\n    rest = delta - reserve\n",
        "Later runs get the whole budget once more.",
        (_MATHS, _ATTACK),
    ),
    Mutation(
        "filter-without-its-reserve",
        "privacy/plan_filter.py",
        "    rest = delta - reserve\n",
        "    rest = delta\n",
        "The tails of later plans come on top of delta.",
        (_MATHS,),
    ),
    Mutation(
        "each-plan-takes-the-whole-reserve",
        "privacy/plan_filter.py",
        "    share = terms.reserve / (place * (place + 1))\n",
        "    share = terms.reserve\n",
        "With many later plans their tails add up to more than was set aside.",
        (f"{_FILTER}::test_tails_of_later_plans_share_the_reserve",),
    ),
    Mutation(
        "filter-chosen-again",
        "privacy/budget.py",
        "        chosen = self.terms(first) if terms is None else terms\n",
        "        chosen = self.terms(first)\n",
        "What was recorded with the first plan does not hold: the filter is chosen anew at each step.",
        (f"{_BUDGET}::test_recorded_terms_hold_and_are_not_chosen_again",),
    ),
    Mutation(
        "renyi-of-any-order",
        "privacy/plan_filter.py",
        "        index = ORDERS.index(terms.order)\n        return",
        "        index = 0\n        return",
        "Later plans are counted at an order that makes them look cheap.",
        (f"{_FILTER}::test_renyi_after_a_plain_gaussian",),
    ),
    Mutation(
        "condition-called-guaranteed",
        "fedllm/report/guarantee.py",
        '    if conditions:\n        sentence = f"Guaranteed ONLY',
        '    if conditions and unproven:\n        sentence = f"Guaranteed ONLY',
        "An epsilon that no budget held is called guaranteed, in green.",
        (f"{_HELD}::test_what_holds_under_a_condition_alone_is_not_called_guaranteed",),
    ),
    Mutation(
        "condition-of-a-smaller-silo-lost",
        "fedllm/report/guarantee.py",
        "    conditions = _conditions(silos, adversary)\n",
        "    conditions = [c for c in _conditions(silos, adversary) if c == worst[adversary].note]\n",
        "A silo's condition is not stated where another silo's epsilon is larger.",
        (f"{_HELD}::test_the_condition_of_any_silo_is_stated",),
    ),
    Mutation(
        "condition-in-green",
        "fedllm/report/page/render.py",
        '    "if-fixed": "warn",\n',
        '    "if-fixed": "good",\n',
        "The first line of a conditional statement has the colour of a guarantee.",
        (
            f"{_HELD}::test_what_holds_under_a_condition_alone_is_not_called_guaranteed",
            f"{_HELD}::test_the_page_is_as_careful_as_its_first_line",
        ),
    ),
    Mutation(
        "plain-words-of-what-was-released",
        "fedllm/report/sections/silo_curves.py",
        "        if stated.accountant in (FILTER, PLAN) or not run.whole(silo.name):",
        "        if stated.accountant == FILTER or not run.whole(silo.name):",
        "A run that stopped early claims that tests miss more than its plan guarantees.",
        (f"{_HELD}::test_plain_words_and_curves_are_of_what_holds",),
    ),
    Mutation(
        "released-epsilon-in-place-of-the-plans",
        "fedllm/report/plan_figures.py",
        "        events = RunPlan.of_details(json.loads(row.details)).events(adversary)\n",
        "        events = ledger.spent(adversary, party=party, unit=unit, run=row.run)\n",
        "What a run that stopped early released is printed as its plan.",
        (f"{_SO_FAR}::test_the_plans_epsilon_is_that_of_all_its_rounds",),
    ),
    Mutation(
        "plans-not-listed",
        "simulations/cli/ledger/show.py",
        "        plans = ledger.plans(party=party, run=run)\n",
        "        plans = ledger.plans(party=party, run=run)[:0]\n",
        "A ledger's listing leaves out what its runs had planned.",
        (f"{_SO_FAR}::test_show_lists_the_plans",),
    ),
    Mutation(
        "spare-rounds-not-planned",
        "fedllm/budget/account.py",
        "        self.rounds = rounds + settings.privacy.spare_rounds if rounds else 0\n",
        "        self.rounds = rounds\n",
        "Spare rounds cost nothing in calibration, and a repeated round finds no place in the plan.",
        (
            "tests/fedllm/budget/test_silo_plan.py::test_calibrated_noise_pays_for_spare_rounds",
            "tests/fedllm/budget/test_silo_plan.py::test_spare_rounds_are_planned_paid_for_and_then_there_for_repeated_rounds",
        ),
    ),
)
