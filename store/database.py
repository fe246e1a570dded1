"""The one place that opens SQLite, and the numbered migrations of its schema.

The schema is what `store/migrations/` builds, from the first script to the last: a fresh database goes the same way
as an old one, so there is no second description of it that could differ. A script that was released never changes.

Readers take all rows before they look at one: a statement that is left open, by a row that cannot be read say, holds
its connection, which the whole loop shares, to the moment at which it began.

WAL with `synchronous=FULL`: a commit that returned survives a power cut. One connection writes (the ledger
writer's); readers open their own and never wait for it.
"""

from __future__ import annotations

import contextlib
from importlib.resources import files
from pathlib import Path
from typing import Final

import apsw

from protocol.errors import AgentRunnerError

MIGRATIONS: Final = ("0001_first.sql", "0002_timers.sql", "0003_resumption.sql")
"""The scripts in `store/migrations/`; number n leads from version n - 1 to version n, and 0 is an empty file."""

SCHEMA_VERSION: Final = len(MIGRATIONS)
"""The version that this code reads and writes (PRAGMA user_version)."""

BUSY_TIMEOUT_MS: Final = 5_000


class StorageError(AgentRunnerError):
    """The database cannot be used: `message` says what happened and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class OutdatedError(StorageError):
    """The database is of an earlier version: whoever only reads has to wait until a daemon has migrated it."""


def _configure(connection: apsw.Connection) -> None:
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")


def open_writer(path: Path) -> apsw.Connection:
    """Open the database for its one writer, creating it (0600) or migrating it to SCHEMA_VERSION.

    Raises StorageError when the file is not a database, is newer than this code, or cannot be written.
    """
    try:
        path.touch(mode=0o600, exist_ok=True)
        connection = apsw.Connection(str(path))
        _configure(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        _migrate(connection, path)
    except OSError as error:
        raise StorageError(
            f"cannot open {path}: {error.strerror}; check the folder's owner and mode"
        ) from error
    except apsw.Error as error:
        raise StorageError(f"cannot use {path}: {error}; check the disk, or restore a backup") from error
    return connection


def open_reader(path: Path) -> apsw.Connection:
    """Open the database for reading only.

    Raises StorageError when there is none or it is unusable, OutdatedError when a daemon has to migrate it first.
    """
    if not path.is_file():
        raise StorageError(f"there is no database at {path}; start the daemon once with `agent-runner run`")
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        _configure(connection)
        version = connection.pragma("user_version")
    except apsw.Error as error:
        raise StorageError(f"cannot read {path}: {error}; check the disk, or restore a backup") from error
    if version != SCHEMA_VERSION:
        connection.close()
        found = f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}"
        if isinstance(version, int) and version < SCHEMA_VERSION:
            raise OutdatedError(f"{found}; start the daemon of this version once with `agent-runner run`")
        raise StorageError(f"{found}; use the newer program")
    return connection


def open_of_any_version(path: Path) -> apsw.Connection:
    """Open a database for reading whose schema is this program's or an older one, to copy or to check it.

    Raises StorageError when there is none, it is no database of this program, or it is newer.
    """
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        _configure(connection)
        connection.execute("PRAGMA trusted_schema = OFF")
        version = connection.pragma("user_version")
    except apsw.Error as error:
        raise StorageError(f"cannot read {path}: {error}; check the disk, or restore a backup") from error
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        connection.close()
        raise StorageError(
            f"{path} has schema version {version}, this program knows {SCHEMA_VERSION}; use the newer program"
        )
    return connection


def schema_of(connection: apsw.Connection) -> list[tuple[str, str, str]]:
    """Return what a database is made of: type, name and statement of each table, index and trigger, in order."""
    rows = connection.execute(
        "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type, name"
    )
    return [(str(kind), str(name), str(statement)) for kind, name, statement in rows]


def _migrate(connection: apsw.Connection, path: Path) -> None:
    """Bring the schema to SCHEMA_VERSION, one transaction a step: what is cut off leaves the version before it."""
    for number in range(_version(connection, path) + 1, SCHEMA_VERSION + 1):
        script = files("store").joinpath("migrations", MIGRATIONS[number - 1]).read_text(encoding="utf-8")
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Looked at again behind the lock: another program may have taken this step meanwhile.
            if _version(connection, path) < number:
                connection.execute(script).fetchall()
                connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except BaseException:
            # A full disk has ended the transaction already.
            if not connection.get_autocommit():
                connection.execute("ROLLBACK")
            raise


def _version(connection: apsw.Connection, path: Path) -> int:
    """Return the version of the schema; raises StorageError for one that this code does not know."""
    version = connection.pragma("user_version")
    if not isinstance(version, int) or not 0 <= version <= SCHEMA_VERSION:
        raise StorageError(
            f"{path} has schema version {version}, this program knows {SCHEMA_VERSION}; use the newer program"
        )
    return version


class TouchDatabase:
    """A write that changes nothing and yet goes to the disk: whether the disk takes a commit is seen by it."""

    def apply(self, database: apsw.Connection) -> None:
        """Write the page that holds the version anew."""
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def checkpoint(connection: apsw.Connection) -> None:
    """Fold the write-ahead log into the database; called at an orderly end."""
    with contextlib.suppress(apsw.BusyError):
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
