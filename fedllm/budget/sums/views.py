"""Views of a silo's releases: the event that each adversary sees, for the ledger's rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dp_accounting.dp_event import ComposedDpEvent, DpEvent, SelfComposedDpEvent

from fedllm.training.sum_share.mechanism import SumShare, with_shares
from privacy.events.constructors import no_guarantee
from privacy.events.views import views_of_sum, with_colluders


def one_event(events: Mapping[DpEvent, int]) -> DpEvent:
    """Return a multiset of events as one."""
    parts: list[DpEvent] = [
        event if count == 1 else SelfComposedDpEvent(event, count)
        for event, count in events.items()
    ]
    return parts[0] if len(parts) == 1 else ComposedDpEvent(parts)


def row_views(
    events: Mapping[DpEvent, int], noise_by: str, colluding: Iterable[int], mechanism: object
) -> dict[str, DpEvent]:
    """Return the views of a release with a guarantee, or of a plan's purpose.

    Args:
        events: of the release; those of sums as the adversary that the noise is calibrated against sees them.
        noise_by: of ``[privacy]``.
        colluding: numbers of colluding silos to state views for.
        mechanism: of the silo in the run.
    """
    event = one_event(events)
    if noise_by == "server":
        seen = no_guarantee("privacy.noise_by=server: the server sees each update without noise")
        return with_colluders(seen, colluding) | {"outsider": event}
    if not isinstance(mechanism, SumShare) or not any(
        with_shares(part, 1) != part for part in events
    ):
        # The silo's own noise protects what it sends: whoever colludes knows nothing of it.
        return with_colluders(event, colluding)
    return views_of_sum(
        lambda shares: one_event({with_shares(e, shares): n for e, n in events.items()}),
        mechanism.silos,
        mechanism.dropouts,
        sorted({*colluding, *([mechanism.colluding] if mechanism.colluding else [])}),
    )
