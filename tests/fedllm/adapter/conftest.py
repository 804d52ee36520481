"""What the tests of exports share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_models import ENCODERS

MakeModel = Callable[..., Any]


@pytest.fixture
def model_folder(
    tmp_path: Path, tiny_model: MakeModel, tiny_tokenizer: MakeModel
) -> Callable[[str], Path]:
    """A tiny random model on disk, as from the hub."""

    def make(architecture: str, seed: int = 0) -> Path:
        folder = tmp_path / f"{architecture}{seed}"
        tiny_model(architecture, torch.float32, seed).save_pretrained(folder)
        tiny_tokenizer(bos=architecture not in ENCODERS).save_pretrained(folder)
        return folder

    return make
