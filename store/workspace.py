"""What an agent can do with files: read, list, search, write and edit, confined to its mounts.

The only door to an agent's paths: `reach` finds where a path leads and holds it to the walls, here is what is done
there. Plain blocking functions, meant for worker threads; one Workspace may be used by several at once. Names are case
sensitive, as they are on Linux: `Notes.md` and `notes.md` are two files.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from protocol.mounts import Mount, mount_of, mounts_beneath
from store.confinement import OpenBeneath, strongest
from store.globs import Glob
from store.protection import Protected
from store.reach import Place, Reach
from store.replacement import only_occurrence, replace, turn
from store.workspace_errors import (
    EditMismatchError,
    FileMissingError,
    FileTooLargeError,
    WorkspaceDenied,
    WorkspaceError,
    plain,
    shown,
)
from store.workspace_scan import Budget, Found, Query, Scan, chosen, read_up_to

__all__ = [
    "EditMismatchError",
    "Edited",
    "FileMissingError",
    "FileText",
    "FileTooLargeError",
    "Listing",
    "Matches",
    "Mount",
    "Protected",
    "Workspace",
    "WorkspaceDenied",
    "WorkspaceError",
    "Written",
]

NAMES_MAX: Final = 100_000
"""Names that one listing or search looks at."""

LISTING_TIME_S: Final = 5.0
"""Seconds after which a listing stops."""


@dataclass(frozen=True, slots=True)
class FileText:
    """What a file holds: `text` is at most `size_max` of its `size_bytes`, UTF-8 with U+FFFD for what is not."""

    path: str
    text: str
    truncated: bool
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Paths relative to the root, a folder's ending in a slash; `truncated` where there may be more."""

    entries: tuple[str, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Matches:
    """Lines `path:line: text` of a search; none is a result like any other.

    `stopped` says in words why there may be more, or is None; `unread` counts what could not be opened or was too
    large to search.
    """

    lines: tuple[str, ...]
    stopped: str | None
    unread: int

    @property
    def truncated(self) -> bool:
        """Whether there may be more matches."""
        return self.stopped is not None


@dataclass(frozen=True, slots=True)
class Written:
    """A file was written whole: its path relative to the root, its size, and whether it is new."""

    path: str
    size_bytes: int
    created: bool


@dataclass(frozen=True, slots=True)
class Edited:
    """A file was edited: its path relative to the root, its new size, and the line of the edit, from 1."""

    path: str
    size_bytes: int
    line: int


class Workspace:
    """The folders of one session: `mounts` under `root`, less what is `protected`.

    Every operation raises WorkspaceError with a sentence for the agent, WorkspaceDenied where a boundary refused.
    `open_beneath` is how paths are opened; by default the strongest way that the system has.
    """

    def __init__(
        self,
        root: Path,
        mounts: Sequence[Mount],
        protected: Protected,
        *,
        open_beneath: OpenBeneath | None = None,
    ) -> None:
        self._reach = Reach(root, mounts, protected, open_beneath or strongest())

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """The session's folders in the order of their paths."""
        return self._reach.mounts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the handles; running operations finish first, later ones raise WorkspaceError."""
        self._reach.close()

    def read_file(self, path: str, size_max: int) -> FileText:
        """Return the text of a regular file, at most `size_max` bytes of it."""
        with self._reach.operation(path), closing(self._reach.place(path, write=False)) as place:
            handle, status = self._reach.open_regular(place)
            try:
                content = read_up_to(handle, size_max + 1)
            finally:
                os.close(handle)
        truncated = len(content) > size_max
        text = _decoded(content[:size_max], cut=truncated)
        return FileText(_named(place), text, truncated, max(status.st_size, len(content)))

    def list_files(self, path: str | None, pattern: str | None, entries_max: int) -> Listing:
        """Return what is in a folder, or with a `pattern` everything beneath it that matches; None is the root.

        Above the mounts only they are seen. A mount whose folder does not exist yet is empty.
        """
        asked = path if path is not None else ""
        glob = _glob(asked, pattern)
        entries: list[str] = []
        with self._reach.operation(asked):
            base = self._reach.parts(path)
            if glob is None and mount_of(self.mounts, base) is None:
                self._reach.starts(path, base)  # raises where there is nothing beneath either
                seen = [plain(mount.path) + "/" for mount in mounts_beneath(self.mounts, base)]
                return Listing(tuple(seen[:entries_max]), len(seen) > entries_max)
            scan = self._scan(LISTING_TIME_S)
            try:
                with closing(self._walk(scan, path, base, deep=glob is not None)) as found:
                    for entry in found:
                        if not chosen(glob, entry.parts, base):
                            continue
                        if len(entries) == entries_max:
                            return Listing(tuple(entries), truncated=True)
                        entries.append(entry.shown)
            except NotADirectoryError as error:
                reason = f"{shown(asked)} is a file, or goes through one; a file is read with read_file."
                raise WorkspaceError(asked, reason) from error
            return Listing(tuple(entries), scan.budget.stopped is not None)

    def search(
        self,
        query: str,
        path: str | None,
        glob: str | None,
        matches_max: int,
        time_s: float,
    ) -> Matches:
        """Return the lines that hold a text, in a file, a folder or (None) every mount, for at most `time_s` seconds.

        The query is plain text of one line; without capitals it matches in any case. `glob` chooses files. Binary
        files are skipped.
        """
        asked = path if path is not None else ""
        if not query or "\n" in query:
            raise WorkspaceError(
                asked, "the query must be one line of text and not empty; search goes line by line."
            )
        wanted, needle, lines = _glob(asked, glob), Query(query), list[str]()
        with self._reach.operation(asked):
            scan = self._scan(time_s)
            base = self._reach.parts(path)
            with closing(self._contents(scan, path, base, wanted)) as contents:
                for name, content in contents:
                    for number, line in needle.lines_of(content):
                        if len(lines) == matches_max:
                            return Matches(
                                tuple(lines), f"there are more than {matches_max} matches", scan.unread
                            )
                        lines.append(f"{name}:{number}: {line}")
        return Matches(tuple(lines), scan.budget.stopped, scan.unread)

    def write_file(self, path: str, data: bytes, size_max: int) -> Written:
        """Write a file whole: a reader sees the old content or the new one. Missing folders are made.

        An existing file keeps its mode. Raises FileTooLargeError past `size_max` bytes.
        """
        if len(data) > size_max:
            raise _too_large(path, len(data), size_max)
        with self._reach.operation(path), closing(self._reach.place(path, write=True)) as place, turn(place):
            replaced = self._reach.writable(place)
            if replaced is None:
                _refuse_control_characters(place)
            replace(place, data, replaced)
            return Written(_named(place), len(data), replaced is None)

    def edit_file(self, path: str, old: str, new: str, size_max: int) -> Edited:
        """Replace the one occurrence of `old` in a file by `new`.

        Raises EditMismatchError where it occurs more often or not at all, and FileTooLargeError for a file of more
        than `size_max` bytes before or after.
        """
        before, after = _encoded(path, "old", old), _encoded(path, "new", new)
        if not before:
            raise WorkspaceError(
                path, f"{shown(path)}: old is empty; give the text to replace, or use write_file."
            )
        if before == after:
            raise WorkspaceError(
                path, f"{shown(path)}: old and new are the same; there is nothing to change."
            )
        with self._reach.operation(path), closing(self._reach.place(path, write=True)) as place, turn(place):
            if self._reach.writable(place) is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            handle, status = self._reach.open_regular(place)
            try:
                content = read_up_to(handle, size_max + 1)
            finally:
                os.close(handle)
            if len(content) > size_max:
                raise _too_large(path, max(status.st_size, len(content)), size_max)
            at = only_occurrence(path, content, before)
            edited = content[:at] + after + content[at + len(before) :]
            if len(edited) > size_max:
                raise _too_large(path, len(edited), size_max)
            replace(place, edited, status, unchanged=True)
            return Edited(_named(place), len(edited), content.count(b"\n", 0, at) + 1)

    def _scan(self, time_s: float) -> Scan:
        return Scan(self._reach.opener, self._reach.bars(), Budget(NAMES_MAX, time.monotonic() + time_s))

    def _walk(
        self, scan: Scan, path: str | None, base: tuple[str, ...], *, deep: bool
    ) -> Generator[Found, None, None]:
        """Yield what is in a folder, or in the mounts beneath it where it is above them."""
        for parts in self._reach.starts(path, base):
            directory = self._reach.folder(path or "/".join(parts), parts, scan.bars)
            if directory is None:
                continue
            try:
                yield from scan.walk(directory, parts, deep=deep)
            finally:
                os.close(directory)

    def _contents(
        self,
        scan: Scan,
        path: str | None,
        base: tuple[str, ...],
        wanted: Glob | None,
    ) -> Generator[tuple[str, bytes], None, None]:
        """Yield the shown path and the content of every file to be searched."""
        try:
            with closing(self._walk(scan, path, base, deep=True)) as found:
                for entry in found:
                    if stat.S_ISREG(entry.mode) and chosen(wanted, entry.parts, base):
                        content = scan.read(entry.directory, entry.name)
                        if content is not None:
                            yield entry.shown, content
        except NotADirectoryError:
            if path is None:
                raise
            with closing(self._reach.place(path, write=False)) as place:
                handle, _ = self._reach.open_regular(place)
                os.close(handle)
                content = scan.read(place.directory, place.name)
                if content is not None:
                    yield _named(place), content


def _named(place: Place) -> str:
    return plain("/".join(place.parts))


def _glob(path: str, pattern: str | None) -> Glob | None:
    try:
        return Glob(pattern) if pattern is not None else None
    except ValueError as error:
        raise WorkspaceError(path, f"the pattern cannot be used: {error}.") from error


def _decoded(content: bytes, *, cut: bool) -> str:
    """Decode UTF-8; of content that was cut, a letter whose end is missing is left out."""
    if cut:
        for length in range(1, min(4, len(content)) + 1):
            lead = content[-length]
            if lead & 0xC0 != 0x80:
                needed = 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
                if needed > length:
                    content = content[:-length]
                break
    return content.decode("utf-8", "replace")


def _encoded(path: str, argument: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise WorkspaceError(
            path,
            f"{shown(path)}: {argument} holds half of a surrogate pair, which no UTF-8 file can; write the character.",
        ) from error


def _refuse_control_characters(place: Place) -> None:
    if any(ord(letter) < 0x20 or ord(letter) == 0x7F for part in place.parts for letter in part):
        raise WorkspaceDenied(
            place.path,
            f"{shown(place.path)} holds control characters, which hide what a name is; use plain letters.",
        )


def _too_large(path: str, size: int, size_max: int) -> FileTooLargeError:
    reason = f"{shown(path)}: {size} bytes, and at most {size_max} are taken; use several smaller files."
    return FileTooLargeError(path, reason, size, size_max)
