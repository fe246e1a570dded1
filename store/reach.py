"""Finds where an agent's path leads, and holds it to the walls before anything is opened there.

A path passes four: its names fall under a mount (`agent_path`, `protocol.mounts`); the kernel resolves it beneath that
mount's handle (`confinement`); the folder that came out is asked where it really is, so that no link leads to
something protected or into another mount's read-only folder (`protection`); and only regular files with one name are
opened. Used by `workspace` alone.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol.mounts import Mount, mount_of, mounts_beneath
from store.agent_path import PathReader
from store.confinement import (
    DIRECTORY,
    READABLE_DIRECTORY,
    Identity,
    IrregularFileError,
    OpenBeneath,
    ancestors,
    identity_of,
    kind_of,
    link_target,
    open_regular,
)
from store.mount_handles import MountHandle, MountHandles
from store.protection import Bars, Protected
from store.workspace_errors import WorkspaceDenied, WorkspaceError, explained, shown

_LINKS_MAX: Final = 16
_WRITABLE: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(slots=True)
class Place:
    """Where a path leads: `name` in the open folder `directory`, with what was there (`status`, None for nothing).

    `parts` are the names that the agent gave, from the root; `chain` is the folder and all above it up to its mount.
    Close it.
    """

    path: str
    parts: tuple[str, ...]
    directory: int
    name: bytes
    chain: tuple[Identity, ...]
    bars: Bars
    status: os.stat_result | None

    def close(self) -> None:
        """Give the folder's handle back."""
        os.close(self.directory)


class Reach:
    """How far one session's paths go: `mounts` under `root`, less what is `protected`."""

    def __init__(
        self, root: Path, mounts: Sequence[Mount], protected: Protected, opener: OpenBeneath
    ) -> None:
        self.mounts = tuple(sorted(mounts, key=lambda mount: mount.path))
        self.opener = opener
        self._reader = PathReader(root)
        self._protected = protected
        self._handles = MountHandles(root, protected)

    def close(self) -> None:
        """Free the handles once the running operations have ended."""
        self._handles.close()

    @contextmanager
    def operation(self, path: str) -> Iterator[None]:
        """Keep the handles open for one operation, and explain for `path` what the system refuses."""
        with self._handles.use(path), explained(path):
            yield

    def parts(self, path: str | None) -> tuple[str, ...]:
        """Return the names of a path from the root down; none for None. Raises WorkspaceDenied."""
        return () if path is None else self._reader.parts(path)

    def bars(self) -> Bars:
        """Return what is protected from being read, as it lies now."""
        return self._protected.bars(write=False)

    def starts(self, path: str | None, parts: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """Return the folders that a listing of `parts` begins in: itself, or the outermost mounts beneath it."""
        if mount_of(self.mounts, parts) is not None:
            return (parts,)
        beneath = mounts_beneath(self.mounts, parts)
        if not beneath and path is not None and parts:
            raise self._outside(path)
        return tuple(mount.parts for mount in beneath if mount_of(beneath, mount.parts[:-1]) is None)

    def place(self, path: str, *, write: bool) -> Place:
        """Return where a path to a file leads; with `write`, missing folders on the way are made.

        Links are followed one at a time, each held to the walls again. Raises WorkspaceError or OSError.
        """
        parts = self._reader.parts(path)
        mount = self._mount(path, parts, write=write)
        names = [part.encode() for part in parts[len(mount.parts) :]]
        if not names or (write and path.endswith("/")):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        held = self._handles.open(mount, create=write)
        if held is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        bars = self._protected.bars(write=write)
        for links in range(_LINKS_MAX):
            place = self._look(path, parts, held, names, bars, write=write, linked=links > 0)
            try:
                target = link_target(place.directory, place.name) if _is_link(place.status) else None
            except BaseException:
                place.close()
                raise
            if target is None:
                return place
            place.close()
            names = _followed(names, target)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def folder(self, path: str, parts: tuple[str, ...], bars: Bars) -> int | None:
        """Return a handle to read the names of a folder by, or None for a mount whose folder does not exist yet."""
        mount = self._mount(path, parts, write=False)
        held = self._handles.open(mount, create=False)
        names = [part.encode() for part in parts[len(mount.parts) :]]
        if held is None:
            if names:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return None
        directory = self.opener(held.handle, b"/".join(names) or b".", READABLE_DIRECTORY)
        try:
            self._hold(path, held, ancestors(directory, held.identity), None, bars, write=False)
        except BaseException:
            os.close(directory)
            raise
        return directory

    def open_regular(self, place: Place) -> tuple[int, os.stat_result]:
        """Open the file at a place for reading; raises where it is none or is protected."""
        try:
            handle, status = open_regular(self.opener, place.directory, place.name)
        except IrregularFileError as error:
            raise irregular(place.path, error.kind) from error
        if place.bars.stop(place.chain, place.name, identity_of(status)):
            os.close(handle)
            raise _protected_error(place.path)
        return handle, status

    def writable(self, place: Place) -> os.stat_result | None:
        """Return the status of the file that a write would replace, or None where there is none.

        A rename needs no permission on the file that it replaces, so the file is opened for writing once, to be told
        what its permissions say.
        """
        if place.status is None:
            return None
        kind = kind_of(place.status)
        if kind is not None:
            raise irregular(place.path, kind)
        if place.bars.stop(place.chain, place.name, identity_of(place.status)):
            raise _protected_error(place.path)
        os.close(self.opener(place.directory, place.name, _WRITABLE))
        return place.status

    def _mount(self, path: str, parts: tuple[str, ...], *, write: bool) -> Mount:
        """Return the mount of a path that its names alone do not rule out."""
        mount = mount_of(self.mounts, parts)
        if mount is None:
            raise self._outside(path)
        if self._protected.covers(parts, write=False):
            raise WorkspaceDenied(
                path,
                f"{shown(path)} is the runner's own state, which no agent reads or writes; leave it alone.",
            )
        if write and self._protected.covers(parts, write=True):
            raise _protected_error(path)
        if write and not mount.write:
            raise self._read_only(path)
        return mount

    def _look(
        self,
        path: str,
        parts: tuple[str, ...],
        held: MountHandle,
        names: list[bytes],
        bars: Bars,
        *,
        write: bool,
        linked: bool,
    ) -> Place:
        """Return the place of `names` under a mount, not following a link at its end."""
        *folders, name = names
        try:
            directory = self.opener(held.handle, b"/".join(folders) or b".", DIRECTORY)
        except FileNotFoundError:
            if linked:
                raise _dangling(path) from None
            if not write:
                raise
            self._make_folders(path, held, folders, bars)
            directory = self.opener(held.handle, b"/".join(folders), DIRECTORY)
        try:
            chain = ancestors(directory, held.identity)
            self._hold(path, held, chain, name, bars, write=write)
            try:
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                if linked:
                    raise _dangling(path) from None
                if not write:
                    raise
                status = None
        except BaseException:
            os.close(directory)
            raise
        return Place(path, parts, directory, name, chain, bars, status)

    def _make_folders(self, path: str, held: MountHandle, folders: list[bytes], bars: Bars) -> None:
        """Make the missing folders of a path, each from the handle of the one above, which is held to the walls."""
        for count in range(1, len(folders) + 1):
            try:
                os.close(self.opener(held.handle, b"/".join(folders[:count]), DIRECTORY))
                continue
            except FileNotFoundError:
                above = self.opener(held.handle, b"/".join(folders[: count - 1]) or b".", DIRECTORY)
            try:
                self._hold(path, held, ancestors(above, held.identity), folders[count - 1], bars, write=True)
                os.mkdir(folders[count - 1], dir_fd=above)
            except FileExistsError:
                # Another thread made it, or it is a link that leads nowhere.
                status = os.stat(folders[count - 1], dir_fd=above, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    raise _dangling(path) from None
            finally:
                os.close(above)

    def _hold(
        self,
        path: str,
        held: MountHandle,
        chain: tuple[Identity, ...],
        name: bytes | None,
        bars: Bars,
        *,
        write: bool,
    ) -> None:
        """Refuse a folder that is protected or belongs, by where it really is, to a mount beneath that is read-only."""
        if bars.stop(chain, name):
            raise _protected_error(path)
        if not write:
            return
        for mount in mounts_beneath(self.mounts, held.mount.parts):
            if not mount.write:
                inner = self._handles.open(mount, create=False)
                if inner is not None and inner.identity in chain:
                    raise self._read_only(path)

    def _outside(self, path: str) -> WorkspaceDenied:
        if not self.mounts:
            return WorkspaceDenied(
                path, f"{shown(path)} is out of reach: you have no folders in this session."
            )
        reach = ", ".join(
            f"{mount.path}/ ({'read and write' if mount.write else 'read'})" for mount in self.mounts
        )
        own = [mount for mount in self.mounts if mount.write]
        example = ""
        if len(own) == 1 and not path.startswith("/") and ".." not in path:
            example = f", like {shown(own[0].path + '/' + path)}"
        return WorkspaceDenied(
            path,
            f"{shown(path)} is outside your folders, which are: {reach}. Use a path inside one of them{example}.",
        )

    def _read_only(self, path: str) -> WorkspaceDenied:
        own = ", ".join(f"{mount.path}/" for mount in self.mounts if mount.write)
        step = (
            f"write under {own}"
            if own
            else "you have no folder to write in: say in your answer what should change"
        )
        return WorkspaceDenied(path, f"{shown(path)} is read-only for you; {step}.")


def irregular(path: str, kind: str) -> WorkspaceError:
    """Return the error for something that is no regular file with one name."""
    if kind == "a folder":
        return WorkspaceError(path, f"{shown(path)} is a folder; use list_files to see what is in it.")
    return WorkspaceDenied(
        path,
        f"{shown(path)} is {kind}; only regular files with one name are opened. Use a copy of it.",
    )


def _protected_error(path: str) -> WorkspaceDenied:
    return WorkspaceDenied(
        path,
        f"{shown(path)} leads to a file that is protected from every agent: only people change it, or see it. Write "
        "what you propose to a file of your own and tell the operator.",
    )


def _dangling(path: str) -> WorkspaceError:
    return WorkspaceDenied(
        path, f"{shown(path)} goes through a link that leads nowhere; name the file itself."
    )


def _is_link(status: os.stat_result | None) -> bool:
    return status is not None and stat.S_ISLNK(status.st_mode)


def _followed(names: list[bytes], target: bytes) -> list[bytes]:
    """Return the names that a link at the end of `names` stands for."""
    if target.startswith(b"/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    further = [name for name in target.split(b"/") if name not in {b"", b"."}]
    if not further or further[-1] == b".." or target.endswith((b"/", b"/.")):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return names[:-1] + further
