"""Gradients that are known by their factors: the norm is of all that is added, and no more than the clip is."""

from __future__ import annotations

from ..mutation import Mutation

_GHOST = "tests/fedllm/training/test_ghost.py"
_WEIGHTS = "tests/fedllm/models/test_weights_adapter.py"
_NORMS = f"{_GHOST}::test_norms_and_sum_are_those_of_one_example_at_a_time"
_BOUND = f"{_GHOST}::test_norms_are_never_below_the_true_ones_whatever_the_factors"
_FACTORS = "fedllm/training/ghost/factors.py"
_CLIPPED = "fedllm/training/ghost/clipped.py"

MUTATIONS = (
    Mutation(
        "term-between-embedding-and-output-left-out",
        _FACTORS,
        "            total = total + 2 * (at * (rows @ right.transpose(1, 2))).sum((1, 2))\n",
        "            pass\n",
        "The norm of embeddings that are the output matrix too lacks a term: an example may add more than the clip.",
        (f"{_GHOST}::test_terms_between_two_uses_of_a_matrix_are_in_the_norm",),
    ),
    Mutation(
        "same-token-twice-counted-apart",
        _FACTORS,
        "        total = total + torch.where(same, own, 0.0).sum((1, 2))\n",
        "        total = total + own.diagonal(dim1=1, dim2=2).sum(1)\n",
        "A token that is repeated adds to one row: its norm grows with the number of repetitions, not with the root.",
        (f"{_GHOST}::test_terms_between_two_uses_of_a_matrix_are_in_the_norm",),
    ),
    Mutation(
        "last-use-alone",
        "fedllm/training/ghost/record.py",
        "Factors.of(tape.uses.pop(name), ",
        "Factors.of(tape.uses.pop(name)[-1:], ",
        "A matrix that is used many times is measured and moved by its last use alone.",
        (_NORMS,),
    ),
    Mutation(
        "uses-measured-apart",
        _FACTORS,
        "    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)\n",
        "    return parts[-1]\n",
        "The tokens of a layer's other uses are in no norm.",
        (f"{_GHOST}::test_terms_between_two_uses_of_a_matrix_are_in_the_norm",),
    ),
    Mutation(
        "rows-that-are-not-finite-are-multiplied",
        _FACTORS,
        "                right = torch.where(keep, self.right[chosen], 0.0).double()\n",
        "                right = self.right[chosen].double()\n",
        "An infinite factor times a weight of zero is NaN, and the whole sum is lost: everybody sees who took part.",
        (f"{_GHOST}::test_a_row_that_is_not_finite_is_selected_out_of_both_factors",),
    ),
    Mutation(
        "clipped-to-twice-the-norm",
        _CLIPPED,
        "    weights = torch.where(kept, factor, 0.0)\n",
        "    weights = torch.where(kept, factor * 2, 0.0)\n",
        "An example adds twice what the noise is scaled for.",
        (f"{_GHOST}::test_no_example_adds_more_than_the_clipping_norm",),
    ),
    Mutation(
        "small-tensors-outside-of-the-norm",
        _CLIPPED,
        "        squares += (row.flatten(1).double() * scales[name]).square().sum(1)\n",
        "        pass\n",
        "Biases, scales and the head are not in the norm that is clipped.",
        (_NORMS,),
    ),
    Mutation(
        "fillers-are-added",
        _CLIPPED,
        "    kept = finite & counted\n",
        "    kept = finite\n",
        "Gradients of the rows that only fill the shape are added to the sum.",
        (f"{_GHOST}::test_steps_of_a_fixed_shape_are_the_same_operations_and_fillers_add_nothing",),
    ),
    Mutation(
        "factors-scaled-for-all-tokens-together",
        _FACTORS,
        "                unit = (right / torch.where(size > 0, size, 1.0)).float()\n"
        "                scaled = (left * (weight * size)).float()\n",
        "                unit = right.float()\n                scaled = (left * weight).float()\n",
        "Large factors overflow or underflow: a finite gradient makes the sum NaN, or passes the clip by rounding.",
        (_BOUND,),
    ),
    Mutation(
        "rounding-outside-of-the-norm",
        _CLIPPED,
        "    norms = squares.sqrt() + rounding\n",
        "    norms = squares.sqrt()\n",
        "Terms that cancel leave rounding that no norm covers: an example may add more than the clip.",
        (f"{_GHOST}::test_rounding_of_terms_that_cancel_stays_within_the_clipping_norm",),
    ),
    Mutation(
        "norms-in-float32",
        _FACTORS,
        "            None if part is None else part[chosen].double()\n",
        "            None if part is None else part[chosen]\n",
        "Squares of float32 overflow, and norms of terms that cancel are lost.",
        (_BOUND,),
    ),
    Mutation(
        "parameters-that-other-code-reads",
        "fedllm/models/adapters/trial.py",
        "    if seen.elsewhere:\n",
        "    if False:\n",
        "The model that is trained is another one than the one that is exported.",
        (f"{_WEIGHTS}::test_a_parameter_that_other_code_reads_is_refused_by_name",),
    ),
    Mutation(
        "weights-of-experts-are-trained",
        "fedllm/models/adapters/parameters.py",
        '    if "experts" in path.split("."):\n',
        "    if False:\n",
        "A router sends an expert tokens of several examples.",
        (f"{_WEIGHTS}::test_an_expert_is_refused_by_name",),
    ),
    Mutation(
        "ids-without-examples",
        "fedllm/models/adapters/weights.py",
        "        if given.dim() != 2 or given.shape[0] not in (1, rows):\n",
        "        if False:\n",
        "Positions that all examples share are taken for one token of each: gradients go to other examples.",
        (f"{_WEIGHTS}::test_ids_that_say_no_example_are_refused",),
    ),
    Mutation(
        "another-threads-weights",
        "fedllm/models/adapters/slot.py",
        "        return change.instead(self.module, self.own, given)\n",
        "        self.module.weight.data = change.matrix.whole\n        return self.own(given)\n",
        "The weights of one silo's round are seen by all that use the model at that moment.",
        (f"{_WEIGHTS}::test_threads_and_copies_do_not_mix",),
    ),
)
