"""Place of the signature of a run's report, and the rule that a signed report is never overwritten.

Whoever checks a signature needs the very files that were signed: a report that was made again in their place would make a
valid signature fail.
"""

from __future__ import annotations

from pathlib import Path

from fedllm.run.folder import RunFolderError

SIGNATURE = "report.sig.json"
"""File of the signature, beside the ``report.json`` and ``report.html`` that it is of."""


def require_unsigned(folder: Path, way: str) -> None:
    """Refuse to write a report over a signed one.

    Args:
        folder: where the report would be written.
        way: what to do instead; ends the message.

    Raises:
        RunFolderError: a signature stands in ``folder``.
    """
    if (folder / SIGNATURE).exists() or (folder / SIGNATURE).is_symlink():
        raise RunFolderError(
            f"Expected a report that is not signed, got {folder / SIGNATURE}: a signed report is never "
            f"overwritten; {way}"
        )


MOVE = f"first move report.html, report.json and {SIGNATURE} to a folder of their own"
"""Advice to whoever resumes a run with a signed report."""
EMPTY = '<p class="soft" id="signer">Not signed when this page was made.</p>'
"""The page's line about its signer before it is signed; signing fills it in."""
