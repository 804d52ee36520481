"""The audit of a sum: below the claim where the mechanism is right, above it where a share is missing; a plan's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulations.benchmarks.secure import audit
from simulations.plans.experiment import plan_experiment

Make = Callable[..., Any]


def test_a_right_sum_is_below_its_claim_and_a_missing_share_is_seen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = ["--runs", "2", "--rounds", "80"]
    assert audit.main(small) == 0
    assert "above the claim in 0 of 2 runs" in capsys.readouterr().out
    assert audit.main([*small, "--silos", "2", "--fault", "share"]) == 0
    assert "above the claim in 2 of 2 runs" in capsys.readouterr().out


def test_the_audit_has_power() -> None:
    """At the claim itself the lower bound is close: 80,000 trials leave less than a tenth."""
    one = audit.mechanism_of(1.4, 3, 500)
    assert 0.88 / 1.4 < audit.audited_mu(one, 3, 160, "none", 7) < 1 / 1.4


@pytest.mark.parametrize("m", [0, 1])
def test_a_plan_states_epsilon_against_who_learns_sums(
    m: int, tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(
        **{
            "privacy.noise_by": "sum", "privacy.noise_multiplier": None, "privacy.epsilon": 2.0,
            "client.local_steps": 1, "secure.colluding": m,
        }
    )  # fmt: skip
    found = plan_experiment(settings)
    assert found["adversary"] == ("sum-only:1" if m else "sum-only")
    silos = found["silos"].values()
    assert len({silo["noise_multiplier"] for silo in silos}) == 1  # common to all
    worst = max(silo["epsilon"] for silo in silos)
    assert 1.9 < worst <= 2.0


def test_a_plan_of_too_few_silos_is_refused(tiny_settings: Make) -> None:
    with pytest.raises(ValueError, match=r"2 secure.drop_outs < silos"):
        plan_experiment(
            tiny_settings(
                **{"privacy.noise_by": "sum", "client.local_steps": 1, "secure.drop_outs": 40}
            )
        )
