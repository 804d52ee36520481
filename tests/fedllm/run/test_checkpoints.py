from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fedllm.run.checkpoints import (
    CheckpointError,
    keep,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)


def params(seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "prefix": torch.randn(2, 2, 1, 3, 4, generator=rng),
        "head.bias": torch.randn(3, generator=rng),
    }


def test_round_trip(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    state = {"step": torch.tensor(7), "m": shared, "v": shared[2:], "t": shared.view(2, 3).T}
    meta = {"rng": "00ff", "best": 0.1 + 0.2, "nested": {"a": [1, None]}, "ä": float("inf")}
    path = save_checkpoint(tmp_path, 12, params(), state, meta)
    assert path == tmp_path / "round-00012"
    back = load_checkpoint(path)
    assert back.round == 12
    assert list(back.params) == ["head.bias", "prefix"]
    for name, value in params().items():
        assert torch.equal(back.params[name], value)
    for name, value in state.items():
        assert torch.equal(back.state[name], value)
        assert back.state[name].dtype == value.dtype
    assert back.meta == {**meta, "ä": "Infinity"}
    assert os.listdir(tmp_path) == ["round-00012"]


def test_nothing_to_optimise_is_fine(tmp_path: Path) -> None:
    back = load_checkpoint(save_checkpoint(tmp_path, 0, params(), {}, {}))
    assert back.state == {}
    with pytest.raises(ValueError, match="round=-1"):
        save_checkpoint(tmp_path, -1, params(), {}, {})


def test_the_same_round_again_replaces(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, params(0), {}, {})
    save_checkpoint(tmp_path, 1, params(1), {}, {})
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert torch.equal(found.params["prefix"], params(1)["prefix"])
    assert os.listdir(tmp_path) == ["round-00001"]


def test_latest_is_by_number_and_keep_prunes(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    assert latest_checkpoint(tmp_path) is None
    for round_ in (99_999, 100_000, 3):
        save_checkpoint(tmp_path, round_, params(), {}, {})
    (tmp_path / ".partial-crashed").mkdir()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.round == 100_000
    assert {p.name for p in keep(tmp_path, 2)} == {"round-00003", ".partial-crashed"}
    assert {p.name for p in tmp_path.iterdir()} == {"round-99999", "round-100000"}
    with pytest.raises(ValueError, match="n=0"):
        keep(tmp_path, 0)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["params.safetensors", "state.safetensors", "meta.json"])
@pytest.mark.parametrize("damage", [_flip, _halve, Path.unlink])
def test_damage_is_found_named_and_skipped(tmp_path: Path, name: str, damage) -> None:
    save_checkpoint(tmp_path, 1, params(1), {"m": torch.ones(3)}, {})
    path = save_checkpoint(tmp_path, 2, params(2), {"m": torch.ones(3)}, {})
    if name == "meta.json" and damage is _flip:  # valid JSON with another number in it
        text = (path / name).read_text()
        (path / name).write_text(text.replace('"round": 2', '"round": 3'))
    else:
        damage(path / name)
    with pytest.raises(CheckpointError, match="round-00002"):
        load_checkpoint(path)
    with pytest.warns(UserWarning, match=rf"Skipped.*round-00002.*{name.split('.')[0]}"):
        found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.round == 1


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, params(), {}, {})
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"version": 2}))
    with pytest.raises(CheckpointError, match="got 2"):
        load_checkpoint(path)


_WRITER = """
import sys, torch
from pathlib import Path
from fedllm.run.checkpoints import keep, save_checkpoint
folder = Path(sys.argv[1])
round = 0
print("ready", flush=True)
while True:
    round += 1
    for _ in range(2):  # the second replaces the first, as after a resume
        save_checkpoint(folder, round, {"p": torch.full((20_000,), float(round))}, {}, {"r": round})
    keep(folder, 1)
    print(round, flush=True)
"""


def test_killed_at_any_moment_the_last_checkpoint_is_whole(tmp_path: Path) -> None:
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(3 + attempt):
            writer.stdout.readline()
        time.sleep(0.0013 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        told = [int(line) for line in writer.stdout.read().split() if line.isdigit()]
        writer.wait()
        found = latest_checkpoint(folder)
        assert found is not None
        assert found.round >= max(told, default=2 + attempt)
        assert found.meta == {"r": found.round}
        assert torch.equal(found.params["p"], torch.full((20_000,), float(found.round)))
        keep(folder, 1)
        again = latest_checkpoint(folder)
        assert again is not None
        assert again.round == found.round
        assert len(list(folder.iterdir())) == 1
