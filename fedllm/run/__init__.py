"""Files of a run: its folder, its checkpoints, its environment.

Called, the package runs an experiment: ``fedllm.run(settings)`` is :func:`fedllm.api.run`.
"""

from __future__ import annotations

from fedllm.callable_package import make_callable

make_callable(__name__)
