"""What goes wrong with an agent's path, in sentences that an agent can act on.

Drawn as a tree, coded in the same order::

    WorkspaceError             path, reason: anything that kept an operation from being done
    ├── WorkspaceDenied        a boundary: outside the mounts, protected, read-only, a link, a special file
    ├── FileMissingError       there is nothing at the path
    ├── FileTooLargeError      more bytes than the operation takes
    └── EditMismatchError      the text to replace is not there exactly once

A reason names what the agent asked for, as the agent wrote it; it never holds a path of the host or the target of a
link.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from protocol.errors import AgentRunnerError

SHOWN_MAX: Final = 200
"""Characters of a path that an error repeats."""


class WorkspaceError(AgentRunnerError):
    """An operation on `path` that was not done; `reason` says what, where and the next step."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path
        self.reason = reason


class WorkspaceDenied(WorkspaceError):  # noqa: N818 (a denial by a boundary, not a fault)
    """The path is not for this agent, whatever is there."""


class FileMissingError(WorkspaceError):
    """Nothing is at the path, or a folder on the way to it is missing."""


class FileTooLargeError(WorkspaceError):
    """The content has `size` bytes and the operation takes `size_max`."""

    def __init__(self, path: str, reason: str, size: int, size_max: int) -> None:
        super().__init__(path, reason)
        self.size = size
        self.size_max = size_max


class EditMismatchError(WorkspaceError):
    """The text to replace occurs `matches` times instead of once; `lines` are the first of them, from 1."""

    def __init__(self, path: str, reason: str, matches: int, lines: tuple[int, ...]) -> None:
        super().__init__(path, reason)
        self.matches = matches
        self.lines = lines


def shown(path: str) -> str:
    """Return a path as an error quotes it: one line, valid UTF-8, cut at SHOWN_MAX characters."""
    cut = path if len(path) <= SHOWN_MAX else path[:SHOWN_MAX] + "…"
    return '"' + plain(cut) + '"'


def plain(name: str) -> str:
    r"""Return a name with control characters, line breaks and undecodable bytes written as \xNN or \uNNNN."""
    if name.isascii() and name.isprintable():
        return name
    encoded = name.encode("utf-8", "surrogateescape" if _only_escapes(name) else "backslashreplace")
    text = encoded.decode("utf-8", "backslashreplace")
    return "".join(
        letter if letter.isprintable() or letter == " " else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def _only_escapes(name: str) -> bool:
    """Return whether the lone surrogates of a name stand for bytes that a file system gave us."""
    return all("\udc80" <= letter <= "\udcff" for letter in name if "\ud800" <= letter <= "\udfff")


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn every OSError of the block into the WorkspaceError that says it for `path`."""
    try:
        yield
    except OSError as error:
        raise explain(error, path) from error


def explain(error: OSError, path: str) -> WorkspaceError:
    """Return what an OSError means to the agent that asked for `path`."""
    where = shown(path)
    code = errno.errorcode.get(error.errno or 0, "unknown error")
    unknown = (WorkspaceError, f"the system could not do it ({code}); try again or use another file")
    kind, sentence = _MEANINGS.get(error.errno or 0, unknown)
    return kind(path, f"{where}: {sentence}.")


_OUTSIDE = "a link on the way leads out of the folder; links are followed only inside one of your folders"
_HANDLES = "the runner has no file handle free at the moment; wait a little and try again"
_FULL = (
    "there is no space left to write it, nothing was changed; remove files of your own or tell the operator"
)

_MEANINGS: Final[dict[int, tuple[type[WorkspaceError], str]]] = {
    errno.ENOENT: (FileMissingError, "there is no such file or folder; use list_files to see what is there"),
    errno.ENOTDIR: (
        WorkspaceError,
        "a part of this path is a file, not a folder; use list_files to see which",
    ),
    errno.EISDIR: (
        WorkspaceError,
        "this is a folder; use list_files to see what is in it, or name a file in it",
    ),
    errno.EXDEV: (WorkspaceDenied, _OUTSIDE),
    errno.ELOOP: (
        WorkspaceDenied,
        "too many links on the way, or one that leads nowhere; name the file itself",
    ),
    errno.EAGAIN: (WorkspaceDenied, "folders on the way are being moved while we look; try again later"),
    errno.ENAMETOOLONG: (WorkspaceDenied, "a name in this path is too long; use names of at most 255 bytes"),
    errno.EACCES: (
        WorkspaceError,
        "the runner's own account may not open it; use another file, or ask the operator to set its permissions",
    ),
    errno.EPERM: (
        WorkspaceError,
        "the system does not let the runner change it; use another file, or ask the operator",
    ),
    errno.EROFS: (
        WorkspaceError,
        "the disk is read-only, nothing was changed; write elsewhere or tell the operator",
    ),
    errno.ENOSPC: (WorkspaceError, _FULL),
    errno.EDQUOT: (WorkspaceError, _FULL),
    errno.EFBIG: (
        WorkspaceError,
        "the file would be larger than the disk allows; write less, or several files",
    ),
    errno.EMFILE: (WorkspaceError, _HANDLES),
    errno.ENFILE: (WorkspaceError, _HANDLES),
    errno.ENOMEM: (WorkspaceError, "the runner is out of memory at the moment; wait a little and try again"),
    errno.ENXIO: (WorkspaceDenied, "this is not a regular file; only regular files are opened"),
    errno.ENODEV: (WorkspaceDenied, "this is not a regular file; only regular files are opened"),
    errno.ETXTBSY: (WorkspaceError, "this program is running at the moment; write to another file"),
    errno.EIO: (
        WorkspaceError,
        "the disk reported a failure; tell the operator, and do not rely on this file",
    ),
}
