"""The content of ``report.json``: the statement, the numbers behind it, and what they stand on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedllm import __version__
from fedllm.budget.limits import protected_from
from fedllm.budget.recorded_rows import notes_on, proven_relation
from fedllm.report import accounting
from fedllm.report.accounting import Accounts, SiloAccounting
from fedllm.report.guarantee import headline
from fedllm.report.guarded import guarded
from fedllm.report.held import add_held
from fedllm.report.prose.assumptions import SETTINGS_LOST, assumptions, not_covered
from fedllm.report.prose.evaluation_data import evaluation_data
from fedllm.report.prose.ledger_notes import adopted, notes_of
from fedllm.report.prose.reproduction import reproduction
from fedllm.report.prose.secure_sum import make_sum_assumption
from fedllm.report.prose.strength import rated, strength_part
from fedllm.report.record import RunRecord, read_run
from fedllm.report.schema import SCHEMA_ID, VERSION
from fedllm.report.sections.black_box import black_box
from fedllm.report.sections.copies import copies_of_a_record
from fedllm.report.sections.encoding import encoding, unrecorded_statistics
from fedllm.report.sections.layers import layers, unrecorded_scores
from fedllm.report.sections.ledger import ledger_part
from fedllm.report.sections.lmo import lmo, unproven
from fedllm.report.sections.released import releases
from fedllm.report.sections.silo_curves import (
    curves_of_the_largest,
    epsilon_by_round,
    in_plain_words,
)
from fedllm.report.sections.spent import accountants_part, silo_part
from fedllm.report.sections.teacher import membership, teacher, teacher_defects
from fedllm.report.sections.training import number, summarise
from fedllm.report.vouched import lost_extracts, vouch, vouched_headline
from fedllm.run.folder import RunFolder
from fedllm.settings.experiment import Settings
from privacy.guarantee import Relation, Unit
from privacy.ledger.ledger import LedgerEntry

DELTA = 1e-5
"""Delta if neither the settings nor the ledger state one."""
WARNINGS = 100
"""Different warnings that the report lists at most."""
NO_MECHANISM = "privacy.mode=none: training without clipping or noise"
WITHHELD = "withheld: anyone who knows it can compute the noise"


def build(source: RunFolder | str | Path) -> dict[str, Any]:
    """Build all content of the report as plain values, as :mod:`fedllm.report.schema` describes it.

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
    vouching = vouch(run, unit, relation, delta, accounts)
    defects, lost = _defects(run), _lost(run)
    if vouching is not None:
        accounted, lost = vouching.silos, [*lost, *lost_extracts(run, vouching)]
    else:
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
        or (vouching is not None and vouching.seeded)
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
        unproven=unproven(run),
        assumed=None
        if settings is None
        else make_sum_assumption(protected_from(settings), run.own),
    )
    if vouching is not None:
        statement = vouched_headline(statement, vouching)
    meaning = in_plain_words(run, accounted, statement, unit, relation)
    strength = strength_part(statement, meaning, _sizes(run))
    statement = rated(statement, strength)
    runs = sorted({entry.run for entry in run.entries})
    counted = max(len(runs), 1 + vouching.other_runs) if vouching is not None else len(runs)
    part = None if vouching is None else vouching.part
    silos_adopted = any(row["adoptions"] for row in part or ())
    return {
        "format": "fedllm-report",
        "version": VERSION,
        "schema": SCHEMA_ID,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": f"fedllm {__version__}",
        "headline": statement.sentence,
        "guarantee": asdict(statement),
        "evaluation_data": None
        if settings is None
        else evaluation_data(settings.data, settings.public, settings.evaluation),
        "strength": strength,
        "warnings": _warnings(run),
        "problems": run.problems,
        "notes": [*run.notes, *notes_on(run.entries), *notes_of(run.verification)],
        "run": {"folder": run.path.name, "name": run.name, **_state(run)},
        "silos": [silo_part(silo, run, accounts) for silo in accounted],
        "epsilon_by_round": epsilon_by_round(run, accounted, statement, unit, accounts),
        "privacy_curves": curves_of_the_largest(run, accounted, statement, unit, relation),
        "copies": copies_of_a_record(run, accounted, statement, unit, accounts),
        "meaning": meaning,
        "accountants": accountants_part(relation, accounted),
        "releases": releases(run.entries, run.run_id),
        "encoding": encoded,
        "layers": chosen,
        "lmo": guarded(
            "the cost of LMO noise",
            run.problems,
            lambda: lmo(run, accounted, relation, delta),
            None,
        ),
        "black_box": black_box(run, accounted, accounts, training),
        "assumptions": _assumed(run, seeded, counted, silos_adopted),
        "not_covered": [] if settings is None else _titled(not_covered(settings)),
        "ledger": ledger_part(run, runs),
        "vouching": part,
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
    """Return the settings as they may be printed: without a seed that would tell the noise."""
    plain = settings.model_dump(mode="json")
    if settings.privacy.mode == "dp" and settings.privacy.randomness == "seeded":
        plain["seed"] = WITHHELD
    return plain


def _terms(run: RunRecord) -> tuple[Unit, Relation, float]:
    """Return unit, relation and delta from the settings or, if they are lost, from the ledger's rows."""
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
    """Return the missing parts without which no epsilon can be stated."""
    lost = []
    begun = run.state["status"] != "created" or bool(run.state["round"]) or bool(run.metrics)
    if run.ledger_problem and (begun or run.ledger_path.exists()):
        lost.append(run.ledger_problem)
    if run.settings is None:
        lost.append(
            "the run's settings cannot be read, so the ledger's events cannot be compared with them"
        )
    if run.run_id is None and run.entries:
        lost.append(
            "state.json cannot be read and the ledger holds several runs, so this run's rows cannot be "
            "identified"
        )
    return lost


def _defects(run: RunRecord) -> list[str]:
    """Return the reasons that rule out a guarantee, independent of the cost of the ledger's events."""
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


def _sizes(run: RunRecord) -> dict[str, int | None]:
    """Return each silo's number of examples; None where it is private or lost."""
    found = {}
    for name, silo in run.silos.items():
        size = silo.get("examples") if isinstance(silo, dict) else None
        found[name] = size if isinstance(size, int) else None
    return found


def _warnings(run: RunRecord) -> list[str]:
    """Return what the run warned of when it began, and on its way: as the terminal printed it, each sentence once."""
    found = [record.get("message") for record in run.metrics if record["kind"] == "warning"]
    return list(dict.fromkeys(text for text in found if isinstance(text, str)))[:WARNINGS]


def _state(run: RunRecord) -> dict[str, Any]:
    keys = ("run_id", "status", "round", "rounds", "message", "created", "updated")
    return {key: run.state.get(key) for key in keys} | {"silos": sorted(run.silos)}


def _assumed(run: RunRecord, seeded: bool, runs: int, silos_adopted: bool) -> list[dict[str, str]]:
    items = SETTINGS_LOST
    if run.settings is not None:
        items = assumptions(run.settings, seeded=seeded, runs=runs)
    return _titled([*items, *adopted(run.verification, silos_adopted)])


def _unrecorded(run: RunRecord) -> list[str]:
    """Return the rounds with more updates than the ledger has training rows for."""
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


def _titled(items: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"title": title, "text": text} for title, text in items]
