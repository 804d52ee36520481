"""A silo config and its limits: what a server asks beyond them is refused before anything is done."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configured_silo import write_silo
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from task_extras import fields_beside, is_asked, tensors_beside

from client.app import app
from client.config import QUANTITIES, SiloConfigError, load_silo, template
from client.limits import check_limits, localised, needed_quantities
from client.redaction import redact_paths
from fedllm import messages as names
from fedllm.budget.local_policy import LimitRefused
from fedllm.settings.io import to_json
from fedllm.task_errors import TaskFailed
from fedllm.training.tunable import initial_params, shared_tunable
from privacy.accountants import make_accountant
from privacy.guarantee import Adversary
from privacy.ledger.ledger import Ledger

Make = Callable[..., Any]
ENDPOINT = {
    "model.access": "black-box",
    "prefix.length": 0,
    "endpoint.url": "http://localhost:1/v1",
    "task.prompt": "{text}",
    "task.label_words": ["w4", "w5"],
}
SINGLE_NUMBERS = {
    "model.access": "black-box",
    "privacy.accountant": "pld",
    "privacy.mechanism": "lmo",
    "privacy.noise": '{"family": "laplace", "parameters": {"scale": 1.0}}',
}
HELD_OUT = {"evaluation.clients_holdout": 0.2}


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    monkeypatch.delenv("FEDLLM_SILO", raising=False)


def ask(
    settings: Any,
    silo: Path,
    kind: str = "train",
    run: str = "run",
    params: Any = None,
    **fields: Any,
) -> tuple[Any, RecordDict]:
    """The silo's status and its whole answer; ``params``: settings to take the parameters of."""
    params = params or settings
    config = {
        names.SETTINGS: to_json(settings),
        names.RUN_ID: run,
        names.RUN_FOLDER: "/not/here",
        names.ROUND: 1,
        names.PLANNED_ROUNDS: 3,
        **fields_beside(kind, settings),
        **fields,
    }
    records: dict[str, Any] = {names.CONFIG: ConfigRecord(config)}
    if kind != "query":
        records[names.PARAMS] = ArrayRecord(initial_params(shared_tunable(params), params))
        records |= dict.fromkeys(tensors_beside(kind, settings), records[names.PARAMS])
    else:
        config = {name: config[name] for name in (names.SETTINGS, names.BACKBONE) if name in config}
        records[names.CONFIG] = ConfigRecord(config)
    context = Context(
        run_id=1, node_id=5, node_config={"silo-file": str(silo)}, state=RecordDict(), run_config={}
    )
    message = Message(RecordDict(records), dst_node_id=5, message_type=kind)
    content = app(message, context).content
    return content[names.INFO], content


BY_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"server.rounds": 6}, "server.rounds <= 5"),
    ({"client.local_steps": 5}, "client.local_steps <= 4"),
    ({"client.sampling_rate": 0.9}, "client.sampling_rate <= 0.5"),
    ({"privacy.noise_multiplier": 0.4}, "privacy.noise_multiplier >= 0.5"),
    ({"codec.name": "fp16"}, "limits.codecs.*codec.name=fp16"),
    ({"privacy.mode": "none"}, "limits.mechanisms.*privacy.mode=none"),
    (SINGLE_NUMBERS, "limits.mechanisms.*privacy.mechanism=lmo"),
    (SINGLE_NUMBERS, "budget.accountant=pld.*else privacy.mechanism=gaussian"),
    ({"privacy.unit": "client"}, "privacy.unit=example"),
    ({"privacy.unit": "client", "privacy.noise_by": "server"}, "privacy.unit=example"),
    ({"evaluation.clients": "raw", **HELD_OUT}, "limits.quantities.*evaluation"),
    ({"evaluation.clients": "private", **HELD_OUT}, "limits.quantities.*evaluation"),
    ({"codec.name": "linear"}, "limits.quantities.*statistics"),
    ({"layers.form": "private", "layers.keep": 1}, "limits.quantities.*layer-scores"),
    ({"teacher.kind": "nonprivate"}, "limits.quantities.*duplicate"),
    ({"task.max_length": 600}, "task.max_length <= 512"),
    ({"model.name": "minilm"}, "limits.models.*minilm"),
    (ENDPOINT, "limits.endpoints.*localhost:1"),
    ({"task.labels": ["low", "other"]}, "data.labels.*high"),
    ({"task.text": ["text", "answer"]}, "1 columns in task.text"),
]
BY_MECHANISM: list[tuple[dict[str, Any], str]] = [
    ({"client.batch_size": 30}, "sampling rate <= 0.5"),
    ({"privacy.noise_multiplier": None, "privacy.epsilon": 50.0}, "noise multiplier >= 0.5"),
    ({"awp.form": "batch"}, "with a guarantee"),
]


@pytest.mark.parametrize(("changes", "why"), BY_SETTINGS, ids=str)
def test_settings_beyond_a_limit_are_refused_before_any_data_is_read(
    changes: dict[str, Any], why: str, tiny_settings: Make, tmp_path: Path
) -> None:
    base, absent = tiny_settings(), tmp_path / "absent.jsonl"
    silo = write_silo(tmp_path, base, absent)
    settings = tiny_settings(**changes)
    with pytest.raises(LimitRefused, match=why) as raised:
        check_limits(load_silo(silo), settings)
    for kind in ("query", "train", "evaluate", "query.statistics", "query.scores"):
        info, content = ask(settings, silo, kind, params=base)
        assert not content.array_records
        if not is_asked(kind, settings):
            assert info[names.STATUS] == names.FAILED
            assert "a task that the settings ask for" in info[names.REASON]
            continue
        assert info[names.STATUS] == names.LEFT, info[names.REASON]
        assert info[names.REASON] == redact_paths(str(raised.value))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["silo.toml"]


@pytest.mark.parametrize(("changes", "why"), BY_MECHANISM, ids=str)
def test_a_mechanism_beyond_a_limit_is_refused_before_a_row_is_written(
    changes: dict[str, Any], why: str, tiny_settings: Make, word_files: Path, tmp_path: Path
) -> None:
    silo = write_silo(tmp_path, tiny_settings(), word_files / "validation.jsonl")
    info, content = ask(tiny_settings(**changes), silo)
    assert info[names.STATUS] == names.LEFT
    assert re.search(why, info[names.REASON]), info[names.REASON]
    assert not content.array_records
    assert Ledger(tmp_path / "ledger.sqlite", read_only=True).entries() == []


def test_seeded_noise_is_refused_unless_the_silo_says_otherwise(
    tiny_settings: Make, word_files: Path, tmp_path: Path
) -> None:
    """Who knows the seed can take the noise away, and the server chooses the seed."""
    settings, data = tiny_settings(), word_files / "validation.jsonl"
    silo = write_silo(tmp_path, settings, data, **{"limits.randomness": ["os"]})
    info, _ = ask(settings, silo)
    assert info[names.STATUS] == names.LEFT
    assert "privacy.randomness=seeded" in info[names.REASON]
    info, _ = ask(tiny_settings(**{"privacy.randomness": "os"}), silo)
    assert info[names.STATUS] == names.OK


def test_noise_that_the_silo_does_not_add_itself_is_refused(
    tiny_settings: Make, tmp_path: Path
) -> None:
    """Its update would leave without noise and without a row in its own ledger."""
    silo = write_silo(
        tmp_path, tiny_settings(), tmp_path / "absent.jsonl", **{"budget.unit": "client"}
    )
    changes = {"privacy.unit": "client", "privacy.noise_by": "server"}
    info, content = ask(tiny_settings(**changes), silo)
    assert info[names.STATUS] == names.LEFT
    assert "Expected privacy.noise_by=client" in info[names.REASON]
    assert not content.array_records


def test_every_refusal_is_told_at_once(tiny_settings: Make, tmp_path: Path) -> None:
    silo = load_silo(write_silo(tmp_path, tiny_settings(), tmp_path / "absent.jsonl"))
    settings = tiny_settings(**{"server.rounds": 9, "client.local_steps": 9, "codec.name": "int8"})
    with pytest.raises(LimitRefused) as raised:
        check_limits(silo, settings, server_round=7, planned_rounds=-1)
    said = str(raised.value)
    for part in ("silo clinic", "server.rounds <= 5", "local_steps <= 4", "got codec.name=int8"):
        assert part in said
    assert "the round of the task <= 5" in said
    assert "got 7 of -1 planned" in said


def test_an_experiment_within_the_limits_trains_on_the_silos_own_terms(
    tiny_settings: Make, word_files: Path, tmp_path: Path
) -> None:
    silo = write_silo(tmp_path, tiny_settings(), word_files / "validation.jsonl")
    settings = tiny_settings(**{"task.text": ["body"], "task.target": "class"})
    info, content = ask(settings, silo, "query")
    assert (info[names.SILO], info[names.STATUS]) == ("clinic", names.OK)
    assert content[names.METRICS][names.EXAMPLES] == 40
    info, content = ask(settings, silo)
    assert info[names.STATUS] == names.OK, info[names.REASON]
    assert sorted(content[names.UPDATE]) == ["head.bias", "head.weight", "prefix"]
    (row,) = Ledger(tmp_path / "ledger.sqlite", read_only=True).entries()
    assert (row.party, row.run, row.purpose) == ("clinic", "run", "train")


def test_a_run_has_no_more_rounds_than_the_silo_allows(
    tiny_settings: Make, word_files: Path, tmp_path: Path
) -> None:
    """A round asked again and again at other parameters is a new release each time, and counted as one."""
    silo = write_silo(
        tmp_path, tiny_settings(), word_files / "validation.jsonl", **{"budget.epsilon": math.inf}
    )
    # With spare rounds in its plan the run's plan has room for more than the silo allows.
    changes = {"privacy.randomness": "os", "privacy.epsilon": None, "privacy.spare_rounds": 20}
    settings = tiny_settings(**changes)
    points = [tiny_settings(**{"prefix.init": "random", "seed": seed}) for seed in range(7)]
    planned = {names.PLANNED_ROUNDS: 5}
    statuses = [ask(settings, silo, params=point, **planned)[0][names.STATUS] for point in points]
    assert statuses == [names.OK] * 5 + [names.LEFT] * 2
    assert len(Ledger(tmp_path / "ledger.sqlite", read_only=True).entries()) == 5


def test_the_budget_is_the_silos_over_all_runs(
    tiny_settings: Make, word_files: Path, tmp_path: Path
) -> None:
    """A server that allows itself any epsilon, at any delta, in new runs again and again."""
    changes = {"budget.epsilon": 5.0, "limits.rounds": 1000}
    silo = write_silo(tmp_path, tiny_settings(), word_files / "validation.jsonl", **changes)
    asked = {"privacy.epsilon": 1e6, "privacy.delta": 0.5, "privacy.randomness": "os"}
    settings = tiny_settings(**asked, **{"privacy.noise_multiplier": 1.5})
    tasks = [(f"run-{i // 3}", {names.ROUND: i % 3 + 1}) for i in range(40)]
    answers = [ask(settings, silo, run=run, **fields)[0] for run, fields in tasks]
    statuses = [info[names.STATUS] for info in answers]
    accepted = statuses.count(names.OK)
    assert statuses == [names.OK] * accepted + [names.LEFT] * (40 - accepted)
    assert "budget.epsilon of the silo config" in answers[-1][names.REASON]
    with Ledger(tmp_path / "ledger.sqlite", read_only=True) as ledger:
        assert len(ledger.entries()) == accepted > 3
        events = ledger.spent(Adversary("server"), party="clinic")
    step = Counter(dict.fromkeys(events, 2))
    assert make_accountant("rdp").epsilon(events, 1e-5) <= 5.0
    assert make_accountant("rdp").epsilon(events + step, 1e-5) > 5.0  # and all of it is used


def test_the_noise_is_calibrated_to_the_silos_budget(
    tiny_settings: Make, word_files: Path, tmp_path: Path
) -> None:
    """Where it is tighter than the run's, so that the silo does not leave halfway."""
    changes = {"budget.epsilon": 2.0}
    silo = write_silo(tmp_path, tiny_settings(), word_files / "validation.jsonl", **changes)
    settings = tiny_settings(**{"privacy.epsilon": 50.0, "privacy.noise_multiplier": None})
    for number in (1, 2, 3):
        info, _ = ask(settings, silo, **{names.ROUND: number})
        assert info[names.STATUS] == names.OK, info[names.REASON]
    with Ledger(tmp_path / "ledger.sqlite", read_only=True) as ledger:
        events = ledger.spent(Adversary("server"), party="clinic")
    assert 1.9 < make_accountant("rdp").epsilon(events, 1e-5) <= 2.0


def test_the_silos_own_folder_device_and_memory_are_used(
    tiny_settings: Make, tmp_path: Path
) -> None:
    path = write_silo(
        tmp_path,
        tiny_settings(),
        tmp_path / "absent.jsonl",
        **{"model.path": "backbone", "model.dtype": "bfloat16", "limits.max_tokens": 100},
    )
    asked = {"model.device": "cuda:7", "model.name": "x/y", "privacy.ledger": "/etc/passwd"}
    found = localised(load_silo(path), tiny_settings(**asked, **{"simulation.threads": 10**6}))
    assert found.model.name == str(tmp_path / "backbone")
    assert (found.model.device, found.model.dtype) == ("cpu", "bfloat16")
    assert found.client.max_tokens == 100
    assert found.privacy.ledger is None
    assert found.simulation.threads <= 1024
    check_limits(load_silo(path), tiny_settings(**asked))  # limits.models is for others' folders


@pytest.mark.parametrize(
    ("own", "reuse", "gib"), [(0.5, "disk", 0.5), (8.0, "disk", 4.0), (0, "off", 4.0)]
)
def test_the_server_does_not_decide_how_much_room_is_taken(
    tiny_settings: Make, tmp_path: Path, own: float, reuse: str, gib: float
) -> None:
    """Otherwise a hostile server fills the silo's memory or disk."""
    asked = tiny_settings(**{"model.reuse": "disk", "model.reuse_gib": 4.0})
    path = write_silo(tmp_path, asked, tmp_path / "absent.jsonl", **{"model.reuse_gib": own})
    found = localised(load_silo(path), asked)
    assert (found.model.reuse, found.model.reuse_gib) == (reuse, gib)


def test_a_codec_that_the_silo_does_not_allow_is_not_kept(
    tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedllm.codec.identity import Half
    from fedllm.codec.quantise import Quantised
    from fedllm.codec.random_projection import RandomProjection
    from fedllm.codec.top_k import TopK
    from server.extensions.codec import codec_messages

    monkeypatch.setenv("FEDLLM_CACHE", str(tmp_path / "cache"))
    changes = {"limits.codecs": ["none", "random-projection"]}
    silo = write_silo(tmp_path, tiny_settings(), tmp_path / "absent.jsonl", **changes)
    d = sum(
        p.numel() for p in initial_params(shared_tunable(tiny_settings()), tiny_settings()).values()
    )
    context = Context(
        run_id=1, node_id=5, node_config={"silo-file": str(silo)}, state=RecordDict(), run_config={}
    )
    allowed = RandomProjection(d, d // 4, 3)
    for codec, asked, status in (
        (allowed, {"codec.name": "random-projection"}, names.OK),
        (Quantised(allowed, 8), {"codec.name": "random-projection", "codec.bits": 8}, names.OK),
        (Half(d), {"codec.name": "fp16"}, names.LEFT),
        (TopK.of_ratio(d, 4.0), {"codec.name": "top-k"}, names.LEFT),
        (Half(d), {"codec.name": "random-projection"}, names.LEFT),
        (allowed, {}, names.FAILED),
    ):
        settings = tiny_settings(**asked, **{"codec.ratio": 4.0})
        ((message,), _) = codec_messages(codec, codec.version, [(5, settings)])
        assert app(message, context).content[names.INFO][names.STATUS] == status, codec
    assert len(list((tmp_path / "cache" / "codecs").iterdir())) == 2


def test_quantities_are_named_with_the_setting_that_asks(tiny_settings: Make) -> None:
    assert list(needed_quantities(tiny_settings())) == ["update", "size"]
    private = tiny_settings(**{"data.sizes": "private", "client.sampling_rate": 0.1})
    assert list(needed_quantities(private)) == ["update"]
    assert set(needed_quantities(private)) <= set(QUANTITIES)


# -- the file itself -----------------------------------------------------------------------------


def test_paths_are_relative_to_the_file(tiny_settings: Make, tmp_path: Path) -> None:
    path = write_silo(tmp_path, tiny_settings(), Path("here.jsonl"), cache="kept", log="")
    silo = load_silo(path)
    assert silo.data.path == str(tmp_path / "here.jsonl")
    assert silo.ledger == str(tmp_path / "ledger.sqlite")
    assert silo.cache == str(tmp_path / "kept")
    assert silo.log is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limits.step": 3}, r"known key, got limits\.step; did you mean local_steps"),
        ({"data.pth": "x"}, r"got data\.pth; did you mean path"),
        ({"budget.epsilon": 0.0}, r"Expected budget\.epsilon.*greater than 0; got 0"),
        ({"budget.epsilon": -1.0}, r"budget\.epsilon"),
        ({"budget.epsilon": math.nan}, r"budget\.epsilon"),
        ({"limits.quantities": ["updates"]}, r"Expected limits\.quantities"),
        ({"limits.mechanisms": ["none"]}, r"budget\.epsilon=inf"),
        (
            {"limits.mechanisms": ["gaussian", "searched"]},
            r"no `searched` in limits\.mechanisms.*`lmo` allows",
        ),
        ({"limits.quantities": ["duplicate"]}, r"budget\.epsilon=inf"),
        ({"budget.relation": "replace-one"}, "zero-out"),
        ({"name": "a/b"}, "Expected name"),
    ],
)
def test_a_bad_file_names_the_key(
    changes: dict[str, Any], said: str, tiny_settings: Make, tmp_path: Path
) -> None:
    path = write_silo(tmp_path, tiny_settings(), tmp_path / "x.jsonl", **changes)
    with pytest.raises(SiloConfigError, match=said) as raised:
        load_silo(path)
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there_is_no_simulation(tiny_settings: Make, tmp_path: Path) -> None:
    """A wrong path must not make the node serve data that the server names."""
    info, content = ask(tiny_settings(), tmp_path / "absent.toml")
    assert info[names.STATUS] == names.FAILED
    assert info[names.REASON] == str(TaskFailed())
    assert not content.array_records


def test_the_template_is_a_valid_file(tmp_path: Path) -> None:
    path = tmp_path / "silo.toml"
    path.write_text(template("Nord-Klinik"), encoding="utf-8")
    silo = load_silo(path)
    assert (silo.name, silo.budget.epsilon) == ("Nord-Klinik", 3.0)
    assert silo.limits.randomness == ("os",)
    text = path.read_text(encoding="utf-8")
    assert text.count("\n[") == 5
    assert all(len(line) < 400 for line in text.splitlines())


# -- the frozen model ----------------------------------------------------------------------------


def test_another_backbone_is_refused_before_anything_is_written(
    tiny_settings: Make, word_files: Path, tmp_path: Path
) -> None:
    settings = tiny_settings()
    silo = write_silo(tmp_path, settings, word_files / "validation.jsonl")
    digest = shared_tunable(settings).backbone.weights_digest
    for kind in ("query", "train"):
        info, content = ask(settings, silo, kind, **{names.BACKBONE: "0" * 64})
        assert info[names.STATUS] == names.FAILED
        assert f"the silo's copy of the model has {digest}" in info[names.REASON]
        assert not content.array_records
    assert not (tmp_path / "ledger.sqlite").exists()
    info, _ = ask(settings, silo, **{names.BACKBONE: digest})
    assert info[names.STATUS] == names.OK, info[names.REASON]
    pinned = write_silo(
        tmp_path, settings, word_files / "validation.jsonl", **{"model.sha256": "1" * 64}
    )
    info, _ = ask(settings, pinned, **{names.BACKBONE: digest})
    assert "model.sha256 of the silo's file" in info[names.REASON]


def test_training_that_does_not_fit_is_refused_by_the_silo(
    tiny_settings: Make, word_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedllm.models import memory as device_memory

    settings = tiny_settings()
    silo = write_silo(tmp_path, settings, word_files / "validation.jsonl")
    shared_tunable(settings)
    monkeypatch.setattr(device_memory, "_available", lambda: 2**27)
    info, _ = ask(settings, silo, "query", params=settings)
    assert info[names.STATUS] == names.FAILED
    assert "got 0.12 GiB" in info[names.REASON]
    assert not (tmp_path / "ledger.sqlite").exists()
