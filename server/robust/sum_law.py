"""Bound the length of an honest sum of silos' integers, the one check that a server can make of what it sees under masks.

Guarantee: none of privacy. With probability at most `FALSE_REFUSALS` in all rounds of a run a sum of silos that do as the
settings say is longer than its bound. A silo with other code can move the sum by as much as the bound leaves room for: a
server that sees sums alone cannot tell whose part is too long (docs/guides/secure-sum.md).

In units of the clipping norm C. A silo's integers before the noise are a sum of records of norm at most L, rounding included
(`privacy.secure_sum.grid.nearest_sensitivity`): one record with unit client, and k_i(x) with unit example, the largest sample
of silo i at exponent x. So the n silos of a sum move it by at most L times the sum of these. Their noise is n independent
discrete Gaussians of parameter s in each entry. The sum Z of such an entry is sub-Gaussian, E exp(u Z) <= exp(u^2 n s^2 / 2)
(`privacy.secure_sum.ring.largest_entry`), and so for every fixed v and 0 < t < 1/2, with g ~ N(0, 1) independent of Z,

    E exp(t (v + Z)^2) = E exp(sqrt(2 t) g (v + Z)) <= E exp(sqrt(2 t) g v + t g^2 n s^2),

what it would be for a Gaussian Z of that variance. `privacy.mechanisms.norm_tails.GaussianLength` is derived from this moment
alone, and holds for Z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedllm.settings.sections import ClientSettings
from fedllm.training.sum_share.mechanism import SumShare
from privacy.mechanisms.norm_tails import GaussianLength
from server.robust.update_law import FALSE_REFUSALS, most_of


def sum_limit(
    mechanism: SumShare, parts: Sequence[tuple[ClientSettings, int | None]], rounds: int
) -> float | None:
    """Return the length, in clipping norms, that a sum of honest silos exceeds with probability at most
    `FALSE_REFUSALS` / ``rounds``; None where the size of a silo's sample is not known.

    Args:
        mechanism: of the sum, with its silos and dimension.
        parts: of each silo in it, its ``[client]`` and its public number of examples (None: private).
    """
    plan = mechanism.shares
    exponent = math.log(rounds / FALSE_REFUSALS) + math.log(len(parts) + 1)
    records = 0.0
    for client, examples in parts:
        if mechanism.unit == "client":
            records += 1
        elif client.sampling_rate is not None and examples is None:
            return None
        else:
            records += most_of(client, examples, 1, exponent)
    noise = GaussianLength(mechanism.entries, plan.sigma * math.sqrt(len(parts)))
    steps = noise.bound(records * plan.sensitivity, exponent)
    return math.ldexp(steps, plan.exponent) * (1 + 1e-9)
