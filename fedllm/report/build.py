"""The content of ``report.json``: the statement, the numbers behind it, and what they stand on."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from fedllm import __version__
from fedllm.checkpoints import latest_checkpoint
from fedllm.report import accounting
from fedllm.report.accounting import Accounts, SiloAccounting
from fedllm.report.assumptions import assumptions, not_covered
from fedllm.report.guarantee import Headline, headline
from fedllm.report.training import summarise
from fedllm.run_folder import RunFolder, RunFolderError
from fedllm.settings import Settings
from privacy.ledger import Ledger, LedgerEntry, LedgerError, VerifyReport
from privacy.vocabulary import OUTSIDER, SERVER, Relation, Unit

CURVES = 8
"""Silos in the drawing of epsilon by round."""
POINTS = 8
"""Rounds at which each of them is accounted."""
NO_MECHANISM = "privacy.mode=none: training without clipping or noise"
WITHHELD = "withheld: whoever knows it can compute the noise"


def build(run: RunFolder) -> dict[str, Any]:
    """Everything that the report states, as plain values.

    Epsilons are computed from the ledger here. A file of the run that is missing or damaged is named
    under ``problems``, and the rest is reported; a ledger that is missing or damaged, or holds less
    than was released, takes the guarantee away.
    """
    settings = run.settings()
    problems: list[str] = []
    records, damaged = run.read_metrics()
    problems += [f"metrics.jsonl: {problem}" for problem in damaged]
    silos = _read(run, "silos.json", problems) or {}
    environment = _read(run, "environment.json", problems)
    entries, verification, ledger_problem = _read_ledger(run)
    unit, relation = Unit(settings.privacy.unit), Relation(settings.privacy.relation)
    accounts = Accounts(relation, settings.privacy.delta)
    accounted = accounting.account_silos(
        entries, run=run.run_id, silos=silos, unit=unit, relation=relation, accounts=accounts
    )
    training = summarise(records, settings)
    defects = _defects(settings, run, records, entries, verification, ledger_problem)
    seeded = settings.privacy.mode == "dp" and (
        settings.privacy.randomness == "seeded" or _any_seeded(entries, accounted)
    )
    statement = headline(
        accounted,
        unit=unit,
        relation=relation,
        delta=settings.privacy.delta,
        seeded=seeded,
        defects=defects,
        released=bool(training["finished_rounds"]) or any(silo.rows for silo in accounted),
    )
    runs = sorted({entry.run for entry in entries})
    return {
        "format": "fedllm-report",
        "version": 1,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": f"fedllm {__version__}",
        "headline": statement.sentence,
        "guarantee": asdict(statement),
        "run": {"folder": run.path.name, "name": settings.name, **run.state()},
        "silos": [_silo(silo, silos.get(silo.name) or {}) for silo in accounted],
        "epsilon_by_round": _curves(entries, run, accounted, statement, unit, accounts),
        "accountants": _trust(relation),
        "releases": accounting.releases(entries, run.run_id),
        "assumptions": _titled(assumptions(settings, seeded=seeded, runs=len(runs))),
        "not_covered": _titled(not_covered(settings)),
        "ledger": {
            "file": run.ledger_path.name,
            "shared": settings.privacy.ledger is not None,
            "ok": verification is not None and verification.ok,
            "rows": len(entries),
            "rows_of_this_run": sum(entry.run == run.run_id for entry in entries),
            "runs": runs,
            "last_row": verification.head[0] if verification else None,
            "last_hash": verification.head[1] if verification else None,
            "problems": [ledger_problem] if ledger_problem else verification_problems(verification),
        },
        "training": training,
        "target": {"epsilon": settings.privacy.epsilon, "delta": settings.privacy.delta},
        "settings": public_settings(settings),
        "environment": environment,
        "problems": problems + _checkpoint_problems(run),
    }


def public_settings(settings: Settings) -> dict[str, Any]:
    """The settings as they may be printed: without a seed that would tell the noise."""
    plain = settings.model_dump(mode="json")
    if settings.privacy.mode == "dp" and settings.privacy.randomness == "seeded":
        plain["seed"] = WITHHELD
    return plain


def verification_problems(verification: VerifyReport | None) -> list[str]:
    """The problems of a verification; none where the ledger could not be read at all."""
    return list(verification.problems) if verification else []


def _read(run: RunFolder, name: str, problems: list[str]) -> Any:
    try:
        value = run.read_json(name)
    except RunFolderError as error:
        problems.append(str(error))
        return None
    if value is None:
        problems.append(f"{name} is missing")
    return value


def _read_ledger(
    run: RunFolder,
) -> tuple[list[LedgerEntry], VerifyReport | None, str | None]:
    if not run.ledger_path.exists():
        return [], None, "the ledger is missing"
    try:
        with Ledger(run.ledger_path, read_only=True) as ledger:
            verification = ledger.verify()
            return ledger.entries(), verification, None
    except LedgerError as error:
        return [], None, f"the ledger cannot be read: {error}"


def _defects(
    settings: Settings,
    run: RunFolder,
    records: Sequence[dict[str, Any]],
    entries: Sequence[LedgerEntry],
    verification: VerifyReport | None,
    ledger_problem: str | None,
) -> list[str]:
    """Why there can be no guarantee, whatever the events of the ledger cost."""
    defects = []
    if settings.privacy.mode == "none":
        defects.append(NO_MECHANISM)
    rounds = [record for record in records if record["kind"] == "round"]
    if ledger_problem and (rounds or ledger_problem != "the ledger is missing"):
        defects.append(ledger_problem)
    if verification is not None and not verification.ok:
        found = "; ".join(verification.problems[:3])
        defects.append(f"the ledger fails its verification: {found}")
    if verification is not None and settings.privacy.mode == "dp":
        defects += _unrecorded(run, rounds, entries)
    return defects


def _unrecorded(
    run: RunFolder, rounds: Sequence[dict[str, Any]], entries: Sequence[LedgerEntry]
) -> list[str]:
    """Rounds with more updates than the ledger has training rows for."""
    recorded: Counter[int] = Counter()
    for entry in entries:
        if entry.run == run.run_id and entry.purpose == "train":
            common = entry.party == accounting.EVERYBODY
            recorded[entry.round] += 10**9 if common else 1
    missing = [r["round"] for r in rounds if (r.get("replied") or 0) > recorded[r["round"]]]
    if not missing:
        return []
    shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
    return [
        f"the ledger has fewer training rows than updates were received, in round {shown}: "
        "something was released without a record"
    ]


def _any_seeded(entries: Sequence[LedgerEntry], accounted: Sequence[SiloAccounting]) -> bool:
    parties = {silo.name for silo in accounted} | {accounting.EVERYBODY}
    return any(
        entry.details.get("randomness") == "seeded" for entry in entries if entry.party in parties
    )


def _silo(silo: SiloAccounting, public: dict[str, Any]) -> dict[str, Any]:
    return {
        "silo": silo.name,
        "examples": public.get("examples"),
        "left": public.get("left"),
        "rounds": silo.rounds,
        "trainings": [
            {"sampling_rate": rate, "noise_multiplier": noise, "steps": steps}
            for rate, noise, steps in silo.trainings
        ],
        "rows": silo.rows,
        "rows_of_other_runs": silo.other_rows,
        "adversaries": {
            adversary: {
                "headline": asdict(silo.headline(adversary)),
                "figures": [asdict(figure) for figure in figures],
                "reasons": silo.reasons[adversary],
            }
            for adversary, figures in silo.figures.items()
        },
    }


def _curves(
    entries: Sequence[LedgerEntry],
    run: RunFolder,
    accounted: Sequence[SiloAccounting],
    statement: Headline,
    unit: Unit,
    accounts: Accounts,
) -> dict[str, Any]:
    """Epsilon by round of some silos: those with the largest epsilon, and the smallest."""
    adversary = OUTSIDER if statement.level == "outsider-only" else SERVER
    usable = [silo for silo in accounted if silo.rows and not silo.reasons[adversary]]
    usable.sort(key=lambda silo: -(silo.headline(adversary).epsilon or 0.0))
    chosen = usable if len(usable) <= CURVES else [*usable[: CURVES - 1], usable[-1]]
    lines = {
        silo.name: accounting.epsilon_by_round(
            entries,
            run=run.run_id,
            silo=silo.name,
            unit=unit,
            adversary=adversary,
            accounts=accounts,
            points=POINTS,
        )
        for silo in chosen
    }
    return {"adversary": str(adversary), "silos": lines, "left_out": len(usable) - len(chosen)}


def _trust(relation: Relation) -> list[dict[str, Any]]:
    from privacy.accountants import make_accountant

    table = []
    for name, title in accounting.ACCOUNTANTS:
        try:
            accountant = make_accountant(name, relation)
        except (ValueError, KeyError):
            continue
        row = {"name": name, "title": title, "bound": bool(accountant.is_bound)}
        table.append(row | {"trust": str(getattr(accountant, "trust", ""))})
    return table


def _titled(items: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"title": title, "text": text} for title, text in items]


def _checkpoint_problems(run: RunFolder) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = latest_checkpoint(run.checkpoints_path)
    problems = [str(item.message) for item in caught]
    if found is None and run.state().get("round", 0) > 0:
        problems.append("no checkpoint is whole: the model is lost")
    return problems
