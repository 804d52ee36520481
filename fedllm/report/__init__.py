"""The report of a run: ``report.json`` (:func:`build`) and ``report.html`` (:func:`write_report`).

Every epsilon in it is computed from the ledger by :mod:`privacy.accountants`, and by nothing else.
"""

from __future__ import annotations

from fedllm.report.build import build
from fedllm.report.page.render import write_report

__all__ = ["build", "write_report"]
