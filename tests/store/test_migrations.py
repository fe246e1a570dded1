"""How a database of an earlier version becomes one of this version, whole or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest

from store import database as opened
from store.database import MIGRATIONS, SCHEMA_VERSION, OutdatedError, StorageError, open_reader, open_writer

HERE = Path(__file__).parent
SCRIPTS = Path(opened.__file__).parent / "migrations"
FIRST = (HERE / "schema_version_1.sql").read_text(encoding="utf-8")

# A row in every table of version 1; where a column may be NULL, one row has a value and one has none.
ROWS = """
INSERT INTO sessions VALUES
    ('s1', 'reed', 'reed:cli:local', 'runner', 'rehearsal', NULL, 'persistent', 'idle', NULL, 't1', 't0'),
    ('s2', 'calli', 'calli:web:1', 'guest:abc', 'anthropic', 'claude', 'domain', 'closed', 'key', 't2', 't0');
INSERT INTO turns VALUES
    ('u1', 's1', 0, 'complete', 'c1', NULL, 'h', 'o', 'end_turn', '{"input_tokens":1}', 't1', 't2', 'p'),
    ('u2', 's1', 1, 'running', NULL, 'c1', NULL, NULL, NULL, NULL, 't3', NULL, NULL);
INSERT INTO history VALUES
    (1, 's1', 'u1', 0, 'user', '"héllo"', 't1', 1), (7, 's1', 'u1', 1, 'assistant', '[]', 't2', 0);
INSERT INTO ledger VALUES
    (1, 'c1', 'turn', 'reed:cli:local', 'session', 't1', 'reed', 'reed', '[]', '[]', '{}', NULL, NULL),
    (2, 'c2', 'turn', 'reed:cli:local', 'session', 't2', 'reed', 'reed', '["c1"]', '[]', '{"a":1}', 'p', 'e');
INSERT INTO mail VALUES
    (1, 'm1', 'operator', 'reed', 's', 'b', 'm1', 't1', NULL, 'standing', 0),
    (9, 'm2', 'reed', 'all', 's', 'b', 'm1', 't2', 't9', 'standing', 1);
INSERT INTO mail_receipts VALUES ('m1', 'reed', 't2');
INSERT INTO mail_claims VALUES ('m2', 'calli', 'u1');
INSERT INTO board VALUES (3, 'reed', 'a line', 't1');
INSERT INTO usage VALUES ('reed', '2026-11-22', 10, 5);
INSERT INTO wakes VALUES ('reed', 't1');
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A database as version 1 of the program left it, with something in every table."""
    path = tmp_path / "agent-runner.db"
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode = WAL")
    with connection:
        connection.execute(FIRST)
        connection.execute("PRAGMA user_version = 1")
    connection.execute(ROWS)
    connection.close()
    return path


def tables(connection: apsw.Connection) -> list[str]:
    found = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
    return [str(name) for (name,) in found]


def contents(connection: apsw.Connection) -> dict[str, list[tuple[Any, ...]]]:
    return {name: list(connection.execute(f"SELECT * FROM {name}")) for name in tables(connection)}


def schema(connection: apsw.Connection) -> list[tuple[Any, ...]]:
    return list(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name"))


def looked_at(path: Path) -> tuple[int, dict[str, list[tuple[Any, ...]]], list[tuple[Any, ...]]]:
    """Return version, contents and schema of a file, read without the program's own code."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        assert connection.pragma("integrity_check") == "ok"
        return connection.pragma("user_version"), contents(connection), schema(connection)
    finally:
        connection.close()


def check_kept(before: dict[str, list[tuple[Any, ...]]], after: dict[str, list[tuple[Any, ...]]]) -> None:
    """Hold a later version to every row of an earlier one; columns that came since stand behind and say nothing."""
    for name, rows in before.items():
        pairs = list(zip(after[name], rows, strict=True))
        assert [row[: len(old)] for row, old in pairs] == rows
        assert {value for row, old in pairs for value in row[len(old) :]} <= {None, 0}


def test_the_fixture_has_something_in_every_table_of_version_1(old: Path):
    version, rows, _ = looked_at(old)
    assert version == 1
    assert [name for name, found in rows.items() if not found] == []
    assert len(rows) == 10


def test_the_first_script_is_what_version_1_was_made_with():
    assert (SCRIPTS / MIGRATIONS[0]).read_text(encoding="utf-8") == FIRST


def test_scripts_are_numbered_without_a_gap_and_none_lies_about():
    assert [int(name[:4]) for name in MIGRATIONS] == list(range(1, SCHEMA_VERSION + 1))
    assert sorted(path.name for path in SCRIPTS.glob("*.sql")) == list(MIGRATIONS)


def test_migrated_database_has_every_row_and_the_schema_of_a_fresh_one(old: Path, tmp_path: Path):
    _, before, _ = looked_at(old)
    open_writer(old).close()
    version, after, migrated = looked_at(old)
    assert version == SCHEMA_VERSION
    check_kept(before, after)
    assert [name for name, rows in after.items() if name not in before and rows] == []
    fresh = tmp_path / "fresh.db"
    open_writer(fresh).close()
    assert looked_at(fresh)[2] == migrated
    # What the tables themselves see to is in force still.
    connection = open_writer(old)
    with pytest.raises(apsw.ConstraintError, match="never"):
        connection.execute("DELETE FROM ledger")
    with pytest.raises(apsw.ConstraintError):
        connection.execute("INSERT INTO timers VALUES ('t', 'a', '', 't1', 0.0)")
    connection.close()


def test_database_of_an_earlier_version_is_not_read_before_it_is_migrated(old: Path):
    with pytest.raises(OutdatedError, match=f"schema version 1, this program reads {SCHEMA_VERSION}"):
        open_reader(old)
    open_writer(old).close()
    open_reader(old).close()


def test_opening_a_migrated_database_again_changes_nothing(old: Path):
    open_writer(old).close()
    seen = looked_at(old)
    open_writer(old).close()
    assert looked_at(old) == seen


def add_script(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Give the program one more step, which is `text`."""
    broken = f"{SCHEMA_VERSION + 1:04d}_broken.sql"
    store = folder / "store"
    (store / "migrations").mkdir(parents=True, exist_ok=True)
    for name in MIGRATIONS:
        (store / "migrations" / name).write_bytes((SCRIPTS / name).read_bytes())
    (store / "migrations" / broken).write_text(text)
    monkeypatch.setattr(opened, "files", lambda _package: store)
    monkeypatch.setattr(opened, "MIGRATIONS", (*MIGRATIONS, broken))
    monkeypatch.setattr(opened, "SCHEMA_VERSION", SCHEMA_VERSION + 1)


def test_step_that_fails_half_way_leaves_the_version_before_it_usable(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, before, _ = looked_at(old)
    with monkeypatch.context() as patched:
        add_script(tmp_path, patched, "DELETE FROM board; DROP TABLE wakes; CREATE TABLE wakes (broken;")
        with pytest.raises(StorageError, match=r"agent-runner\.db"):
            open_writer(old)
    version, rows, _ = looked_at(old)
    assert version == SCHEMA_VERSION  # each step is a transaction of its own: those before it stay
    check_kept(before, rows)
    open_writer(old).close()
    assert looked_at(old)[1] == rows


KILLED = """
import os, signal, sys
from pathlib import Path
import apsw
from store import database
def die(): os.kill(os.getpid(), signal.SIGKILL)
apsw.connection_hooks.append(lambda connection: connection.create_scalar_function("die", die))
script = "DELETE FROM board; DELETE FROM usage; ALTER TABLE wakes ADD COLUMN more TEXT; SELECT die();"
class Folder:
    def joinpath(self, *_): return self
    def read_text(self, **_): return script
database.files = lambda _: Folder()
database.open_writer(Path(sys.argv[1]))
"""


def test_process_that_is_killed_in_the_middle_of_a_step_leaves_the_version_before_it(old: Path):
    _, before, was = looked_at(old)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(old)],
        cwd=HERE.parents[1],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, b"")
    # Read-only it would be refused: the log of the killed process is folded in by whoever opens it next.
    connection = apsw.Connection(str(old))
    assert (connection.pragma("user_version"), contents(connection), schema(connection)) == (1, before, was)
    connection.close()
    open_writer(old).close()
    version, after, _ = looked_at(old)
    assert version == SCHEMA_VERSION
    check_kept(before, after)


def test_two_who_open_at_one_moment_take_each_step_once(old: Path, monkeypatch: pytest.MonkeyPatch):
    # The other one is done between this one's look at the version and its lock.
    seen = opened._version
    calls = []

    def late(connection: apsw.Connection, path: Path) -> int:
        version = seen(connection, path)
        if not calls:
            calls.append(version)
            open_writer(old).close()
        return version

    monkeypatch.setattr(opened, "_version", late)
    open_writer(old).close()
    assert calls == [1]
    assert looked_at(old)[0] == SCHEMA_VERSION


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 999, -1])
def test_database_of_another_program_is_refused_and_left_as_it_is(old: Path, version: int):
    connection = apsw.Connection(str(old))
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    seen = looked_at(old)
    with pytest.raises(StorageError, match=f"schema version {version}, this program knows {SCHEMA_VERSION}"):
        open_writer(old)
    assert looked_at(old) == seen
