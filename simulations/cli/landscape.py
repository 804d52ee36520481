"""``fedllm landscape``: measure, tabulate and draw sharpness and loss landscapes of checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simulations.output import (
    AsJson,
    make_table,
    print_json,
    print_parts,
    require,
)


def landscape(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, or folders of single checkpoints (RUN/checkpoints/round-00010).",
            metavar="RUN...",
        ),
    ],
    checkpoint: Annotated[
        int | None, typer.Option(help="Round of the checkpoints; default: the last.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="Name of a run in tables and figures. Give one per run."),
    ] = None,
    grid: Annotated[int, typer.Option(help="Points per axis, an odd number.")] = 11,
    span: Annotated[
        float,
        typer.Option(
            help="Range of the axes, from -SPAN to SPAN; 1 moves each vector by its own norm."
        ),
    ] = 1.0,
    examples: Annotated[int, typer.Option(help="Maximum number of examples to measure on.")] = 128,
    two_d: Annotated[
        bool,
        typer.Option(
            "--two-d/--one-d", help="Measure a plane in addition to curves, or curves only."
        ),
    ] = True,
    second: Annotated[
        Literal["random", "sharpest"],
        typer.Option(
            help="Second direction of the plane: a random one shared by all runs, or each checkpoint's "
            "sharpest one."
        ),
    ] = "random",
    sharpness: Annotated[
        bool,
        typer.Option(
            "--sharpness/--no-sharpness",
            help="Measure the top eigenvalue, the trace, m-sharpness and the sharpest direction (requires "
            "gradients).",
        ),
    ] = True,
    data: Annotated[
        Literal["evaluation", "public", "silos"],
        typer.Option(
            help="Examples to measure on: held out by all runs; the text of [public]; or the silos' own, "
            "labelled as private."
        ),
    ] = "evaluation",
    tensors: Annotated[
        Literal["prefix", "all"],
        typer.Option(help="Tensors to perturb: the prefix, or the prefix and the head."),
    ] = "prefix",
    m: Annotated[int, typer.Option("--m", help="m-sharpness: examples per group.")] = 16,
    rho: Annotated[
        float, typer.Option(help="m-sharpness: radius, as an L2 norm of the weights.")
    ] = 0.05,
    radius: Annotated[
        float, typer.Option(help="m-sharpness: radius relative to the norm of the prefix.")
    ] = 0.05,
    products: Annotated[
        int, typer.Option(help="Maximum number of Hessian-vector products per power iteration.")
    ] = 40,
    out: Annotated[
        Path | None, typer.Option(help="Output folder; default: `landscape` in the first run.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the directions and probes.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="Device: cpu, cuda, ...; default: the run's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure sharpness and loss landscapes of trained models on one scale.

    Ctrl-C keeps finished measurements; the same command resumes.
    """
    from simulations.landscape.landscape import Plan

    require("--grid", grid, grid >= 3 and grid % 2 == 1, "odd and at least 3")
    require("--examples", examples, examples >= m, f"at least --m={m}")
    require("--m", m, m >= 1, "at least 1")
    require("--products", products, products >= 1, "at least 1")
    require("--seed", seed, seed >= 0, "at least 0")
    if second == "sharpest" and not sharpness:
        raise ValueError("Expected --sharpness for --second=sharpest, got --no-sharpness")
    for option, value in (("--span", span), ("--rho", rho), ("--radius", radius)):
        require(option, value, 0 < value < float("inf"), "above 0")
    plan = Plan(
        grid=grid,
        span=span,
        two_d=two_d,
        second=second,
        tensors=tensors,
        sharpness=sharpness,
        products=products,
        group=m,
        rho=rho,
        radius=radius,
        seed=seed,
    )
    result = _measure(runs, checkpoint, label or [], plan, examples, data, out, device)
    if as_json:
        print_json(result)
    else:
        print_parts(*_parts(result))


def _measure(
    runs: list[Path],
    checkpoint: int | None,
    labels: list[str],
    plan: Any,
    examples: int,
    data: Literal["evaluation", "public", "silos"],
    out: Path | None,
    device: str | None,
) -> dict[str, Any]:
    from fedllm.files.durable import json_bytes, write_bytes, write_text
    from simulations.landscape import landscape as measuring
    from simulations.landscape.checkpoints import (
        held_out_for_all,
        load_subjects,
        make_subject_tunable,
    )
    from simulations.landscape.figures import draw_all

    subjects = load_subjects(runs, round=checkpoint, labels=labels)
    for subject in subjects:
        if plan.sharpness and subject.settings.model.access == "black-box":
            raise ValueError(
                "Expected model.access=white-box for sharpness (it needs gradients), got "
                f"model.access=black-box in {subject.path}; --no-sharpness draws the landscape alone"
            )
    measured_on = held_out_for_all(subjects, data, examples)
    folder = subjects[0].path / "landscape" if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    tunable: Any = None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    steps = plan.steps(len(measured_on.records))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=steps * len(subjects))
        for number, subject in enumerate(subjects):
            progress.update(bar, description=subject.label[:40])
            backbone = None if tunable is None else tunable.backbone
            tunable = make_subject_tunable(subject, backbone, device)
            rows.append(
                measuring.measure(
                    subject,
                    tunable,
                    measured_on,
                    plan,
                    folder / "cache",
                    lambda: progress.advance(bar),
                )
            )
            progress.update(bar, completed=steps * (number + 1))
    result = {
        "model": subjects[0].settings.model.name,
        "data": measured_on.origin,
        "private": measured_on.label,
        "examples": len(measured_on.records),
        "plan": asdict(plan),
        "rows": rows,
        "figures": draw_all(rows, folder, measured_on.label),
        "folder": str(folder),
    }
    write_bytes(folder / "landscape.json", json_bytes(result))
    write_text(folder / "landscape.md", _markdown(result))
    return result


def _lines(result: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the rows of the table: a name and one cell per checkpoint."""
    plan, rows = result["plan"], result["rows"]
    lines = [
        ("round", [str(row["round"]) for row in rows]),
        ("prefix layers", [_layers(row["layers"]) for row in rows]),
        ("norm", [f"{row['norm']:.3g}" for row in rows]),
        *(
            (name, [f"{row['metrics'][name]:.4f}" for row in rows])
            for name in ("loss", "accuracy", "perplexity", "mae", "entity_f1")
            if all(name in row["metrics"] for row in rows)
        ),
    ]
    if not plan["sharpness"]:
        return lines
    found = [row["sharpness"] for row in rows]
    return [
        *lines,
        ("top eigenvalue", [_eigenvalue(f) for f in found]),
        ("trace", [_with_error(f["trace"], f["trace_error"]) for f in found]),
        (
            "curvature, sharpest direction",
            [f"{f['curvature_sharpest']:.3g}" for f in found],
        ),
        (
            f"{plan['group']}-sharpness, rho = {plan['rho']:g}",
            [_with_error(f["m_sharpness"], f["m_sharpness_error"]) for f in found],
        ),
        (
            f"{plan['group']}-sharpness, rho = {plan['radius']:g} x norm",
            [
                _with_error(f["relative_m_sharpness"], f["relative_m_sharpness_error"])
                for f in found
            ],
        ),
    ]


def _eigenvalue(found: dict[str, Any]) -> str:
    if found["eigenvalue_converged"]:
        return f"{found['eigenvalue']:.3g}"
    return f"{found['eigenvalue']:.3g} (± {found['eigenvalue_residual']:.1g})"


def _with_error(value: float, error: float) -> str:
    return f"{value:.3g} ± {error:.1g}"


def _layers(layers: list[int]) -> str:
    """Format layer numbers with ranges: 0-2, 5."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts) or "none"


def _sentences(result: dict[str, Any]) -> list[str]:
    plan = result["plan"]
    said = []
    if result["private"]:
        said.append(f"PRIVATE DATA: {result['private']}.")
    what = "the prefix" if plan["tensors"] == "prefix" else "prefix and head"
    said.append(
        f"Measured on {result['examples']} examples: {result['data']}. Perturbed: {what}; model "
        f"{result['model']} in float32."
    )
    if plan["sharpness"]:
        said.append(
            "Eigenvalue, trace and rho are in the weights themselves, over the layers that the checkpoint has "
            "(the trace is a sum over coordinates). The curvature is of the drawn curve: second derivative "
            "along the sharpest direction in units of each vector's own norm. ±: one standard error; "
            "at the eigenvalue: not converged, an eigenvalue lies this near."
        )
    if len({tuple(row["layers"]) for row in result["rows"]}) > 1:
        said.append(
            "The runs have prefixes on different layers: they move along the same random directions in "
            "the layers that they share, each vector by the same share of its norm; a dropped layer has "
            "nothing that moves."
        )
    return said


def _parts(result: dict[str, Any]) -> list[Any]:
    table = make_table("", *(str(row["label"]) for row in result["rows"]))
    for name, cells in _lines(result):
        table.add_row(name, *cells)
    private, rest = _sentences(result), []
    if result["private"]:
        private, rest = private[:1], private[1:]
    else:
        private, rest = [], private
    files = [*result["figures"].values(), f"{result['folder']}/landscape.json"]
    return [*private, table, *rest, *files]


def _markdown(result: dict[str, Any]) -> str:
    labels = [str(row["label"]) for row in result["rows"]]
    lines = ["# Sharpness and loss landscape", "", *_sentences(result), ""]
    lines += [f"| | {' | '.join(labels)} |", "|" + " --- |" * (len(labels) + 1)]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in _lines(result)]
    lines += [""]
    lines += [f"![{name}]({Path(path).name})" for name, path in result["figures"].items()]
    return "\n".join(lines) + "\n"
