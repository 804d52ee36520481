"""A silo's own file: budget and limits that no server can change."""

from __future__ import annotations

from ..mutation import Mutation

_LIMITS = "tests/federation/test_silo_limits.py"
_PROPERTY = "tests/federation/test_silo_budget_property.py"
_BY_SETTINGS = f"{_LIMITS}::test_settings_beyond_a_limit_are_refused_before_any_data_is_read"
_BY_MECHANISM = f"{_LIMITS}::test_a_mechanism_beyond_a_limit_is_refused_before_a_row_is_written"
_BUDGET = f"{_LIMITS}::test_the_budget_is_the_silos_over_all_runs"
_APPROVAL = "tests/deployment/test_approval.py"

MUTATIONS = (
    Mutation(
        "own-budget-not-asked",
        "fedllm/silo_account.py",
        "            self.bounds += (own.bound(),)\n",
        "            pass\n",
        "The server's epsilon is the only bound: a silo spends whatever a server asks.",
        (_BUDGET,),
    ),
    Mutation(
        "own-budget-not-asked-property",
        "fedllm/silo_account.py",
        "            self.bounds += (own.bound(),)\n",
        "            pass\n",
        "As before, and found by random tasks alone.",
        (_PROPERTY,),
    ),
    Mutation(
        "own-budget-for-each-run",
        "fedllm/silo_plan.py",
        "        if bound.this_run:\n            return",
        "        if bound.this_run or bound.own:\n            return",
        "Each new run id that a server makes up spends the silo's whole budget again.",
        (_BUDGET,),
    ),
    Mutation(
        "own-budget-not-calibrated-for",
        "fedllm/silo_noise.py",
        'if bound.budget.epsilon < float("inf")]\n',
        "if not bound.own]\n",
        "The noise is too small for the silo's budget: it leaves halfway through the run.",
        (f"{_LIMITS}::test_the_noise_is_calibrated_to_the_silos_budget",),
    ),
    Mutation(
        "own-budget-holds-events-without-guarantee",
        "fedllm/own_bounds.py",
        '        if without and self.epsilon < float("inf"):\n',
        "        if False:\n",
        "A server asks for a form without a guarantee: raw values leave under a finite budget.",
        (_BY_MECHANISM, _PROPERTY),
    ),
    Mutation(
        "own-ledger-of-other-units",
        "fedllm/own_bounds.py",
        "        if Unit(privacy.unit) is not Unit(self.unit):\n",
        "        if False:\n",
        "A silo that protects examples answers a run that protects whole silos.",
        (_BY_SETTINGS,),
    ),
    Mutation(
        "noise-by-the-server-at-a-silo-of-its-own",
        "fedllm/own_bounds.py",
        '        if privacy.noise_by != "client":\n',
        "        if False:\n",
        "The silo's update leaves without noise, and its ledger knows nothing of it.",
        (f"{_LIMITS}::test_noise_that_the_silo_does_not_add_itself_is_refused",),
    ),
    Mutation(
        "own-least-noise-ignored",
        "fedllm/own_bounds.py",
        "        if private and noise_multiplier < self.noise_multiplier:\n",
        "        if False:\n",
        "A calibrated run with less noise than the silo allows goes through.",
        (_BY_MECHANISM,),
    ),
    Mutation(
        "own-sampling-rate-ignored",
        "fedllm/own_bounds.py",
        "        if sampling_rate > self.sampling_rate:\n",
        "        if False:\n",
        "A batch size may take all of the silo's examples in every step.",
        (_BY_MECHANISM,),
    ),
    Mutation(
        "own-rounds-not-counted",
        "fedllm/own_bounds.py",
        "        if recorded >= self.rounds:\n",
        "        if False:\n",
        "A server repeats a round without end.",
        (f"{_LIMITS}::test_a_run_has_no_more_rounds_than_the_silo_allows",),
    ),
    Mutation(
        "limits-not-asked-for-a-task",
        "client/node.py",
        """    check_limits(
        own,
        settings,
        server_round=int(fields[names.ROUND]),
        planned_rounds=int(fields[names.PLANNED_ROUNDS]),
    )
""",
        "",
        "The limits hold for the first question alone: every task goes through.",
        (_BY_SETTINGS,),
    ),
    Mutation(
        "limits-not-asked-for-a-query",
        "client/node.py",
        """    if own is not None:
        check_limits(own, settings)
        settings""",
        """    if own is not None:
        settings""",
        "A silo tells its size although its file says that it may not leave.",
        (_BY_SETTINGS,),
    ),
    Mutation(
        "seeded-noise-allowed",
        "client/limits.py",
        '    if privacy.mode == "dp" and privacy.randomness not in limits.randomness:\n',
        "    if False:\n",
        "The server chooses the seed and takes the noise away.",
        (f"{_LIMITS}::test_seeded_noise_is_refused_unless_the_silo_says_otherwise",),
    ),
    Mutation(
        "quantities-not-listed",
        "client/limits.py",
        "        if quantity not in limits.quantities:\n",
        "        if False:\n",
        "A silo releases what its file does not list.",
        (_BY_SETTINGS,),
    ),
    Mutation(
        "refusal-by-unknown-label",
        "client/limits.py",
        "        if unknown:\n",
        "        if False:\n",
        "Whether a task fails tells the server which classes the silo's data hold.",
        (_BY_SETTINGS,),
    ),
    Mutation(
        "ledger-where-the-server-says",
        "client/node.py",
        "    ledger = Path(own.ledger)\n",
        "    ledger = ledger_of(settings, Path(str(fields[names.RUN_FOLDER])))\n",
        "Each run folder that a server makes up begins an empty ledger.",
        ("tests/federation/test_client.py::test_a_node_with_its_own_data_keeps_its_own_ledger",),
    ),
    Mutation(
        "codec-from-the-server-unchecked",
        "fedllm/encoded_release.py",
        "        if inner.name != settings.codec.name or (in_code and codec.lipschitz is None):\n",
        "        if False:\n",
        "A server sends a codec that chooses coordinates by the data: the choice leaves without noise.",
        ("tests/core/test_encoded_release.py::test_a_codec_from_the_server_must_be_the_named_one",),
    ),
    Mutation(
        "any-codec-kept",
        "client/app.py",
        "            check_codec(own, meta)\n",
        "            pass\n",
        "A silo that allows no codec stores and runs those of the server.",
        (f"{_LIMITS}::test_a_codec_that_the_silo_does_not_allow_is_not_kept",),
    ),
    Mutation(
        "any-bundle-runs",
        "client/executor.py",
        "        if not approved:\n",
        "        if False:\n",
        "A hostile server ships a client without the checks, and the node runs it.",
        ("tests/deployment/test_approval.py::test_an_altered_bundle_never_starts",),
    ),
    Mutation(
        "dead-message-waited-for",
        "client/executor.py",
        "            self._next = self._take()\n",
        "            pass\n",
        "A node waits for the message of a run whose server app died, and takes no other task.",
        ("tests/deployment/test_task_input.py::test_a_dead_runs_message_gives_way_to_the_next",),
    ),
    Mutation(
        "lost-task-called-failed",
        "client/executor.py",
        "        except Exception as error:  # one task's: the next one is taken all the same\n",
        "        except Exception as error:\n"
        "            push_task_output(client, None, SubStatus.FAILED, str(error))\n",
        "A SuperNode waits for ever for the answer of a task that was lost.",
        ("tests/deployment/test_task_input.py::test_a_lost_task_is_answered_by_the_node",),
    ),
    Mutation(
        "another-task-gets-the-last-answer",
        "client/last_answer.py",
        "    return content if known == task else None\n",
        "    return content\n",
        "What a silo sent for one task is sent for the next: an update is aggregated twice.",
        (
            "tests/federation/test_client.py::"
            "test_a_task_that_comes_again_gets_the_same_answer_and_no_new_row",
        ),
    ),
    Mutation(
        "bundle-known-by-its-length",
        "client/approval.py",
        "    return hashlib.sha256(bundle).hexdigest()\n",
        "    return hashlib.sha256(str(len(bundle)).encode()).hexdigest()\n",
        "Another bundle of the same length passes for the approved one.",
        ("tests/deployment/test_approval.py::test_a_bundle_is_its_bytes",),
    ),
    Mutation(
        "exception-texts-leave",
        "client/bundle_worker.py",
        '            reply = (b\'{"error": "the app failed"}\', b"", b"")\n',
        "            reply = (json.dumps({'error': str(sys.exc_info()[1])}).encode(), b'', b'')\n",
        "What an exception quotes of the data is sent to the server.",
        ("tests/deployment/test_approval.py::test_what_an_exception_says_stays_at_the_silo",),
    ),
    Mutation(
        "paths-of-the-silo-leave",
        "client/app.py",
        "        text = without_places(text, own)\n",
        "        pass\n",
        "Names of folders and files on the silo's machine are sent to the server.",
        ("tests/federation/test_silo_places.py::test_no_path_of_the_silos_machine_leaves",),
    ),
    Mutation(
        "backbone-not-compared",
        "client/node.py",
        "        if wanted and found != wanted:\n",
        "        if False:\n",
        "A silo trains the prefix of another model, and its update spoils the round.",
        (f"{_LIMITS}::test_another_backbone_is_refused_before_anything_is_written",),
    ),
    Mutation(
        "compiled-files-in-a-bundle",
        "client/bundle_contents.py",
        "    if path.suffix not in _KINDS:\n",
        '    if path.suffix == ".so":\n',
        "A bundle of read and known source carries a compiled module beside it, which nobody has read.",
        (
            f"{_APPROVAL}::test_a_bundle_with_a_file_of_another_kind_is_not_looked_at_and_never_starts",
        ),
    ),
    Mutation(
        "bundle-shadows-a-library",
        "client/bundle_contents.py",
        "    if len(path.parts) < 2 or path.parts[0] not in PACKAGES:\n",
        "    if len(path.parts) < 1:\n",
        "A file of the bundle takes the place of an installed library or of Python's start.",
        (
            f"{_APPROVAL}::test_a_bundle_with_a_file_of_another_kind_is_not_looked_at_and_never_starts",
        ),
    ),
    Mutation(
        "bundle-imported-from-bytecode",
        "client/bundle_worker.py",
        "    sys.path_hooks.insert(0, hook)\n",
        "",
        "Compiled code beside a module's source runs in its place.",
        (f"{_APPROVAL}::test_modules_come_from_their_source",),
    ),
    Mutation(
        "another-client-app-not-told",
        "client/approval.py",
        "[] if client == CLIENT_APP else",
        "[] if client else",
        "A bundle of known files starts another of them as its client, and is called what is installed here.",
        (f"{_APPROVAL}::test_settings_in_a_bundle_and_another_client_app_are_told",),
    ),
)
