"""The report and the printed numbers."""

from __future__ import annotations

from ..mutation import Mutation

_REPORT = "tests/fedllm/report/test_report.py"
_SIGNATURE = "fedllm/report/signature.py"
_SIGNING = ("tests/fedllm/report/test_signature.py",)
_STRENGTH = "tests/fedllm/report/test_strength.py"
_GUARANTEE = "fedllm/report/guarantee.py"
_ACCOUNTING = "fedllm/report/accounting.py"

MUTATIONS = (
    Mutation(
        "green-whatever-the-epsilon",
        "fedllm/report/prose/strength.py",
        "    place = next((i for i, limit in enumerate(limits) if epsilon <= limit), len(limits))",
        "    place = 0",
        "A guarantee of epsilon = 1000 is shown as strong protection.",
        (f"{_STRENGTH}::test_the_limits",),
    ),
    Mutation(
        "delta-of-any-size",
        "fedllm/report/prose/strength.py",
        '        place = max(place, ORDER.index("none" if published >= ONE else "weak"))',
        "        place = max(place, 0)",
        "A delta that allows to publish whole records is shown as strong protection.",
        (f"{_STRENGTH}::test_the_limits",),
    ),
    Mutation(
        "signed-report-overwritten",
        "fedllm/report/page/render.py",
        "    require_unsigned(folder, ",
        "    require_unsigned(folder / 'none', ",
        "`fedllm report` destroys the files that a signature is of.",
        (f"{_SIGNING[0]}::test_a_signed_report_is_never_overwritten",),
    ),
    Mutation(
        "holdout-by-default",
        "fedllm/settings/sections.py",
        "        0.0,\n        description=\"Share of the silos' examples that the server gets",
        "        0.1,\n        description=\"Share of the silos' examples that the server gets",
        "A tenth of the silos' texts goes to the server, and nobody asked for it.",
        ("tests/fedllm/data/test_silos.py::test_no_default_hands_the_server_a_silos_text",),
    ),
    Mutation(
        "holdout-below-a-green-line",
        "fedllm/report/page/render.py",
        '"warn" if lost or has_texts else tone',
        '"warn" if lost else tone',
        "The report of a run whose server has the silos' texts begins in green.",
        (f"{_STRENGTH}::test_a_strong_guarantee_is_not_green_where_the_server_has_texts",),
    ),
    Mutation(
        "report-rounds-epsilon-down",
        _GUARANTEE,
        "quantize(step, rounding=ROUND_CEILING)",
        'quantize(step, rounding="ROUND_FLOOR")',
        "The first line, which is signed, states less than was spent.",
        (f"{_REPORT}::test_printed_epsilon_is_rounded_up",),
    ),
    Mutation(
        "report-states-the-best-silo",
        _GUARANTEE,
        "return max(figures, key=lambda",
        "return min(figures, key=lambda",
        "The first line states the luckiest silo's epsilon for all.",
        (f"{_REPORT}::test_the_first_line_states_the_guarantee", _REPORT),
    ),
    Mutation(
        "seeded-run-without-warning",
        _GUARANTEE,
        '    if seeded:\n        sentence = f"Guaranteed ONLY',
        '    if False:\n        sentence = f"Guaranteed ONLY',
        "Noise that anybody with the seed can subtract is reported as protection.",
        (f"{_REPORT}::test_seeded_noise_is_said_and_the_seed_is_not",),
    ),
    Mutation(
        "seeded-rows-not-noticed",
        "fedllm/report/build.py",
        'entry.details.get("randomness") == "seeded" for entry',
        'entry.details.get("randomness") == "never" for entry',
        "Seeded rows of another run in the ledger are passed over.",
        (f"{_REPORT}::test_one_seeded_row_of_another_run_makes_it_conditional",),
    ),
    Mutation(
        "headline-by-the-approximation",
        _ACCOUNTING,
        'HEADLINE = ("pld", "rdp")',
        'HEADLINE = ("gdp-clt", "pld", "rdp")',
        "The central-limit approximation gives the headline.",
        (_REPORT,),
    ),
    Mutation(
        "report-without-other-runs",
        _ACCOUNTING,
        "        rows = by_party.get(name, []) + common\n",
        "        rows = [r for r in by_party.get(name, []) + common if r.run == run]\n",
        "What earlier runs spent on the same data is not in the guarantee.",
        (f"{_REPORT}::test_runs_that_share_a_ledger_compose",),
    ),
    Mutation(
        "report-without-releases-about-everybody",
        _ACCOUNTING,
        "        rows = by_party.get(name, []) + common\n",
        "        rows = by_party.get(name, [])\n",
        "Releases that concern all silos are counted for none.",
        (f"{_REPORT}::test_releases_about_everybody_count_for_each_silo",),
    ),
    Mutation(
        "report-passes-over-missing-guarantees",
        _ACCOUNTING,
        "            if silo.reasons[adversary]:\n",
        "            if False:\n",
        "Figures are printed beside a release that has no guarantee.",
        (
            "tests/fedllm/report/test_damaged.py::test_an_edited_ledger_states_no_epsilon_for_any_silo",
        ),
    ),
    Mutation(
        "report-of-a-tampered-ledger",
        "fedllm/report/build.py",
        "    if run.verification is not None and not run.verification.ok:\n",
        "    if False:\n",
        "A ledger that fails its verification still gives a guarantee.",
        (f"{_REPORT}::test_a_tampered_ledger_gives_no_guarantee",),
    ),
    Mutation(
        "report-of-a-ledger-cut-short",
        "fedllm/report/build.py",
        "        defects += _unrecorded(run) + unrecorded_statistics(run)\n",
        "        pass\n",
        "A fresh ledger in a finished run's folder gives a small epsilon.",
        (f"{_REPORT}::test_a_ledger_cut_short_or_lost_gives_no_guarantee",),
    ),
    Mutation(
        "colluders-given-the-servers-sentence",
        _GUARANTEE,
        "    if figure == server and adversary != SERVER:\n",
        "    if True:\n",
        "Clients that collude are said to learn no more than the server, whatever the ledger says.",
        ("tests/fedllm/report/test_curves.py",),
    ),
    Mutation(
        "signature-not-checked",
        _SIGNATURE,
        "        key.verify(signature, _signed_bytes(statement))\n",
        "        pass\n",
        "A statement that was altered after the signing passes for what the officer signed.",
        _SIGNING,
    ),
    Mutation(
        "signers-key-not-compared",
        _SIGNATURE,
        "        same = fingerprint(public_key) == fingerprint(embedded)\n",
        "        same = True\n",
        "Anybody can alter the report and sign it with a key of his own.",
        _SIGNING,
    ),
    Mutation(
        "signed-report-not-compared",
        _SIGNATURE,
        "    if sha256(data).hexdigest() != digest:\n",
        "    if False:\n",
        "The report can be edited after it was signed.",
        _SIGNING,
    ),
    Mutation(
        "signed-ledger-not-compared",
        _SIGNATURE,
        "    _, found, problem = read_ledger(path, head)\n",
        "    _, found, problem = read_ledger(path, None)\n",
        "The ledger can be replaced after the report was signed.",
        _SIGNING,
    ),
    Mutation(
        "shuffled-division-not-said",
        "fedllm/data/coupling.py",
        '    elif data.partition == "iid":\n',
        '    elif data.partition == "iid-by-hash":\n',
        "A guarantee for the silos as divided passes for one of a record's presence in the data set before.",
        ("tests/fedllm/data/test_coupling.py",),
    ),
    Mutation(
        "hash-partition-depends-on-the-number",
        "fedllm/data/partition.py",
        "pieces[int(text_hash(record, columns, seed + 4) * n_parts)]",
        "pieces[int(text_hash(record, columns, seed + len(dataset)) * n_parts)]",
        "The division that is said to look at each record alone moves all records where one is missing.",
        ("tests/fedllm/data/test_coupling.py",),
    ),
)
