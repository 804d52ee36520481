"""What happens where something raises."""

from __future__ import annotations

from ..mutation import Mutation

_CONTAINED = "tests/fedllm/training/test_contained.py"
_POISON = "tests/integration/test_poison_records.py"
_EVALUATION = "tests/server/test_failed_evaluation.py"
_PRIVATE = "tests/fedllm/files/test_private_file.py"
_START = "tests/integration/test_before_the_first_row.py"
_ROWS = "tests/fedllm/data/test_usable_rows.py"
_DATA = "tests/integration/test_data_before_the_run.py"
_LOCK = "tests/integration/test_run_lock.py"

MUTATIONS = (
    Mutation(
        "simulated-silos-not-checked",
        "fedllm/silo/check_all.py",
        "    if not faults:\n",
        "    if faults or not faults:\n",
        "A bad row of one silo is found in a round, after all have paid for it.",
        (f"{_DATA}::test_a_bad_row_of_any_silo_ends_the_command_at_once",),
    ),
    Mutation(
        "changed-data-go-unnoticed",
        "fedllm/run/data_digests.py",
        "if kept.get(name) != now.get(name))",
        "if name not in kept)",
        "A resumed run trains on other records than its first rounds, and nobody is told.",
        (f"{_DATA}::test_resume_checks_the_rows_again_and_notices_changed_data",),
    ),
    Mutation(
        "digests-without-their-key",
        "fedllm/run/data_digests.py",
        "        digest = hmac.new(key, digestmod=hashlib.sha256)",
        "        digest = hashlib.sha256()",
        "Who knows all records but one tests guesses of that one against the run folder.",
        (f"{_DATA}::test_the_digests_are_keyed_and_private",),
    ),
    Mutation(
        "run-folder-without-its-lock",
        "fedllm/run/lock.py",
        "            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "Two processes resume one run, and both spend.",
        (f"{_LOCK}::test_who_waits_gets_the_lock_when_it_is_free",),
    ),
    Mutation(
        "failing-example-aborts-the-step",
        "fedllm/training/batch/contained.py",
        """        if len(features) == 1:
            failures.add(error)
            return [""",
        """        if len(features) == 1:
            failures.add(error)
            raise
            return [""",
        "A step fails when, and only when, one record is sampled.",
        (f"{_CONTAINED}::test_a_clipped_sum_is_that_of_the_others",),
    ),
    Mutation(
        "failing-example-takes-its-batch-along",
        "fedllm/training/batch/contained.py",
        "        if len(features) == 1:\n            failures.add(error)\n"
        "            return [torch.zeros(1, *shape",
        "        if len(features) >= 1:\n            failures.add(error)\n"
        "            return [torch.zeros(len(features), *shape",
        "One record removes all that share its micro-batch: the sum moves by many clipping norms.",
        (f"{_CONTAINED}::test_a_clipped_sum_is_that_of_the_others",),
    ),
    Mutation(
        "no-noise-after-a-failure",
        "fedllm/training/dp_sgd.py",
        "noisy = split_like(self.noise.add(flat, clip, rng), point)",
        "noisy = total.sums if self.failures.count else split_like(self.noise.add(flat, clip, rng), point)",
        "A step with an example that raised is released without its noise.",
        (f"{_CONTAINED}::test_noise_is_released_where_every_example_fails",),
    ),
    Mutation(
        "exception-text-leaves",
        "client/app.py",
        "names.REASON: str(TaskFailed())}",
        "names.REASON: _told(error, context)}",
        "What an exception quotes of the data is sent to the server.",
        (f"{_POISON}::test_no_text_of_an_unexpected_exception_leaves_before_spending_either",),
    ),
    Mutation(
        "failure-after-spending-is-told",
        "fedllm/silo/answered.py",
        """        note("a task raised after its row was written", error)
        if not private:
            raise TaskFailed from error
""",
        "        raise TaskFailed from error\n",
        "A task fails after its row was written, by what the data are.",
        (f"{_CONTAINED}::test_the_row_is_written_and_the_silo_answers",),
    ),
    Mutation(
        "log-decides",
        "fedllm/files/private.py",
        """    except OSError as error:
        log.warning("cannot write""",
        """    except ZeroDivisionError as error:
        log.warning("cannot write""",
        "A log that cannot be written costs a paid release.",
        (f"{_CONTAINED}::test_a_log_that_cannot_be_written_costs_nothing",),
    ),
    Mutation(
        "metrics-decide",
        "server/monitoring.py",
        """                callback.record(record)
            except OSError as error:
""",
        """                callback.record(record)
            except ZeroDivisionError as error:
""",
        "A metrics file that cannot be written ends a run that is paid for.",
        (f"{_START}::test_a_log_that_cannot_be_written_costs_nothing",),
    ),
    Mutation(
        "nan-is-finite",
        "fedllm/training/batch/rehearsal.py",
        """        if not bool(value.isfinite().all()):
""",
        """        if bool(value.isposinf().any()):
""",
        "A model whose loss is NaN before training spends the whole budget.",
        (f"{_START}::test_a_silo_stops_it_by_itself",),
    ),
    Mutation(
        "a-value-decides-the-delimiter",
        "fedllm/data/formats/delimited.py",
        """        score = sum(column in names for column in columns), len(row)
""",
        """        score = sum(column in names for column in columns), text.count(candidate)
""",
        "One record decides by which character the file of all is read.",
        (
            "tests/fedllm/data/test_files.py::test_values_have_no_say_in_the_delimiter",
            "tests/fedllm/data/test_files.py::test_the_delimiter_is_found_in_the_header",
        ),
    ),
    Mutation(
        "surrogates-are-text",
        "fedllm/data/record_forms.py",
        """        value.encode("utf-8")
""",
        """        value.encode("utf-8", "surrogatepass")
""",
        "Half a character is accepted, and each step that samples it raises.",
        (f"{_ROWS}::test_a_bad_row_is_refused_or_left_out",),
    ),
    Mutation(
        "positions-without-the-prefix",
        "fedllm/tasks/positions.py",
        "        longest += prefix\n",
        "",
        "A record that fits the model alone and not behind the prefix fails its step.",
        (f"{_ROWS}::test_a_decoders_prefix_and_answer_count",),
    ),
    Mutation(
        "bad-rows-dropped-unasked",
        "fedllm/data/usable_rows.py",
        '    if rule == "refuse":\n',
        '    if rule == "never":\n',
        "Records are left out although the silo said that it refuses.",
        (f"{_ROWS}::test_a_bad_row_is_refused_or_left_out",),
    ),
    Mutation(
        "evaluation-before-the-checkpoint",
        "server/run.py",
        "            strategy.save()  # before the evaluation: a paid round is never lost to it\n"
        "        if is_evaluation_round(settings, server_round):\n"
        "            evaluator.try_evaluate(server_round)\n"
        "            evaluator.report_spending(server_round)\n",
        "            pass\n"
        "        if is_evaluation_round(settings, server_round):\n"
        "            evaluator.try_evaluate(server_round)\n"
        "            evaluator.report_spending(server_round)\n"
        "        if last or server_round % settings.server.checkpoint_every == 0:\n"
        "            strategy.save()\n",
        "A run that ends within an evaluation loses a round that is paid for.",
        (
            f"{_EVALUATION}::test_a_request_to_end_passes_and_the_round_is_saved_before_its_evaluation",
        ),
    ),
    Mutation(
        "failed-evaluation-ends-the-run",
        "server/evaluation.py",
        "        try:\n            self.evaluate(server_round)\n        except Exception as error:\n",
        "        try:\n            self.evaluate(server_round)\n        except ZeroDivisionError as error:\n",
        "An evaluation that fails ends a run whose rounds are paid for, without a report.",
        (
            f"{_EVALUATION}::test_generation_that_fails_in_the_last_evaluation_is_a_missing_figure",
            f"{_EVALUATION}::test_the_rounds_after_a_failed_evaluation_are_those_of_a_run_without_it",
        ),
    ),
    Mutation(
        "cut-off-evaluation-stays-missing",
        "server/run.py",
        "            evaluator.catch_up(run, first)\n",
        "            pass\n",
        "A run that ended between a checkpoint and its evaluation never has that round's figures.",
        (
            f"{_EVALUATION}::test_a_request_to_end_passes_and_the_round_is_saved_before_its_evaluation",
        ),
    ),
    Mutation(
        "silo-log-readable-by-all",
        "fedllm/files/private.py",
        "os.O_CREAT, 0o600)",
        "os.O_CREAT, 0o644)",
        "Every user of the silo's machine reads its log.",
        (f"{_PRIVATE}::test_a_silos_log_and_its_folder_are_private",),
    ),
    Mutation(
        "silo-log-folder-open-to-all",
        "fedllm/files/private.py",
        "mkdir(mode=0o700, exist_ok=True)",
        "mkdir(exist_ok=True)",
        "Every user of the machine lists the silos' logs.",
        (f"{_PRIVATE}::test_a_silos_log_and_its_folder_are_private",),
    ),
)
