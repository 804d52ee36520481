"""The report's section on the codec: what travels, and the share of the statistics in what is spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from fedllm.report import accounting
from fedllm.report.accounting import Accounts, Figure, SiloAccounting
from fedllm.report.guarded import FAILURES
from fedllm.report.record import RunRecord
from fedllm.report.schema_base import Part, Real
from fedllm.run.folder import RunFolderError, read_json_file
from privacy.ledger.ledger import LedgerEntry, composed

DESCRIPTION = "codec.json"
_PURPOSES = (("statistics", "statistics"), ("training", "train"))
_EXACT, _DOMINATING = "gdp-exact", "gdp-dominating"


class MuPart(Part):
    """A parameter of Gaussian differential privacy."""

    mu: Real | None = Field(description="Null: no guarantee, or no accountant has one.")
    accountant: str | None
    exact: bool = Field(
        description="All events are Gaussian mechanisms without sampling, and mu is the root of the sum "
        "of their squares; else it is the dominating mu, a bound."
    )


class MuPartsPart(Part):
    """This run's spending of one silo, the one with the largest mu, by purpose."""

    adversary: str
    silo: str
    statistics: MuPart
    training: MuPart
    total: MuPart


class EncodingPart(Part):
    """Encoding of the updates."""

    codec: str
    bits: int
    noise: Literal["before-encoding", "in-code"]
    downlink: str
    dimension: int | None = Field(description="Number of coordinates of an update. Null: unknown.")
    code_dimension: int | None
    bytes: int | None = Field(description="Of one update of one silo, as it travels.")
    float32_bytes: int | None = Field(description="Of the same update without a codec.")
    version: str | None = Field(description="SHA-256 of encoder and decoder.")
    prior: str | None
    prior_chance_of_noise: float | None = Field(
        default=None,
        description="Probability that noise alone gives statistics such as the codec was fitted to. Null: they "
        "have no noise, or it is unknown.",
    )
    prior_version: str | None
    prior_source: Literal["private", "public"] | None = Field(
        description="Null: the codec is not fitted to anything."
    )
    statistics_silos: int | None = Field(description="Silos that released statistics for it.")
    mu: list[MuPartsPart]


def encoding(
    run: RunRecord, accounted: Sequence[SiloAccounting], accounts: Accounts
) -> dict[str, Any] | None:
    """Return the section; None if the run has no codec, or its settings are lost."""
    if run.settings is None or not run.settings.codec.active:
        return None
    codec = run.settings.codec
    told = _described(run)
    if told is None:
        if run.state["round"]:
            run.problems.append(
                f"{DESCRIPTION} is missing or damaged: the encoding of updates is unknown"
            )
        told = {}
    prior = told.get("prior")
    prior = prior if isinstance(prior, dict) else {}
    asked = told.get("statistics")
    return {
        "codec": codec.name,
        "bits": codec.bits,
        "noise": codec.noise,
        "downlink": codec.downlink,
        "dimension": _whole(told.get("dimension")),
        "code_dimension": _whole(told.get("code_dimension")),
        "bytes": _whole(told.get("bytes")),
        "float32_bytes": _whole(told.get("float32_bytes")),
        "version": _text(told.get("version")),
        "prior": _text(prior.get("kind")),
        "prior_chance_of_noise": _probability(prior.get("chance_of_noise")),
        "prior_version": _text(prior.get("version")),
        "prior_source": codec.prior_source if codec.needs_prior else None,
        "statistics_silos": len(asked) if isinstance(asked, dict) else None,
        "mu": mu_by_purpose(run, accounted, accounts, _PURPOSES),
    }


def unrecorded_statistics(run: RunRecord) -> list[str]:
    """Return silos whose statistics made the codec, and of which the ledger has no row."""
    asked = (_described(run) or {}).get("statistics")
    recorded = {row.party for row in run.own if row.purpose == "statistics"}
    missing = sorted(set(asked) - recorded) if isinstance(asked, dict) else []
    if not missing:
        return []
    shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
    return [
        f"the codec was made of statistics of which the ledger has no row, of {shown}: something was "
        "released without a record"
    ]


def _described(run: RunRecord) -> dict[str, Any] | None:
    try:
        found = read_json_file(run.path / DESCRIPTION)
    except RunFolderError:
        return None
    return found if isinstance(found, dict) else None


def mu_by_purpose(
    run: RunRecord,
    accounted: Sequence[SiloAccounting],
    accounts: Accounts,
    purposes: Sequence[tuple[str, str]],
) -> list[dict[str, Any]]:
    """Return, for each adversary, the silo with the largest mu of this run: mu of its rows of each purpose, and of
    all its events in this run (``total``); None without a guarantee.

    Args:
        purposes: (key in the result, purpose in the ledger).
    """
    rows: dict[str, list[LedgerEntry]] = {}
    for entry in run.own:
        rows.setdefault(entry.party, []).append(entry)
    common = rows.pop(accounting.EVERYBODY, [])
    found = []
    for adversary in accounting.adversaries_in(run.own):
        worst: dict[str, Any] | None = None
        for silo in accounted:
            mine = rows.get(silo.name, []) + common
            if not mine:
                continue
            total = _mu(mine, adversary, accounts, bool(silo.reasons.get(adversary)))
            if worst is None or _size(total) > _size(worst["total"]):
                worst = {"adversary": adversary, "silo": silo.name, "total": total}
        if worst is None:
            continue
        mine = rows.get(worst["silo"], []) + common
        lost = worst["total"]["mu"] is None
        for part, purpose in purposes:
            chosen = [row for row in mine if row.purpose == purpose]
            worst[part] = _mu(chosen, adversary, accounts, lost)
        found.append(worst)
    return found


def _mu(
    rows: Sequence[LedgerEntry], adversary: str, accounts: Accounts, lost: bool
) -> dict[str, Any]:
    """Return mu of the rows' events: exact where all are unsampled Gaussians (the root of the sum of squares), else
    the dominating one, which is a bound."""
    if not rows:
        return {"mu": 0.0, "accountant": _EXACT, "exact": True}
    if not lost:
        events = composed(rows, adversary)
        for name in (_EXACT, _DOMINATING):
            try:
                figure: Figure | None = accounts.figure(name, events)
            except FAILURES:
                continue
            if figure is not None and figure.mu is not None:
                return {"mu": figure.mu, "accountant": name, "exact": name == _EXACT}
    return {"mu": None, "accountant": None, "exact": False}


def _size(part: dict[str, Any]) -> float:
    return float("inf") if part["mu"] is None else float(part["mu"])


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _probability(value: Any) -> float | None:
    return float(value) if isinstance(value, float | int) and 0 <= value <= 1 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


MARKUP = """\
{% if report.encoding %}
{% set code = report.encoding %}
<h2>Encoding</h2>
<p>Updates travel encoded by the codec <strong>{{ code.codec }}</strong>{% if code.bytes and code.float32_bytes %}: {{ code.bytes | number }} bytes
for each silo and round in the place of {{ code.float32_bytes | number }} (float32), {{ "%.1f" | format(code.float32_bytes / code.bytes) }} times less{% endif %}.
{% if code.noise == "in-code" %}Clipping and noise are applied to the code. {% else %}The noise is in the update before it is encoded (with noise by the server: after it is decoded). {% endif %}
{% if code.prior_source == "private" %}The codec was fitted to statistics that {{ code.statistics_silos | value }} silos released before training: they are events of the ledger.
{% elif code.prior_source == "public" %}The codec was fitted to gradients of the server's own text, which uses no silo's data.
{% else %}The codec is fitted to no data.{% endif %}{% if code.prior_chance_of_noise is not none %}
{% if code.prior_chance_of_noise > noise_alone %}<strong>Noise alone gives such statistics with probability {{ "%.2g" | format(code.prior_chance_of_noise) }}: the codec was fitted to noise, and knows nothing of the gradients.</strong>
{% else %}That noise alone gives such statistics has a probability of {{ "%.1g" | format(code.prior_chance_of_noise) }}.{% endif %}{% endif %}</p>
{{ pairs("Codec", {"numbers of an update": code.dimension, "numbers of its code": code.code_dimension, "bits": code.bits, "downlink": code.downlink, "prior": code.prior or "none", "version (SHA-256)": code.version, "version of the prior": code.prior_version or "none"}) }}
{% if code.mu %}
<div class="scroll" tabindex="0" role="region" aria-label="Statistics and training apart">
<table>
<caption>mu of Gaussian differential privacy in this run, of the silo with the largest: statistics and training apart.</caption>
<thead><tr><th scope="col">Adversary</th><th scope="col">Silo</th><th scope="col">Statistics</th><th scope="col">Training</th><th scope="col">All</th></tr></thead>
<tbody>
{% for row in code.mu %}
<tr><th scope="row">{{ row.adversary }}</th><td>{{ row.silo }}</td>{% for part in (row.statistics, row.training, row.total) %}<td>{% if part.mu is none %}none{% else %}{{ part.mu | mu }} <small class="soft">{{ "exact" if part.exact else "dominating, a bound" }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% endif %}
"""
