"""Whole runs that train all weights of the top layers, or of the model, with each optional part."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fedllm.adapter.export import export_adapter
from fedllm.adapter.merge import export_merged
from fedllm.adapter.predict import Predictor
from fedllm.models.adapters.base import layer_of
from fedllm.report.build import build
from fedllm.run.folder import RunFolder
from fedllm.training.tunable import initial_params, make_tunable
from privacy.events.multiset import is_private
from privacy.guarantee import SERVER
from server.monitoring import Callback
from tests.integration.test_adapter_runs import PARTS, costs, final, same_bits, training_rows
from tests.support.deep import deep_settings

Federate = Callable[..., str]
FORMS = ("last-layers", "full")
REFUSED = {
    "codec": r"codec\.noise=before-encoding or privacy\.unit=client for adapter\.form=.*got codec\.name=linear",
    "layers-private": r"layers\.measure=random .* for adapter\.form=.*got layers\.form=private with layers\.measure=ascent",
    "perturbed": r"awp\.form=none or batch for adapter\.form=.*got awp\.form=per-example",
}
MORE: dict[str, dict[str, Any]] = PARTS | {
    "nothing": {"privacy.mode": "none"},
    "client-codec": PARTS["codec"] | {"privacy.unit": "client"},
    "layers-private-random": PARTS["layers-private"] | {"layers.measure": "random"},
}
QUICK = {("last-layers", "plain"), ("full", "client"), ("full", "nothing")}
QUICK |= {("full", "layers-random")}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, word_files: Path) -> Any:
    usual = deep_settings(tmp_path_factory.mktemp("deep"), word_files)

    def settings(form: str, **changes: Any) -> Any:
        layers = {"adapter.layers": [-3, -2, -1]} if form == "last-layers" else {}
        return usual(**({"adapter.form": form, "server.rounds": 2} | layers | changes))

    return settings


def cases() -> list[Any]:
    return [
        pytest.param(form, part, marks=() if (form, part) in QUICK else pytest.mark.slow)
        for form in FORMS
        for part in MORE
        if part not in REFUSED
    ]


@pytest.mark.parametrize(("form", "part"), cases())
def test_a_run_of_this_form(
    make: Any, tmp_path: Path, in_process: Federate, form: str, part: str
) -> None:
    """It ends, moves what it trains, and costs what the same run with a prefix costs."""
    settings = make(form, **MORE[part])
    run = RunFolder.create(settings, tmp_path / "run")
    assert in_process(run) == "finished", run.state()["message"]
    found = final(run)
    chosen = run.settings_of(found)
    start = initial_params(make_tunable(chosen), chosen)
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in start.items()}
    assert all(bool(value.isfinite().all()) for value in found.values())
    still = {name for name, value in found.items() if torch.equal(value, start[name])}
    if part not in ("codec", "client-codec", "autoencoder"):  # these leave out what carries little
        # no noise reaches a token type that no text has, and keys have no gradient in their bias
        assert not still or part in ("nothing", "nonprivate", "perturbed-batch")
    if part.startswith("layers"):
        assert len({layer_of(name) for name in found} - {None}) == 2
    if part in ("plain", "client", "trusted", "adaptive"):
        prefix = RunFolder.create(make("prefix", **MORE[part]), tmp_path / "prefix")
        assert in_process(prefix) == "finished"
        assert costs(run) == costs(prefix)
    private = part not in ("perturbed-batch", "nonprivate", "trusted", "nothing")
    assert any(not is_private(row.view(SERVER)) for row in training_rows(run)) != private
    assert build(run)["silos"]
    assert Predictor(run).predict(["w4 w5 w40"])[0]["label"] in chosen.task.labels


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", sorted(REFUSED))
def test_what_needs_a_copy_an_example_is_refused(make: Any, form: str, part: str) -> None:
    with pytest.raises(Exception, match=REFUSED[part]):
        make(form, **MORE[part])


def test_an_interrupted_run_resumes_to_the_same_bits(
    make: Any, tmp_path: Path, in_process: Federate
) -> None:
    changes = PARTS["adam"] | {"server.rounds": 3}
    whole = RunFolder.create(make("full", **changes), tmp_path / "whole")
    assert in_process(whole) == "finished"
    cut = RunFolder.create(make("full", **changes), tmp_path / "cut")
    stop = threading.Event()

    class Halt(Callback):
        def record(self, record: Mapping[str, Any]) -> None:
            if record["kind"] == "round" and record["round"] == 1:
                stop.set()

    assert in_process(cut, stop=stop, callbacks=[Halt()]) == "interrupted"
    assert in_process(cut) == "finished", cut.state()["message"]
    assert same_bits(final(cut), final(whole))


def test_a_run_that_keeps_states_is_the_run_that_does_not(
    make: Any, tmp_path: Path, in_process: Federate
) -> None:
    plain = {"privacy.mode": "none", "client.sampling_rate": 1.0, "adapter.layers": [-1]}
    found = []
    for reuse in ("off", "memory"):
        settings = make("last-layers", **plain, **{"model.reuse": reuse})
        run = RunFolder.create(settings, tmp_path / reuse)
        assert in_process(run) == "finished"
        found.append(final(run))
        logs = "".join(path.read_text() for path in run.path.glob("silo-logs/*.jsonl"))
        assert ('"kind": "reuse"' in logs) == (reuse != "off")
    assert same_bits(found[0], found[1])


def test_a_run_is_exported_as_a_plain_model(
    make: Any, tmp_path: Path, in_process: Federate
) -> None:
    run = RunFolder.create(make("full", **{"server.rounds": 1}), tmp_path / "run")
    assert in_process(run) == "finished"
    exported = export_adapter(run, tmp_path / "own")
    assert (exported.peft, "whole weights" in exported.why_not_peft) == (False, True)
    answers = Predictor(tmp_path / "own").predict(["w4 w5 w40"])
    assert answers == Predictor(run).predict(["w4 w5 w40"])
    merged = export_merged(run, tmp_path / "merged")
    assert merged.rounding < 1e-2
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "changes of the weights of" in card
