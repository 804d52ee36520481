from __future__ import annotations

import contextlib
import hashlib
import html
import json
import math
import re
import sqlite3
from pathlib import Path

import pytest
from dp_accounting.dp_event import LaplaceDpEvent, ZCDpEvent
from report_runs import (
    NOISE,
    ROUNDS,
    SILOS,
    Page,
    enter,
    epsilon,
    finish_round,
    new_run,
    page,
    trained,
)
from typer.testing import CliRunner

from fedllm.report import build, write_report
from fedllm.report.guarantee import shown
from fedllm.run.folder import RunFolder
from privacy.accountants import make_accountant
from privacy.events.constructors import dp_sgd, gaussian, no_guarantee
from privacy.events.multiset import multiset
from privacy.guarantee import Relation, Unit
from privacy.ledger.ledger import Ledger
from simulations.cli.main import app


def test_the_first_line_states_the_guarantee(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path))
    found = page(run)
    expected = epsilon({dp_sgd(0.05, NOISE, 1): ROUNDS})
    first = found.words[0]
    assert first.startswith(f"Guaranteed: epsilon = {shown(expected)} ")
    for word in ("delta = 1e-05", "one training example", "zero-out", "server that sees"):
        assert word in first
    assert "PLD accountant, an upper bound" in first
    report = json.loads((run.path / "report.json").read_text())
    assert report["headline"] == report["guarantee"]["sentence"] == first
    assert report["guarantee"]["epsilon"] == pytest.approx(expected, rel=1e-12)
    assert report["guarantee"]["level"] == "guaranteed"


def test_every_silo_has_its_own_numbers_by_every_accountant(tmp_path: Path) -> None:
    report = build(trained(new_run(tmp_path)))
    for silo in report["silos"]:
        events = {dp_sgd(SILOS[silo["silo"]], NOISE, 1): ROUNDS}
        assert silo["trainings"] == [
            {"sampling_rate": SILOS[silo["silo"]], "noise_multiplier": NOISE, "steps": ROUNDS}
        ]
        for adversary in ("server", "outsider"):
            figures = {f["accountant"]: f for f in silo["adversaries"][adversary]["figures"]}
            for name in ("pld", "rdp", "gdp-clt"):
                assert figures[name]["epsilon"] == pytest.approx(epsilon(events, name), rel=1e-12)
            assert figures["gdp-exact"]["epsilon"] is None
            assert figures["gdp-clt"]["bound"] is False
            assert figures["pld"]["bound"] is True
            # The approximation is smaller here, and yet is never what is stated.
            assert figures["gdp-clt"]["epsilon"] < figures["pld"]["epsilon"]
            assert silo["adversaries"][adversary]["headline"] == figures["pld"]


def test_printed_epsilon_is_rounded_up() -> None:
    assert shown(2.0001) == "2.001"
    assert shown(3.0) == "3.000"
    assert shown(2.1) == "2.100"
    assert shown(math.nextafter(3.0, 4.0)) == "3.001"
    assert shown(1e-300) == "0.001"
    assert shown(math.inf) == "∞"
    assert shown(None) == "n/a"


def test_the_curve_ends_at_the_stated_epsilon(tmp_path: Path) -> None:
    report = build(trained(new_run(tmp_path)))
    for silo in report["silos"]:
        curve = report["epsilon_by_round"]["silos"][silo["silo"]]
        assert [r for r, _ in curve] == [0, 1, 2, 3]
        assert curve[0][1] == 0
        assert [e for _, e in curve] == sorted(e for _, e in curve)
        stated = silo["adversaries"]["server"]["headline"]["epsilon"]
        assert curve[-1][1] == pytest.approx(stated, rel=1e-12)


def no_guarantee_page(run: RunFolder, reason: str, level: str = "none") -> None:
    text = write_report(run).read_text()
    found = Page(text)
    said = {"none": "epsilon is infinite.", "unknown": "no epsilon can be stated."}[level]
    assert found.words[0].startswith(f"NO GUARANTEE: {said}")
    assert reason in found.words[0]
    assert '<p class="guarantee bad"' in text
    guarantee = json.loads((run.path / "report.json").read_text())["guarantee"]
    assert guarantee["epsilon"] == "Infinity"
    assert guarantee["level"] == level


def test_no_privacy_mode(tmp_path: Path) -> None:
    run = new_run(tmp_path, privacy={"mode": "none"})
    trained(run, event=no_guarantee("privacy.mode=none: training without clipping or noise"))
    no_guarantee_page(run, "privacy.mode=none")


def test_no_privacy_mode_whatever_the_ledger_says(tmp_path: Path) -> None:
    no_guarantee_page(trained(new_run(tmp_path, privacy={"mode": "none"})), "privacy.mode=none")


def test_one_release_without_privacy_takes_the_guarantee_away(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path))
    enter(run, "B", 3, no_guarantee("counts sent as they are"), purpose="evaluate")
    no_guarantee_page(run, "counts sent as they are (silos: B)")
    report = build(run)
    by_name = {silo["silo"]: silo["adversaries"]["server"] for silo in report["silos"]}
    assert by_name["A"]["headline"]["epsilon"] < 1
    assert all(figure["epsilon"] == math.inf for figure in by_name["B"]["figures"])
    assert {r["purpose"] for r in report["releases"]} == {"train", "evaluate"}


def test_a_mechanism_without_noise_is_no_guarantee(tmp_path: Path) -> None:
    from dp_accounting.dp_event import GaussianDpEvent

    no_guarantee_page(trained(new_run(tmp_path), event=GaussianDpEvent(0.0)), "noise multiplier 0")


def test_seeded_noise_is_said_and_the_seed_is_not(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path, privacy={"randomness": "seeded"}), randomness="seeded")
    first = page(run).words[0]
    assert first.startswith("Guaranteed ONLY against those who do not know the seed: epsilon = ")
    assert "there is no protection against them" in first
    assert '<p class="guarantee warn"' in (run.path / "report.html").read_text()
    for name in ("report.html", "report.json"):
        assert "7654321" not in (run.path / name).read_text()


def test_one_seeded_row_of_another_run_makes_it_conditional(tmp_path: Path) -> None:
    shared = {"ledger": str(tmp_path / "shared.sqlite")}
    trained(new_run(tmp_path, privacy=shared), {"A": 0.02}, randomness="seeded")
    assert build(trained(new_run(tmp_path, privacy=shared)))["guarantee"]["level"] == "conditional"


def test_a_trusted_server_gives_a_guarantee_against_outsiders_alone(tmp_path: Path) -> None:
    run = new_run(
        tmp_path,
        privacy={"unit": "client", "noise_by": "server"},
        server={"sampling": "poisson", "fraction": 0.5},
    )
    views = {"outsider": dp_sgd(0.5, 4.0, 1), "server": no_guarantee("server sees the updates")}
    trained(run, views=views)
    first = page(run).words[0]
    expected = epsilon({dp_sgd(0.5, 4.0, 1): ROUNDS})
    assert first.startswith("NO GUARANTEE against the server: epsilon is infinite. Reason: server")
    assert f"only if the server is trusted: epsilon = {shown(expected)} " in first
    assert "all data of one silo" in first
    assert "against an outsider who sees only the released final model" in first
    report = build(run)
    assert report["guarantee"]["adversary"] == "outsider"
    # Amplification by sampling the silos needs that nobody knows who took part.
    assert report["training"]["withheld"]
    assert not {"rounds", "bytes_up", "replies", "incidents"} & set(report["training"])


def test_runs_that_share_a_ledger_compose(tmp_path: Path) -> None:
    shared = {"ledger": str(tmp_path / "shared.sqlite")}
    first = trained(new_run(tmp_path, privacy=shared), {"A": 0.05})
    alone = build(first)["guarantee"]["epsilon"]
    second = trained(new_run(tmp_path, privacy=shared), {"A": 0.02, "C": 0.01})
    together = epsilon({dp_sgd(0.05, NOISE, 1): ROUNDS, dp_sgd(0.02, NOISE, 1): ROUNDS})
    assert together > alone
    for run in (first, second):
        report = build(run)
        assert report["guarantee"]["epsilon"] == pytest.approx(together, rel=1e-9)
        curve = report["epsilon_by_round"]["silos"]["A"]
        assert curve[0][1] > 0
        assert curve[-1][1] == pytest.approx(together, rel=1e-9)
    assert {silo["silo"] for silo in build(first)["silos"]} == {"A"}
    assert build(second)["ledger"]["rows_of_this_run"] == 2 * ROUNDS


def test_releases_about_everybody_count_for_each_silo(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path))
    enter(run, "server", 3, gaussian(5.0), purpose="statistics")
    expected = epsilon({dp_sgd(0.05, NOISE, 1): ROUNDS, gaussian(5.0): 1})
    report = build(run)
    assert report["guarantee"]["epsilon"] == pytest.approx(expected, rel=1e-9)
    assert {silo["silo"] for silo in report["silos"]} == set(SILOS)


def test_a_tampered_ledger_gives_no_guarantee(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path))
    with sqlite3.connect(run.ledger_path) as database:
        (trigger,) = database.execute(
            "SELECT sql FROM sqlite_schema WHERE name = 'entries_keep_content'"
        ).fetchone()
        database.execute("DROP TRIGGER entries_keep_content")
        database.execute("UPDATE entries SET views = replace(views, '1.0', '9.0') WHERE id = 2")
        database.execute(trigger)
    no_guarantee_page(run, "row 2 was edited")


def test_a_ledger_cut_short_or_lost_gives_no_guarantee(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path))
    finish_round(run, 4)
    no_guarantee_page(run, "fewer training rows than updates were received, in round 4")
    for name in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"):
        (run.path / name).unlink(missing_ok=True)
    no_guarantee_page(run, "the ledger is missing", "unknown")
    (run.path / "ledger.sqlite").write_bytes(b"no database at all" * 100)
    no_guarantee_page(run, "the ledger cannot be read", "unknown")


def test_rows_of_another_unit_or_relation_do_not_compose(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path))
    enter(run, "A", 3, gaussian(9.0), purpose="other", unit=Unit.CLIENT)
    no_guarantee_page(run, "do not compose with the unit example")
    run = trained(new_run(tmp_path))
    enter(run, "A", 3, gaussian(9.0), purpose="other", relation="replace-one")
    no_guarantee_page(run, "do not compose with zero-out")


def test_replace_one_is_accounted_as_such(tmp_path: Path) -> None:
    run = new_run(tmp_path, privacy={"unit": "client", "relation": "replace-one"})
    trained(run, event=gaussian(8.0))
    accountant = make_accountant("pld", Relation.REPLACE_ONE)
    expected = accountant.epsilon(multiset({gaussian(8.0): ROUNDS}), 1e-5)
    guarantee = build(run)["guarantee"]
    assert guarantee["epsilon"] == pytest.approx(expected, rel=1e-9)
    assert "all data of one silo replaced by other data" in guarantee["sentence"]


def test_where_the_first_accountant_cannot_another_bound_is_stated(tmp_path: Path) -> None:
    event = ZCDpEvent(0.01)
    assert not make_accountant("pld").supports({event: 1})
    assert make_accountant("rdp").supports({event: 1})
    guarantee = build(trained(new_run(tmp_path), event=event))["guarantee"]
    assert guarantee["accountant"] == "rdp"
    assert guarantee["epsilon"] == pytest.approx(epsilon({event: ROUNDS}, "rdp"))
    assert "RDP accountant" in guarantee["sentence"]


def test_an_event_that_no_bound_covers_is_no_guarantee(tmp_path: Path) -> None:
    from dp_accounting.dp_event import PoissonSampledDpEvent

    event = PoissonSampledDpEvent(0.1, ZCDpEvent(0.01))
    assert not any(make_accountant(name).supports({event: 1}) for name in ("pld", "rdp"))
    no_guarantee_page(trained(new_run(tmp_path), event=event), "cannot represent")


def test_other_mechanisms_are_described(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path))
    enter(run, "A", 2, LaplaceDpEvent(10.0), purpose="count")
    rows = {row["purpose"]: row for row in build(run)["releases"]}
    assert "Laplace" in rows["count"]["mechanism"]
    assert rows["train"]["uses"] == ROUNDS * len(SILOS)
    assert rows["train"]["seen_by"] == ["outsider", "server"]


def test_kept_states_are_named_among_the_side_channels(tmp_path: Path) -> None:
    """The amplification by sampling needs a draw that nobody sees."""
    for reuse, named in (("off", False), ("memory", True)):
        folder = tmp_path / reuse
        folder.mkdir()
        run = trained(new_run(folder, model={"reuse": reuse}))
        texts = [item["text"] for item in build(run)["not_covered"] + build(run)["assumptions"]]
        assert any("shorter for examples that were drawn before" in text for text in texts) == named


def test_before_the_first_round(tmp_path: Path) -> None:
    found = page(new_run(tmp_path))
    assert found.words[0].startswith("NOTHING RELEASED YET")


def test_damaged_files_are_named_and_the_rest_reported(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path))
    (run.path / "silos.json").write_text('{"A": ')
    (run.path / "environment.json").unlink()
    with open(run.path / "metrics.jsonl", "a") as stream:
        stream.write('???\n{"kind": "eval')
    found = page(run)
    assert found.words[0].startswith("Guaranteed: epsilon")
    problems = " ".join(build(run)["problems"])
    for name in ("silos.json", "environment.json", "metrics.jsonl", "checkpoint"):
        assert name in problems
        assert name in " ".join(found.words)


def test_the_page_stands_alone_and_is_well_formed(tmp_path: Path) -> None:
    hostile = {"<script>alert(1)</script>": 0.02, '_B $x_y$ & "quoted"': 0.03, "名前": 0.04}
    run = trained(new_run(tmp_path), hostile)
    found = page(run)
    assert all(link.startswith(("#", "data:,")) for link in found.links)
    assert len(found.ids) == len(set(found.ids))
    assert "script" not in found.tags
    words = " ".join(found.words)
    for name in hostile:
        assert name in words
    drawn = [name for name in found.ids if re.fullmatch(r"figure-[a-z]+", name)]
    names = ("epsilon", "delta", "tradeoff", "loss", "scores", "traffic")
    assert drawn == [f"figure-{name}" for name in names]
    assert found.tags.count("svg") == len(names)
    text = (run.path / "report.html").read_text()
    for link in re.findall(r"url\(#([^)]+)\)", text) + re.findall(r'href="#([^"]+)"', text):
        assert link in found.ids
    assert "@import" not in text
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert "epsilon" in words
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert policy in html.unescape(text)


def test_a_silo_with_its_own_delta_is_accounted_at_it_too(tmp_path: Path) -> None:
    own = {"silos": {"A": {"epsilon": 1.0, "delta": 1e-7}}}
    run = trained(new_run(tmp_path, privacy=own))
    silos = {silo["silo"]: silo["target"] for silo in build(run)["silos"]}
    exact = epsilon({dp_sgd(SILOS["A"], NOISE, 1): ROUNDS}, delta=1e-7)
    assert silos["A"]["spent"] == pytest.approx(exact, rel=1e-9)
    assert silos["B"]["spent"] is None
    assert f"at delta 1e-07: spent {shown(exact)} against the server" in " ".join(page(run).words)


def test_the_sign_off_names_run_ledger_and_data(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path))
    words = page(run).words
    after = words[words.index("Sign-off") :]
    digest = hashlib.sha256((run.path / "report.json").read_bytes()).hexdigest()
    with Ledger(run.ledger_path, read_only=True) as ledger:
        head = ledger.head()[1]
    for needed in (run.run_id, digest, head, words[0], "Name", "Role", "Signature"):
        assert needed in after


def test_the_commands_that_reproduce_it_give_its_numbers(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path))
    report = build(run)
    commands = [step["command"].split() for step in report["reproduce"]]
    verify, account = commands[0], commands[1]
    assert verify[:3] == ["fedllm", "ledger", "verify"]
    assert account[:2] == ["fedllm", "account"]
    runner = CliRunner()
    with contextlib.chdir(run.path.parent):
        done = runner.invoke(app, verify[1:])
        assert done.exit_code == 0, done.output
        found = json.loads(runner.invoke(app, [*account[1:], "--json"]).stdout)
    assert found["pld"]["epsilon"] == pytest.approx(report["guarantee"]["epsilon"], rel=1e-12)
