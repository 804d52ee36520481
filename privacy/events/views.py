"""Views of a ledger entry: the event that each adversary sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from dp_accounting.dp_event import DpEvent

from privacy.events.constructors import discrete_gaussian_sum, gaussian, no_guarantee
from privacy.guarantee import Adversary
from privacy.secure_sum.shares import honest_shares

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
    numbers = _few(colluding)
    return same_for_all(event) | {Adversary(f"colluding:{m}"): event for m in numbers}


def _few(colluding: Iterable[int]) -> tuple[int, ...]:
    numbers = tuple(colluding)
    if len(numbers) > MOST_COLLUDING:
        raise ValueError(
            f"Expected at most {MOST_COLLUDING} numbers of colluding clients in a row, got {len(numbers)}"
        )
    return numbers


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


def distributed_discrete_gaussian(
    sigma: float,
    silos: int,
    sensitivity: float,
    *,
    dropouts: int = 0,
    colluding: Iterable[int] = (),
    count: int = 1,
    sampling_rate: float = 1.0,
) -> dict[str, DpEvent]:
    """Return the views of `count` integer sums to which each of n silos adds a share of discrete Gaussian noise.

    "sum-only" and the outsider, who sees what follows from sums, face the honest shares that are in every sum that is opened, and with
    sum-only:m the m colluding silos take theirs away (`privacy.secure_sum.shares.honest_shares`). That assumes of the protocol that a
    silo's vector is in one sum at most, of at least so many honest silos, and that its cryptography holds. "server" and colluding:m are
    without this assumption: they see the message itself, which one's own share alone protects.

    Args:
      sigma: Parameter of one share, 4 to 2^40 steps of the grid.
      silos: n, the number of silos that are asked.
      sensitivity: L2 norm that one record moves its silo's integers by, in steps, rounding included.
      dropouts: Number of silos that may be missing in a sum.
      colluding: The numbers m of colluding silos to state views for, at most MOST_COLLUDING of them.
      count, sampling_rate: As of `constructors.scalar_noise`; the rate is that of the silo whose record is protected.

    Raises:
      ValueError: A value is out of range, or 2 * dropouts >= n - m (one silo's two secrets could be opened).
    """

    def seen(shares: int) -> DpEvent:
        return discrete_gaussian_sum(sigma, shares, sensitivity, count, sampling_rate)

    return views_of_sum(seen, silos, dropouts, _few(colluding))


def views_of_sum(
    seen: Callable[[int], DpEvent], silos: int, dropouts: int, colluding: Iterable[int]
) -> dict[str, DpEvent]:
    """Return the views of what is released in a sum over silos, as `distributed_discrete_gaussian`.

    Args:
      seen: The event to somebody to whom so many shares of the sum are unknown.
      silos, dropouts: As there.
      colluding: Numbers m of colluding silos.
    """
    numbers = _few(colluding)
    whole, alone = seen(unknown_shares(silos, dropouts, 0)), seen(1)
    views = {"outsider": whole, "sum-only": whole, "server": alone}
    for m in numbers:
        views[Adversary(f"sum-only:{m}")] = seen(unknown_shares(silos, dropouts, m))
        views[Adversary(f"colluding:{m}")] = alone
    return views


def unknown_shares(silos: int, dropouts: int, colluding: int) -> int:
    """Return the number of shares in an opened sum that the server and so many silos do not know; at least one's own.

    The protocol promises something where 2 dropouts < silos - colluding alone (`shares.honest_shares`).
    """
    if not 2 * dropouts < silos - colluding:
        return 1
    return honest_shares(silos, dropouts, colluding)


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
