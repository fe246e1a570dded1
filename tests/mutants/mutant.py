"""A seeded bug: an exact edit of one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

KERNEL_TESTS = ("tests/actors/kernel",)


class StaleMutantError(Exception):
    """The text that a mutant replaces is not in the source exactly once: the source moved, so fit the mutant again."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """Replaces `old` in `file` (from the root of the project) by `new`; `tests` is what its unit suite runs.

    `machine`: whether the state machine of the kernel is run as well.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = KERNEL_TESTS
    machine: bool = True

    def mutate(self, source: str) -> str:
        """Return the source with the bug. Raises StaleMutantError where the edit does not fit exactly once."""
        found = source.count(self.old)
        if found != 1:
            raise StaleMutantError(
                f"{self.name}: its old text is {found} times in {self.file}, not once:\n{self.old}"
            )
        return source.replace(self.old, self.new)

    def apply(self, root: Path) -> str:
        """Write the bug into the copy below `root`; return what stood there. Raises StaleMutantError."""
        path = root / self.file
        source = path.read_text(encoding="utf-8")
        path.write_text(self.mutate(source), encoding="utf-8")
        return source
