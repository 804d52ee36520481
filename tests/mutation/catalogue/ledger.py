"""The ledger, its views, and the budget."""

from __future__ import annotations

from ..mutation import Mutation

_LEDGER = "tests/privacy/ledger/test_ledger.py"
_TAMPER = f"{_LEDGER}::test_verify_shows_tampering"
_HEAD = f"{_LEDGER}::test_a_kept_head_shows_a_reset_and_a_rewritten_ledger"
_BUDGET = "tests/privacy/test_budget.py"
_FILE_SYSTEM = "tests/privacy/ledger/test_file_system.py"
_VIEWS = "tests/privacy/events/test_views.py"
_ACCOUNT = "tests/fedllm/budget/test_silo_account.py"

MUTATIONS = (
    Mutation(
        "ledger-reset-when-opened",
        "privacy/ledger/storage.py",
        "            if not os.path.lexists(path):\n                if read_only:\n",
        "            if not read_only:\n                path.unlink(missing_ok=True)\n"
        "                path.with_name(path.name + '.head').unlink(missing_ok=True)\n"
        "            if not os.path.lexists(path):\n                if read_only:\n",
        "A restart begins a new ledger in silence: the budget is there to be spent again.",
        (f"{_ACCOUNT}::test_restart_neither_resets_nor_counts_twice",),
    ),
    Mutation(
        "damaged-ledger-replaced",
        "privacy/ledger/storage.py",
        "            require_plain_file(path)\n            return (\n",
        "            try:\n                _open_for_reading(path, timeout).close()\n"
        "            except (LedgerError, sqlite3.Error):\n"
        "                path.unlink()\n                _create(path)\n            return (\n",
        "A damaged ledger is replaced by an empty one: what was spent is forgotten.",
        (f"{_LEDGER}::test_a_damaged_file_is_refused_and_untouched",),
    ),
    Mutation(
        "ledger-not-flushed",
        "privacy/ledger/storage.py",
        "PRAGMA synchronous = EXTRA",
        "PRAGMA synchronous = OFF",
        "A power cut loses rows of values that were already sent.",
        (f"{_LEDGER}::test_durability_settings",),
    ),
    Mutation(
        "changed-duplicate-ignored",
        "privacy/ledger/hash_chain.py",
        "            if now != old:\n",
        "            if False:\n",
        "A second release under a known key, with less noise, is taken for the first and not recorded.",
        (f"{_LEDGER}::test_the_same_key_with_other_content_is_a_conflict",),
    ),
    Mutation(
        "row-hash-not-checked",
        "privacy/ledger/hash_chain.py",
        "    if _is_edited(row, values):\n",
        "    if False:\n",
        "An edited row passes the verification.",
        (_TAMPER,),
    ),
    Mutation(
        "chain-not-checked",
        "privacy/ledger/hash_chain.py",
        "    elif recorded_previous != previous:\n",
        "    elif False:\n",
        "A row that was replaced, with a hash made anew, passes the verification.",
        (_TAMPER,),
    ),
    Mutation(
        "missing-rows-not-checked",
        "privacy/ledger/hash_chain.py",
        "    if head == [tuple(last)]:\n",
        "    if True:\n",
        "Rows cut off at the end pass the verification: the last releases were free.",
        (_TAMPER,),
    ),
    Mutation(
        "kept-head-not-checked",
        "privacy/ledger/hash_chain.py",
        "    if not kept and kept_head is not None:\n",
        "    if False:\n",
        "A ledger that was reset or rewritten as a whole passes for the one that was signed.",
        (_HEAD,),
    ),
    Mutation(
        "hash-leaves-out-the-event",
        "privacy/ledger/hash_chain.py",
        "json_text(time), unit, views\n",
        'json_text(time), unit, "0"\n',
        "The event itself is not in the hash: noise can be edited upwards after the fact.",
        ("tests/privacy/ledger/test_columns.py",),
    ),
    Mutation(
        "budget-not-asked",
        "privacy/ledger/ledger.py",
        "            if admit is not None:\n                admit(",
        "            if False:\n                admit(",
        "Rows are written without asking the budget: silos train on for ever.",
        (f"{_ACCOUNT}::test_noise_by_hand_stops_before_the_step_that_exceeds",),
    ),
    Mutation(
        "ledger-taken-away-is-not-noticed",
        "privacy/ledger/storage.py",
        "        if not same:\n            raise LedgerError(\n",
        "        if False:\n            raise LedgerError(\n",
        "A ledger that was deleted under a running silo takes rows that nobody will ever see.",
        (
            "tests/privacy/ledger/test_reading.py::"
            "test_a_ledger_that_is_taken_away_refuses_the_release",
        ),
    ),
    Mutation(
        "tally-counts-equal-rows-once",
        "privacy/ledger/tally.py",
        "[kind] += 1",
        "[kind] = 1",
        "Ten thousand equal rounds count as one.",
        (f"{_LEDGER}::test_spent_is_composed_entries", _LEDGER),
    ),
    Mutation(
        "tally-misses-new-rows",
        "privacy/ledger/tally.py",
        '            for row in db.execute(f"SELECT {COLUMNS} FROM entries {where} ORDER BY id", given):\n',
        "            if last:\n                return\n"
        '            for row in db.execute(f"SELECT {COLUMNS} FROM entries {where} ORDER BY id", given):\n',
        "What is recorded after the first look is not counted: the budget never fills.",
        (f"{_ACCOUNT}::test_noise_by_hand_stops_before_the_step_that_exceeds", _LEDGER),
    ),
    Mutation(
        "weaker-view-for-a-stronger-adversary",
        "privacy/ledger/entry.py",
        "if Adversary(name).strength >= wanted.strength]",
        "if Adversary(name).strength <= wanted.strength]",
        "A server, or colluders, without a view of their own are given the outsider's epsilon.",
        (f"{_LEDGER}::test_views_fall_back_to_a_stronger_adversary_only",),
    ),
    Mutation(
        "units-mixed",
        "privacy/ledger/entry.py",
        "    if len(found) > 1:\n",
        "    if False:\n",
        "Events of examples and of clients are added up, and the sum means neither.",
        (f"{_LEDGER}::test_units_do_not_compose",),
    ),
    Mutation(
        "spent-counts-equal-rows-once",
        "privacy/ledger/ledger.py",
        "                total[event] += times * count\n",
        "                total[event] += times\n",
        "A thousand equal rounds cost as much as one: the budget never ends.",
        (f"{_LEDGER}::test_spent_is_composed_entries", _LEDGER),
    ),
    Mutation(
        "server-noise-shields-from-the-server",
        "privacy/events/views.py",
        '{"outsider": gaussian(noise_multiplier), "server": nothing}',
        '{"outsider": gaussian(noise_multiplier), "server": gaussian(noise_multiplier)}',
        "The server, which sees updates bare, is given the outsider's event.",
        (f"{_VIEWS}::test_server_noise_protects_against_outsiders_only",),
    ),
    Mutation(
        "shares-count-as-the-whole-noise",
        "privacy/events/views.py",
        "share = gaussian(noise_multiplier / math.sqrt(clients))",
        "share = gaussian(noise_multiplier)",
        "Without secure aggregation the server sees one share's noise, and the whole is accounted.",
        (_VIEWS,),
    ),
    Mutation(
        "colluders-noise-still-counted",
        "privacy/events/views.py",
        "math.sqrt((clients - m) / clients)",
        "math.sqrt(clients / clients)",
        "Colluders subtract their own noise, and the accounts still count it.",
        (_VIEWS,),
    ),
    Mutation(
        "budget-with-slack",
        "privacy/budget.py",
        "        if cost > self.epsilon:\n",
        "        if cost > self.epsilon * 1.01:\n",
        "A step is taken that exceeds the budget by a hundredth.",
        (f"{_BUDGET}::test_no_slack",),
    ),
    Mutation(
        "budget-after-the-fact",
        "privacy/budget.py",
        "        total = used(chosen, later, self.relation)\n",
        "        total = used(chosen, later[:-1], self.relation)\n",
        "The budget looks at what was admitted and not at what is asked: one plan too many fits.",
        (f"{_BUDGET}::test_later_plans_are_admitted_up_to_the_limit_and_no_further",),
    ),
    Mutation(
        "budget-by-an-approximation",
        "privacy/budget.py",
        "        if not self.accountant.is_bound:\n",
        "        if False:\n",
        "A budget kept by the central-limit approximation is exceeded in truth.",
        (f"{_BUDGET}::test_bad_budgets",),
    ),
    Mutation(
        "ledger-on-a-network-file-system",
        "privacy/ledger/storage.py",
        "        if not read_only:\n            _refuse_network(path)\n",
        "",
        "Two machines share a ledger over NFS, whose locks do not hold: both spend what is left.",
        (_FILE_SYSTEM,),
    ),
    Mutation(
        "network-file-system-behind-a-link",
        "privacy/file_system.py",
        "Path(os.path.realpath(path))",
        "Path(os.path.abspath(path))",
        "A symbolic link hides that the ledger lies on another machine.",
        (f"{_FILE_SYSTEM}::test_links_are_followed",),
    ),
)
