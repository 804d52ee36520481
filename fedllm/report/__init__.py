"""The report of a run: ``report.json`` (:func:`build`) and ``report.html`` (:func:`write_report`).

Every epsilon in it is computed from the ledger by :mod:`privacy.accountants`, and by nothing else.
Called, the package makes a run's report: ``fedllm.report(run)`` is :func:`fedllm.api.report`.
"""

from __future__ import annotations

from fedllm.callable_package import make_callable
from fedllm.report.build import build
from fedllm.report.page.render import write_report

__all__ = ["build", "write_report"]

make_callable(__name__)
