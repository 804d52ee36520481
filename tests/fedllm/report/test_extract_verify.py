"""`fedllm sign` and `fedllm verify` of a run whose ledgers are with the silos: what was exchanged is told apart."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import NOISE, ROUNDS, SILOS
from typer.testing import CliRunner
from vouching import Silo, deployed

from fedllm.report import write_report
from fedllm.report.extract.check import Trusted, deployment_of, read_keys
from fedllm.report.extract.keys import KeyProblem
from fedllm.report.extract.make import make_head
from fedllm.report.extract.memory import Kept
from fedllm.report.extract.statement import text_of
from fedllm.report.extract.store import FOLDER, INDEX, path_of, read_index, write_index
from fedllm.report.signature import (
    SIGNATURE,
    SignatureError,
    Verification,
    generate_key,
    load_private_key,
    load_public_key,
    sign_report,
    verify_report,
)
from fedllm.run.folder import RunFolder
from privacy.events.constructors import dp_sgd
from privacy.ledger.ledger import Ledger
from simulations.cli.main import app


class Signed:
    """A signed run, its silos, and whom a verifier trusts."""

    def __init__(self, tmp_path: Path) -> None:
        self.run, self.silos = deployed(tmp_path)
        write_report(self.run)
        self.public, _ = generate_key(tmp_path / "keys" / "officer.pem")
        self.key = load_private_key(tmp_path / "keys" / "officer.pem")
        self.trusted = Trusted({silo.name: [silo.key.public] for silo in self.silos})
        self.statement = sign_report(self.run.path, self.key, trusted=self.trusted)

    @property
    def path(self) -> Path:
        """The extract of the second silo."""
        return path_of(self.run.path / FOLDER, "B")

    def verify(self, trusted: Trusted | None = None, ledger: Path | None = None) -> Verification:
        key = load_public_key(self.public)
        return verify_report(self.run.path, key, ledger, trusted or self.trusted)

    def failing(self, trusted: Trusted | None = None, ledger: Path | None = None) -> dict[str, str]:
        """First words of each check that fails."""
        found = self.verify(trusted, ledger)
        failed = {c.name: c.text.partition(":")[0] for c in found.checks if not c.ok}
        assert found.ok == (not failed)
        return failed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    return Signed(tmp_path_factory.mktemp("signed"))


@pytest.fixture
def signed(whole: Signed, tmp_path: Path) -> Signed:
    """A copy, to be damaged."""
    found = object.__new__(Signed)
    found.__dict__.update(whole.__dict__)
    shutil.copytree(whole.run.path, tmp_path / "run")
    found.run = RunFolder.open(tmp_path / "run")
    return found


def test_what_was_signed_verifies(whole: Signed) -> None:
    found = whole.verify()
    assert found.ok, [check for check in found.checks if not check.ok]
    names = {check.name for check in found.checks}
    assert {"signature", "extract of A", "extract of B", "extracts", "signed extracts"} <= names
    assert found.notes == ()
    statement = whole.statement
    assert (statement["version"], statement["ledger"]) == (2, None)
    b = whole.silos[1]
    with Ledger(b.ledger) as ledger:
        assert (
            statement["extracts"]["B"]["rows"],
            statement["extracts"]["B"]["hash"],
        ) == ledger.head()
    assert statement["extracts"]["B"]["key"] == b.key.public.fingerprint


def test_without_registered_keys_it_is_said_that_nobody_checked_them(whole: Signed) -> None:
    found = whole.verify(Trusted())
    assert found.ok
    assert any("as its server wrote them" in note for note in found.notes)


def test_an_altered_extract_is_told(signed: Signed) -> None:
    data = signed.path.read_text()
    for changed in (data.replace('\\"rows\\":3', '\\"rows\\":4'), data[:-30], ""):
        assert changed != data
        signed.path.write_text(changed)
        failed = signed.failing()
        assert failed["extract of B"] in ("FORGED EXTRACT", "ALTERED EXTRACT")
        assert failed["signed extract of B"] == "ALTERED EXTRACT"
        assert "extract of A" not in failed
    signed.path.unlink()
    assert signed.failing()["extract of B"] == "MISSING EXTRACT"


def test_a_swapped_extract_is_told(signed: Signed) -> None:
    """Another silo's under its name; its own of another run."""
    b = signed.silos[1]
    other = path_of(signed.run.path / FOLDER, "A")
    whole = signed.path.read_text()
    shutil.copyfile(other, signed.path)
    assert signed.failing()["extract of B"] == "FORGED EXTRACT"
    extract = b.extract(signed.run)
    b.put(signed.run, b.signed(extract.model_copy(update={"silo": "A"})))
    assert signed.failing()["extract of B"] == "SWAPPED EXTRACT"
    b.put(signed.run, b.signed(extract.model_copy(update={"run": "another"})))
    assert signed.failing()["extract of B"] == "SWAPPED EXTRACT"
    signed.path.write_text(whole)
    assert signed.failing() == {}


def test_a_newer_or_older_extract_than_the_reports_is_told(signed: Signed, tmp_path: Path) -> None:
    b = signed.silos[1]
    b.put(signed.run, b.signed(b.extract(signed.run)))
    assert signed.failing()["extract of B"] == "ANOTHER EXTRACT"


def test_an_older_extract_is_told_although_the_report_was_made_of_it(tmp_path: Path) -> None:
    """The server's own people put it there, and made and signed the report again: the silo's last head tells."""
    run, (_, b) = deployed(tmp_path)
    index = read_index(run.path)
    write_index(run.path, index | {"B": replace(index["B"], told=())})
    older = b.extract(run)
    b.enter(run, ROUNDS + 1, dp_sgd(SILOS["B"], NOISE, 1))
    with Ledger(b.ledger) as ledger:
        head = make_head(ledger, "B")
    b.put(run, b.signed(older))
    write_report(run)
    found = verify_report(
        run.path, None, None, Trusted(kept={"B": Kept(head, b.signed(text_of(head)), run.run_id)})
    )
    failed = {c.name: c.text for c in found.checks if not c.ok}
    assert failed.pop("extract of B").startswith("OLDER EXTRACT: B vouched for 4 rows in this run")
    assert set(failed) == {"signature-file"}
    found = verify_report(run.path, None, b.ledger)
    failed = {c.name: c.text for c in found.checks if not c.ok}
    assert "has 1 rows of this run after the row 3" in failed["ledger"], (
        "the silo finds it by its own ledger"
    )


def test_keys_of_others_are_told(whole: Signed, tmp_path: Path) -> None:
    a, b = whole.silos
    stranger = Silo(tmp_path, "stranger").key.public
    keys = {"A": [a.key.public], "B": [stranger]}
    assert whole.failing(Trusted(keys))["extract of B"] == "FORGED EXTRACT"
    assert whole.failing(Trusted({"A": [a.key.public]}))["extract of B"] == "UNKNOWN KEY"
    renewed = {"A": [a.key.public], "B": [stranger, b.key.public]}
    assert whole.failing(Trusted(renewed)) == {}, "one of several that the silo had"


def test_a_report_that_states_other_numbers_is_told(signed: Signed) -> None:
    """Signed anew by who holds the signer's key: the extracts do not give what it states."""
    path = signed.run.path / "report.json"
    report = json.loads(path.read_text())
    for silo in report["silos"]:
        for adversary in silo["adversaries"].values():
            adversary["headline"]["epsilon"] = 0.01
    path.write_text(json.dumps(report))
    failed = signed.failing()
    assert failed["extracts"] == "OTHER EXTRACTS"
    assert failed["report.json"] == "ALTERED REPORT"
    (signed.run.path / SIGNATURE).unlink()
    with pytest.raises(SignatureError):
        sign_report(signed.run.path, signed.key, trusted=signed.trusted)


def test_a_silo_that_was_left_out_is_told(signed: Signed) -> None:
    index = read_index(signed.run.path)
    write_index(signed.run.path, {"A": index["A"]})
    path_of(signed.run.path / FOLDER, "B").unlink()
    failed = signed.failing()
    assert failed["extracts"] == "OTHER EXTRACTS"
    (signed.run.path / INDEX).unlink()
    assert signed.failing()["extracts"].startswith("NO EXTRACTS")


def test_the_silos_own_ledger_is_held_against_the_report(whole: Signed, tmp_path: Path) -> None:
    b = whole.silos[1]
    assert whole.failing(ledger=b.ledger) == {}
    other = Silo(tmp_path, "B")
    for round_ in range(1, ROUNDS + 1):
        other.enter(whole.run, round_, dp_sgd(SILOS["B"], NOISE, 1))
    assert whole.failing(ledger=other.ledger) == {"ledger": "ALTERED LEDGER"}
    stranger = Silo(tmp_path, "stranger")
    stranger.enter(whole.run, 1, dp_sgd(SILOS["B"], NOISE, 1))
    assert whole.failing(ledger=stranger.ledger) == {"ledger": "ANOTHER LEDGER"}


def test_a_report_for_which_nobody_vouches_is_not_signed(tmp_path: Path) -> None:
    run, silos = deployed(tmp_path)
    for silo in silos:
        path_of(run.path / FOLDER, silo.name).unlink()
    write_report(run)
    key = load_private_key(
        generate_key(tmp_path / "keys" / "officer.pem")[0].with_name("officer.pem")
    )
    with pytest.raises(SignatureError, match="Expected a silo that vouches for its ledger"):
        sign_report(run.path, key)


def test_the_commands(whole: Signed, tmp_path: Path) -> None:
    a, b = whole.silos
    folder = tmp_path / "fedllm"
    (folder / "nodes").mkdir(parents=True)
    (folder / "deployment.toml").touch()
    for silo in (a, b):
        shutil.copyfile(silo.folder / f"{silo.name}.pub", folder / "nodes" / f"{silo.name}.pub")
    shutil.copytree(whole.run.path, folder / "runs" / "try")
    run = folder / "runs" / "try"
    (run / SIGNATURE).unlink()
    assert deployment_of(run) == folder.resolve()
    officer = whole.public.with_name("officer.pem")
    done = CliRunner().invoke(app, ["sign", str(run), "--key", str(officer)])
    assert done.exit_code == 0, done.output
    command = ["verify", str(run), "--public-key", str(whole.public)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "holds  B vouches for 3 rows of its ledger" in done.output
    assert "note" not in done.output
    keys = ["--node-keys", str(folder / "nodes" / "A.pub"), "--node-keys", str(folder / "nodes")]
    assert CliRunner().invoke(app, [*command, *keys]).exit_code == 0
    done = CliRunner().invoke(app, [*command, "--node-keys", str(folder / "nodes" / "A.pub")])
    assert done.exit_code == 1
    assert "FAILS  UNKNOWN KEY: no node key is registered for B." in done.output
    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyProblem, match="Expected node keys"):
        read_keys([tmp_path / "empty"])
