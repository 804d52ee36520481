"""The epsilon of a run's own plan at each silo, for the table at its end."""

from __future__ import annotations

from collections.abc import Iterable

from fedllm.budget.limits import protected_from
from fedllm.report.plan_figures import plan_epsilons
from fedllm.run.folder import RunFolder
from privacy.guarantee import Relation, Unit
from privacy.ledger.ledger import Ledger


def planned_epsilons(run: RunFolder, silos: Iterable[str]) -> dict[str, float | None]:
    """Return each silo's epsilon of this run's plan, at its own delta; None if no plan is in the ledger."""
    settings, found = run.settings(), dict[str, float | None](dict.fromkeys(silos))
    if not run.ledger_path.exists():  # the silos' own ledgers are with them
        return found
    adversary = protected_from(settings)
    with Ledger(run.ledger_path, read_only=True) as ledger:
        for name in found:
            privacy = settings.for_silo(name).privacy
            plans = plan_epsilons(
                ledger,
                name,
                unit=Unit(privacy.unit),
                relation=Relation(privacy.relation),
                adversary=adversary,
                delta=privacy.delta,
                accountant=privacy.accountant,
            )
            found[name] = plans.get(run.run_id)
    return found
