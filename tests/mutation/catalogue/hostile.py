"""What a server sends is held against what is needed before anything is spent."""

from __future__ import annotations

from ..mutation import Mutation

_ANSWERED = "tests/fedllm/silo/test_answered.py"
_HUGE = f"{_ANSWERED}::test_settings_at_which_arithmetic_ends_cost_no_row"
_NEEDS = "tests/fedllm/silo/test_codec_needs.py"
_KEPT = "tests/fedllm/models/test_kept.py"
_JSON = "tests/fedllm/files/test_bounded_json.py"
_TASKS = "tests/client/test_task_reading.py"
_VIEWS = "tests/privacy/events/test_views.py"

MUTATIONS = (
    Mutation(
        "no-release-before-the-row",
        "fedllm/silo/silo_in_run.py",
        "            try_without_data(lambda streams: make([], streams), self.note_error)\n",
        "            pass\n",
        "A clipping norm of 1e300 costs a row, and then there is no answer.",
        (_HUGE,),
    ),
    Mutation(
        "a-trial-that-may-be-infinite",
        "fedllm/silo/answered.py",
        "    if bad:\n",
        "    if bad and False:\n",
        "Infinite numbers are paid for and sent.",
        (f"{_ANSWERED}::test_numbers_that_are_not_finite_are_found",),
    ),
    Mutation(
        "codec-with-other-tensors",
        "fedllm/silo/codec_needs.py",
        "    if dict(forms) != needed:\n",
        "    if set(forms) < set(needed):\n",
        "A codec brings 20 MB of foreign tensors along, which the silo keeps on its disk.",
        (f"{_NEEDS}::test_what_is_made_here_fits_and_nothing_more",),
    ),
    Mutation(
        "codec-of-any-size",
        "fedllm/silo/codec_needs.py",
        "    if size > MOST_BYTES:\n",
        "    if size < 0:\n",
        "A codec of 400 GB is made, as large as its description says.",
        (f"{_NEEDS}::test_sizes_are_counted_before_anything_is_made",),
    ),
    Mutation(
        "codec-kept-with-what-it-is-not",
        "fedllm/codec/store.py",
        "    if codec.version != version:\n",
        "    if codec.version == '':\n",
        "What is no part of a codec is kept with it.",
        (f"{_NEEDS}::test_the_store_takes_a_codec_and_nothing_beside_it",),
    ),
    Mutation(
        "array-by-its-head-alone",
        "client/task_arrays.py",
        "    if len(data) - start != math.prod(shape) * dtype.itemsize:\n",
        "    if len(data) - start > math.prod(shape) * dtype.itemsize:\n",
        "A head that says a terabyte is believed.",
        (f"{_TASKS}::test_an_array_has_as_many_bytes_as_it_says",),
    ),
    Mutation(
        "array-of-any-shape",
        "client/task_arrays.py",
        "        if given_form != form:\n",
        "        if given_form[1] != form[1]:\n",
        "Shapes are found to be wrong only after the row.",
        (f"{_TASKS}::test_an_array_is_of_the_shape_and_format_that_is_needed",),
    ),
    Mutation(
        "fields-beyond-the-list",
        "client/task_fields.py",
        "    if not (needed <= set(names_given) <= known):\n",
        "    if not needed <= set(names_given):\n",
        "A task brings fields and records that nobody reads, of any size.",
        (f"{_TASKS}::test_a_task_has_its_fields_and_no_others",),
    ),
    Mutation(
        "more-trained-than-the-silo-allows",
        "client/limits.py",
        "    if size > silo.limits.parameters:\n",
        "    if size > 10**9 * silo.limits.parameters:\n",
        "A server says how much memory a silo takes.",
        (f"{_TASKS}::test_what_is_trained_is_counted_before_it_is_made",),
    ),
    Mutation(
        "workers-for-ever",
        "fedllm/kept.py",
        "            while len(self._values) > self.most:\n",
        "            while len(self._values) > 10**9:\n",
        "Each run's worker stays, with its model.",
        (f"{_KEPT}::test_the_last_used_ones_are_kept",),
    ),
    Mutation(
        "the-one-in-use-goes-first",
        "fedllm/kept.py",
        "                self._values.move_to_end(key)\n",
        "",
        "A run at work is given up for one that nobody asks for.",
        (f"{_KEPT}::test_the_last_used_ones_are_kept",),
    ),
    Mutation(
        "colluders-without-end",
        "privacy/events/views.py",
        "    if len(numbers) > MOST_COLLUDING:\n",
        "    if len(numbers) > 10**9:\n",
        "Each row has 20,000 views.",
        (f"{_VIEWS}::test_a_row_names_so_many_numbers_of_colluders",),
    ),
    Mutation(
        "nesting-in-quotes",
        "fedllm/files/bounded_json.py",
        "            depth += 1\n",
        "            depth = 1\n",
        "Text that nests 100,000 deep is parsed.",
        (f"{_JSON}::test_what_is_beyond_is_refused",),
    ),
)
