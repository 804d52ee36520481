"""Steps to check and reproduce the report's numbers from the run folder."""

from __future__ import annotations

import shlex

from fedllm.report.record import RunRecord
from privacy.guarantee import Relation, Unit


def reproduction(
    run: RunRecord, unit: Unit, relation: Relation, delta: float
) -> list[dict[str, str]]:
    """Return steps, each with a title, a purpose, and the command to run next to the run folder."""
    folder = run.path.name
    own = run.settings is None or run.settings.privacy.ledger is None
    ledger = f"{folder}/{run.ledger_path.name}" if own else run.ledger_path.name
    quoted = shlex.quote(ledger)
    steps = []
    if run.verification is not None:
        row, digest = run.verification.head
        steps.append(
            {
                "title": "Is the ledger still the one that was reported?",
                "text": "Recomputes the chain of hashes and looks for the last row that this report "
                "saw. Rows added since are spent since.",
                "command": f"fedllm ledger verify {quoted} --kept-head {row}:{digest}",
            }
        )
        steps.append(
            {
                "title": "Compute the epsilons again",
                "text": "By every accountant, for each silo, from the ledger alone, on any machine. "
                "The numbers agree with the table to the last printed digit as long as the ledger "
                "is the same.",
                "command": f"fedllm account --ledger {quoted} --delta {delta:g} --unit {unit.value} "
                f"--relation {relation.value} --adversary server",
            }
        )
    if run.extracts is not None:
        steps.append(
            {
                "title": "Does each silo vouch for the statement?",
                "text": "Verifies each extract's signature with the node keys that are registered in the "
                "deployment folder, and that the report matches the extracts. A silo can add its own "
                "ledger with --ledger: it must contain the head that was vouched for.",
                "command": f"fedllm verify {shlex.quote(folder)} --node-keys DEPLOYMENT",
            }
        )
    steps.append(
        {
            "title": "Make this report again",
            "text": "From the files of the run folder. A signature of the earlier report does not "
            "hold for the new one.",
            "command": f"fedllm report {shlex.quote(folder)}",
        }
    )
    if run.settings is not None:
        steps.append(
            {
                "title": "Repeat the training",
                "text": "With the settings as resolved, the same data, and the environment of the "
                "section above. "
                + (
                    "With seeded randomness, sampling and noise are the same again."
                    if run.settings.privacy.randomness == "seeded"
                    else "Sampling and noise come from the operating system and are new each time, "
                    "as the guarantee needs; the model is not the same again. It spends anew."
                ),
                "command": f"fedllm run {shlex.quote(folder)}/settings.toml",
            }
        )
    steps.append(
        {
            "title": "Check the signature",
            "text": "If the report was signed with fedllm sign: verifies report, ledger and signature.",
            "command": f"fedllm verify {shlex.quote(folder)} --public-key SIGNER.pub.pem",
        }
    )
    return steps
