"""Opens paths that cannot leave a directory, whatever links, dots and races are on the way.

`open_beneath(directory, path, flags)` opens a path relative to an open directory handle. Where the kernel has
`openat2` (Linux 5.6) it does the confining: `RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS`. Elsewhere `walk_beneath` opens
one name at a time with O_NOFOLLOW and follows links itself. Both raise OSError: EXDEV for a path that leads out, ELOOP
for too many links or a magic one, EAGAIN when folders are moved faster than they can be walked.

Neither covers where in the tree a handle ended up (`ancestors` does) nor hard links and special files (`open_regular`).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
import sys
from collections.abc import Callable
from typing import Final

Identity = tuple[int, int]
"""Device and inode: what a file is, whatever its name."""

OpenBeneath = Callable[[int, bytes, int], int]
"""`(directory handle, relative path, flags) -> handle`."""

DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
"""Flags for a directory that is only a starting point for other calls; needs no read permission."""

READABLE_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
"""Flags for a directory whose names are to be read."""

_REGULAR: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_OPENAT2: Final = 437  # the same number on every architecture that Python runs on, but alpha
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_BENEATH: Final = 0x08
_ATTEMPTS_MAX: Final = 64
_LINKS_MAX: Final = 40  # as in the kernel (MAXSYMLINKS)
ANCESTORS_MAX: Final = 512
"""How deep beneath its mount a folder may lie."""


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@functools.cache
def _how(flags: int) -> _OpenHow:
    """Return the struct for some flags: built once, only ever read by the kernel, so threads share it."""
    return _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)


@functools.cache
def _system_call() -> Callable[..., int]:
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    call.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_OpenHow), ctypes.c_size_t)
    return call


def openat2_beneath(directory: int, path: bytes, flags: int) -> int:
    """Open `path` beneath `directory` by one system call; the kernel does the confining."""
    if b"\0" in path:
        raise ValueError("a path with a NUL byte would be cut short by the kernel; refuse it before")
    call, how = _system_call(), _how(flags)
    for _ in range(_ATTEMPTS_MAX):
        handle = call(_OPENAT2, directory, path, how, ctypes.sizeof(_OpenHow))
        if handle >= 0:
            return int(handle)
        problem = ctypes.get_errno()
        # EAGAIN: a rename happened while '..' was resolved, and the kernel could not tell whether it led out.
        if problem not in (errno.EAGAIN, errno.EINTR):
            raise OSError(problem, os.strerror(problem))
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def walk_beneath(directory: int, path: bytes, flags: int) -> int:
    """Open `path` beneath `directory` one name at a time, never letting the kernel follow a link.

    `..` goes back to the handle that the walk came from, so that a folder that is moved meanwhile leads nowhere new.
    """
    if flags & os.O_PATH and not flags & (os.O_DIRECTORY | os.O_NOFOLLOW):
        raise ValueError("O_PATH needs O_DIRECTORY or O_NOFOLLOW: the walk could not tell a link from a file")
    pending = _names(path)
    passed: list[int] = []
    links = 0
    try:
        while pending:
            name, current = pending.pop(), passed[-1] if passed else directory
            if name == b"..":
                if not passed:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                os.close(passed.pop())
                continue
            opened = _open_name(current, name, DIRECTORY if pending else flags)
            if isinstance(opened, int):
                if not pending:
                    return opened
                passed.append(opened)
                continue
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            pending.extend(_names(opened))
        return os.open(b".", flags | os.O_CLOEXEC, dir_fd=passed[-1] if passed else directory)
    finally:
        for handle in passed:
            os.close(handle)


def _open_name(directory: int, name: bytes, flags: int) -> int | bytes:
    """Open one name, or return where it points when it is a link that `flags` would follow."""
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        # A link is ELOOP, or ENOTDIR where a directory was asked for.
        if error.errno not in (errno.ELOOP, errno.ENOTDIR) or flags & os.O_NOFOLLOW:
            raise
        target = link_target(directory, name)
        if target is None:
            raise
        return target


def _names(path: bytes) -> list[bytes]:
    """Return the names of a relative path, last first; a slash at its end asks for a directory."""
    if path.startswith(b"/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    if not path:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    names = [name for name in path.split(b"/") if name not in {b"", b"."}]
    if names and path.endswith((b"/", b"/.")):
        names.append(b".")
    return names[::-1]


@functools.cache
def strongest() -> OpenBeneath:
    """Return the strongest way to open beneath a directory that this system has."""
    if not sys.platform.startswith("linux"):
        return walk_beneath
    try:
        openat2_beneath(-1, b".", DIRECTORY)
    except OSError as error:
        # EBADF is the kernel's answer to the handle -1. Old kernels answer ENOSYS, and filters of system calls that
        # were written before openat2 answer EPERM.
        if error.errno == errno.EBADF:
            return openat2_beneath
    return walk_beneath


def identity_of(status: os.stat_result) -> Identity:
    """Return which file a stat result is of."""
    return (status.st_dev, status.st_ino)


def link_target(directory: int, name: bytes) -> bytes | None:
    """Return where the link `name` in `directory` points, or None when it is no link."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def ancestors(directory: int, top: Identity) -> tuple[Identity, ...]:
    """Return the identities of a directory and of every one above it, up to and with `top`.

    Climbs by `..` from the open handle, so it says where the handle really is and not what it was called. Raises
    OSError with EXDEV when it is not beneath `top`, ELOOP when it lies deeper than ANCESTORS_MAX.
    """
    chain = [identity_of(os.fstat(directory))]
    handle = -1
    try:
        while chain[-1] != top:
            if len(chain) > ANCESTORS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            above = os.open(b"..", DIRECTORY, dir_fd=directory if handle < 0 else handle)
            if handle >= 0:
                os.close(handle)
            handle = above
            identity = identity_of(os.fstat(handle))
            if identity == chain[-1]:  # the root of the file system is its own parent
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            chain.append(identity)
        return tuple(chain)
    finally:
        if handle >= 0:
            os.close(handle)


class IrregularFileError(Exception):
    """What is at the name is not a regular file with one name; `kind` says what it is."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def kind_of(status: os.stat_result) -> str | None:
    """Return in words why a file is not opened (a folder, a hard link, a pipe …), or None when it is.

    A file with two names is refused: the other name may be anywhere on the disk, and confining by name says nothing
    about it.
    """
    if stat.S_ISREG(status.st_mode):
        return None if status.st_nlink <= 1 else "a hard link, one of several names of a file"
    for test, words in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISLNK, "a link"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(status.st_mode):
            return words
    return "a device"


def open_regular(opener: OpenBeneath, directory: int, name: bytes) -> tuple[int, os.stat_result]:
    """Open the regular file `name` of `directory` for reading and return its handle and status.

    The name is looked at before the open (an open can have effects on a device), and again after it: as long as the
    name still stands for the opened file and the file has one name, no other name led here. Raises
    IrregularFileError, or OSError (EAGAIN when the file is replaced faster than it can be opened).
    """
    for _ in range(_ATTEMPTS_MAX):
        _refuse_irregular(os.stat(name, dir_fd=directory, follow_symlinks=False))
        handle = opener(directory, name, _REGULAR)
        try:
            opened = os.fstat(handle)
            named = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if identity_of(opened) == identity_of(named):
                _refuse_irregular(opened)
                _refuse_irregular(named)
                if named.st_nlink == 1:
                    kept, handle = handle, -1
                    return kept, opened
        finally:
            if handle >= 0:
                os.close(handle)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _refuse_irregular(status: os.stat_result) -> None:
    kind = kind_of(status)
    if kind is not None:
        raise IrregularFileError(kind)
