"""Errors of secure sums: a refusal at one party, and a sum that cannot be recovered."""

from __future__ import annotations


class SumRefused(ValueError):
    """A request or a message of a secure sum is wrong, or would reveal more than the protocol allows; nothing happened."""


class SumLost(RuntimeError):
    """The sum of a session cannot be recovered: too few silos answered or opened, or a silo shared wrong secrets."""
