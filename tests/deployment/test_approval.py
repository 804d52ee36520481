"""Which bundles a node runs: the list, what is looked at before approving, the executor's check."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import io
import json
import os
import py_compile
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from bundles import bundle_of, make_app
from configured_silo import write_silo
from deployments import ROOT, wait_for
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from client.executor import bundle_worker
from client.executor.approval import (
    ApprovalError,
    app_name,
    approve,
    differences,
    digest_of,
    is_approved,
    read_approved,
    revoke,
)
from client.executor.executor import Address, Executor
from client.executor.worker_process import WorkerProcess, remove_left_behind
from fedllm import __version__
from fedllm import messages as names
from fedllm.settings.io import to_json
from simulations.in_process import over_the_wire

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bundle_of(make_app(tmp_path_factory.mktemp("app") / "fedllm"))


@pytest.fixture
def executor(tiny_settings: Make, word_files: Path, tmp_path: Path) -> Iterator[Executor]:
    """Of a silo in ``tmp_path`` that has approved nothing yet; nobody listens at its address."""
    silo = write_silo(tmp_path, tiny_settings(), word_files / "validation.jsonl")
    made = Executor(silo, Address("127.0.0.1:1"))
    yield made
    made._end_worker()


def query(settings: Any) -> tuple[Message, Context]:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 5
    config = ConfigRecord({names.SETTINGS: to_json(settings)})
    message = Message(RecordDict({names.CONFIG: config}), dst_node_id=5, message_type="query")
    context = Context(run_id=1, node_id=5, node_config={}, state=RecordDict(), run_config={})
    return over_the_wire(message, "question"), context


def test_a_bundle_is_its_bytes(tmp_path: Path, bundle: bytes) -> None:
    app = make_app(tmp_path / "fedllm")
    assert bundle_of(app) == bundle  # of the files alone, not of when and where
    assert app_name(bundle) == f"fedllm/fedllm {__version__}"
    path = tmp_path / "approved.json"
    assert not is_approved(path, bundle)
    entry = approve(path, digest_of(bundle).upper(), app=app_name(bundle), note="read by me")
    assert is_approved(path, bundle)
    assert not is_approved(path, bundle + b" ")
    assert not is_approved(path, bundle[:-1] + bytes([bundle[-1] ^ 1]))
    assert read_approved(path) == {entry.sha256: entry}
    revoke(path, entry.sha256)
    assert not is_approved(path, bundle)
    with pytest.raises(ApprovalError, match="not in"):
        revoke(path, entry.sha256)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"approved": [{"sha256": "all"}]}', "{}"])
def test_a_damaged_list_approves_nothing(text: str, tmp_path: Path, bundle: bytes) -> None:
    path = tmp_path / "approved.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ApprovalError, match=r"approved\.json"):
        is_approved(path, bundle)


@pytest.mark.parametrize("what", ["", "abc", "0" * 63, "0" * 65, "g" * 64])
def test_what_is_no_digest_is_not_approved(what: str, tmp_path: Path) -> None:
    with pytest.raises(ApprovalError, match="64 hexadecimal digits"):
        approve(tmp_path / "approved.json", what)
    assert not (tmp_path / "approved.json").exists()


def test_differences_name_the_files(tmp_path: Path, bundle: bytes) -> None:
    assert differences(bundle) == []
    app = make_app(tmp_path / "fedllm", altered="import os")
    (app / "client" / "extra.py").write_text("x = 1\n", encoding="utf-8")
    (app / "privacy" / "budget.py").unlink()
    assert differences(bundle_of(app)) == [
        "added: client/extra.py",
        "changed: client/app.py",
        "absent: privacy/budget.py",
    ]
    with pytest.raises(ApprovalError, match="app bundle"):
        differences(b"no bundle")


def with_files(bundle: bytes, files: dict[str, bytes]) -> bytes:
    """The bundle with more files in it."""
    buffer = io.BytesIO(bundle)
    with zipfile.ZipFile(buffer, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


FOREIGN = [
    "client/extra.pyc",
    "client/__pycache__/app.cpython-311.pyc",
    "client/app.cpython-311-x86_64-linux-gnu.so",
    "privacy/noise.so",
    "start.pth",
    "sitecustomize.py",
    "torch.py",
    "torch/__init__.py",
    "client/../../outside.py",
    "/tmp/outside.py",
    "client//app.py",
    "client\\app.py",
    "client/app.py",  # a second one
    "client/",
    "client/data.bin",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_bundle_with_a_file_of_another_kind_is_not_looked_at_and_never_starts(
    name: str, executor: Executor, tiny_settings: Make, tmp_path: Path, bundle: bytes
) -> None:
    """Also where its digest was approved unseen."""
    foreign = with_files(bundle, {name: b"raise SystemExit(1)"})
    with pytest.raises(ApprovalError, match=r"source files of client.* alone") as refused:
        differences(foreign)
    assert repr(name) in str(refused.value)
    approve(tmp_path / "approved.json", digest_of(foreign))
    reply, _ = executor.answer(*query(tiny_settings()), foreign, 1)
    assert reply.error.code == ErrorCode.INVALID_FAB
    assert repr(name) in str(reply.error.reason)
    assert executor.worker is None
    assert list(Path(tempfile.gettempdir()).glob(f"fedllm-bundle-*/{name.lstrip('/')}")) == []


def test_a_link_in_a_bundle_is_refused(bundle: bytes) -> None:
    link = zipfile.ZipInfo("client/link.py")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO(bundle)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ApprovalError, match="no plain file"):
        differences(buffer.getvalue())


def test_a_bundle_that_unpacks_to_more_than_code_is_refused(bundle: bytes) -> None:
    buffer = io.BytesIO(bundle)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("client/large.py", bytes(80 << 20))
    assert len(buffer.getvalue()) < 4 << 20
    with pytest.raises(ApprovalError, match="at most"):
        differences(buffer.getvalue())


def test_settings_in_a_bundle_and_another_client_app_are_told(
    tmp_path: Path, bundle: bytes
) -> None:
    assert differences(with_files(bundle, {"fedllm/more.toml": b""})) == ["added: fedllm/more.toml"]
    app = make_app(tmp_path / "fedllm")
    project = app / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    project.write_text(text.replace("client.app:app", "server.app:app"), encoding="utf-8")
    (line,) = differences(bundle_of(app))
    assert line.startswith("changed: pyproject.toml runs 'server.app:app'")


@pytest.mark.parametrize("place", ["cache", "module", "extension"])
def test_modules_come_from_their_source(place: str, tmp_path: Path) -> None:
    """Beside the source lies what Python would take in its place."""
    package = tmp_path / "client"
    package.mkdir()
    (tmp_path / "pyproject.toml").write_text(
        '[tool.flwr.app.components]\nclientapp = "client.app:app"\n', encoding="utf-8"
    )
    (package / "__init__.py").touch()
    (package / "app.py").write_text("import sys\napp = 'source'\n", encoding="utf-8")
    other = tmp_path / "other.py"
    other.write_text("app = 'compiled'\n", encoding="utf-8")
    if place == "cache":
        target = importlib.util.cache_from_source(str(package / "app.py"))
        py_compile.compile(
            str(other), target, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
        usual = "compiled"
    elif place == "module":
        (package / "app.py").rename(package / "renamed.py")
        py_compile.compile(str(other), str(package / "app.pyc"))
        usual = "compiled"
    else:
        (package / f"app{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
        usual = "ImportError"
    script = (
        "import sys\nfrom pathlib import Path\n"
        "try:\n    {how}\nexcept ImportError as error:\n    print('ImportError')\n"
    )
    plain = f"sys.path.insert(0, {str(tmp_path)!r}); import client.app; print(client.app.app)"
    ours = (
        f"sys.path.insert(0, {str(Path(bundle_worker.__file__).parent)!r}); import bundle_worker; "
        f"print(bundle_worker.load_app(Path({str(tmp_path)!r})))"
    )
    found = [
        subprocess.run(
            [sys.executable, "-P", "-c", script.format(how=how)],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        ).stdout.strip()
        for how in (plain, ours)
    ]
    assert found[0] == usual
    assert found[1] == ("ImportError" if place == "module" else "source")


def test_frames_arrive_whole() -> None:
    import socket
    import threading

    here, there = socket.socketpair()
    frame = (b"", os.urandom(3_000_000), b"end")
    sender = threading.Thread(target=bundle_worker.send, args=(here, frame))
    sender.start()
    assert bundle_worker.receive(there) == frame
    sender.join()
    here.close()
    with pytest.raises(EOFError):
        bundle_worker.receive(there)
    there.close()


def test_an_altered_bundle_never_starts(
    executor: Executor, tiny_settings: Make, tmp_path: Path, bundle: bytes
) -> None:
    """One line more in the client, and a digest that somebody claims is the approved one's."""
    marker = tmp_path / "started"
    altered = bundle_of(
        make_app(
            tmp_path / "fedllm", altered=f"import pathlib; pathlib.Path({str(marker)!r}).touch()"
        )
    )
    approve(tmp_path / "approved.json", digest_of(bundle))
    reply, _ = executor.answer(*query(tiny_settings()), altered, 1)
    assert reply.has_error()
    assert reply.error.code == ErrorCode.INVALID_FAB
    assert digest_of(altered) in str(reply.error.reason)
    assert "fedllm deploy approve" in str(reply.error.reason)
    assert executor.worker is None
    assert not marker.exists()
    # The same bundle starts once it is approved: the marker tells a start.
    approve(tmp_path / "approved.json", digest_of(altered))
    reply, _ = executor.answer(*query(tiny_settings()), altered, 2)
    assert not reply.has_error(), reply.error
    assert marker.exists()


def test_one_process_serves_all_tasks_of_an_approved_bundle(
    executor: Executor, tiny_settings: Make, tmp_path: Path, bundle: bytes
) -> None:
    approve(tmp_path / "approved.json", digest_of(bundle))
    settings = tiny_settings()
    reply, context = executor.answer(*query(settings), bundle, 1)
    assert not reply.has_error(), reply.error
    info: Any = reply.content[names.INFO]
    assert (info[names.SILO], info[names.STATUS]) == ("clinic", names.OK)
    assert executor.worker is not None
    first = executor.worker.pid
    reply, _ = executor.answer(query(settings)[0], context, bundle, 2)
    assert executor.worker.pid == first
    # It ends: the next task says so at once, and the one after it is served again.
    os.kill(first, 9)
    executor.worker._process.wait()
    reply, _ = executor.answer(*query(settings), bundle, 3)
    assert not reply.has_error(), reply.error
    assert executor.worker.pid != first
    # Revoked: the process that is still there gets no other task.
    revoke(tmp_path / "approved.json", digest_of(bundle))
    reply, _ = executor.answer(*query(settings), bundle, 4)
    assert reply.has_error()


def test_a_task_that_is_over_ends_itself_and_not_the_executor(
    tiny_settings: Make, word_files: Path, tmp_path: Path, bundle: bytes
) -> None:
    """A SuperNode that knows the task no longer answers 401, for which Flower interrupts its own executor."""

    class Refuses(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    silo = write_silo(tmp_path, tiny_settings(), word_files / "validation.jsonl")
    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as supernode:
        threading.Thread(target=supernode.serve_forever, daemon=True).start()
        address = Address(f"127.0.0.1:{supernode.server_port}")
        executor = Executor(silo, address)
        executor._run_task("a token of before", 1)
        executor.worker = WorkerProcess(bundle, digest_of(bundle), silo)
        over = threading.Event()
        with contextlib.closing(address.client("a token of before")) as client:
            assert executor._beat(client, over)
        assert over.is_set()
        wait_for(lambda: executor.worker is not None and not executor.worker.alive, "its end", 30)
        assert not executor.stop.is_set()
        executor._end_worker()
        supernode.shutdown()


def test_what_a_killed_executor_left_is_removed_and_nothing_else(
    tiny_settings: Make, word_files: Path, tmp_path: Path, bundle: bytes
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    silo = write_silo(tmp_path, tiny_settings(), word_files / "validation.jsonl")
    # An executor in a process of its own, which unpacks a bundle, and is killed with its process at work.
    code = (
        "import sys, time; from pathlib import Path; from client.executor.worker_process import WorkerProcess;"
        "made = WorkerProcess(Path(sys.argv[1]).read_bytes(), '0' * 64, Path(sys.argv[2]));"
        "print(made.pid, flush=True); time.sleep(3600)"
    )
    (tmp_path / "bundle").write_bytes(bundle)
    executor = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "bundle"), str(silo)],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert executor.stdout is not None
    worker = int(executor.stdout.readline())
    (folder,) = temporary.glob("fedllm-bundle-*")
    for other in ("fedllm-rounds-x", "else"):
        (temporary / other).mkdir()
    (temporary / "fedllm-bundle-link").symlink_to(tmp_path)
    (temporary / "fedllm-bundle-file").touch()
    kept = sorted(set(temporary.iterdir()) - {folder})
    os.kill(worker, signal.SIGSTOP)  # it cannot see that its executor is gone
    executor.kill()
    executor.wait()
    executor.stdout.close()  # its process has the other end open still
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        try:
            assert remove_left_behind() == [], "its process is there still"
            assert (folder / "client" / "app.py").is_file()
        finally:
            os.kill(worker, signal.SIGKILL)
        assert wait_for(remove_left_behind, "the folder to be free", 30) == [folder]
    assert sorted(temporary.iterdir()) == kept


def test_a_task_that_takes_too_long_is_ended(
    executor: Executor, tiny_settings: Make, tmp_path: Path, word_files: Path
) -> None:
    sleeps = bundle_of(make_app(tmp_path / "fedllm", altered="import time; time.sleep(3600)"))
    approve(tmp_path / "approved.json", digest_of(sleeps))
    settings = tiny_settings()
    write_silo(tmp_path, settings, word_files / "validation.jsonl", **{"limits.seconds": 2.0})
    reply, _ = executor.answer(*query(settings), sleeps, 1)
    assert "no answer within 2 s (limits.seconds)" in str(reply.error.reason)
    assert executor.worker is not None
    assert not executor.worker.alive


def test_what_an_exception_says_stays_at_the_silo(
    executor: Executor, tiny_settings: Make, tmp_path: Path
) -> None:
    raises = bundle_of(
        make_app(tmp_path / "fedllm", altered="raise RuntimeError('the text of patient 7')")
    )
    approve(tmp_path / "approved.json", digest_of(raises))
    reply, _ = executor.answer(*query(tiny_settings()), raises, 1)
    assert str(reply.error.reason) == "the app failed; see the silo's own log"


def test_a_bad_file_or_list_runs_nothing(
    executor: Executor, tiny_settings: Make, tmp_path: Path, bundle: bytes
) -> None:
    approve(tmp_path / "approved.json", digest_of(bundle))
    (tmp_path / "approved.json").write_text(json.dumps({"approved": "all"}), encoding="utf-8")
    reply, _ = executor.answer(*query(tiny_settings()), bundle, 1)
    assert "ApprovalError" in str(reply.error.reason)
    (tmp_path / "silo.toml").write_text("name = 3\n", encoding="utf-8")
    reply, _ = executor.answer(*query(tiny_settings()), bundle, 2)
    assert "SiloConfigError" in str(reply.error.reason)
    assert executor.worker is None
