"""The list of mutations fits the code as it is; and (slow) each of them is noticed by a test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .catalogue import MUTATIONS
from .mutation import Mutation, MutationError
from .runner import ROOT, copy_of, imported_from, judge, run_all, snapshot, without_mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_mutation_fits_the_code(mutation: Mutation) -> None:
    """Its old text is there exactly once, the broken file compiles, its tests exist."""
    mutation.mutated(ROOT)
    assert not mutation.missing_tests(ROOT)
    assert mutation.tests
    assert mutation.harm.endswith(".")


def test_names_are_unique_and_there_are_enough() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 30


def test_a_mutation_that_does_not_fit_is_refused() -> None:
    def change(old: str, new: str) -> Mutation:
        return Mutation("bad", "privacy/mechanisms/sampling.py", old, new, "None.", ("tests/x.py",))

    with pytest.raises(MutationError, match="0 times"):
        change("no such text", "x").mutated(ROOT)
    with pytest.raises(MutationError, match="exactly once"):
        change("rate", "x").mutated(ROOT)
    with pytest.raises(MutationError, match="does not compile"):
        change("def poisson_sample(", "def (").mutated(ROOT)
    assert change("a", "b").missing_tests(ROOT) == ["tests/x.py"]


@pytest.mark.slow
def test_the_runner_tells_killed_from_survived_and_from_broken(tmp_path_factory) -> None:
    """A change of a comment survives; a NameError and a failing import are errors, no kills."""
    test = "tests/privacy/test_randomness.py::test_poisson_sample_edges"
    line = "    return np.flatnonzero(rng.random(n) < threshold).astype(np.int64)\n"

    def change(new: str) -> Mutation:
        return Mutation("x", "privacy/mechanisms/sampling.py", line, new, "Nobody.", (test,))

    base = tmp_path_factory.mktemp("snapshot") / "tree"
    snapshot(base)
    with copy_of(base) as tree:
        assert imported_from(tree) == tree.resolve()
    assert judge(change(line + "    # nothing\n"), base).status == "survived"
    killed = judge(change("    return np.zeros(0, dtype=np.int64)\n"), base)
    assert (killed.status, killed.killer) == ("killed", test)
    assert judge(change("    return undefined_name\n"), base).status == "error"
    assert judge(change(line + "import nowhere_to_be_found\n"), base).status == "error"
    skipped = "import pytest\n\n\ndef test_it():\n    pytest.skip('no nginx')\n"
    (base / "tests" / "test_skipped.py").write_text(skipped, encoding="utf-8")
    unasked = replace(change(line + "    # nothing\n"), tests=("tests/test_skipped.py::test_it",))
    assert "were skipped" in judge(unasked, base).message
    assert without_mutation(base, [killed]) == ([killed], [])
    (base / "privacy" / "sampling.py").write_text("raise ValueError('broken')\n", encoding="utf-8")
    (error,), unsound = without_mutation(base, [killed])
    assert error.status == "error"
    assert unsound


@pytest.mark.slow
def test_every_mutation_is_killed() -> None:
    verdicts, unsound = run_all(MUTATIONS)
    assert unsound == []
    alive = [f"{v.name}: {v.status} {v.message}" for v in verdicts if v.status != "killed"]
    assert alive == []
