"""Hide what PEFT's dependencies say about themselves."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_KERNELS = "bitsandbytes.backends.cpu.ops"


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hide two messages that no user can act on, while PEFT is imported and loads an adapter.

    bitsandbytes asks for another package, whose kernels nothing here calls; transformers warns of a name that PEFT uses.
    """
    logger = logging.getLogger(_KERNELS)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            yield
    finally:
        logger.setLevel(level)
