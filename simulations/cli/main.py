"""The command line: ``fedllm``."""

from __future__ import annotations

from simulations.cli.lazy import Table, lazy_group

COMMANDS: Table = {
    "run": (
        "simulations.cli.run:run",
        "Simulate an experiment on this machine; prints a table and the path of the report.",
    ),
    "resume": (
        "simulations.cli.resume:resume",
        "Go on with an interrupted run, to the same end as without the interruption.",
    ),
    "predict": ("simulations.cli.predict:predict", "Use a trained model."),
    "export": (
        "simulations.cli.export:export",
        "Write the trained adapter with a model card that states the guarantee.",
    ),
    "settings": (
        "simulations.cli.settings:settings",
        "Print all settings with what each means.",
    ),
    "report": (
        "simulations.cli.report.report:report",
        "Make report.html and report.json again, from the ledger and the metrics.",
    ),
    "sign": (
        "simulations.cli.report.sign:sign",
        "Sign a run's report and the state of its ledger, or the silos' extracts; writes report.sig.json.",
    ),
    "verify": (
        "simulations.cli.report.verify:verify",
        "Verify a run's report: its signature, and its ledger or the silos' signed extracts; exit status 1 if it fails.",
    ),
    "keygen": (
        "simulations.cli.report.keygen:keygen",
        "Make a key pair to sign reports with: KEY.pem (keep it secret) and KEY.pub.pem (publish it).",
    ),
    "calibrate": (
        "simulations.cli.accounting.calibrate:calibrate",
        "Find the noise (or steps, sampling rate, delta) of DP-SGD that keeps to a target epsilon.",
    ),
    "account": (
        "simulations.cli.accounting.account:account",
        "What a planned schedule, or all that a ledger holds, costs by every accountant.",
    ),
    "lmo-check": (
        "simulations.cli.accounting.lmo_check:lmo_check",
        "Show epsilon of one release with LMO noise: as its authors' accounting claims, and truly.",
    ),
    "landscape": (
        "simulations.cli.landscape:landscape",
        "Sharpness and loss landscape of trained models, on one scale.",
    ),
    "sweep": (
        "simulations.cli.sweep:sweep",
        "Run arms of an experiment over epsilon, seeds and data sets, and compare them in one table.",
    ),
    "noise-search": (
        "simulations.cli.accounting.noise_search:noise_search",
        "Find the noise that disturbs least at a target: Gaussian, Laplace, staircase, and more.",
    ),
    "ledger": (
        "simulations.cli.ledger:group",
        "Look at a ledger of privacy events, or go on deliberately with one that was restored or moved.",
    ),
    "deploy": (
        "simulations.cli.deploy:group",
        "Run federations on real machines: server, nodes, certificates, runs.",
    ),
}
"""Every command: where it is, and the first line of its help (a test compares it with the docstring)."""

app = lazy_group(
    "fedllm", "Federated, differentially private prefix-tuning of language models.", COMMANDS
)


def main() -> None:
    """Run the command; errors about input are one line on stderr and exit status 2."""
    app()


if __name__ == "__main__":
    main()
