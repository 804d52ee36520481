"""Compute an experiment's plan for each silo: rate, target, noise and epsilon, before any training.

The model is not loaded: data, schedule and the ledger that the experiment shares are enough. (The silos'
scores of a greedy choice among all layers are the exception: their number is that of the model's layers.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dp_accounting.dp_event import DpEvent

from fedllm.budget import plan
from fedllm.budget.account import SiloAccount
from fedllm.budget.evaluation_choice import decide_evaluation
from fedllm.budget.limits import protected_from
from fedllm.budget.round_draws import round_draws
from fedllm.budget.schedule import participation, planned_rounds
from fedllm.budget.sums.terms import SumTerms
from fedllm.data.silos import load_federation
from fedllm.flatness.layer_choice import settings_with_releases
from fedllm.run.folder import ledger_of
from fedllm.settings.experiment import Settings
from privacy.budget import BudgetExceeded
from privacy.ledger.ledger import Ledger
from server.extensions.central_noise import make_central_release
from simulations.plans.accounting_figures import Figures, figures

_RUN = "a run that is planned"
_DIMENSION = 2**17
"""Trained parameters of a planned sum."""


def plan_experiment(settings: Settings) -> dict[str, Any]:
    """The plan: what holds for all silos, ``silos`` by name, and ``warnings``.

    A silo has the fixed names of ``fedllm calibrate`` (``noise_multiplier``, ``epsilon``, ``delta``,
    ``accountant``) and ``bound``, with ``examples``, ``sampling_rate``, ``rounds``, ``steps``, its
    targets, what other runs of the ledger have ``spent``, and ``figures`` by every accountant, of this
    run and the ledger's others together, as if all had been fixed beforehand. Beside other runs ``epsilon`` is what
    the budget's ``filter`` holds. A silo without room on the ledger has ``leaves``, the reason,
    in place of them.

    Raises:
        ValueError: the data cannot be read, or the settings do not fit the silos.
    """
    settings = decide_evaluation(settings)
    federation = load_federation(settings)
    sizes = {silo.name: len(silo.train) for silo in federation.silos}
    settings = plan.for_silos(_with_releases(settings), federation.names)
    schedule = participation(settings, federation.names)
    privacy = settings.privacy
    memory: dict[tuple[frozenset[tuple[DpEvent, int]], float], Figures] = {}
    silos: dict[str, dict[str, Any]] = {}
    with _ledger(settings) as ledger:
        accounts = _accounts(settings, sizes, schedule, ledger)
        if privacy.noise_by == "sum":
            _join_sum(accounts)
        for name, account in accounts.items():
            own = settings.for_silo(name).privacy
            silos[name] = {
                "examples": sizes[name],
                "target_epsilon": own.epsilon,
                "target_run_epsilon": own.run_epsilon,
                "delta": own.delta,
            }
            if isinstance(account, str):
                silos[name]["leaves"] = account
                continue
            before = account.spent_before()
            events = account.planned() + before
            key = frozenset(events.items()), own.delta
            if key not in memory:
                memory[key] = figures(events, account.relation, own.delta)
            found = memory[key]
            silos[name] |= {
                "batch_size": settings.for_silo(name).client.batch_size,
                "sampling_rate": account.sampling_rate,
                "rounds": account.rounds,
                "steps": account.rounds * account.steps,
                "noise_multiplier": account.noise_multiplier,
                "epsilon": found[privacy.accountant]["epsilon"],
                "accountant": privacy.accountant,
                "bound": found[privacy.accountant]["bound"],
                "spent": 0.0,
                "filter": None,
                "figures": found,
            }
            silos[name] |= _filtered(account)
    return {
        "experiment": settings.name,
        "mode": privacy.mode,
        "unit": privacy.unit,
        "relation": privacy.relation,
        "adversary": str(protected_from(settings)),
        "noise_by": privacy.noise_by,
        "silos": silos,
        "drawn": settings.server.sampling == "poisson" and settings.server.fraction < 1,
        "warnings": plan.warnings(settings, dict(sizes)),
    }


def _join_sum(accounts: Mapping[str, SiloAccount | str]) -> None:
    """Give the accounts of a sum over silos its terms: the largest noise that any of them asks for.

    The number of trained parameters is not known without the model. It moves the event by less than 0.1 %, since the
    grid is chosen for it; a round number stands for it.
    """
    joining = [account for account in accounts.values() if isinstance(account, SiloAccount)]
    noise = max((account.noise_multiplier for account in joining), default=0.0)
    for account in joining if noise else ():
        if account.terms is None:
            account.join_sum(SumTerms(len(accounts), _DIMENSION, noise))


def _filtered(account: SiloAccount) -> dict[str, Any]:
    """Describe the filter of a silo's budget with earlier runs in the ledger; nothing without them."""
    for bound in account.bounds:
        others, terms = account.book.sequence(bound)
        if bound.this_run or not others:
            continue
        plans, _ = account.book.sequence(bound, account.plan())
        terms = terms or bound.budget.terms(others[0])
        return {
            "spent": bound.budget.held_epsilon(others, terms),
            "epsilon": bound.budget.held_epsilon(plans, terms),
            "accountant": "filter",
            "bound": True,
            "filter": None if terms is None else terms.describe(),
        }
    return {}


def _with_releases(settings: Settings) -> Settings:
    layers = settings.layers
    if not layers.asks_silos or layers.search == "one-shot":
        return settings
    carrying = settings.adapter_layers
    if carrying == "all":
        from fedllm.training.tunable import shared_tunable

        carrying = shared_tunable(settings).layers
    return settings_with_releases(settings, carrying)


def _accounts(
    settings: Settings, sizes: dict[str, int], schedule: Sequence[Sequence[str]], ledger: Ledger
) -> dict[str, SiloAccount | str]:
    """Each silo's account, or why it leaves."""
    draws = round_draws(settings, list(sizes), schedule)
    trusted = make_central_release(
        settings, run=_RUN, silos=list(sizes), draws=draws, ledger=ledger
    )
    if trusted is not None:
        return {name: trusted.left.get(name) or trusted.accounts[name] for name in sizes}
    found: dict[str, SiloAccount | str] = {}
    for name, examples in sizes.items():
        try:
            found[name] = SiloAccount(
                settings,
                run=_RUN,
                party=name,
                examples=examples,
                rounds=planned_rounds(schedule, name),
                ledger=ledger,
            )
        except BudgetExceeded as error:
            found[name] = str(error)
    return found


@contextmanager
def _ledger(settings: Settings) -> Iterator[Ledger]:
    """The ledger that the experiment shares with other runs, to read; else an empty one."""
    with TemporaryDirectory() as folder:
        path = ledger_of(settings, Path(folder))
        shared = settings.privacy.ledger is not None and path.exists()
        empty = Path(folder) / "ledger.sqlite"
        with Ledger(path, read_only=True) if shared else Ledger(empty) as ledger:
            yield ledger
