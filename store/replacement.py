"""Puts new content in the place of a file: whole or not at all, one writer at a time."""

from __future__ import annotations

import os
import secrets
import stat
import threading
from contextlib import suppress
from typing import Final

from store.confinement import identity_of
from store.reach import Place
from store.workspace_errors import EditMismatchError, WorkspaceError, shown

_OCCURRENCES_MAX: Final = 1000
_LINES_SHOWN: Final = 10

# Writes to one file take turns in this process, so that of two edits of a file both hold, whichever session they come
# from. By stripe, so that the number of locks is bounded; a stripe is held for the read, the write and the rename.
_STRIPES: Final = tuple(threading.Lock() for _ in range(64))


def turn(place: Place) -> threading.Lock:
    """Return the lock that whoever writes this file holds."""
    return _STRIPES[hash((place.chain[0], place.name)) % len(_STRIPES)]


def only_occurrence(path: str, content: bytes, wanted: bytes) -> int:
    """Return where `wanted` is in `content`; raises EditMismatchError where that is not one place."""
    places: list[int] = []
    at = content.find(wanted)
    while at >= 0 and len(places) < _OCCURRENCES_MAX:
        places.append(at)
        at = content.find(wanted, at + 1)
    if len(places) == 1:
        return places[0]
    if not places:
        step = "read the file and copy the text exactly"
        if b"\r\n" in content and b"\r\n" not in wanted and b"\n" in wanted:
            step = r"its lines end in \r\n: write \r\n in old and new too"
        elif wanted.strip() and wanted.strip() in content:
            step = "it is there with other white space at its ends: copy the text exactly"
        raise EditMismatchError(path, f"{shown(path)}: the text in old does not occur; {step}.", 0, ())
    lines = tuple(content.count(b"\n", 0, place) + 1 for place in places[:_LINES_SHOWN])
    more = " and more" if len(places) > len(lines) else ""
    often = f"{len(places)} times" if len(places) < _OCCURRENCES_MAX else f"{_OCCURRENCES_MAX} times or more"
    raise EditMismatchError(
        path,
        f"{shown(path)}: the text in old occurs {often}, in lines {', '.join(map(str, lines))}{more}; add the lines "
        "around the one that you mean until it is unique.",
        len(places),
        lines,
    )


def replace(place: Place, data: bytes, replaced: os.stat_result | None, *, unchanged: bool = False) -> None:
    """Put `data` in a new file beside the place and rename it over the name: the old content or the new, never half.

    Renaming replaces whatever the name stands for by then, a link included, so a race can only lose that name. The
    file is synced, the folder is not: after a power cut the name may stand for the old content. With `unchanged` the
    file must still be the one that was read.
    """
    temporary = b".write-" + secrets.token_hex(8).encode() + b".tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    handle = os.open(temporary, flags, 0o666 if replaced is None else 0o600, dir_fd=place.directory)
    try:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(handle, left) :]
            if replaced is not None:
                if (replaced.st_uid, replaced.st_gid) != (os.geteuid(), os.getegid()):
                    with suppress(
                        PermissionError
                    ):  # only root gives files away; else the file becomes our own
                        os.fchown(handle, replaced.st_uid, replaced.st_gid)
                os.fchmod(handle, stat.S_IMODE(replaced.st_mode) & 0o777)
            os.fsync(handle)
        finally:
            os.close(handle)
        if unchanged and replaced is not None:
            _refuse_changed(place, replaced)
        os.rename(temporary, place.name, src_dir_fd=place.directory, dst_dir_fd=place.directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=place.directory)
        raise


def _refuse_changed(place: Place, read: os.stat_result) -> None:
    now = os.stat(place.name, dir_fd=place.directory, follow_symlinks=False)
    if (identity_of(now), now.st_size, now.st_mtime_ns) != (
        identity_of(read),
        read.st_size,
        read.st_mtime_ns,
    ):
        raise WorkspaceError(
            place.path,
            f"{shown(place.path)} was changed by somebody else meanwhile, nothing was written; read it and edit again.",
        )
