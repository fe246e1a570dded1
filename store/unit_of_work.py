"""What must be true together is committed together.

A `Write` is a small record that knows its SQL. A `UnitOfWork` is a tuple of them: all or nothing. The ledger writer
commits many units in one transaction (group commit); one refused unit takes no other with it. A write may be
applied twice before it is committed (the first time is then undone), so it keeps nothing of what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import apsw

from protocol.errors import AgentRunnerError
from store.database import BUSY_TIMEOUT_MS, StorageError


class Write(Protocol):
    """One change of the store."""

    def apply(self, database: apsw.Connection) -> Any:
        """Make the change inside the open transaction; raises ConflictError where its condition no longer holds."""


class ConflictError(AgentRunnerError):
    """A write's condition no longer holds (somebody else claimed the message, took the key): the unit is undone."""


@dataclass(frozen=True, slots=True)
class UnitOfWork:
    """Writes that are committed together, in order."""

    writes: tuple[Write, ...]


Outcome = list[Any] | Exception
"""What a unit came to: the result of each write, or why all of it was undone."""


_OF_THE_DISK: Final = (
    apsw.FullError,
    apsw.IOError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.ReadOnlyError,
    apsw.CantOpenError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.NoMemError,
)
"""Faults that no unit caused and that no savepoint undoes: the whole batch fails."""


def commit_units(database: apsw.Connection, units: Sequence[UnitOfWork]) -> list[Outcome]:
    """Commit the units in one durable transaction and return one outcome for each, in order.

    When this returns a list for a unit, its writes survive a power cut. A failure of the disk makes every outcome a
    StorageError: nothing of the batch is in the database then.
    """
    return finish_units(database, begin_units(database, units))


def begin_units(
    database: apsw.Connection, units: Sequence[UnitOfWork], *, wait_s: float = BUSY_TIMEOUT_MS / 1000
) -> list[Outcome]:
    """Do the first half of `commit_units`, which changes memory only: open a transaction and apply the units in it.

    `finish_units` takes what this returns and makes it durable. Waits `wait_s` seconds where another process is
    writing; where that is not enough, as after every failure of the disk, no transaction is open.
    """
    try:
        try:
            return _begin(database, units, wait_s, _writes)
        except _OF_THE_DISK:
            raise
        except Exception:  # noqa: BLE001 - the fault of some unit, which the second round finds
            # Savepoints cost as much as a small write, and a refused unit is rare: they are set once there is one.
            database.execute("ROLLBACK")
            return _begin(database, units, wait_s, _writes_or_none)
    except apsw.Error as error:
        return _failed(database, error, len(units))


def finish_units(database: apsw.Connection, outcomes: list[Outcome]) -> list[Outcome]:
    """Do the second half of `commit_units`: wait for the disk, and return what came of each unit."""
    if database.get_autocommit():
        return outcomes
    try:
        database.execute("COMMIT")
    except apsw.Error as error:
        return _failed(database, error, len(outcomes))
    return outcomes


def _failed(database: apsw.Connection, error: apsw.Error, units: int) -> list[Outcome]:
    if not database.get_autocommit():
        database.execute("ROLLBACK")
    failure = StorageError(f"the database did not take a commit: {error}; check free space and the disk")
    failure.__cause__ = error
    return [failure] * units


def _begin(
    database: apsw.Connection,
    units: Sequence[UnitOfWork],
    wait_s: float,
    apply: Callable[[apsw.Connection, UnitOfWork], Outcome],
) -> list[Outcome]:
    database.set_busy_timeout(int(wait_s * 1000))
    database.execute("BEGIN IMMEDIATE")
    return [apply(database, unit) for unit in units]


def _writes(database: apsw.Connection, unit: UnitOfWork) -> Outcome:
    return [write.apply(database) for write in unit.writes]


def _writes_or_none(database: apsw.Connection, unit: UnitOfWork) -> Outcome:
    database.execute("SAVEPOINT unit")
    try:
        results = [write.apply(database) for write in unit.writes]
    except _OF_THE_DISK:
        raise
    except Exception as error:  # noqa: BLE001 - the fault of one unit: it is answered, the others of its batch go on
        database.execute("ROLLBACK TO unit")
        database.execute("RELEASE unit")
        return error
    database.execute("RELEASE unit")
    return results
