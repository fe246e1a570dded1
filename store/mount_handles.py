"""One open directory handle per mount, kept as long as somebody works with it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from protocol.mounts import Mount
from store.confinement import DIRECTORY, Identity, identity_of
from store.protection import Protected
from store.workspace_errors import WorkspaceDenied, WorkspaceError, shown


@dataclass(frozen=True, slots=True)
class MountHandle:
    """The open folder of a mount."""

    mount: Mount
    handle: int
    identity: Identity


class MountHandles:
    """Opens the folders of mounts on first use and closes them once nobody works with them.

    May be used from several threads: each wraps its work in `use()`.
    """

    def __init__(self, root: Path, protected: Protected) -> None:
        self._root = root.absolute()
        self._protected = protected
        self._lock = threading.Lock()
        self._open: dict[str, MountHandle] = {}
        self._removed: list[int] = []
        self._users = 0
        self._closed = False

    @contextmanager
    def use(self, path: str) -> Iterator[None]:
        """Keep the handles open for one operation on `path`; raises WorkspaceError once closed."""
        with self._lock:
            if self._closed:
                raise WorkspaceError(
                    path, f"{shown(path)}: this session's folders are closed; open a new session."
                )
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                self._close_unused()

    def close(self) -> None:
        """Close the handles, at once or when the last running operation ends."""
        with self._lock:
            self._closed = True
            self._close_unused()

    def open(self, mount: Mount, *, create: bool) -> MountHandle | None:
        """Return the handle of a mount, or None while its folder does not exist; `create` makes it, with mode 0700.

        Raises OSError, and WorkspaceDenied where a link stands in for the folder.
        """
        with self._lock:
            kept = self._open.get(mount.path)
            # A folder that was removed keeps its handle but has no name left: it is looked up again.
            if kept is not None and os.fstat(kept.handle).st_nlink > 0:
                return kept
            handle = self._open_folder(mount, create=create)
            if handle is None:
                return None
            if kept is not None:
                self._removed.append(kept.handle)
            fresh = MountHandle(mount, handle, identity_of(os.fstat(handle)))
            self._open[mount.path] = fresh
            return fresh

    def _close_unused(self) -> None:
        if self._users:
            return
        while self._removed:
            os.close(self._removed.pop())
        if self._closed:
            while self._open:
                os.close(self._open.popitem()[1].handle)

    def _open_folder(self, mount: Mount, *, create: bool) -> int | None:
        """Open a mount's folder from the root down.

        The first name may be a link: `platform` and `workspaces` are the operator's and may lie on another disk. What
        is beneath was perhaps made by agents, so a link there is refused: it would move somebody's whole folder.
        """
        if self._protected.covers(mount.parts, write=False):
            raise _protected(mount)
        first, *rest = mount.parts
        chain: list[Identity] = []
        handle = -1
        try:
            handle = _enter(str(self._root / first), None, 0, create=create)
            chain.append(identity_of(os.fstat(handle)))
            for name in rest:
                beneath = _enter(name, handle, os.O_NOFOLLOW, create=create)
                os.close(handle)
                handle = beneath
                chain.append(identity_of(os.fstat(handle)))
            if self._protected.bars(write=False).stop(chain[::-1]):
                raise _protected(mount)
            kept, handle = handle, -1
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise WorkspaceDenied(
                mount.path,
                f"{shown(mount.path)} is to be a folder, and a link or a file is in its place; tell the operator.",
            ) from error
        finally:
            if handle >= 0:
                os.close(handle)
        return kept


def _enter(name: str, directory: int | None, flags: int, *, create: bool) -> int:
    """Open a folder of a mount's path, made first (mode 0700) where it is missing and `create` says so."""
    try:
        return os.open(name, DIRECTORY | flags, dir_fd=directory)
    except FileNotFoundError:
        if not create:
            raise
    with suppress(FileExistsError):  # another thread was faster
        os.mkdir(name, 0o700, dir_fd=directory)
    return os.open(name, DIRECTORY | flags, dir_fd=directory)


def _protected(mount: Mount) -> WorkspaceDenied:
    return WorkspaceDenied(
        mount.path, f"{shown(mount.path)} is the runner's own and protected from every agent."
    )
