"""Goes through confined folders: for listing and for searching.

Links are shown but never followed, protected folders are neither shown nor entered, and every scan has a budget of
names and of time.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from store.confinement import (
    READABLE_DIRECTORY,
    IrregularFileError,
    OpenBeneath,
    identity_of,
    open_regular,
)
from store.globs import Glob
from store.protection import Bars
from store.workspace_errors import plain

DEPTH_MAX: Final = 64
"""Folders inside each other that a scan goes down."""

SEARCHED_SIZE_MAX: Final = 4 * 1024 * 1024
"""Bytes of a file that is searched; a larger one is skipped and counted."""

LINE_SHOWN_MAX: Final = 300
"""Characters of a matching line that are shown."""

# What only means that this one entry cannot be looked into; everything else (no handles, a broken disk) ends the scan.
_PASSED_OVER: Final = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.ELOOP,
        errno.ENOTDIR,
        errno.ENXIO,
        errno.ENODEV,
        errno.EAGAIN,
    },
)


@dataclass(slots=True)
class Budget:
    """How much a scan may look at: `names` left, until `deadline` (monotonic seconds).

    `stopped` says in words what ran out, or None while nothing has.
    """

    names: int
    deadline: float
    stopped: str | None = None

    def take(self) -> bool:
        """Count one name; return False once the budget is spent."""
        if self.names <= 0:
            self.stopped = "too many files to look at all of them"
        elif time.monotonic() > self.deadline:
            self.stopped = "the time was up before everything was looked at"
        self.names -= 1
        return self.stopped is None


@dataclass(frozen=True, slots=True)
class Found:
    """An entry of a folder: `parts` from the root, `name` in the open `directory`, and its type by `mode`."""

    parts: tuple[str, ...]
    name: bytes
    mode: int
    directory: int

    @property
    def shown(self) -> str:
        """The path from the root on one line; a folder ends in a slash."""
        return plain("/".join(self.parts)) + ("/" if stat.S_ISDIR(self.mode) else "")


@dataclass(slots=True)
class Scan:
    """One pass over folders that have been confined already.

    `unread` counts folders and files that could not be opened.
    """

    opener: OpenBeneath
    bars: Bars
    budget: Budget
    unread: int = 0

    def walk(self, directory: int, parts: tuple[str, ...], *, deep: bool) -> Iterator[Found]:
        """Yield what is in the readable `directory`, sorted by name, with `deep` also what is beneath, depth first.

        The handle stays the caller's. Close the generator when leaving it early.
        """
        levels = [(directory, parts, iter(self._names(directory)))]
        try:
            while levels:
                current, above, names = levels[-1]
                name = next(names, None)
                if name is None:
                    levels.pop()
                    if levels:
                        os.close(current)
                    continue
                if not self.budget.take():
                    return
                found = self._look(current, above, name)
                if found is None:
                    continue
                yield found
                if deep and stat.S_ISDIR(found.mode) and len(levels) < DEPTH_MAX:
                    beneath = self._enter(found)
                    if beneath is not None:
                        levels.append((beneath, found.parts, iter(self._names_of_entered(beneath))))
        finally:
            for handle, _, _ in levels[1:]:
                os.close(handle)

    def _names(self, directory: int) -> list[bytes]:
        """Return the sorted names of a directory, as many as the budget could ever take."""
        names: list[bytes] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if len(names) > self.budget.names:
                    break
                names.append(os.fsencode(entry.name))
        return sorted(names)

    def _names_of_entered(self, directory: int) -> list[bytes]:
        try:
            return self._names(directory)
        except OSError:
            os.close(directory)
            raise

    def _look(self, directory: int, above: tuple[str, ...], name: bytes) -> Found | None:
        """Return the entry, or None where it is protected or has gone."""
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            self._pass_over(error)
            return None
        chain = (identity_of(os.fstat(directory)),)
        if self.bars.stop(chain, name, identity_of(status)):
            return None
        return Found((*above, os.fsdecode(name)), name, status.st_mode, directory)

    def _enter(self, found: Found) -> int | None:
        """Open a folder that was found, or return None where it cannot be opened or is protected after all."""
        try:
            handle = self.opener(found.directory, found.name, READABLE_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            self._pass_over(error)
            return None
        try:
            barred = self.bars.stop((identity_of(os.fstat(handle)),))
        except OSError:
            os.close(handle)
            raise
        if barred:
            os.close(handle)
            return None
        return handle

    def read(self, directory: int, name: bytes) -> bytes | None:
        """Return the bytes of a file to be searched, or None where it is no readable regular file or too large."""
        try:
            handle, status = open_regular(self.opener, directory, name)
        except IrregularFileError:
            return None
        except OSError as error:
            self._pass_over(error)
            return None
        try:
            if self.bars.stop((), None, identity_of(status)):
                return None
            if status.st_size > SEARCHED_SIZE_MAX:
                self.unread += 1
                return None
            return read_up_to(handle, SEARCHED_SIZE_MAX)
        finally:
            os.close(handle)

    def _pass_over(self, error: OSError) -> None:
        if error.errno not in _PASSED_OVER:
            raise error
        self.unread += error.errno != errno.ENOENT


def read_up_to(handle: int, size_max: int) -> bytes:
    """Return at most `size_max` bytes of an open file, however many calls it takes."""
    pieces: list[bytes] = []
    left = size_max
    while left > 0:
        piece = os.read(handle, min(left, 1 << 20))
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


class Query:
    """Finds a text in lines: letters are taken as they are written when the query holds a capital, else in any case."""

    def __init__(self, query: str) -> None:
        self._exact = query != query.lower()
        self._needle = query if self._exact else query.lower()

    def lines_of(self, content: bytes) -> Iterator[tuple[int, str]]:
        """Yield the number (from 1) and the text of every line of a file that holds the query.

        Yields nothing for a binary file: one with a NUL byte in its first 8 KiB, as git has it.
        """
        if b"\0" in content[:8192]:
            return
        text = content.decode("utf-8", "replace")
        for number, line in enumerate(text.split("\n"), start=1):
            at = (line if self._exact else line.lower()).find(self._needle)
            if at >= 0:
                yield number, _cut(line.removesuffix("\r"), at)


def _cut(line: str, at: int) -> str:
    """Return the part of a long line that holds the match."""
    if len(line) <= LINE_SHOWN_MAX:
        return line
    start = max(0, min(at - LINE_SHOWN_MAX // 4, len(line) - LINE_SHOWN_MAX))
    end = start + LINE_SHOWN_MAX
    return ("…" if start else "") + line[start:end] + ("…" if end < len(line) else "")


def chosen(glob: Glob | None, parts: Sequence[str], base: Sequence[str]) -> bool:
    """Return whether a path is wanted: the glob may be relative to `base`, where the scan began, or to the root."""
    return glob is None or glob.matches(parts[len(base) :]) or glob.matches(parts)
