"""The report's section on the ledger, or of a deployed run on the extracts that its silos signed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from fedllm.report.extract.statement import printable
from fedllm.report.extract.store import FOLDER, Found
from fedllm.report.record import RunRecord
from fedllm.report.schema_base import Part, Real


class LedgerPart(Part):
    """The ledger that every epsilon was computed from."""

    file: str
    shared: bool
    ok: bool = Field(description="Whether it could be read and its chain of hashes is whole.")
    rows: int
    rows_of_this_run: int
    runs: list[str]
    last_row: int | None
    last_hash: str | None
    problems: list[str]


class BudgetPart(Part):
    """A silo's own budget over all runs on its ledger, as it states."""

    epsilon: Real
    delta: float
    unit: str
    relation: str
    accountant: str
    spent: Real | None = Field(
        description="Epsilon of all plans and releases, composed as if fixed beforehand; null: not accounted."
    )
    left: Real | None = Field(
        description="epsilon less spent; a later plan may take less, as a filter decides."
    )


class VouchingPart(Part):
    """A signed extract of the ledger of one silo of a deployed run. Null: there is none."""

    silo: str
    vouches: bool = Field(description="Whether its extract counts; else nothing is known of it.")
    why: str = Field(description="Why it does not; empty where it does.")
    key: str | None = Field(
        description="Fingerprint of the registered node key, as ssh-keygen -l prints it."
    )
    sha256: str | None = Field(description="Of the extract's file.")
    final: bool = Field(description="Whether the silo answered at the end of the run.")
    made: str | None = Field(description="When, by the silo's clock.")
    rows: int | None = Field(description="Of the whole ledger.")
    hash: str | None = Field(description="Of its last row.")
    events: Literal["sent", "kept"] | None = Field(
        description="sent: the figures were computed again from them; kept: they are the silo's word."
    )
    rows_of_run: int | None
    rows_of_other_runs: int | None
    other_runs: int | None
    budget: BudgetPart | None
    adoptions: list[str] = Field(
        description="Time and reason of adopting a ledger that was restored, copied or lost: releases that are "
        "missing from it are counted nowhere."
    )
    disagreements: list[str] = Field(
        description="Where its figures are not those of its events. The larger are stated."
    )


def ledger_part(run: RunRecord, runs: Sequence[str]) -> dict[str, Any]:
    """Return the ledger that is here; of a deployed run, whose ledgers are with the silos, the rows that they sent."""
    head = run.verification.head if run.verification else None
    extracts = run.extracts is not None
    return {
        "file": FOLDER if extracts else run.ledger_path.name,
        "shared": not extracts
        and run.settings is not None
        and run.settings.privacy.ledger is not None,
        "ok": run.verification is not None and run.verification.ok and not run.ledger_problem,
        "rows": len(run.entries),
        "rows_of_this_run": len(run.own),
        "runs": list(runs),
        "last_row": head[0] if head else None,
        "last_hash": head[1] if head else None,
        "problems": [
            *([run.ledger_problem] if run.ledger_problem else []),
            *(run.verification.problems if run.verification else []),
        ],
    }


def vouching_row(one: Found) -> dict[str, Any]:
    """Return the reported fields of an extract, before its acceptance is decided."""
    extract, key = one.extract, one.expected.key
    found: dict[str, Any] = {
        "silo": one.silo,
        "vouches": False,
        "why": "",
        "key": None if key is None else key.fingerprint,
        "sha256": one.digest,
        "final": one.expected.final,
        "made": None,
        "rows": None,
        "hash": None,
        "events": None,
        "rows_of_run": None,
        "rows_of_other_runs": None,
        "other_runs": None,
        "budget": None,
        "adoptions": [],
        "disagreements": [],
    }
    if extract is None:
        return found
    return found | {
        "made": extract.made,
        "rows": extract.ledger.rows,
        "hash": extract.ledger.hash,
        "events": "kept" if extract.events is None else "sent",
        "rows_of_run": extract.rows_of_run,
        "rows_of_other_runs": extract.rows_of_other_runs,
        "other_runs": extract.other_runs,
        "budget": None if extract.budget is None else extract.budget.model_dump(),
        "adoptions": [printable(text) for text in extract.adoptions],
    }


MARKUP = """\
{% if report.vouching is not none %}
<h2>Who vouches for what</h2>
<p>The ledgers are with the silos. Each silo signs an extract of its ledger with its node key; the head stands for all rows
up to it. A signature proves who stated something, not that it is true.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Signed extracts of the silos' ledgers">
<table class="stack" id="vouching">
<thead><tr><th scope="col">Silo</th><th scope="col">Vouches</th><th scope="col">Events</th><th scope="col" class="num">Rows of this run</th><th scope="col" class="num">Of other runs</th><th scope="col">Ledger's head</th><th scope="col" class="num">Own budget left</th><th scope="col">Node key</th></tr></thead>
<tbody>
{% for row in report.vouching %}
<tr><th scope="row">{{ row.silo }}</th><td data-label="vouches"><span>{% if row.vouches %}<strong class="good">yes</strong>, {{ row.made | moment }}{% if not row.final %}, before the end of the run{% endif %}{% for text in row.disagreements %}<small class="soft">DISAGREES: {{ text }}</small>{% endfor %}{% else %}<strong class="bad">no: nothing is known</strong><small class="soft">{{ row.why }}</small>{% endif %}</span></td><td data-label="events"><span>{{ {"sent": "sent, accounted again", "kept": "kept by the silo"}.get(row.events, "–") }}</span></td><td data-label="rows of this run" class="num"><span>{{ row.rows_of_run | number }}</span></td><td data-label="of other runs" class="num"><span>{{ row.rows_of_other_runs | number }}</span></td><td data-label="head"><span>{% if row.hash %}row {{ row.rows }} <code>{{ row.hash[:16] }}…</code>{% else %}–{% endif %}</span></td><td data-label="own budget left" class="num"><span>{% if row.budget %}{{ row.budget.left | value }} of {{ row.budget.epsilon | value }} at delta {{ "%g" | format(row.budget.delta) }}{% else %}–{% endif %}</span></td><td data-label="node key"><span><code>{{ row.key or "–" }}</code></span></td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% else %}
<h2>The ledger</h2>
<p>{% if ledger.ok %}<strong class="good">Verified:</strong> the chain of hashes over all
{{ ledger.rows | number }} rows is whole. {% else %}<strong class="bad">Not verified:</strong>
{{ ledger.problems | join("; ") or "the ledger could not be read" }}. {% endif %}
{{ ledger.rows_of_this_run | number }} rows are of this run{% if ledger.shared %}; the ledger is shared
by {{ ledger.runs | length }} {{ "run" if ledger.runs | length == 1 else "runs" }}{% endif %}. Keep the last hash with the signature: a later verification against it
shows whether a row was changed or taken away.</p>
{{ pairs("Ledger", {"file": ledger.file, "rows": ledger.rows, "last row": ledger.last_row, "last hash (SHA-256)": ledger.last_hash}) }}
{% endif %}
"""
