"""Errors that a silo may return for a task; each decides where it is raised what it may reveal.

A reply leaves the silo outside its account, so its text must not depend on the data. Before anything is
spent it may be a function of the task, the settings, the model, the ledger and public numbers
(:class:`TaskRefused`); of data that cannot be used it is one constant, decided when the data are opened,
whatever is drawn later (:class:`NotTakingPart`); after spending it is another constant (:class:`TaskFailed`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedllm.data.formats.records import DataError


class TaskRefused(ValueError):
    """The task itself is not one that the silo answers; the message is a function of public values."""


class DeliveryMissing(ValueError):
    """The task names something that is sent ahead of it, and that the silo does not have; public, as the task is."""


class NotTakingPart(Exception):
    """The silo's data cannot be used, whatever is asked. The cause is in the silo's own log."""

    def __init__(self) -> None:
        super().__init__("this silo takes no part in the run; its own log has the reason")


class TaskFailed(Exception):
    """The task failed, and nothing more is said. The cause is in the silo's own log."""

    def __init__(self) -> None:
        super().__init__("the task failed at the silo; its own log has the reason")


@contextmanager
def refusing() -> Iterator[None]:
    """Pass a plain ValueError, and what cannot be computed, on as TaskRefused. For checks that read no data of the
    silo alone."""
    try:
        yield
    except DataError:
        raise
    except ValueError as error:
        if type(error) is ValueError:
            raise TaskRefused(str(error)) from error
        raise
    except ArithmeticError as error:
        raise TaskRefused(f"Expected values that can be computed with: {error}") from error
