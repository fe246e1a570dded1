"""The ledger: appended once, read in order, and every kind of tampering is found."""

from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.canonical import canonical_json, hash_of
from protocol.entry import FIELDS
from store.database import open_writer
from store.ledger import AppendEntry, count_entries, find_entry, last_timestamp, read_entries, verify
from tests.support.storage import a_chain, an_entry, at, commit


def tamper(database: apsw.Connection, statement: str, *values: object) -> None:
    """Change the table as somebody who has the file could, past its triggers."""
    for name in ("ledger_is_never_updated", "ledger_is_never_deleted"):
        database.execute(f"DROP TRIGGER IF EXISTS {name}")
    database.execute(statement, values)


def test_an_empty_ledger_and_a_whole_one_verify(database: apsw.Connection):
    assert (verify(database).ok, verify(database).entries) == (True, 0)
    a_chain(database, 5)
    found = verify(database)
    assert (found.ok, found.entries, found.first_bad) == (True, 5, None)


def test_appending_the_same_entry_again_changes_nothing(database: apsw.Connection):
    entry = an_entry()
    commit(database, AppendEntry(entry), AppendEntry(entry))
    commit(database, AppendEntry(entry))
    assert count_entries(database) == 1
    commit(database, AppendEntry(an_entry(1)))
    assert verify(database).ok


def test_entries_come_back_as_they_were_and_by_what_was_asked(database: apsw.Connection):
    entries = [
        an_entry(0),
        an_entry(1, quality="turn", actor="calli"),
        an_entry(2, entity_id="calli:cli:local", quality="turn", tags=["x"]),
    ]
    commit(database, *(AppendEntry(entry) for entry in entries))
    assert [entry for _, entry in read_entries(database)] == entries
    assert [seq for seq, _ in read_entries(database, newest_first=True, limit=2)] == [3, 2]
    assert [entry for _, entry in read_entries(database, quality="turn")] == entries[1:]
    assert [entry for _, entry in read_entries(database, quality="turn", actor="calli")] == [entries[1]]
    assert [entry for _, entry in read_entries(database, entity_id="calli:cli:local")] == [entries[2]]
    assert find_entry(database, entries[1].cid[:12]) == (2, entries[1])
    assert find_entry(database, "") is None
    assert last_timestamp(database) == at(2)


UPDATE = "UPDATE ledger SET {} = ? WHERE seq = 2"
SELECT = (
    "SELECT cid, entity_id, target, quality, timestamp, source, actor, parents, tags, payload, proof, envelope "
    "FROM ledger WHERE seq = 2"
)
REHASHED = "UPDATE ledger SET actor = 'eve', cid = ? WHERE seq = 2"
TAMPERINGS = {
    **{
        f"{column} changed": (UPDATE.format(column), value, 2)
        for column, value in {
            "cid": "0" * 64,
            "entity_id": "eve:cli:local",
            "target": "another",
            "quality": "turn",
            "timestamp": at(9),
            "source": "eve:cli:local",
            "actor": "eve",
            "tags": '["checked"]',
            "payload": '{"event":"closed","number":1,"reason":null}',
            "proof": '{"type":"attestation"}',
            "envelope": '{"audience_label":"all"}',
            "parents": "[]",
        }.items()
    },
    "payload not canonical": (
        "UPDATE ledger SET payload = replace(payload, ',', ', ') || ? WHERE seq = 2",
        "",
        2,
    ),
    "key twice": (
        "UPDATE ledger SET payload = ? WHERE seq = 2",
        '{"event":"closed","event":"opened","number":1,"reason":null}',
        2,
    ),
    "payload no json": ("UPDATE ledger SET payload = ? WHERE seq = 2", "{", 2),
    "payload no object": ("UPDATE ledger SET payload = ? WHERE seq = 2", "[]", 2),
    "parents no list": ("UPDATE ledger SET parents = ? WHERE seq = 2", "7", 2),
    "removed from the middle": ("DELETE FROM ledger WHERE seq = ?", 2, 3),
    "removed from the beginning": ("DELETE FROM ledger WHERE seq = ?", 1, 2),
    "put in another place": ("UPDATE ledger SET seq = ? WHERE seq = 2", 9, 3),
    "put before its parent": ("UPDATE ledger SET seq = ? WHERE seq = 4", 0, 0),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_found_where_it_stands(database: apsw.Connection, name: str):
    a_chain(database, 4)
    statement, value, seq = TAMPERINGS[name]
    tamper(database, statement, value)
    found = verify(database)
    assert not found.ok
    assert found.first_bad is not None
    assert found.first_bad.seq == seq
    assert found.first_bad.problem
    assert found.entries < 4


def test_an_entry_that_was_rewritten_with_a_cid_that_fits_is_missed_by_those_behind_it(
    database: apsw.Connection,
):
    entries = a_chain(database, 4)
    forged = {**{name: getattr(entries[1], name) for name in FIELDS}, "actor": "eve"}
    tamper(database, REHASHED, hash_of(forged))
    found = verify(database)
    assert found.first_bad is not None
    assert found.first_bad.seq == 3
    assert entries[1].cid in found.first_bad.problem


def test_the_columns_are_strict_about_types(database: apsw.Connection):
    a_chain(database, 1)
    with pytest.raises(apsw.ConstraintError):
        tamper(database, "UPDATE ledger SET actor = NULL")
    with pytest.raises(apsw.ConstraintError):
        tamper(database, "UPDATE ledger SET actor = ?", b"eve")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_change_of_a_single_character_goes_unseen(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    database = open_writer(Path(tmp_path_factory.mktemp("ledger")) / "agent-runner.db")
    a_chain(database, 3)
    column = data.draw(st.sampled_from(["cid", *FIELDS[:-2]]))
    row = dict(zip(("cid", *FIELDS), database.execute(SELECT).fetchone(), strict=True))
    text = row[column]
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from('0aZ" ,[]{}é').filter(lambda character: character != text[place]))
    tamper(database, UPDATE.format(column), text[:place] + other + text[place + 1 :])
    assert not verify(database).ok
    database.close()


def test_the_text_in_the_columns_is_what_the_hash_is_of(database: apsw.Connection):
    [entry] = a_chain(database, 1)
    [(payload, parents)] = database.execute("SELECT payload, parents FROM ledger")
    assert (payload, parents) == (canonical_json(entry.payload).decode(), "[]")
