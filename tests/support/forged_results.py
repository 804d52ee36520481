"""What came of forged answers: what each may be, and the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FREE = {
    # An honest silo's reply may be so: the text of a reason, a number of the right kind in its range.
    "info.reason": {"a text", "an empty text", "10 MB of text", "deep JSON", "another silo"}
    | {"a terminal's escape", "a lone surrogate", "text from right to left", "a path"},
    "metrics.sampling-rate": {"one"},
    "info.round": {"one"},
    "update": {"duplicate in its place"},
    "duplicate": {"update in its place"},
    "metrics.noise-multiplier": {"zero", "one", "two", "1e-300"},
    "metrics.steps": {"two"},
    "metrics.below-clip": {"minus one", "zero", "one", "two", "1e-300"},
    "metrics.noise-std": {"zero", "one", "two", "1e-300"},
    "metrics.correct": {"minus one", "zero", "one", "two", "1e-300"},
    "metrics.count": {"minus one", "zero", "one", "two", "1e-300"},
    "metrics.examples": {"zero", "one", "two"},
}
ARRAYS = {"stored by columns", "every second of twice as many"}


@dataclass(frozen=True)
class Result:
    """What came of one forgery: ``refused``, ``answered``, ``word`` (failed or left, by its own word), ``crashed``."""

    kind: str
    forgery: str
    outcome: str
    reason: str
    seconds: float  # of CPU


def check(results: Iterable[Result], refused: Iterable[tuple[str, str]] = ()) -> None:
    """Each forgery is refused by the name of its field, or is a value that an honest silo could send.

    Args:
        refused: (field, value) of :data:`FREE` that are not free with the settings of these.
    """
    for result in results:
        where, _, how = result.forgery.partition(": ")
        context = (result.kind, result.forgery[:200], result.outcome, result.reason)
        assert result.seconds < 1, context
        assert len(result.reason) <= 2000, context
        assert result.reason.isprintable(), context
        if where == "info.status" and result.outcome == "word":
            raise AssertionError(context)  # none of the values is a status
        assert result.outcome != "crashed", context
        if (where, how) in refused:
            assert result.outcome == "refused", context
        if result.outcome != "refused":
            free = next(
                (v for k, v in FREE.items() if where == k or where.startswith(k + ".")), set()
            )
            assert how in free | ARRAYS, context
        elif "." in where and not how.startswith(("missing", "named", "the largest")):
            assert "malformed" not in result.reason, context
            assert where.split(".", 1)[1] in result.reason, context


def table(results: Sequence[Result]) -> str:
    rows = [f"{'reply':<14} {'forgeries':>9} {'refused':>9} {'answered':>9} {'crashed':>9}"]
    counts = Counter((result.kind, result.outcome) for result in results)
    for kind in dict.fromkeys(result.kind for result in results):
        mine = sum(n for (k, _), n in counts.items() if k == kind)
        refused, crashed = counts[kind, "refused"], counts[kind, "crashed"]
        answered = mine - refused - crashed
        rows.append(f"{kind:<14} {mine:>9} {refused:>9} {answered:>9} {crashed:>9}")
    return "\n".join(rows)
