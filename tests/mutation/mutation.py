"""One mutant: an exact replacement of text in one file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


class MutationError(ValueError):
    """A mutation that cannot be applied, or that does not break what it says; the message says why."""


@dataclass(frozen=True)
class Mutation:
    """A mutant and the tests that are expected to notice it.

    Attributes:
        name: how the command line calls it.
        file: path of the file below the repository's root.
        old: text that occurs there exactly once.
        new: what takes its place.
        harm: who would be harmed and how, in one sentence.
        tests: pytest ids, below the repository's root; at least one test in them must fail.
    """

    name: str
    file: str
    old: str
    new: str
    harm: str
    tests: tuple[str, ...]

    def mutated(self, root: Path) -> str:
        """The file's text with the mutant in it.

        Raises:
            MutationError: the old text does not occur exactly once, or the new text is no Python.
        """
        text = (root / self.file).read_text(encoding="utf-8")
        found = text.count(self.old)
        if found != 1:
            raise MutationError(
                f"{self.name}: expected the old text exactly once in {self.file}, got it {found} times"
            )
        broken = text.replace(self.old, self.new)
        if broken == text:
            raise MutationError(f"{self.name}: the new text is the old text")
        try:
            compile(broken, self.file, "exec", dont_inherit=True)
        except SyntaxError as error:
            raise MutationError(f"{self.name}: {self.file} does not compile: {error}") from None
        return broken

    def missing_tests(self, root: Path) -> list[str]:
        """Ids that name no file, or no function in it."""
        missing = []
        for test in self.tests:
            path, _, rest = test.partition("::")
            parts = [part.partition("[")[0] for part in rest.split("::") if part]
            file = root / path
            text = file.read_text(encoding="utf-8") if file.is_file() else ""
            wanted = [rf"^class {name}\b" for name in parts[:-1]]
            # A method may be inherited from another class of the file; a function is at the margin.
            indent = " +" if parts[:-1] else ""
            wanted += [rf"^{indent}def {name}\(|^class {name}\b" for name in parts[-1:]]
            if not text or not all(re.search(pattern, text, re.MULTILINE) for pattern in wanted):
                missing.append(test)
        return missing
