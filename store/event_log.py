"""The events of the last turns, so that a client whose connection dropped can be told what it missed.

A file a turn, a line an event: JSON as the wire has it, line n the event with `seq` n. A line is written before the
event is sent and not synchronised: it survives the death of the process, and after a power cut the turn is recorded as
interrupted anyway. What is kept is bounded: `TURN_BYTES_MAX` a turn, `TOTAL_BYTES_MAX` and `KEPT_S` in all.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

TURN_BYTES_MAX: Final = 16 * 1024 * 1024
TOTAL_BYTES_MAX: Final = 256 * 1024 * 1024
KEPT_S: Final = 24 * 3600.0

_SUFFIX: Final = ".jsonl"
_TURN_ID: Final = re.compile(r"[0-9a-f]{1,64}\Z")


class TurnLog:
    """The events of one running turn. `problem` says why nothing more is kept of it, None while all is."""

    def __init__(self, path: Path) -> None:
        self.problem: str | None = None
        self._path = path
        self._file: int | None = None
        self._room = TURN_BYTES_MAX
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self.problem = str(error)

    def append(self, event: bytes) -> bool:
        """Keep the next event; whether this was the moment at which keeping them failed."""
        if self._file is None:
            return False
        line = event + b"\n"
        self._room -= len(line)
        if self._room < 0:
            return self._give_up(f"its events are more than {TURN_BYTES_MAX} bytes")
        try:
            if os.write(self._file, line) == len(line):
                return False
        except OSError as error:
            return self._give_up(str(error))
        return self._give_up("the disk took only a part of an event")

    def _give_up(self, problem: str) -> bool:
        # A beginning that looked like all of it would be worse than nothing.
        self.problem = problem
        self.close()
        with suppress(OSError):
            self._path.unlink()
        return True

    def close(self) -> None:
        """End the log of a turn that has ended."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


class EventLog:
    """The folder of the files; made when the first turn needs it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, turn_id: str) -> TurnLog:
        """Return the log of a turn that begins; it never raises, see `TurnLog.problem`."""
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
        return TurnLog(self._path(turn_id))

    def read(self, turn_id: str, from_seq: int, until_seq: int | None = None) -> list[bytes] | None:
        """Return the events with `from_seq` ≤ seq < `until_seq` that are kept; None where the turn has none any more.

        A line that a crash cut off is left out.
        """
        try:
            text = self._path(turn_id).read_bytes()
        except OSError:
            return None
        return text.split(b"\n")[:-1][from_seq:until_seq]

    def sweep(self, now_s: float) -> int:
        """Delete what is older than KEPT_S seconds (`now_s`: of the epoch), and the oldest of what is too much."""
        found = []
        with suppress(OSError), os.scandir(self._folder) as files:
            for file in files:
                with suppress(OSError):
                    found.append((file.stat().st_mtime, file.stat().st_size, file.path))
        found.sort(reverse=True)
        kept, removed = 0, 0
        for changed_at, size, path in found:
            kept += size
            if kept > TOTAL_BYTES_MAX or now_s - changed_at > KEPT_S:
                with suppress(OSError):
                    os.unlink(path)  # noqa: PTH108 - scandir gives texts
                    removed += 1
        return removed

    def _path(self, turn_id: str) -> Path:
        if not _TURN_ID.match(turn_id):
            raise ValueError(f"{turn_id!r} is not the id of a turn")
        return self._folder / f"{turn_id}{_SUFFIX}"
