"""``report.html``: one page without external resources, made of ``report.json``'s content."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fedllm.codec.prior import NOISE_ALONE
from fedllm.files.durable import json_bytes, write_bytes, write_text
from fedllm.report.build import build
from fedllm.report.guarantee import accountant_title, round_up, shown
from fedllm.report.page import figures
from fedllm.report.page.style import STYLE
from fedllm.report.page.template import PAGE
from fedllm.report.prose.glossary import GLOSSARY, plain_words
from fedllm.report.sections import (
    black_box,
    copies,
    encoding,
    layers,
    ledger,
    lmo,
    perturbation,
    released,
    silo_curves,
    spent,
    teacher,
    training,
)
from fedllm.run.folder import RunFolder, RunFolderError
from fedllm.run.signed_report import EMPTY, require_unsigned

JSON, HTML = "report.json", "report.html"
_TONES = {
    "guaranteed": "good",
    "not-as-asked": "warn",
    "conditional": "warn",
    "if-fixed": "warn",
    "sum-only": "warn",
    "outsider-only": "bad",
    "some-silos": "bad",
    "none": "bad",
    "unknown": "bad",
    "nothing-released": "warn",
}

_BY_STRENGTH = {"strong": "good", "moderate": "fair", "weak": "warn", "none": "bad"}

_SECTIONS = {
    "black-box.html": black_box.MARKUP,
    "copies.html": copies.MARKUP,
    "curves.html": silo_curves.MARKUP,
    "encoding.html": encoding.MARKUP,
    "layers.html": layers.MARKUP,
    "ledger.html": ledger.MARKUP,
    "lmo.html": lmo.MARKUP,
    "measured.html": teacher.MEASURED,
    "perturbation.html": perturbation.MARKUP,
    "quality.html": training.QUALITY,
    "released.html": released.MARKUP,
    "spent.html": spent.MARKUP,
    "teacher.html": teacher.MARKUP,
    "training.html": training.MARKUP,
    "unguarded.html": teacher.UNGUARDED,
}


def write_report(run: RunFolder | str | Path, to: str | Path | None = None) -> Path:
    """Write ``report.json`` and ``report.html`` of a run folder, however damaged that is.

    Args:
        to: the folder to write into, made where there is none; by default the run folder.

    Returns:
        Path of ``report.html``.

    Raises:
        RunFolderError: it is no run folder, a signed report stands in the folder to write into, or it cannot be
            written to.
    """
    folder = run.path if isinstance(run, RunFolder) else Path(run).expanduser().resolve()
    if to is not None:
        folder = Path(to).expanduser().resolve()
    require_unsigned(folder, "write this one elsewhere: `fedllm report RUN --to FOLDER`")
    content = build(run)
    data = json_bytes(content)
    page = render(content, sha256(data).hexdigest())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / JSON, data)
        write_text(folder / HTML, page)
    except OSError as error:
        raise RunFolderError(f"Cannot write the report into {folder}: {error}") from error
    return folder / HTML


def render(content: Mapping[str, Any], digest: str) -> str:
    """Return the page for :func:`fedllm.report.build`'s content.

    Args:
        digest: the SHA-256 of ``report.json``, as hex digits.
    """
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({HTML: PAGE, **_SECTIONS}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "epsilon": shown,
        "mu": lambda mu: round_up(mu, 4),
        "number": _number,
        "bytes": _bytes,
        "seconds": _seconds,
        "moment": _moment,
        "value": _value,
    }
    environment.globals["noise_alone"] = NOISE_ALONE
    trained, curves = content["training"], content["privacy_curves"]
    guarantee, settings = content["guarantee"], content["settings"] or {}
    headline = accountant_title(guarantee["accountant"])
    drawings = {
        "epsilon": figures.epsilon_curves(
            content["epsilon_by_round"]["silos"],
            content["target"]["epsilon"],
            headline if guarantee["accountant"] != "none" else "by the ledger",
        ),
        "losses": figures.losses(trained["evaluations"]),
        "clipping": figures.clipping(trained["clipping"]),
        "scores": figures.scores(trained["evaluations"]),
        "traffic": figures.traffic(trained.get("rounds", [])),
        "delta_curve": None,
        "trade_off": None,
    }
    if curves is not None:
        figure = _figure(content, curves)
        title = accountant_title(curves["accountant"])
        drawings["delta_curve"] = figures.delta_curve(
            curves, figure["epsilon"], guarantee["delta"], title
        )
        drawings["trade_off"] = figures.trade_off_curve(curves, title)
    return environment.get_template(HTML).render(
        report=content,
        digest=digest,
        style=Markup(_style(content)),
        signer=Markup(EMPTY),
        tone=_tone(content),
        meaning=plain_words(content),
        glossary=[{"title": title, "text": text} for title, text in GLOSSARY],
        **spent.page_values(content),
        **training.page_values(trained),
        sections={k: v for k, v in settings.items() if isinstance(v, dict)},
        top={k: v for k, v in settings.items() if not isinstance(v, dict)},
        **_environment(content["environment"]),
        **{name: _markup(drawing) for name, drawing in drawings.items()},
    )


def _style(content: Mapping[str, Any]) -> str:
    """Return the style sheet with what stands at the edges of printed pages."""
    run = content["run"]
    edges = {
        "header": f"Privacy report: {run['name']}",
        "moment": _moment(content["made"]),
        "run": run["run_id"] or "not known",
    }
    text = STYLE
    for name, value in edges.items():
        plain = re.sub(r"[^\w .:,+-]", "_", value)  # nothing that could end a text in CSS
        text = text.replace(f"%({name})s", plain[:80])
    return text


def _tone(content: Mapping[str, Any]) -> str:
    """Return the colour of the first lines: the worst of what is guaranteed, to whom, and how strongly."""
    guarantee, strength = content["guarantee"], content.get("strength")
    tone = _TONES[guarantee["level"]]
    lost = any(epsilon == float("inf") for epsilon in guarantee["others"].values())
    has_texts = bool((content["evaluation_data"] or {}).get("share"))
    tones = [
        tone,
        "warn" if lost or has_texts else tone,
        tone if strength is None else _BY_STRENGTH[strength["level"]],
    ]
    return max(tones, key=("good", "fair", "warn", "bad").index)


def _figure(content: Mapping[str, Any], curves: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the headline figure of the silo whose curve is drawn."""
    silo = next(silo for silo in content["silos"] if silo["silo"] == curves["silo"])
    found: Mapping[str, Any] = silo["adversaries"][curves["adversary"]]["headline"]
    return found


def _environment(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the machine and the packages, as far as they are known."""
    if not found:
        return {"machine": None, "packages": {}}
    git, memory = found.get("git"), found.get("memory_bytes")
    revision = None
    if isinstance(git, dict):
        revision = f"{git.get('revision')}" + (" with local changes" if git.get("dirty") else "")
    values = {
        "Python": found.get("python"),
        "platform": found.get("platform"),
        "CPU": found.get("cpu"),
        "cores": found.get("cores"),
        "memory": _bytes(memory) if isinstance(memory, int | float) else None,
        "GPUs": found.get("gpus") or "none",
        "revision": revision,
    }
    packages = found.get("packages")
    return {
        "machine": values,
        "packages": packages if isinstance(packages, dict) else {},
    }


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _seconds(value: float) -> str:
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h"


def _moment(value: Any) -> str:
    return str(value)[:19].replace("T", " ") + " UTC" if value else "–"


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
