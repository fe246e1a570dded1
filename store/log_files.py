"""The log on the disk, read back: its last lines, and what is added, over rotation and restarts."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from store.confinement import identity_of

LINE_BYTES_MAX: Final = 1024 * 1024
"""A line that is longer is given in pieces."""


def log_files(path: Path) -> list[Path]:
    """Return the files of a log, oldest first: those that were put aside with a number, and the one being written."""
    numbered: list[tuple[int, Path]] = []
    pattern = re.compile(re.escape(path.name) + r"\.(\d{1,6})")
    for found in path.parent.iterdir() if path.parent.is_dir() else ():
        match = pattern.fullmatch(found.name)
        if match is not None:
            numbered.append((int(match[1]), found))
    files = [found for _, found in sorted(numbered, reverse=True)]
    return [*files, path] if path.is_file() else files


class LogReader:
    """Reads a log; `added` goes on where it ended the last time, also when the file was put aside meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def last(self, lines: int) -> list[str]:
        """Return the last so many lines, and go on behind them."""
        newest: deque[str] = deque(maxlen=lines)
        newest.extend(self.added(from_the_start=True))
        return list(newest)

    def added(self, *, from_the_start: bool = False) -> Iterator[str]:
        """Yield the lines that were added since, without their ends; what has no end yet waits for it."""
        files = log_files(self._path)
        if self._file is None:
            todo = files if from_the_start else files[-1:]
        else:
            yield from self._read()
            todo = self._younger(files)
        for path in todo:
            self.close()
            try:
                self._file = path.open("rb")
            except FileNotFoundError:  # put aside at this very moment: found under its number the next time
                return
            yield from self._read()

    def _younger(self, files: list[Path]) -> list[Path]:
        """Return the files behind the one that is open; all of them where that is gone or was cut."""
        assert self._file is not None  # noqa: S101 - asked for only then
        status = os.fstat(self._file.fileno())
        here = identity_of(status)
        for place, path in enumerate(files):
            try:
                if identity_of(path.stat()) == here:
                    if status.st_size < self._file.tell():
                        self._file.seek(0)
                        self._rest = b""
                    return files[place + 1 :]
            except FileNotFoundError:
                continue
        return files

    def _read(self) -> Iterator[str]:
        assert self._file is not None  # noqa: S101 - asked for only then
        while piece := self._file.readline(LINE_BYTES_MAX):
            self._rest += piece
            if piece.endswith(b"\n") or len(self._rest) >= LINE_BYTES_MAX:
                line, self._rest = self._rest, b""
                yield line.decode("utf-8", "replace").rstrip("\n")

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._rest = b""
