"""The content of ``report.json``: the statement, the numbers behind it, and what they stand on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedllm import __version__
from fedllm.lmo_target import unproven
from fedllm.recorded_relation import notes_on, proven_relation
from fedllm.report import accounting
from fedllm.report.accounting import Accounts, SiloAccounting
from fedllm.report.assumptions import assumptions, not_covered
from fedllm.report.copies import copies_cost
from fedllm.report.curves import least_missed, missed_at, privacy_curves
from fedllm.report.encoding import encoding, unrecorded_statistics
from fedllm.report.guarantee import STATED, Headline, headline
from fedllm.report.held import FILTER, PLAN, add_held
from fedllm.report.layers import layers, unrecorded_scores
from fedllm.report.lmo import lmo
from fedllm.report.record import RunRecord, read_run
from fedllm.report.reproduction import reproduction
from fedllm.report.schema import SCHEMA_ID, VERSION
from fedllm.report.teacher import membership, teacher, teacher_defects
from fedllm.report.training import number, summarise
from fedllm.report.zeroth_order import black_box
from fedllm.run_folder import RunFolder
from fedllm.settings import Settings
from privacy.ledger import LedgerEntry, composed
from privacy.vocabulary import OUTSIDER, SERVER, Relation, Unit

CURVES = 8
"""Silos in the drawing of epsilon by round."""
POINTS = 8
"""Rounds at which each of them is accounted."""
FALSE_ALARMS = 0.05
"""Rate at which the guarantee is put in plain words."""
DISTINCT = 64
"""Silos with differing events up to which that is computed."""
DELTA = 1e-5
"""Where neither the settings nor the ledger tell delta."""
NO_MECHANISM = "privacy.mode=none: training without clipping or noise"
WITHHELD = "withheld: whoever knows it can compute the noise"


def build(source: RunFolder | str | Path) -> dict[str, Any]:
    """Everything that the report states, as plain values, as :mod:`fedllm.report.schema` describes it.

    Epsilons are computed from the ledger here. A file of the run that is missing or damaged is named
    under ``problems``, and the rest is reported; a ledger that is missing or damaged, or holds less
    than was released, takes the guarantee away, and so do settings that cannot be read.

    Raises:
        RunFolderError: the folder is no run folder at all.
    """
    run = read_run(source)
    settings = run.settings
    unit, relation, delta = _terms(run)
    accounts = Accounts(relation, delta)
    defects, lost = _defects(run), _lost(run)
    accounted = accounting.account_silos(
        run.entries,
        run=run.run_id,
        silos=run.silos if not run.ledger_problem else (),
        unit=unit,
        relation=relation,
        accounts=accounts,
        defects=defects,
    )
    if run.verification is not None and run.verification.ok and not run.ledger_problem:
        add_held(accounted, run.ledger_path, unit, relation, delta)
    encoded = encoding(run, accounted, accounts)
    chosen = layers(run, accounted, accounts)
    training = summarise(run.metrics, settings)
    taught, measured = teacher(run), membership(run)
    mode = settings.privacy.mode if settings is not None else "dp"
    seeded = mode == "dp" and (
        (settings is not None and settings.privacy.randomness == "seeded")
        or _any_seeded(run.entries, accounted)
    )
    statement = headline(
        accounted,
        unit=unit,
        relation=relation,
        delta=delta,
        seeded=seeded,
        defects=defects,
        lost=lost,
        released=bool(training["finished_rounds"]) or any(silo.rows for silo in accounted),
        unproven=None if settings is None else unproven(settings),
    )
    runs = sorted({entry.run for entry in run.entries})
    head = run.verification.head if run.verification else None
    return {
        "format": "fedllm-report",
        "version": VERSION,
        "schema": SCHEMA_ID,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": f"fedllm {__version__}",
        "headline": statement.sentence,
        "guarantee": asdict(statement),
        "problems": run.problems,
        "notes": [*run.notes, *notes_on(run.entries)],
        "run": {"folder": run.path.name, "name": run.name, **_state(run)},
        "silos": [_silo(silo, run, accounts) for silo in accounted],
        "epsilon_by_round": _curves(run, accounted, statement, unit, accounts),
        "privacy_curves": _privacy_curves(run, accounted, statement, unit, relation),
        "copies": _copies(run, accounted, statement, unit, accounts),
        "meaning": _meaning(run, accounted, statement, unit, relation),
        "accountants": _trust(relation),
        "releases": accounting.releases(run.entries, run.run_id),
        "encoding": encoded,
        "layers": chosen,
        "lmo": lmo(run, accounted, relation, delta),
        "black_box": black_box(run, accounted, accounts, training),
        "assumptions": _assumed(settings, seeded, len(runs)),
        "not_covered": [] if settings is None else _titled(not_covered(settings)),
        "ledger": {
            "file": run.ledger_path.name,
            "shared": settings is not None and settings.privacy.ledger is not None,
            "ok": run.verification is not None and run.verification.ok and not run.ledger_problem,
            "rows": len(run.entries),
            "rows_of_this_run": len(run.own),
            "runs": runs,
            "last_row": head[0] if head else None,
            "last_hash": head[1] if head else None,
            "problems": [
                *([run.ledger_problem] if run.ledger_problem else []),
                *(run.verification.problems if run.verification else []),
            ],
        },
        "training": training,
        "teacher": taught,
        "membership": measured,
        "target": {
            "epsilon": None if settings is None else settings.privacy.epsilon,
            "delta": None if settings is None else settings.privacy.delta,
        },
        "settings": None if settings is None else public_settings(settings),
        "environment": run.environment,
        "reproduce": reproduction(run, unit, relation, delta),
    }


def public_settings(settings: Settings) -> dict[str, Any]:
    """The settings as they may be printed: without a seed that would tell the noise."""
    plain = settings.model_dump(mode="json")
    if settings.privacy.mode == "dp" and settings.privacy.randomness == "seeded":
        plain["seed"] = WITHHELD
    return plain


def _terms(run: RunRecord) -> tuple[Unit, Relation, float]:
    """Unit, relation and delta: of the settings, or where they are lost, of the ledger's rows."""
    if run.settings is not None:
        privacy = run.settings.privacy
        return Unit(privacy.unit), Relation(privacy.relation), privacy.delta
    rows = run.own or run.entries
    unit = rows[-1].unit if rows else Unit.EXAMPLE
    relation, delta = Relation.ZERO_OUT, DELTA
    if rows:
        relation = proven_relation(rows[-1]) or relation
    if rows and isinstance(rows[-1].details.get("delta"), float):
        delta = float(str(rows[-1].details["delta"]))
    return unit, relation, delta


def _lost(run: RunRecord) -> list[str]:
    """What is missing without which no epsilon can be stated."""
    lost = []
    begun = run.state["status"] != "created" or bool(run.state["round"]) or bool(run.metrics)
    if run.ledger_problem and (begun or run.ledger_path.exists()):
        lost.append(run.ledger_problem)
    if run.settings is None:
        lost.append(
            "the run's settings cannot be read, so that nothing tells whether the ledger's events are "
            "what was done"
        )
    if run.run_id is None and run.entries:
        lost.append(
            "state.json cannot be read and the ledger holds several runs, so that nothing tells "
            "which of its rows are this run's"
        )
    return lost


def _defects(run: RunRecord) -> list[str]:
    """Why there can be no guarantee, whatever the events of the ledger cost."""
    defects = []
    if run.settings is not None and run.settings.privacy.mode == "none":
        defects.append(NO_MECHANISM)
    defects += teacher_defects(run)
    if run.verification is not None and not run.verification.ok:
        found = "; ".join(run.verification.problems[:3])
        defects.append(f"the ledger fails its verification: {found}")
    dp = run.settings is None or run.settings.privacy.mode == "dp"
    if run.verification is not None and not run.ledger_problem and dp and run.run_id is not None:
        defects += _unrecorded(run) + unrecorded_statistics(run)
        defects += unrecorded_scores(run)
    return defects


def _state(run: RunRecord) -> dict[str, Any]:
    keys = ("run_id", "status", "round", "rounds", "message", "created", "updated")
    return {key: run.state.get(key) for key in keys} | {"silos": sorted(run.silos)}


def _assumed(settings: Settings | None, seeded: bool, runs: int) -> list[dict[str, str]]:
    if settings is not None:
        return _titled(assumptions(settings, seeded=seeded, runs=runs))
    return _titled(
        [
            (
                "Not known",
                "The settings cannot be read. What was clipped, how examples were drawn, who added the "
                "noise and from which source it came is not known; each is an assumption of every "
                "epsilon below.",
            )
        ]
    )


def _unrecorded(run: RunRecord) -> list[str]:
    """Rounds with more updates than the ledger has training rows for."""
    recorded: Counter[int] = Counter()
    for entry in run.own:
        if entry.purpose == "train":
            common = entry.party == accounting.EVERYBODY
            recorded[entry.round] += 10**9 if common else 1
    rounds = [record for record in run.metrics if record["kind"] == "round"]
    missing = [r["round"] for r in rounds if number(r.get("replied")) > recorded[r["round"]]]
    if not missing and not run.metrics_whole and run.state["round"] > max(recorded, default=0):
        missing = [run.state["round"]]
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


def _silo(silo: SiloAccounting, run: RunRecord, accounts: Accounts) -> dict[str, Any]:
    public = run.silos.get(silo.name)
    public = public if isinstance(public, dict) else {}
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
        "target": _target(silo, run, accounts),
        "adversaries": {
            adversary: {
                "headline": asdict(silo.headline(adversary)),
                "figures": [asdict(figure) for figure in figures],
                "held": asdict(silo.held[adversary]) if adversary in silo.held else None,
                "reasons": silo.reasons[adversary],
            }
            for adversary, figures in silo.figures.items()
        },
    }


def _target(silo: SiloAccounting, run: RunRecord, accounts: Accounts) -> dict[str, Any]:
    """What a silo's settings aim at, and its epsilon at its own delta where that is another one."""
    if run.settings is None:
        return {"epsilon": None, "run_epsilon": None, "delta": None, "spent": None}
    privacy = run.settings.for_silo(silo.name).privacy
    spent = None
    if privacy.delta != accounts.delta and not silo.reasons.get(SERVER, ["no row"]):
        parties = (silo.name, accounting.EVERYBODY)
        rows = [row for row in run.entries if row.party in parties]
        name = silo.headline(SERVER).accountant
        own = Accounts(accounts.relation, privacy.delta)
        figure = own.figure(name, composed(rows, SERVER)) if name != "none" else None
        spent = None if figure is None else figure.epsilon
    found = {key: getattr(privacy, key) for key in ("epsilon", "run_epsilon", "delta")}
    return {**found, "spent": spent}


def _curves(
    run: RunRecord,
    accounted: Sequence[SiloAccounting],
    statement: Headline,
    unit: Unit,
    accounts: Accounts,
) -> dict[str, Any]:
    """Epsilon by round of some silos: those with the largest epsilon, and the smallest."""
    adversary = _drawn_adversary(statement)
    usable = [silo for silo in accounted if silo.rows and not silo.reasons[adversary]]
    usable.sort(key=lambda silo: -(silo.headline(adversary).epsilon or 0.0))
    chosen = usable if len(usable) <= CURVES else [*usable[: CURVES - 1], usable[-1]]
    lines = {
        silo.name: accounting.epsilon_by_round(
            run.entries,
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


def _privacy_curves(
    run: RunRecord,
    accounted: Sequence[SiloAccounting],
    statement: Headline,
    unit: Unit,
    relation: Relation,
) -> dict[str, Any] | None:
    """The whole curve of the silo with the largest epsilon; None where there is none to draw."""
    adversary = _drawn_adversary(statement)
    worst = _largest(accounted, adversary)
    if worst is None or worst.stated(adversary).accountant in (FILTER, PLAN):
        return None  # the curve of what was released is not the one that holds
    figure = worst.headline(adversary)
    events = composed(_rows(run, worst.name, unit), adversary)
    found = privacy_curves(events, figure.accountant, relation)
    if found is None:
        return None
    return {
        "silo": worst.name,
        "adversary": str(adversary),
        "accountant": figure.accountant,
        **found,
    }


def _largest(accounted: Sequence[SiloAccounting], adversary: str) -> SiloAccounting | None:
    """The silo with the largest epsilon; None where none has a finite one above 0."""
    able = [silo for silo in accounted if silo.rows and not silo.reasons[adversary]]
    able = [silo for silo in able if 0 < silo.headline(adversary).epsilon_or_inf < math.inf]
    return max(able, key=lambda silo: silo.headline(adversary).epsilon_or_inf, default=None)


def _copies(
    run: RunRecord,
    accounted: Sequence[SiloAccounting],
    statement: Headline,
    unit: Unit,
    accounts: Accounts,
) -> dict[str, Any] | None:
    """What copies of one record cost at the silo with the largest epsilon."""
    adversary = _drawn_adversary(statement)
    worst = _largest(accounted, adversary)
    if worst is None or unit is Unit.CLIENT:
        return None
    events = composed(_rows(run, worst.name, unit), adversary)
    costs = copies_cost(events, accounts.relation, accounts.delta)
    return {"silo": worst.name, "adversary": str(adversary), "accountant": "pld", "costs": costs}


def _rows(run: RunRecord, silo: str, unit: Unit) -> list[LedgerEntry]:
    """The rows that count for a silo."""
    parties = (silo, accounting.EVERYBODY)
    return [row for row in run.entries if row.party in parties and row.unit is unit]


def _meaning(
    run: RunRecord,
    accounted: Sequence[SiloAccounting],
    statement: Headline,
    unit: Unit,
    relation: Relation,
) -> dict[str, Any] | None:
    """What a test with few false alarms misses at the least, in whichever silo; None where nothing
    is guaranteed, or there are too many different silos to compute it for each."""
    if statement.level not in STATED:
        return None
    adversary = _drawn_adversary(statement)
    distinct, held = {}, []
    for silo in accounted:
        if not silo.rows:
            continue
        stated = silo.stated(adversary)
        if stated.accountant in (FILTER, PLAN):
            # One point of the curve is what holds, and no other.
            held.append(missed_at(stated.epsilon_or_inf, statement.delta, FALSE_ALARMS))
        else:
            events = composed(_rows(run, silo.name, unit), adversary)
            name = silo.headline(adversary).accountant
            distinct[frozenset(events.items()), name] = events
    if not (distinct or held) or len(distinct) > DISTINCT:
        return None
    missed = min(
        *held,
        *(least_missed(e, name, relation, FALSE_ALARMS) for (_, name), e in distinct.items()),
        1.0,
    )
    return {"adversary": str(adversary), "false_alarms": FALSE_ALARMS, "missed": missed}


def _drawn_adversary(statement: Headline) -> str:
    return OUTSIDER if statement.level == "outsider-only" else SERVER


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
