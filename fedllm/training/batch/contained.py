"""Contain failing examples: in a private step an example that raises counts as zero.

A step that fails only when one record is sampled tells that the record is there, and a failed task leaves
the silo outside its account. So inside a private step no failure of an example is passed on: where a
micro-batch raises, its examples are computed again one at a time, and those that raise alone contribute
zero. The noise is added all the same, and the reply has the same form.

Guarantee: with :class:`Failures` the row of example i is that of example i alone, or zero where example i
alone raises. Zero is within every clipping norm, so the sensitivity of a sum is unchanged.

Faults that are not an example's:

* An error that strikes every example (a programming error, a driver that was lost): all rows are zero, the
  noise is released, and the silo's log has an error. A public example is computed before anything is spent
  (:mod:`fedllm.training.batch.rehearsal`), so that most such errors are found there.
* Out of memory, of the machine or the GPU: as above; one example at a time needs less.
* KeyboardInterrupt, SystemExit, a killed process, a lost machine: not contained. The task has no answer. This
  and the time of an answer (a second computation takes longer) remain channels; the report names them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedllm.data.batches import Feature
from fedllm.files.printable_error import printable_error

log = logging.getLogger("fedllm.silo")

Rows = Callable[[Sequence[Feature]], list[Tensor]]
"""Tensors of a micro-batch, each with a row for each of its examples."""


@dataclass
class Failures:
    """Examples that raised and were counted as zero. Private: for the silo's own log.

    Attributes:
        count: how often an example raised, over all steps.
        kinds: names of the exceptions' types.
    """

    count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, error: Exception) -> None:
        """Count one example that raised."""
        self.count += 1
        kind = type(error).__name__
        self.kinds[kind] += 1
        trace = f"\n{printable_error(error)}" if self.kinds[kind] == 1 else ""
        log.warning("an example raised and counts as zero: %s%s", kind, trace)


def example_rows(
    compute: Rows,
    features: Sequence[Feature],
    shapes: Sequence[torch.Size | tuple[int, ...]],
    failures: Failures | None,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Return the rows of ``features``, in order; with ``failures`` a zero row for each example that raises alone.

    Args:
        compute: gives the rows of any part of ``features``.
        shapes: of one row of each tensor, for rows of zeros.
        failures: where failing examples are counted; None passes an exception on (no privacy).
        device: of rows of zeros.
    """
    if failures is None:
        return compute(features)
    try:
        return compute(features)
    except Exception as error:
        if len(features) == 1:
            failures.add(error)
            return [torch.zeros(1, *shape, device=device) for shape in shapes]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    found = [example_rows(compute, [each], shapes, failures, device) for each in features]
    return [torch.cat([rows[place] for rows in found]) for place in range(len(shapes))]


def report_lost_step(examples: int, failed: int) -> None:
    """Log an error where every example of a batch raised: the cause is probably no example's."""
    if examples and failed == examples:
        log.error(
            "all %d examples of a batch raised and count as zero: the step releases noise alone. "
            "See the warnings above for the cause",
            examples,
        )
