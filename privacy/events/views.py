"""Views of a ledger entry: the event that each adversary sees."""

from __future__ import annotations

import math
from collections.abc import Iterable

from dp_accounting.dp_event import DpEvent

from privacy.events.constructors import gaussian, no_guarantee
from privacy.guarantee import Adversary

MOST_COLLUDING = 64
"""Numbers of colluding clients that one row states a view for, at most: each is in every row of a run."""


def same_for_all(event: DpEvent) -> dict[str, DpEvent]:
    """Return the views of a release that is private before it leaves its owner (local DP-SGD).

    The outsider sees less than the server and colluders learn no more about an honest party than
    the server does; the event bounds them all. A colluding adversary without a view of its own in
    the ledger would be refused, so the server's event is also entered for "colluding:m" where the
    caller lists it; see `with_colluders`.
    """
    return {"server": event, "outsider": event}


def with_colluders(event: DpEvent, colluding: Iterable[int]) -> dict[str, DpEvent]:
    """Return `same_for_all`'s views, and the same event for each number m of colluding clients.

    Raises:
      ValueError: More than MOST_COLLUDING numbers.
    """
    numbers = tuple(colluding)
    if len(numbers) > MOST_COLLUDING:
        raise ValueError(
            f"Expected at most {MOST_COLLUDING} numbers of colluding clients in a row, got {len(numbers)}"
        )
    return same_for_all(event) | {Adversary(f"colluding:{m}"): event for m in numbers}


def distributed_gaussian(
    noise_multiplier: float,
    clients: int,
    *,
    secure_aggregation: bool,
    colluding: Iterable[int] = (),
) -> dict[str, DpEvent]:
    """Return the views of a sum to which each of n clients adds its share of the noise.

    Each client adds noise of standard deviation noise_multiplier / sqrt(n) (times the sensitivity),
    so that the sum carries noise_multiplier. m colluding clients know and subtract their own noise:
    what protects the honest ones is noise_multiplier * sqrt((n - m) / n).

    Args:
      noise_multiplier: Of the sum, > 0.
      clients: n, the number of clients that add noise in this release, >= 1. A client that drops
        out adds none: give the number that took part.
      secure_aggregation: Whether the server learns the sum only. Without it the server sees each
        client's message, protected by that client's own share alone, and collusion adds nothing.
      colluding: The numbers m of colluding clients to state views for, each below n.

    Raises:
      ValueError: A value is out of range, or m >= n (no one's noise is left).
    """
    if clients < 1:
        raise ValueError(f"Expected clients >= 1, got clients={clients}")
    share = gaussian(noise_multiplier / math.sqrt(clients))
    whole = gaussian(noise_multiplier)
    views: dict[str, DpEvent] = {
        "outsider": whole,
        "server": whole if secure_aggregation else share,
    }
    for m in colluding:
        if not 1 <= m < clients:
            raise ValueError(f"Expected 1 <= m < clients={clients} colluding clients, got m={m}")
        left = gaussian(noise_multiplier * math.sqrt((clients - m) / clients))
        views[Adversary(f"colluding:{m}")] = left if secure_aggregation else share
    return views


def server_gaussian(
    noise_multiplier: float, *, reason: str, colluding: Iterable[int] = ()
) -> dict[str, DpEvent]:
    """Return the views of a sum to which the server adds the noise: nothing protects against the server.

    Args:
      noise_multiplier: Of the sum, > 0.
      reason: Why the server is trusted with the noiseless messages; recorded.
      colluding: The numbers m of clients colluding with the server to state views for.
    """
    nothing = no_guarantee(reason)
    views: dict[str, DpEvent] = {"outsider": gaussian(noise_multiplier), "server": nothing}
    return views | {Adversary(f"colluding:{m}"): nothing for m in colluding}
