"""What no agent reaches, whatever its tier: the runner's state, and the files that the agents are governed by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from store.confinement import Identity, identity_of

UNREADABLE: Final = ("workspaces/.state",)
"""Neither read nor written by any agent: database, keys, tokens."""

UNWRITABLE: Final = (
    "platform/constitution.md",
    "platform/constitution.yaml",
    "platform/roster.yaml",
    "platform/mandates",
)
"""Read by agents, written by people only."""


@dataclass(frozen=True, slots=True)
class Bars:
    """Protected files as they lie on the disk at one moment.

    `identities` are the files and folders themselves, however they are reached; `places` are (folder, name), so that
    a protected file that does not exist yet cannot be made.
    """

    identities: frozenset[Identity]
    places: frozenset[tuple[Identity, bytes]]

    def stop(
        self, chain: Sequence[Identity], name: bytes | None = None, target: Identity | None = None
    ) -> bool:
        """Return whether `name` in a folder is barred.

        `chain` is the folder and every folder above it; without a name it is about the folder itself. `target` is
        what the name stands for, where that is known.
        """
        return (
            not self.identities.isdisjoint(chain)
            or (name is not None and (chain[0], name) in self.places)
            or (target is not None and target in self.identities)
        )


class _Protection:
    """One protected path and where to look it up; worked out once, since it is looked up for every operation."""

    __slots__ = ("above", "itself", "name", "path")

    def __init__(self, path: str, root: Path) -> None:
        self.path = path
        self.itself = root / path
        self.above = self.itself.parent
        self.name = self.itself.name.encode()


class Protected:
    """The protected paths of one root.

    Paths are looked up again for every operation: a file that its operator replaces by rename stays protected, and
    is protected by what it is, so every link to it is too.
    """

    def __init__(
        self,
        root: Path,
        unreadable: Iterable[str] = UNREADABLE,
        unwritable: Iterable[str] = UNWRITABLE,
    ) -> None:
        top = root.absolute()
        self._unreadable = tuple(_Protection(path, top) for path in unreadable)
        self._unwritable = (*self._unreadable, *(_Protection(path, top) for path in unwritable))

    def bars(self, *, write: bool) -> Bars:
        """Return what is barred now to read, or to write."""
        identities: set[Identity] = set()
        places: set[tuple[Identity, bytes]] = set()
        for protected in self._unwritable if write else self._unreadable:
            above = _identity(protected.above)
            if above is None:
                continue
            places.add((above, protected.name))
            itself = _identity(protected.itself)
            if itself is not None:
                identities.add(itself)
        return Bars(frozenset(identities), frozenset(places))

    def covers(self, parts: Sequence[str], *, write: bool) -> bool:
        """Return whether a path relative to the root is protected by its name alone."""
        path = "/".join(parts)
        return any(
            path == protected.path or path.startswith(protected.path + "/")
            for protected in (self._unwritable if write else self._unreadable)
        )


def _identity(path: Path) -> Identity | None:
    """Return what is at an operator's own path, links followed, or None when nothing is.

    Any other failure is raised: what cannot be looked up cannot be told from what is asked for, so the operation fails.
    """
    try:
        return identity_of(path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return None
