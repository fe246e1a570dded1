"""Whether SQLite has met a damaged page: it reports that to one place, whoever read it in whichever thread."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import apsw

_DAMAGE: Final = frozenset({apsw.SQLITE_CORRUPT, apsw.SQLITE_NOTADB})

STEP: Final = (
    "stop the daemon and restore a backup; `agent-runner ledger verify` says how far the ledger is whole"
)


class Damage:
    """What was met, until a check of the whole file finds nothing; `problem` is None while all is well."""

    def __init__(self) -> None:
        self.problem: str | None = None

    def note(self, code: int, message: str) -> None:
        """Take a message of SQLite's log; called in any thread."""
        if code & 0xFF in _DAMAGE:
            self.problem = message.partition("; [")[0]  # what follows is the statement

    def listen(self) -> None:
        """Have SQLite report to this object; before the process has opened its first database, or to no effect."""
        try:
            apsw.config(apsw.SQLITE_CONFIG_LOG, self.note)
        except apsw.MisuseError:
            return

    def look_again(self, path: Path) -> None:
        """Check the whole file, and forget what was met where nothing is wrong with it any more."""
        database = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            found = database.execute("PRAGMA quick_check(1)").get
        except apsw.Error as error:
            found = str(error)
        finally:
            database.close()
        self.problem = None if found == "ok" else str(found)


def damage_of(error: BaseException | None) -> str | None:
    """Return what to tell whoever asked for something where a damaged page is the reason that it failed, else None."""
    while error is not None:
        if isinstance(error, apsw.CorruptError | apsw.NotADBError):
            return f"the database is damaged ({error}); {STEP}"
        error = error.__cause__ or error.__context__
    return None
