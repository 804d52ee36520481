"""Settings of black-box training for the tests of its parts."""

from __future__ import annotations

import json
from typing import Any

LAPLACE = {"family": "laplace", "parameters": {"scale": 1.0}}
BLACK_BOX: dict[str, Any] = {
    "model.access": "black-box",
    "zeroth_order.directions": 3,
    "client.local_steps": 1,
    "client.learning_rate": 1.0,
    "client.batch_size": 5,
}
NUMBER_NOISE: dict[str, Any] = {
    "privacy.mechanism": "lmo",
    "privacy.noise": json.dumps(LAPLACE),
    "privacy.accountant": "pld",
}
