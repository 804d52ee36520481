"""Packages that are functions of ``fedllm`` too: ``fedllm.run(settings)`` next to ``fedllm.run.folder``.

Importing ``fedllm.run.folder`` makes the package ``fedllm.run`` an attribute of ``fedllm``, in place of any function
of that name. So the package itself is what is called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that calls the function of its name in :mod:`fedllm.api`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function."""
        function = getattr(import_module("fedllm.api"), self.__name__.rpartition(".")[2])
        return function(*arguments, **options)


def make_callable(package: str) -> None:
    """Make a package that is being imported callable."""
    sys.modules[package].__class__ = CallablePackage
