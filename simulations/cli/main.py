"""The command line: ``fedllm``."""

from __future__ import annotations

from simulations.cli.lazy import Table, lazy_group

COMMANDS: Table = {
    "run": (
        "simulations.cli.run:run",
        "Simulate an experiment on this machine; print a table and the path of the report.",
    ),
    "resume": (
        "simulations.cli.resume:resume",
        "Resume an interrupted run; the result equals that of an uninterrupted run.",
    ),
    "predict": (
        "simulations.cli.predict:predict",
        "Predict classes, numbers, tags or texts with a trained model, or chat with it.",
    ),
    "export": (
        "simulations.cli.export:export",
        "Export the trained adapter with a model card that states the privacy guarantee.",
    ),
    "settings": (
        "simulations.cli.settings:settings",
        "Print every setting with its value and meaning.",
    ),
    "report": (
        "simulations.cli.report.report:report",
        "Rebuild report.html and report.json from the ledger and the metrics.",
    ),
    "sign": (
        "simulations.cli.report.sign:sign",
        "Sign a run's report and its ledger's head (or the silos' extracts); write report.sig.json.",
    ),
    "verify": (
        "simulations.cli.report.verify:verify",
        "Verify a run's signature against its report and its ledger or signed extracts; exit 1 on failure.",
    ),
    "keygen": (
        "simulations.cli.report.keygen:keygen",
        "Generate a key pair for signing reports: KEY.pem (secret) and KEY.pub.pem (to publish).",
    ),
    "calibrate": (
        "simulations.cli.accounting.calibrate:calibrate",
        "Find the noise (or steps, sampling rate, delta) of DP-SGD that meets a target epsilon.",
    ),
    "account": (
        "simulations.cli.accounting.account:account",
        "Compute epsilon of a planned schedule or of a ledger with every accountant.",
    ),
    "lmo-check": (
        "simulations.cli.accounting.lmo_check:lmo_check",
        "Compare the claimed and the true epsilon of one release with LMO noise.",
    ),
    "landscape": (
        "simulations.cli.landscape:landscape",
        "Measure sharpness and loss landscapes of trained models on one scale.",
    ),
    "sweep": (
        "simulations.cli.sweep:sweep",
        "Run an experiment's arms over epsilons, seeds and data sets, and compare them in one table.",
    ),
    "noise-search": (
        "simulations.cli.accounting.noise_search:noise_search",
        "Find the lowest-variance noise distribution that meets a privacy target.",
    ),
    "ledger": (
        "simulations.cli.ledger:group",
        "Verify or print a ledger of privacy events, or adopt one that was restored or moved.",
    ),
    "deploy": (
        "simulations.cli.deploy:group",
        "Run a federation on real machines: server, nodes, certificates, runs.",
    ),
}
"""Import path and first help line of every command; a test compares the line with the docstring."""

app = lazy_group(
    "fedllm",
    "Federated, differentially private fine-tuning of language models.",
    COMMANDS,
    first=True,
)


def main() -> None:
    """Run the command; print an input error as one line on stderr and exit with status 2."""
    app()


if __name__ == "__main__":
    main()
