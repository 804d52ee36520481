"""Noise files: written by the noise search, read by a run."""

from __future__ import annotations

import json
from pathlib import Path

from privacy.mechanisms.scalar_noise import ScalarNoise, noise_from_dict


def read_noise(path: str | Path) -> ScalarNoise:
    """Return the noise that a file of `fedllm noise-search` names, for a number of sensitivity 1.

    The file is JSON with the keys family and parameters; what else it holds (the question, figures) is for
    people. The noise is good for any use: what that costs is accounted from its density, not from the file.

    Raises:
      ValueError: The file is missing or is not such a file; the message names it.
    """
    try:
        data = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected a file of fedllm noise-search, got noise={str(path)!r}: {error}"
        ) from None
    if not isinstance(data, dict) or not {"family", "parameters"} <= set(data):
        raise ValueError(
            f"Expected JSON with the keys family and parameters, got noise={str(path)!r}"
        )
    try:
        return noise_from_dict({key: data[key] for key in ("family", "parameters")})
    except ValueError as error:
        raise ValueError(f"{error}; in noise={str(path)!r}") from None
