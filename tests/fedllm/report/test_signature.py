"""Signed reports: what was altered is told apart, by real keys, files and ledgers."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from report_runs import NOISE, enter, finished, new_run, trained
from typer.testing import CliRunner

import fedllm
from fedllm.report import write_report
from fedllm.report.signature import (
    SIGNATURE,
    SignatureError,
    fingerprint,
    generate_key,
    load_private_key,
    load_public_key,
    sign_report,
    verify_report,
)
from fedllm.run.folder import RunFolder, RunFolderError
from privacy.events.constructors import dp_sgd
from privacy.ledger.ledger import Ledger
from simulations.cli.main import app

ALL = {"signature-file", "key", "signature", "report.json", "report.html", "ledger"}


def signed(tmp_path: Path) -> tuple[RunFolder, Path]:
    """A run with a signed report, and the signer's public key."""
    run = finished(new_run(tmp_path))
    write_report(run)
    public, _ = generate_key(tmp_path / "keys" / "officer.pem")
    key = load_private_key(tmp_path / "keys" / "officer.pem")
    sign_report(run.path, key, name="Ada Lovelace", role="data-protection officer")
    return run, public


def failing(run: RunFolder, public: Path) -> set[str]:
    found = verify_report(run.path, load_public_key(public))
    assert found.ok == all(check.ok for check in found.checks)
    return {check.name for check in found.checks if not check.ok}


def said(run: RunFolder, public: Path, name: str) -> str:
    checks = verify_report(run.path, load_public_key(public)).checks
    return next(check.text for check in checks if check.name == name)


def test_what_was_signed_verifies(tmp_path: Path) -> None:
    run, public = signed(tmp_path)
    found = verify_report(run.path, load_public_key(public))
    assert found.ok
    assert {check.name for check in found.checks} == ALL
    assert found.notes == ()
    statement = found.statement
    assert statement is not None
    assert statement["signer"] == {"name": "Ada Lovelace", "role": "data-protection officer"}
    with Ledger(run.ledger_path, read_only=True) as ledger:
        rows, digest = ledger.head()
    assert statement["ledger"] == {"file": "ledger.sqlite", "rows": rows, "hash": digest}
    report = json.loads((run.path / "report.json").read_text())
    assert statement["headline"] == report["headline"]


def test_the_signature_is_ed25519_over_the_canonical_statement(tmp_path: Path) -> None:
    run, public = signed(tmp_path)
    found = json.loads((run.path / SIGNATURE).read_text())
    canonical = json.dumps(found["statement"], sort_keys=True, separators=(",", ":"))
    body = b"fedllm report signature v1\n" + canonical.encode("ascii")
    load_public_key(public).verify(bytes.fromhex(found["signature"]), body)


def test_without_a_trusted_key_it_is_said_that_nobody_is_known(tmp_path: Path) -> None:
    run, public = signed(tmp_path)
    found = verify_report(run.path)
    assert found.ok
    assert "key" not in {check.name for check in found.checks}
    assert fingerprint(load_public_key(public)) in found.notes[0]
    assert "not whose key it is" in found.notes[0]


def test_an_altered_report_is_told(tmp_path: Path) -> None:
    run, public = signed(tmp_path)
    for name in ("report.json", "report.html"):
        path = run.path / name
        data = path.read_bytes()
        path.write_bytes(data.replace(b"Guaranteed: epsilon", b"Guaranteed; epsilon", 1))
        assert path.read_bytes() != data
        assert failing(run, public) == {name}
        assert said(run, public, name).startswith("ALTERED REPORT: " + name)
        path.unlink()
        assert failing(run, public) == {name}
        assert said(run, public, name).startswith("MISSING REPORT")
        path.write_bytes(data)
    assert failing(run, public) == set()


def test_a_report_made_again_is_not_the_signed_one(tmp_path: Path) -> None:
    run, public = signed(tmp_path)
    kept = (run.path / SIGNATURE).read_bytes()
    (run.path / SIGNATURE).unlink()
    run.write_json("silos.json", {})
    write_report(run)
    (run.path / SIGNATURE).write_bytes(kept)
    assert failing(run, public) == {"report.json", "report.html"}


def test_a_signed_report_is_never_overwritten(tmp_path: Path) -> None:
    run, public = signed(tmp_path)
    run.write_json("silos.json", {})
    before = {path.name: path.read_bytes() for path in run.path.glob("report.*")}
    done = CliRunner().invoke(app, ["report", str(run.path)])
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("fedllm: Expected a report that is not signed, got ")
    assert line.endswith("write this one elsewhere: `fedllm report RUN --to FOLDER`")
    for again in (lambda: write_report(run), lambda: fedllm.report(run.path)):
        with pytest.raises(RunFolderError, match="never overwritten"):
            again()
    key = load_private_key(tmp_path / "keys" / "officer.pem")
    with pytest.raises(SignatureError, match="never overwritten; to sign it anew"):
        sign_report(run.path, key)
    assert {path.name: path.read_bytes() for path in run.path.glob("report.*")} == before
    assert failing(run, public) == set()


def test_a_report_is_written_elsewhere_on_request(tmp_path: Path) -> None:
    run, public = signed(tmp_path)
    other = tmp_path / "new" / "place"
    done = CliRunner().invoke(app, ["report", str(run.path), "--to", str(other), "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads((other / "report.json").read_text())
    assert json.loads(done.stdout) == found
    assert "Not signed when this page was made." in (other / "report.html").read_text()
    assert failing(run, public) == set()
    (other / SIGNATURE).touch()
    assert CliRunner().invoke(app, ["report", str(run.path), "--to", str(other)]).exit_code == 2


def test_a_run_with_a_signed_report_is_not_resumed(tmp_path: Path) -> None:
    run, _ = signed(tmp_path)
    run.set_state(status="stopped")
    done = CliRunner().invoke(app, ["resume", str(run.path)])
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.endswith(
        f"first move report.html, report.json and {SIGNATURE} to a folder of their own"
    )


def test_the_page_shows_who_signed_and_that_it_proves_nothing(tmp_path: Path) -> None:
    run = finished(new_run(tmp_path))
    write_report(run)
    assert "Not signed when this page was made." in (run.path / "report.html").read_text()
    key = Ed25519PrivateKey.generate()
    statement = sign_report(run.path, key, name="<b>Ada</b> & Söhne", role="officer")
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Not signed when" not in page
    assert "Signed by <strong>&lt;b&gt;Ada&lt;/b&gt; &amp; Söhne, officer</strong>" in page
    assert statement["time"] in page
    assert fingerprint(key.public_key()) in page
    assert "This line proves nothing: <code>fedllm verify" in page
    assert verify_report(run.path).ok
    (run.path / SIGNATURE).unlink()
    sign_report(run.path, key)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert page.count('id="signer"') == 1
    assert "Signed by <strong>an unnamed signer</strong>" in page
    assert verify_report(run.path).ok
    (run.path / SIGNATURE).unlink()
    (run.path / "report.html").write_text(page.replace('id="signer"', ""), encoding="utf-8")
    with pytest.raises(SignatureError, match="with one line about its signer, got 0"):
        sign_report(run.path, key)


def test_a_wrong_key_is_told_apart(tmp_path: Path) -> None:
    run, _ = signed(tmp_path)
    other, _ = generate_key(tmp_path / "other.pem")
    assert failing(run, other) == {"key"}
    assert said(run, other, "key").startswith("WRONG KEY")


def test_whoever_signs_again_with_another_key_is_found_out(tmp_path: Path) -> None:
    run, public = signed(tmp_path)
    (run.path / SIGNATURE).unlink()
    write_report(run)
    sign_report(run.path, Ed25519PrivateKey.generate(), name="Ada Lovelace")
    assert failing(run, public) == {"key"}
    assert verify_report(run.path).ok, "without the signer's key nothing shows it"


@pytest.mark.parametrize(
    "path", [("signer", "name"), ("time",), ("headline",), ("files", "report.json")]
)
def test_an_altered_statement_is_told(tmp_path: Path, path: tuple[str, ...]) -> None:
    run, public = signed(tmp_path)
    found = json.loads((run.path / SIGNATURE).read_text())
    part = found["statement"]
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = "0" * 64
    (run.path / SIGNATURE).write_text(json.dumps(found))
    assert "signature" in failing(run, public)
    assert said(run, public, "signature").startswith("ALTERED SIGNATURE")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"statement": {}}', "null"])
def test_a_damaged_signature_file_is_told(tmp_path: Path, text: str) -> None:
    run, public = signed(tmp_path)
    (run.path / SIGNATURE).write_text(text)
    assert failing(run, public) == {"signature-file"}
    (run.path / SIGNATURE).unlink()
    assert failing(run, public) == {"signature-file"}
    assert "there is none" in said(run, public, "signature-file")


def test_rows_added_after_signing_hold_and_are_said(tmp_path: Path) -> None:
    run, public = signed(tmp_path)
    for round_ in (4, 5):
        enter(run, "A", round_, dp_sgd(0.02, NOISE, 1))
    found = verify_report(run.path, load_public_key(public))
    assert found.ok
    assert found.notes[0].startswith("2 rows were added to the ledger after the report")


def rewrite(run: RunFolder) -> None:
    """Another ledger of as many rows, whole in itself."""
    for file in run.path.glob("ledger.sqlite*"):
        file.unlink()
    for round_ in (1, 2, 3):
        for silo in ("A", "B"):
            enter(run, silo, round_, dp_sgd(0.001, 9.0, 1))


def shorten(run: RunFolder) -> None:
    """The last row taken away, and the head moved back."""
    with sqlite3.connect(run.ledger_path) as database:
        triggers = database.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            database.execute(f"DROP TRIGGER {name}")
        last = database.execute("SELECT MAX(id) FROM entries").fetchone()[0]
        database.execute("DELETE FROM entries WHERE id = ?", (last,))
        database.execute(
            "UPDATE head SET id = ?, hash = (SELECT hash FROM entries WHERE id = ?)",
            (last - 1,) * 2,
        )
        for _, sql in triggers:
            database.execute(sql)
    database.close()


def tamper(run: RunFolder) -> None:
    with sqlite3.connect(run.ledger_path) as database:
        trigger = database.execute(
            "SELECT sql FROM sqlite_schema WHERE name = 'entries_keep_content'"
        ).fetchone()[0]
        database.execute("DROP TRIGGER entries_keep_content")
        database.execute("UPDATE entries SET views = replace(views, '1.0', '9.0') WHERE id = 2")
        database.execute(trigger)
    database.close()


def lose(run: RunFolder) -> None:
    for file in run.path.glob("ledger.sqlite*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (rewrite, "ALTERED LEDGER"),
        (shorten, "ALTERED LEDGER"),
        (tamper, "ALTERED LEDGER"),
        (lose, "NO LEDGER"),
    ],
)
def test_an_altered_ledger_is_told(
    tmp_path: Path, damage: Callable[[RunFolder], None], words: str
) -> None:
    run, public = signed(tmp_path)
    damage(run)
    assert failing(run, public) == {"ledger"}
    assert said(run, public, "ledger").startswith(words)


def test_a_shared_or_moved_ledger_is_found(tmp_path: Path) -> None:
    shared = {"ledger": str(tmp_path / "shared.sqlite")}
    run = finished(new_run(tmp_path, privacy=shared))
    write_report(run)
    sign_report(run.path, Ed25519PrivateKey.generate())
    assert verify_report(run.path).ok
    moved = tmp_path / "archive.sqlite"
    (tmp_path / "shared.sqlite").rename(moved)
    assert not verify_report(run.path).ok
    assert verify_report(run.path, ledger=moved).ok
    (run.path / "settings.toml").unlink()
    assert verify_report(run.path, ledger=moved).ok


def test_what_is_not_fit_to_be_signed_is_refused(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    run = trained(new_run(tmp_path))
    with pytest.raises(SignatureError, match=r"report at .*report.json: there is none"):
        sign_report(run.path, key)
    write_report(run)
    enter(run, "A", 4, dp_sgd(0.02, NOISE, 1))
    sign_report(run.path, key)  # what was spent since is not in the report; it says so by its head
    page = (run.path / "report.html").read_text()
    (run.path / SIGNATURE).unlink()
    write_report(run)
    (run.path / "report.html").write_text(page)
    with pytest.raises(SignatureError, match="do not belong together"):
        sign_report(run.path, key)
    write_report(run)
    tamper(run)
    with pytest.raises(SignatureError, match="row 2 was edited"):
        sign_report(run.path, key)
    lose(run)
    with pytest.raises(SignatureError, match="the ledger is missing"):
        sign_report(run.path, key)
    write_report(run)
    with pytest.raises(SignatureError, match="nothing to sign"):
        sign_report(run.path, key)
    (run.path / "report.json").write_text("{}")
    with pytest.raises(SignatureError, match="Expected a report in"):
        sign_report(run.path, key)


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "officer.pem"
    public, digest = generate_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public == tmp_path / "officer.pub.pem"
    assert b"PRIVATE" not in public.read_bytes()
    assert fingerprint(load_private_key(path).public_key()) == digest
    assert fingerprint(load_public_key(public)) == digest
    data = path.read_bytes()
    with pytest.raises(SignatureError, match="never overwritten"):
        generate_key(path)
    path.rename(tmp_path / "kept.pem")
    with pytest.raises(SignatureError, match="never overwritten"):
        generate_key(path)
    assert not path.exists()
    assert (tmp_path / "kept.pem").read_bytes() == data


def test_other_keys_are_refused_by_name(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = tmp_path / "key.pem"
    path.write_bytes(other.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    with pytest.raises(SignatureError, match="another kind"):
        load_private_key(path)
    path.write_bytes(b"no key")
    for load in (load_private_key, load_public_key):
        with pytest.raises(SignatureError, match="key in PEM"):
            load(path)
        with pytest.raises(SignatureError, match="there is none"):
            load(tmp_path / "none.pem")
    encrypted = serialization.BestAvailableEncryption(b"secret")
    path.write_bytes(Ed25519PrivateKey.generate().private_bytes(pem, pkcs8, encrypted))
    with pytest.raises(SignatureError, match="password"):
        load_private_key(path)
    assert load_private_key(path, b"secret")


def test_the_commands(tmp_path: Path) -> None:
    run = finished(new_run(tmp_path))
    key, public = str(tmp_path / "k.pem"), str(tmp_path / "k.pub.pem")
    runner = CliRunner()

    def call(status: int, *arguments: str) -> str:
        done = runner.invoke(app, list(arguments))
        assert done.exit_code == status, (done.output, done.stderr)
        return done.stdout if status != 2 else done.stderr

    made = json.loads(call(0, "keygen", key, "--json"))
    assert made["public_key"] == public
    assert "never overwritten" in call(2, "keygen", key)
    folder = str(run.path)
    assert "report.json: there is none" in call(2, "sign", folder, "--key", key)
    call(0, "report", folder)
    printed = json.loads(call(0, "sign", folder, "--key", key, "--name", "Ada", "--json"))
    assert printed["fingerprint"] == made["fingerprint"]
    assert call(0, "verify", folder, "--public-key", public).count("holds  ") == len(ALL)
    found = json.loads(call(0, "verify", folder, "--public-key", public, "--json"))
    assert found["ok"] is True
    assert found["statement"]["signer"]["name"] == "Ada"
    tamper(run)
    assert "FAILS  ALTERED LEDGER" in call(1, "verify", folder)
    found = json.loads(call(1, "verify", folder, "--json"))
    assert [name for name, check in found["checks"].items() if not check["ok"]] == ["ledger"]
    assert "no folder" in call(2, "verify", str(tmp_path / "nowhere"))
    assert "there is none" in call(2, "verify", folder, "--public-key", str(tmp_path / "no.pem"))
