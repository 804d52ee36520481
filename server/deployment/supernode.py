"""Flower's SuperNode as a process that ends when its work has ended.

``python -m server.deployment.supernode OPTIONS``, with the options of ``flower-supernode``. What breaks a
SuperNode's connection for good (a changed byte on the wire, which TLS reports) ends its main thread alone: the
thread that serves its runtime interface keeps the process, which looks alive, asks for nothing, and is started
again by no supervisor. Here the process ends with the main thread, and its last line says why.

And it looks for messages sooner than Flower's three seconds where one came lately (:class:`Pauses`): most of a
short round was that wait.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

CONNECTION_LOST = 75
"""Exit status where the main thread returned or raised (EX_TEMPFAIL: another start may mend it)."""
LOST = "the SuperNode ends, it has lost its connection"


class Pauses:
    """Pauses of Flower's SuperNode between two polls; replaces its module's ``time``.

    Between two looks for a message (Flower: 3 s): a tenth of the time since the last message was
    answered, at least ``shortest``. So a message waits for at most a tenth longer than the node
    did, and a node that no one asks looks as seldom as Flower's. Between two looks for its own
    app's answer (Flower: 0.5 s, in this process's memory): ``shortest``.

    Args:
        shortest: seconds, > 0.
        sleep, clock: those of :mod:`time`, in seconds.
    """

    IDLE = 3.0
    """Flower's pause if there is no message; a shorter one is one of the waits for an answer."""

    def __init__(
        self,
        shortest: float = 0.1,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shortest = shortest
        self._sleep, self._clock = sleep, clock
        self._answered = clock()

    def sleep(self, seconds: float) -> None:
        """Sleep, for ``seconds`` at most."""
        if seconds < self.IDLE:
            self._sleep(min(seconds, self.shortest))
            self._answered = self._clock()
        else:
            quiet = self._clock() - self._answered
            self._sleep(min(seconds, max(self.shortest, quiet / 10)))


class _LastError(logging.Handler):
    """The last message logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = " ".join(record.getMessage().split())


def run_to_the_end(work: Callable[[], object]) -> NoReturn:
    """Run a program's main function, and end the process with it, whatever threads are left.

    The status is the one it exits with, or :data:`CONNECTION_LOST` where it returned or raised. The last line on
    standard error is what Flower logged last as an error, or what was raised; after :data:`LOST` where the
    connection was.
    """
    last = _LastError()
    logging.getLogger("flwr").addHandler(last)
    status = CONNECTION_LOST
    try:
        work()
        print(f"{LOST}: {last.text or 'it gave no reason'}", file=sys.stderr)
    except SystemExit as told:
        status = told.code if isinstance(told.code, int) else int(told.code is not None)
        if status and last.text:  # Flower says why, and then what else it ends
            print(last.text.partition(" For more information")[0], file=sys.stderr)
    except BaseException as error:
        print(f"{LOST}: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def main() -> NoReturn:
    """Run a SuperNode until it is told to end, or has lost its connection."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    start_client_internal.time = Pauses()  # type: ignore[assignment]
    run_to_the_end(flower_supernode)


if __name__ == "__main__":
    main()
