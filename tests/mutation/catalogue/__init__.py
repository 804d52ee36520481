"""All mutations, by the part of the mechanism that they break."""

from __future__ import annotations

from ..mutation import Mutation
from . import (
    accountants,
    batch_mates,
    black_box,
    deployment,
    failures,
    federation,
    fixed_shape,
    layers,
    ledger,
    lmo,
    measuring,
    mechanism,
    noise_search,
    peft,
    perturbation,
    randomness,
    relation,
    release_inputs,
    report,
    silo,
    silo_limits,
    teacher,
)

MUTATIONS: tuple[Mutation, ...] = (
    *mechanism.MUTATIONS,
    *batch_mates.MUTATIONS,
    *perturbation.MUTATIONS,
    *randomness.MUTATIONS,
    *release_inputs.MUTATIONS,
    *peft.MUTATIONS,
    *noise_search.MUTATIONS,
    *lmo.MUTATIONS,
    *accountants.MUTATIONS,
    *relation.MUTATIONS,
    *ledger.MUTATIONS,
    *silo.MUTATIONS,
    *silo_limits.MUTATIONS,
    *failures.MUTATIONS,
    *fixed_shape.MUTATIONS,
    *federation.MUTATIONS,
    *deployment.MUTATIONS,
    *layers.MUTATIONS,
    *report.MUTATIONS,
    *measuring.MUTATIONS,
    *teacher.MUTATIONS,
    *black_box.MUTATIONS,
)
