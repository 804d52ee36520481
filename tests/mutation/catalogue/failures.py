"""What happens where something raises."""

from __future__ import annotations

from ..mutation import Mutation

_CONTAINED = "tests/core/test_contained.py"
_POISON = "tests/federation/test_poison_records.py"
_ROWS = "tests/core/test_usable_rows.py"

MUTATIONS = (
    Mutation(
        "failing-example-aborts-the-step",
        "fedllm/contained.py",
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
        "fedllm/contained.py",
        "        if len(features) == 1:\n            failures.add(error)\n"
        "            return [torch.zeros(1, *shape",
        "        if len(features) >= 1:\n            failures.add(error)\n"
        "            return [torch.zeros(len(features), *shape",
        "One record removes all that share its micro-batch: the sum moves by many clipping norms.",
        (f"{_CONTAINED}::test_a_clipped_sum_is_that_of_the_others",),
    ),
    Mutation(
        "no-noise-after-a-failure",
        "fedllm/local_training.py",
        "        noisy = _noisy(total.sums, point, settings, noise_multiplier, rng)\n",
        "        quiet = failures is not None and failures.count\n"
        "        noisy = total.sums if quiet else _noisy(\n"
        "            total.sums, point, settings, noise_multiplier, rng\n        )\n",
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
        "fedllm/silo_worker.py",
        """            self.note_error("a task raised after its row was written", error)
            if self.settings.privacy.mode != "dp":
                raise TaskFailed from error
""",
        "            raise TaskFailed from error\n",
        "A task fails after its row was written, by what the data are.",
        (f"{_CONTAINED}::test_the_row_is_written_and_the_silo_answers",),
    ),
    Mutation(
        "log-decides",
        "fedllm/silo_worker.py",
        """        except OSError as error:
            log.warning("cannot write""",
        """        except ZeroDivisionError as error:
            log.warning("cannot write""",
        "A log that cannot be written costs a paid release.",
        (f"{_CONTAINED}::test_a_log_that_cannot_be_written_costs_nothing",),
    ),
    Mutation(
        "surrogates-are-text",
        "fedllm/usable_rows.py",
        """        value.encode("utf-8")
""",
        """        value.encode("utf-8", "surrogatepass")
""",
        "Half a character is accepted, and each step that samples it raises.",
        (f"{_ROWS}::test_a_bad_row_is_refused_or_left_out",),
    ),
    Mutation(
        "positions-without-the-prefix",
        "fedllm/positions.py",
        "        longest += prefix\n",
        "",
        "A record that fits the model alone and not behind the prefix fails its step.",
        (f"{_ROWS}::test_a_decoders_prefix_and_answer_count",),
    ),
    Mutation(
        "bad-rows-dropped-unasked",
        "fedllm/usable_rows.py",
        '    if rule == "refuse":\n',
        '    if rule == "never":\n',
        "Records are left out although the silo said that it refuses.",
        (f"{_ROWS}::test_a_bad_row_is_refused_or_left_out",),
    ),
)
