"""Applies one mutation at a time to a copy of the tree, and asks the tests there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from .forked import TIMED_OUT, run_pytest
from .mutation import Mutation, MutationError

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("privacy", "fedllm", "client", "server", "simulations", "tests", "pyproject.toml")
TIMEOUT = 240.0
"""Seconds for the tests of one mutation."""
BASELINE_TIMEOUT = 1800.0
# A failure of these kinds is a mutation that does not run, not one that a test noticed.
_NO_VERDICT = (
    "NameError",
    "UnboundLocalError",
    "ImportError",
    "ModuleNotFoundError",
    "SyntaxError",
    "AttributeError",
    "TypeError",
)
Done = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Verdict:
    """What became of one mutation.

    Attributes:
        killer: the test that failed; empty where none did.
        message: the first line of that test's failure, or why there is no verdict.
        status: "killed", "survived", or "error" where the mutation itself does not work.
    """

    name: str
    harm: str
    status: str
    killer: str
    message: str
    seconds: float


@dataclass(frozen=True)
class _Run:
    code: int
    passed: frozenset[str]
    failures: tuple[tuple[str, str], ...]  # (test, first line of the failure)
    errors: tuple[tuple[str, str], ...]
    output: str


def snapshot(target: Path) -> None:
    """Copy what git tracks, and what it neither tracks nor ignores, of the packages and tests."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *COPIED],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        source = ROOT / name
        if source.is_file():  # a tracked file may have been deleted
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place)


@contextmanager
def copy_of(base: Path) -> Iterator[Path]:
    """A copy of a snapshot that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fedllm-mutation-"))
    try:
        tree = folder / "tree"
        shutil.copytree(base, tree)
        yield tree
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(tree: Path) -> dict[str, str]:
    """Variables with which a process in the copy imports the copy, and finds the real data."""
    data = os.environ.get("FEDLLM_TEST_DATA", str(ROOT.parent / "shared" / "data"))
    return (
        os.environ
        | {
            "PYTHONPATH": str(tree),
            "PYTHONDONTWRITEBYTECODE": "1",  # no bytecode of the unbroken file can be taken for the broken
            "FEDLLM_TEST_DATA": data,
            "OMP_NUM_THREADS": "1",
        }
    )


def imported_from(tree: Path) -> Path:
    """The folder that `import privacy` finds in the copy.

    Raises:
        MutationError: it is not the copy's (an editable install went before it).
    """
    script = "import pathlib, privacy; print(pathlib.Path(privacy.__file__).resolve().parents[1])"
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tree,
        env=environment(tree),
        check=True,
        capture_output=True,
        text=True,
    )
    folder = Path(found.stdout.strip())
    if folder != tree.resolve():
        raise MutationError(f"Expected privacy to be imported from {tree}, got {folder}")
    return folder


def run_tests(tree: Path, tests: Sequence[str], *, timeout: float, first: bool) -> _Run:
    """Run tests in a copy; with ``first`` up to the first failure."""
    report = tree.parent / "report.xml"
    report.unlink(missing_ok=True)
    arguments = ["-q", "-p", "no:cacheprovider", "--tb=short", "-o", "junit_family=xunit1"]
    arguments += [f"--junitxml={report}", "--hypothesis-seed=0"]
    arguments += ["-x"] if first else []
    code, output = run_pytest([*arguments, *tests], tree, environment(tree), timeout=timeout)
    if code == TIMED_OUT:
        return _Run(code, frozenset(), (), (), f"no end within {timeout:g} s")
    if code not in (0, 1) or not report.exists():
        return _Run(code, frozenset(), (), (), output[-2000:])
    passed, failures, errors = set(), [], []
    for case in ElementTree.parse(report).iter("testcase"):
        test = _id(case)
        problem = {kind: case.find(kind) for kind in ("failure", "error", "skipped")}
        if problem["failure"] is not None:
            failures.append((test, _first_line(problem["failure"])))
        elif problem["error"] is not None:
            errors.append((test, _first_line(problem["error"])))
        elif problem["skipped"] is None:
            passed.add(test)
    return _Run(code, frozenset(passed), tuple(failures), tuple(errors), output[-2000:])


def _id(case: ElementTree.Element) -> str:
    """pytest's id: file, class where there is one, name."""
    file, where = case.get("file", ""), case.get("classname", "")
    module = file.removesuffix(".py").replace("/", ".")
    classes = where.removeprefix(module).strip(".").replace(".", "::")
    return "::".join(part for part in (file, classes, case.get("name", "")) if part)


def _first_line(element: ElementTree.Element) -> str:
    return next(iter((element.get("message") or "").strip().splitlines()), "")


def judge(mutation: Mutation, base: Path) -> Verdict:
    """Apply one mutation in a copy of the snapshot and run its tests.

    A kill is provisional until `without_mutation` has seen the same test pass.
    """
    began = time.monotonic()

    def verdict(status: str, killer: str = "", message: str = "") -> Verdict:
        seconds = time.monotonic() - began
        return Verdict(mutation.name, mutation.harm, status, killer, message, seconds)

    with copy_of(base) as tree:
        try:
            broken = mutation.mutated(tree)
        except MutationError as error:
            return verdict("error", message=str(error))
        (tree / mutation.file).write_text(broken, encoding="utf-8")
        run = run_tests(tree, mutation.tests, timeout=TIMEOUT, first=True)
    if run.code == 0 and not run.passed:
        return verdict(
            "error", message="its tests were skipped: something that they need is not installed"
        )
    if run.code == 0:
        return verdict("survived")
    if run.code != 1 or not (run.failures or run.errors):
        return verdict("error", message=f"pytest ended with {run.code}: {run.output}")
    if not run.failures:
        test, line = run.errors[0]
        return verdict("error", test, f"an error outside of a test: {line}")
    killer, message = run.failures[0]
    if message.startswith(_NO_VERDICT):
        return verdict("error", killer, f"the broken code does not run: {message}")
    return verdict("killed", killer, message)


def without_mutation(base: Path, verdicts: Iterable[Verdict]) -> tuple[list[Verdict], list[str]]:
    """Run the tests that killed in an untouched copy: one that fails there has killed nothing.

    Returns:
        The verdicts, with "error" where the test does not pass; the tests that fail.
    """
    verdicts = list(verdicts)
    killers = sorted({verdict.killer for verdict in verdicts if verdict.status == "killed"})
    if not killers:
        return verdicts, []
    with copy_of(base) as tree:
        imported_from(tree)
        run = run_tests(tree, killers, timeout=BASELINE_TIMEOUT, first=False)
    if run.code not in (0, 1):
        unsound = [f"pytest ended with {run.code}: {run.output}"]
    else:
        unsound = [f"{test}: {line}" for test, line in (*run.failures, *run.errors)]
    reason = "this test does not pass without the mutation either"
    return [
        replace(verdict, status="error", message=reason)
        if verdict.status == "killed" and verdict.killer not in run.passed
        else verdict
        for verdict in verdicts
    ], unsound


def run_all(
    mutations: Sequence[Mutation], *, jobs: int = 1, done: Done = lambda *_: None
) -> tuple[list[Verdict], list[str]]:
    """Judge every mutation on one snapshot of the tree.

    Args:
        jobs: copies at work at the same time.
        done: called with (number finished, number in all, what was finished).

    Returns:
        Verdicts in the order of ``mutations``; tests that killed and fail without any mutation.

    Raises:
        MutationError: the copy would not be what is imported.
    """
    steps = len(mutations) + 1
    done(0, steps, "copied")
    with tempfile.TemporaryDirectory(prefix="fedllm-snapshot-") as folder:
        base = Path(folder) / "tree"
        snapshot(base)
        found: dict[str, Verdict] = {}
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            tasks = [pool.submit(judge, mutation, base) for mutation in mutations]
            try:
                for number, task in enumerate(as_completed(tasks), 1):
                    verdict = task.result()
                    found[verdict.name] = verdict
                    took = f"{verdict.seconds:.0f} s"
                    done(
                        number, steps, f"{verdict.name}: {verdict.status}, {took} {verdict.killer}"
                    )
            except BaseException:
                pool.shutdown(cancel_futures=True, wait=False)
                raise
        verdicts = [found[mutation.name] for mutation in mutations]
        verdicts, unsound = without_mutation(base, verdicts)
        done(steps, steps, "the tests that killed, without a mutation")
    return verdicts, unsound
