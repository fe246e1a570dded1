"""All or nothing, for each unit by itself and for the disk as a whole."""

from dataclasses import dataclass

import apsw
import pytest

from protocol.errors import CanonicalError
from store.board import Post, PostBoard, last_posts
from store.database import StorageError
from store.ledger import AppendEntry, count_entries
from store.sessions import AppendHistory, CreateSession, history_of
from store.unit_of_work import ConflictError
from tests.support.storage import a_session, an_entry, at, commit, outcomes, stored_session, stored_turn


def post(text: str) -> PostBoard:
    return PostBoard(Post("reed", text, at()))


class Uncommittable:
    """A write whose transaction the disk does not take at its end."""

    def apply(self, database: apsw.Connection) -> None:
        database.set_commit_hook(lambda: True)


def test_a_commit_that_the_disk_refuses_is_a_failure_of_every_unit_in_it(database: apsw.Connection):
    found = outcomes(database, (post("one"),), (post("two"), Uncommittable()))
    database.set_commit_hook(None)
    assert [type(outcome) for outcome in found] == [StorageError, StorageError]
    assert last_posts(database, 10) == []
    commit(database, post("three"))
    assert [one.text for one in last_posts(database, 10)] == ["three"]


@dataclass(frozen=True)
class Broken:
    """A write with a fault of its own."""

    error: Exception

    def apply(self, database: apsw.Connection) -> None:
        database.execute("INSERT INTO board (agent, text, posted_at) VALUES ('x', 'half done', 'x')")
        raise self.error


def test_a_unit_is_committed_whole_or_not_at_all(database: apsw.Connection):
    commit(database, CreateSession(a_session()), post("one"), AppendEntry(an_entry()))
    with pytest.raises(ConflictError, match="taken"):
        commit(database, post("two"), AppendEntry(an_entry(1)), CreateSession(a_session()))
    assert [one.text for one in last_posts(database, 10)] == ["one"]
    assert count_entries(database) == 1


def test_a_refused_unit_takes_none_of_its_neighbours_with_it(database: apsw.Connection):
    first, second, third = outcomes(
        database,
        (post("one"), CreateSession(a_session())),
        (post("two"), CreateSession(a_session())),
        (post("three"),),
    )
    assert isinstance(second, ConflictError)
    assert not isinstance(first, Exception)
    assert not isinstance(third, Exception)
    assert [one.text for one in last_posts(database, 10)] == ["one", "three"]


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("a bug"),
        CanonicalError("$", "not canonical"),
        apsw.ConstraintError("no"),
        TypeError("no"),
    ],
)
def test_a_unit_with_a_fault_is_undone_and_harms_nobody_else(database: apsw.Connection, error: Exception):
    found = outcomes(database, (post("one"),), (post("two"), Broken(error)), (post("three"),))
    assert found[1] is error
    assert [one.text for one in last_posts(database, 10)] == ["one", "three"]
    commit(database, post("four"))
    assert len(last_posts(database, 10)) == 3


def test_text_that_canonical_json_cannot_hold_undoes_its_unit_alone(database: apsw.Connection):
    session = stored_session(database)
    turn = stored_turn(database, session)
    good = AppendHistory(session.id, turn, "user", "good", at())
    bad = AppendHistory(session.id, turn, "user", "\ud800", at())
    found = outcomes(database, (bad,), (good,))
    assert isinstance(found[0], CanonicalError)
    assert [(row.seq, row.content) for row in history_of(database, session.id)] == [(0, "good")]


def test_a_full_disk_undoes_the_whole_batch_and_space_makes_it_good_again(database: apsw.Connection):
    commit(database, post("before"))
    database.pragma("max_page_count", database.pragma("page_count") + 1)
    big = [post("x" * 4_000) for _ in range(20)]
    found = outcomes(database, (post("small"),), tuple(big), (post("small too"),))
    assert all(isinstance(one, StorageError) for one in found)
    assert "full" in str(found[0])
    assert database.get_autocommit()
    assert [one.text for one in last_posts(database, 100)] == ["before"]
    database.pragma("max_page_count", 1_000_000)
    outcomes(database, tuple(big))
    assert len(last_posts(database, 100)) == 21
