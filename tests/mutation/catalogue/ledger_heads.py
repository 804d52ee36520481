"""What makes a ledger that was rolled back, copied or edited evident."""

from __future__ import annotations

from ..mutation import Mutation

_ATTACKS = "tests/privacy/ledger/test_attacks.py"
_CLOSED = f"{_ATTACKS}::test_a_closed_ledger_is_refused_and_left_as_it_is"
_OPEN = f"{_ATTACKS}::test_an_open_ledger_records_nothing_on_it"
_KILLS = f"{_ATTACKS}::test_a_kill_around_a_head_refuses_nothing"
_HOSTILE = f"{_ATTACKS}::test_a_hostile_file_is_refused_in_bounded_time"
_GUARD = "privacy/ledger/guard.py"

MUTATIONS = (
    Mutation(
        "heads-not-asked-at-opening",
        _GUARD,
        "        self.require_heads(tally, database.connection)\n        if earlier:\n",
        "        if earlier:\n",
        "Yesterday's ledger is opened in the place of today's, and its budget is there again.",
        (_CLOSED,),
    ),
    Mutation(
        "heads-not-asked-before-a-row",
        _GUARD,
        "            self._rows_afresh = rows\n        self.require_heads(tally, database.connection)\n",
        "            self._rows_afresh = rows\n",
        "Under a process that runs, a head that vanished or tells of more is not noticed.",
        (_OPEN,),
    ),
    Mutation(
        "missing-head-is-no-matter",
        _GUARD,
        "        if missing and rows:\n",
        "        if False:\n",
        "A copy of the ledger goes on beside the ledger: each spends the same budget.",
        (_CLOSED,),
    ),
    Mutation(
        "deleted-ledger-made-anew",
        _GUARD,
        "            if head.rows:\n                raise LedgerRolledBack(\n",
        "            if False:\n                raise LedgerRolledBack(\n",
        "A ledger that was deleted is made anew, empty, before anybody asks its head.",
        (_CLOSED,),
    ),
    Mutation(
        "bytes-written-past-sqlite",
        _GUARD,
        "        if database.signature() != self._seen and (\n",
        "        if False and (\n",
        "Noise edited under an open ledger stays unnoticed until the next start.",
        (_OPEN,),
    ),
    Mutation(
        "head-tells-of-a-row-before-it-is-there",
        "privacy/ledger/ledger.py",
        '                    yield db\n                    db.execute("COMMIT")\n',
        "                    yield db\n"
        "                    self._guard.after_rows(self._tally, database)\n"
        '                    db.execute("COMMIT")\n',
        "A kill in the midst of a commit makes an honest ledger look rolled back for ever.",
        (_KILLS,),
    ),
    Mutation(
        "first-row-before-its-head",
        _GUARD,
        "                file.create(tally.head)\n",
        "                pass\n",
        "A kill after the first row leaves a ledger that passes for a copy.",
        (f"{_ATTACKS}::test_a_new_ledger_has_its_heads_and_opens_again", _KILLS),
    ),
    Mutation(
        "head-goes-back",
        "privacy/ledger/heads.py",
        "if known is None or known.rows < head.rows:",
        "if True:",
        "Of two processes the slower writes an older head, and the last row can be rolled back.",
        (f"{_ATTACKS}::test_a_head_never_goes_back",),
    ),
    Mutation(
        "head-not-checked",
        "privacy/ledger/heads.py",
        "    return head if found[3] == _check(head) else None\n",
        "    return head\n",
        "A flipped bit makes another head, which no ledger holds, and an honest one is refused as rolled back.",
        (f"{_ATTACKS}::test_a_bit_of_a_head",),
    ),
    Mutation(
        "adoption-sets-everything-aside",
        "privacy/ledger/tally.py",
        "        return head in self._lost or had(db, head)\n",
        "        return bool(self._lost) or had(db, head)\n",
        "Once a ledger was adopted, it can be rolled back as often as one likes.",
        (f"{_ATTACKS}::test_a_head_that_the_server_knows_is_set_aside_by_name_alone",),
    ),
    Mutation(
        "rows-counted-unverified",
        "privacy/ledger/tally.py",
        "            for problem in row_problems(row, self.head.rows + 1, self.head.hash):\n",
        "            for problem in ():\n",
        "Rows are counted, and built upon, without a look at their hashes.",
        (_CLOSED,),
    ),
    Mutation(
        "foreign-trigger",
        "privacy/ledger/schema.py",
        "    if foreign:\n",
        "    if False:\n",
        "A file from elsewhere brings a trigger along that takes rows away.",
        (_HOSTILE,),
    ),
    Mutation(
        "deep-nesting",
        "privacy/ledger/limits.py",
        "        if depth > MOST_NESTED:\n",
        "        if False:\n",
        "JSON of a hundred thousand brackets ends the process that reads it.",
        (_HOSTILE,),
    ),
    Mutation(
        "silo-keeps-no-head-of-its-own",
        "client/node.py",
        "        heads=own.kept_heads,\n",
        "",
        "Who puts ledger and head of yesterday back, from one backup, is not noticed at the silo.",
        (
            "tests/client/test_silo_ledger_heads.py::"
            "test_the_state_folder_keeps_the_head_that_lies_beside_the_ledger",
        ),
    ),
    Mutation(
        "returned-head-not-asked",
        "client/app.py",
        "            require_returned_head(own, message, worker.ledger)\n",
        "            pass\n",
        "A backup of a silo's whole folder, put back, spends again what was spent since.",
        ("tests/client/test_silo_ledger_heads.py",),
    ),
    Mutation(
        "refused-ledger-vouches",
        "client/extract.py",
        "    require_returned_head(own, message, ledger)\n",
        "",
        "A silo that refuses its rolled-back ledger signs the head of it, and the next task brings that back.",
        ("tests/client/test_silo_ledger_heads.py::test_a_refused_ledger_does_not_vouch",),
    ),
    Mutation(
        "earlier-version-verifies-without-heads",
        "privacy/ledger/guard.py",
        "            earlier = is_earlier(db)\n",
        "            earlier = is_earlier(db)\n            if earlier:\n                return found\n",
        "A file of yesterday, marked as of the version without heads, passes the verification.",
        (
            "tests/privacy/ledger/test_attacks.py::"
            "test_a_rolled_back_ledger_of_an_earlier_version_does_not_verify",
        ),
    ),
    Mutation(
        "returned-head-of-any-key",
        "client/returned_head.py",
        "        if not load_signing_key(Path(own.key)).public.verifies(HEAD, text, signature):\n",
        "        if False:\n",
        "A server makes up a head, and every silo stops.",
        ("tests/client/test_silo_ledger_heads.py",),
    ),
    Mutation(
        "adoption-not-told",
        "fedllm/report/prose/ledger_notes.py",
        "if found is not None and found.adoptions else []",
        "if False else []",
        "The report states an epsilon of a ledger that was begun anew, and does not say so.",
        ("tests/fedllm/report/test_damaged.py",),
    ),
)
