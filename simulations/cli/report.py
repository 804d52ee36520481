"""Commands about a run's report: ``fedllm report``, ``sign``, ``verify`` and ``keygen``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.output import AsJson, OneLineErrors, print_json

if TYPE_CHECKING:
    from fedllm.report.extract.check import Trusted

# torch and dp_accounting take seconds to load: what uses them is imported by commands.
NodeKeys = Annotated[
    list[Path] | None,
    typer.Option(
        help="Of a deployed run: the registered node keys, as a deployment's folder, a folder of NAME.pub, or such a "
        "file; repeatable. Without: those of the deployment's folder that the run folder lies in."
    ),
]
RunPath = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``fedllm``."""
    app.command(cls=OneLineErrors)(report)
    app.command(cls=OneLineErrors)(sign)
    app.command(cls=OneLineErrors)(verify)
    app.command(cls=OneLineErrors)(keygen)


def report(
    path: Annotated[Path | None, typer.Argument(help="A run folder.", metavar="RUN")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of report.json, and no more.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make report.html and report.json again, from the ledger and the metrics.

    Of a damaged run, too: what is missing is said on stderr and at the report's top, and the exit
    status is 1.
    """
    if schema:
        from fedllm.report.schema import json_schema

        typer.echo(json.dumps(json_schema(), indent=2))
        return
    if path is None:
        raise ValueError("Expected RUN, a run folder; got none")
    from fedllm.report import write_report
    from fedllm.report.signature import SIGNATURE

    target = write_report(path)
    text = target.with_name("report.json").read_text(encoding="utf-8")
    found = json.loads(text)
    typer.echo(text if as_json else str(target), nl=not as_json)
    for problem in found["problems"]:
        typer.echo(f"fedllm: missing or damaged: {problem}", err=True)
    for note in found["notes"]:
        typer.echo(f"fedllm: {note}", err=True)
    if target.with_name(SIGNATURE).exists():
        typer.echo(
            f"fedllm: {SIGNATURE} was made for an earlier report and does not hold for this one",
            err=True,
        )
    if found["problems"]:
        raise typer.Exit(1)


def sign(
    path: RunPath,
    key: Annotated[Path, typer.Option(help="The private key, PEM (see fedllm keygen).")],
    name: Annotated[str, typer.Option(help="Who signs.")] = "",
    role: Annotated[str, typer.Option(help="As what, such as data-protection officer.")] = "",
    node_keys: NodeKeys = None,
    as_json: AsJson = False,
) -> None:
    """Sign a run's report and the state of its ledger, or the silos' extracts; writes report.sig.json."""
    from fedllm.report.signature import SIGNATURE, fingerprint, load_private_key, sign_report

    private = load_private_key(key)
    trusted = _trusted(path, node_keys)
    statement = sign_report(path, private, name=name, role=role, trusted=trusted)
    digest = fingerprint(private.public_key())
    if as_json:
        print_json({"file": str(path / SIGNATURE), "fingerprint": digest, "statement": statement})
        return
    typer.echo(statement["headline"])
    typer.echo(f"signed with the key {digest}: {path / SIGNATURE}")


def verify(
    path: RunPath,
    public_key: Annotated[
        Path | None, typer.Option(help="The signer's public key, PEM, from a trusted source.")
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(help="The ledger, if it was moved; of a deployed run, one silo's own."),
    ] = None,
    node_keys: NodeKeys = None,
    as_json: AsJson = False,
) -> None:
    """Verify a run's report: its signature, and its ledger or the silos' signed extracts; exit status 1 if it fails."""
    from fedllm.report.signature import load_public_key, verify_report

    trusted = None if public_key is None else load_public_key(public_key)
    found = verify_report(path, trusted, ledger, _trusted(path, node_keys))
    if as_json:
        checks = {c.name: {"ok": c.ok, "text": c.text} for c in found.checks}
        print_json(
            {
                "ok": found.ok,
                "checks": checks,
                "notes": list(found.notes),
                "statement": found.statement,
            }
        )
    else:
        for check in found.checks:
            typer.echo(f"{'holds' if check.ok else 'FAILS'}  {check.text}")
        for note in found.notes:
            typer.echo(f"note   {note}")
        if found.ok and found.statement is not None:
            typer.echo(f"signed: {found.statement['headline']}")
    if not found.ok:
        raise typer.Exit(1)


def _trusted(path: Path, node_keys: list[Path] | None) -> Trusted:
    """The node keys that are given, else those of the deployment's folder that a run folder lies in."""
    from fedllm.report.extract.check import deployment_of, trusted_of

    return trusted_of(deployment_of(path), node_keys or [])


def keygen(
    path: Annotated[Path, typer.Argument(help="File of the new private key.", metavar="KEY.pem")],
    as_json: AsJson = False,
) -> None:
    """Make a key pair to sign reports with: KEY.pem (keep it secret) and KEY.pub.pem (publish it)."""
    from fedllm.report.signature import generate_key

    public, digest = generate_key(path)
    if as_json:
        print_json({"private_key": str(path), "public_key": str(public), "fingerprint": digest})
        return
    typer.echo(f"private key, mode 0600, not encrypted: {path}")
    typer.echo(f"public key: {public}")
    typer.echo(f"fingerprint: {digest}")
