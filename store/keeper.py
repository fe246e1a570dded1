"""Who keeps a root: the process that holds its lock, found without trusting a number that may have been used again."""

from __future__ import annotations

import fcntl
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from store.confinement import Identity, identity_of
from store.root import Root, RootError

_PROCESSES: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Keeper:
    """The daemon of a root: its process, and the lock that it holds."""

    pid: int
    lock: Path

    def end(self, timeout_s: float) -> bool:
        """Ask the daemon to end (SIGTERM) and wait; return whether it has ended within `timeout_s` seconds.

        Raises RootError where this user may not do that.
        """
        with _process(self.pid) as handle:
            # Behind the handle the number cannot become another process: it is looked at once more, then used.
            if handle is None or not _holds(self.pid, self.lock):
                return True
            try:
                signal.pidfd_send_signal(handle, signal.SIGTERM)
            except ProcessLookupError:
                return True
            except PermissionError as error:
                raise RootError(
                    f"the daemon with pid {self.pid} belongs to another user; stop it as that user"
                ) from error
            ended = select.poll()
            ended.register(handle, select.POLLIN)
            return bool(ended.poll(timeout_s * 1000))


@contextmanager
def _process(pid: int) -> Iterator[int | None]:
    """Give a handle of a process, or None where there is none of that number."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def find_keeper(root: Root) -> Keeper | None:
    """Return the daemon that keeps a root, or None where nobody does; raises RootError where that cannot be told."""
    path = root.state / "runner.lock"
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RootError(f"cannot read {path}: {error.strerror}; run as the user that owns it") from error
    try:
        # Shared, so that two who look do not take each other for a daemon; a daemon that begins tries more than once.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    else:
        return None
    finally:
        os.close(descriptor)
    if not text.isdigit() or not _holds(int(text), path):
        raise RootError(
            f"{root.path} is kept by a process that cannot be told from here (another container, or another user); "
            "stop it where it was started"
        )
    return Keeper(int(text), path)


def _holds(pid: int, lock: Path) -> bool:
    """Return whether a process has the lock file open."""
    wanted = identity_of(lock.stat())
    return any(identity == wanted for identity in _opened_by(pid))


def _opened_by(pid: int) -> Iterator[Identity]:
    with suppress(OSError):
        for opened in (_PROCESSES / str(pid) / "fd").iterdir():
            with suppress(OSError):
                yield identity_of(opened.stat())
