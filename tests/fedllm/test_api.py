"""The public names of ``fedllm``: imported when they are used, whatever was imported before, and documented."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedllm
from fedllm import api
from privacy.calibration import calibrate_noise_multiplier, calibrate_steps
from privacy.guarantee import Relation

ROOT = Path(__file__).resolve().parents[2]
SCHEDULE = {"delta": 1e-5, "sampling_rate": 0.1}
ABSENT = """
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, Absent())
"""


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_all_names_are_there_and_in_the_stub() -> None:
    stub = ast.parse((ROOT / "fedllm" / "__init__.pyi").read_text(encoding="utf-8"))
    typed = {
        str(alias.asname)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed | {"__version__"} == set(fedllm.__all__)
    for name in fedllm.__all__:
        assert getattr(fedllm, name) is not None
        assert name in dir(fedllm)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fedllm.nothing  # type: ignore[attr-defined]


def test_every_name_has_an_example() -> None:
    functions = [getattr(api, name) for name in fedllm.__all__ if hasattr(api, name)]
    assert len(functions) == 6
    for found in (*functions, fedllm.Settings, fedllm.load_settings, fedllm.Ledger):
        assert ">>> " in str(found.__doc__), found


def test_importing_fedllm_loads_nothing() -> None:
    code = "import fedllm, sys; print(sorted({'torch', 'pydantic', 'numpy'} & sys.modules.keys()))"
    assert python(code).stdout == "[]\n"


@pytest.mark.parametrize("before", ["", "import fedllm.run.folder, fedllm.report.guarantee"])
def test_a_package_of_the_same_name_is_called(before: str) -> None:
    code = f"""
{before}
from fedllm import run, report, api
calls = []
api.run = lambda *a, **k: calls.append(("run", a, k))
api.report = lambda *a, **k: calls.append(("report", a, k))
run("x", folder="y")
report("z")
import fedllm.run.folder as folder
import fedllm
fedllm.run("x")
assert folder.RunFolder
print(calls)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "[('run', ('x',), {'folder': 'y'}), ('report', ('z',), {}), ('run', ('x',), {})]\n"
    )


def test_without_ray_one_error_says_what_to_install() -> None:
    message = (
        "Expected the package ray to simulate an experiment, got none installed: "
        "pip install 'flwr[simulation]'"
    )
    code = "import fedllm\ntry:\n    fedllm.run(fedllm.Settings(simulation={'engine': 'ray'}))\nexcept ValueError as error:\n    print(error)"
    assert python(ABSENT + code).stdout == f"{message}\n"
    command = "from simulations.cli.main import main\nmain()"
    done = python(
        ABSENT + command,
        "run",
        "simulations/experiments/tweets.toml",
        "--set",
        "simulation.engine=ray",
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"fedllm: {message}\n"


def test_calibrate_finds_what_is_left_out() -> None:
    found = fedllm.calibrate(epsilon=2, steps=20, **SCHEDULE)
    assert found == calibrate_noise_multiplier(
        epsilon=2, steps=20, relation=Relation.ZERO_OUT, accountant="pld", copies=1, **SCHEDULE
    )
    steps = fedllm.calibrate(epsilon=2, noise_multiplier=found.noise_multiplier, **SCHEDULE)
    assert steps == calibrate_steps(
        epsilon=2,
        noise_multiplier=found.noise_multiplier,
        relation=Relation.ZERO_OUT,
        accountant="pld",
        copies=1,
        **SCHEDULE,
    )
    assert steps.steps >= 20
    for given in ({}, {"steps": 3, "noise_multiplier": 1.0}):
        with pytest.raises(ValueError, match="Expected all but one of delta, sampling_rate"):
            fedllm.calibrate(epsilon=2, **SCHEDULE, **given)
