"""Federated, differentially private prefix-tuning of language models. The core: no Flower, no Ray.

The names below are the public ones; each is imported when it is first used::

    import fedllm

    settings = fedllm.load_settings("simulations/experiments/tweets.toml", ["privacy.epsilon=8"])
    run = fedllm.run(settings)
    print(fedllm.report(run)["headline"])
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "Settings": "fedllm.settings.experiment",
    "load_settings": "fedllm.settings.io",
    "plan": "fedllm.api",
    "calibrate": "fedllm.api",
    "run": "fedllm.run",
    "resume": "fedllm.api",
    "report": "fedllm.report",
    "predict": "fedllm.api",
    "Ledger": "privacy.ledger.ledger",
}
__all__ = [*_PLACES, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_PLACES[name])
    if _PLACES[name] == f"{__name__}.{name}":
        return module  # a package that is called (fedllm.callable_package)
    found = globals()[name] = getattr(module, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
