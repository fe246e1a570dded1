"""How the database is opened, and that what was committed is there for others."""

import stat
from pathlib import Path

import apsw
import pytest

from store.database import SCHEMA_VERSION, StorageError, checkpoint, open_reader, open_writer
from tests.support.storage import a_chain, stored_session


def test_a_fresh_database_is_private_durable_and_checks_its_references(tmp_path: Path):
    path = tmp_path / "agent-runner.db"
    database = open_writer(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    pragmas = [
        database.pragma(name) for name in ("journal_mode", "synchronous", "foreign_keys", "user_version")
    ]
    assert pragmas == ["wal", 2, 1, SCHEMA_VERSION]
    with pytest.raises(apsw.ConstraintError):
        database.execute(
            "INSERT INTO turns (id, session_id, seq, status, started_at) VALUES ('t', 'nobody', 0, 'running', '')"
        )
    database.close()


def test_what_is_committed_is_there_for_a_reader_at_once_and_after_opening_again(tmp_path: Path):
    path = tmp_path / "agent-runner.db"
    writer = open_writer(path)
    reader = open_reader(path)
    stored_session(writer)
    assert reader.execute("SELECT count(*) FROM sessions").get == 1
    with pytest.raises(apsw.ReadOnlyError):
        reader.execute("DELETE FROM sessions")
    reader.close()
    checkpoint(writer)
    writer.close()
    again = open_writer(path)
    assert again.execute("SELECT count(*) FROM sessions").get == 1
    again.close()


def test_a_database_of_a_newer_program_is_refused_by_both(tmp_path: Path):
    path = tmp_path / "agent-runner.db"
    database = open_writer(path)
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    for open_ in (open_writer, open_reader):
        with pytest.raises(StorageError, match=f"schema version {SCHEMA_VERSION + 1}.*newer"):
            open_(path)


def test_what_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path):
    path = tmp_path / "letter.db"
    path.write_text("Dear database, " * 200)
    for open_ in (open_writer, open_reader):
        with pytest.raises(StorageError, match=r"letter\.db"):
            open_(path)
    assert path.read_text() == "Dear database, " * 200
    with pytest.raises(StorageError, match="agent-runner run"):
        open_reader(tmp_path / "absent.db")
    assert not (tmp_path / "absent.db").exists()


def test_the_ledger_table_itself_refuses_changes(database: apsw.Connection):
    a_chain(database, 2)
    for statement in ("UPDATE ledger SET actor = 'eve'", "DELETE FROM ledger WHERE seq = 1"):
        with pytest.raises(apsw.ConstraintError, match="never"):
            database.execute(statement)
