"""Sessions, turns and history as they are stored."""

import apsw
import pytest
from blake3 import blake3

from store.mailbox import ClaimMail, SendMail
from store.sessions import (
    MAIL_TAKEN_BACK,
    AddUsage,
    AppendHistory,
    BeginTurn,
    CreateSession,
    EndTurn,
    ForgetCarriedMail,
    RecordWake,
    UpdateSession,
    continuable_turns,
    count_open_sessions,
    find_session,
    find_session_by_id,
    history_of,
    history_of_turn,
    idle_session_keys,
    last_ended_cid,
    last_turn,
    last_wakes,
    list_sessions,
    running_turns,
    session_id,
    session_states,
    spending_of_day,
    turn_id,
    turns_of,
)
from store.unit_of_work import ConflictError
from tests.support.storage import a_mail, a_session, at, commit, stored_session, stored_turn


def test_ids_can_be_derived_again_by_anybody():
    made = session_id("reed", "reed:ws:1", "2026-11-22T12:00:00.000000Z")
    assert made == blake3(b"reed:reed:ws:1:2026-11-22T12:00:00.000000Z").hexdigest()
    assert turn_id(made, 0) == turn_id(made, 0) != turn_id(made, 1)


def test_a_session_comes_back_as_it_was_stored(database: apsw.Connection):
    row = stored_session(
        database, "agent:telegram:@someone", owner="guest:0123456789abcdef", model="m", mode="oneshot"
    )
    assert find_session(database, "agent:telegram:@someone") == row
    assert find_session_by_id(database, row.id) == row
    assert find_session(database, "AGENT:telegram:@someone") is None
    with pytest.raises(ConflictError):
        commit(database, CreateSession(a_session("agent:telegram:@someone", id="another")))


def test_an_update_sets_what_is_given_and_leaves_the_rest(database: apsw.Connection):
    row = stored_session(database, model="one", mode="domain")
    commit(database, UpdateSession(row.id, at(5), model="two"))
    found = find_session(database, row.session_key)
    assert found is not None
    assert (found.model, found.mode, found.state, found.last_activity) == ("two", "domain", "idle", at(5))
    commit(database, UpdateSession(row.id, at(6), state="closed", mode="oneshot", backend="anthropic"))
    found = find_session(database, row.session_key)
    assert found is not None
    assert (found.model, found.mode, found.state, found.backend) == ("two", "oneshot", "closed", "anthropic")


def test_a_turn_runs_and_ends_and_its_session_with_it(database: apsw.Connection):
    session = stored_session(database)
    turn = turn_id(session.id, 0)
    commit(database, BeginTurn(turn, session.id, 0, None, "in", at(1)))
    assert [one.id for one in running_turns(database)] == [turn]
    assert session_states(database, [session.session_key, "nobody"]) == {session.session_key: "running"}
    assert last_ended_cid(database, session.id) is None
    commit(
        database,
        EndTurn(turn, session.id, "complete", "c" * 64, "out", "end_turn", {"input_tokens": 3}, at(2)),
    )
    [found] = turns_of(database, session.id)
    assert found == last_turn(database, session.id)
    assert (found.status, found.cid, found.prev_cid, found.usage, found.completed_at) == (
        "complete",
        "c" * 64,
        None,
        {"input_tokens": 3},
        at(2),
    )
    assert running_turns(database) == []
    assert last_ended_cid(database, session.id) == "c" * 64
    assert find_session(database, session.session_key).state == "idle"  # type: ignore[union-attr]


def test_a_turn_has_one_end_and_a_second_is_refused_whole(database: apsw.Connection):
    session = stored_session(database)
    turn = stored_turn(database, session, cid="c" * 64)
    again = EndTurn(turn, session.id, "interrupted", "d" * 64, None, None, {}, at(2))
    with pytest.raises(ConflictError, match="ended already"):
        commit(database, AddUsage("reed", "2026-11-22", 1, 1), again)
    [found] = turns_of(database, session.id)
    assert (found.status, found.cid) == ("complete", "c" * 64)
    assert spending_of_day(database, "2026-11-22") == {}


def test_a_turn_is_gone_on_with_only_where_it_carries_no_mail_by_now(database: apsw.Connection):
    session = stored_session(database)
    plain, own, carries = (turn_id(session.id, number) for number in range(3))
    for number, turn in enumerate((plain, own, carries)):
        begun = BeginTurn(turn, session.id, number, None, None, at(number), continuable=turn != own)
        commit(database, begun)
    assert continuable_turns(database) == {plain, carries}
    mail = a_mail(0, "reed")
    commit(database, SendMail(mail), ClaimMail([mail.id], "reed", carries))  # by read_mailbox, in its middle
    assert continuable_turns(database) == {plain}


def test_the_end_of_a_turn_does_not_open_a_session_that_was_closed(database: apsw.Connection):
    session = stored_session(database)
    turn = stored_turn(database, session)
    commit(database, UpdateSession(session.id, at(1), state="closed"))
    commit(database, EndTurn(turn, session.id, "cancelled", "c" * 64, None, "cancelled", {}, at(2)))
    assert find_session(database, session.session_key).state == "closed"  # type: ignore[union-attr]


def test_two_turns_never_have_one_number(database: apsw.Connection):
    session = stored_session(database)
    stored_turn(database, session, 0)
    with pytest.raises(apsw.ConstraintError):
        commit(database, BeginTurn("another", session.id, 0, None, None, at()))


def test_history_is_numbered_per_session_and_read_in_order(database: apsw.Connection):
    one, two = stored_session(database, "reed:ws:1"), stored_session(database, "reed:ws:2")
    turns = {session.id: stored_turn(database, session) for session in (one, two)}
    for number in range(3):
        for session in (one, two):
            content = [{"type": "text", "text": f"{session.session_key} {number}"}]
            commit(database, AppendHistory(session.id, turns[session.id], "user", content, at(number)))
    found = history_of(database, two.id)
    assert [row.seq for row in found] == [0, 1, 2]
    assert [row.content[0]["text"] for row in found] == ["reed:ws:2 0", "reed:ws:2 1", "reed:ws:2 2"]
    assert found == history_of_turn(database, turns[two.id])


def test_history_can_be_read_up_to_a_size_in_whole_rows_from_the_end(database: apsw.Connection):
    session = stored_session(database)
    turn = stored_turn(database, session)
    for number in range(10):
        commit(database, AppendHistory(session.id, turn, "user", "x" * 98, at(number)))  # 100 as JSON
    assert [row.seq for row in history_of(database, session.id, characters_max=350)] == [7, 8, 9]
    assert [row.seq for row in history_of(database, session.id, characters_max=1)] == [9]
    assert len(history_of(database, session.id, characters_max=1_000)) == 10


def test_mail_that_a_turn_carried_is_taken_out_of_the_history_without_a_gap(database: apsw.Connection):
    session = stored_session(database)
    first, second = stored_turn(database, session, 0, cid="a" * 64), stored_turn(database, session, 1)
    use = {"type": "tool_use", "id": "t1", "name": "read_mailbox", "input": {}}
    other = {"type": "tool_use", "id": "t2", "name": "read_file", "input": {}}
    rows = [
        (first, "user", "before", False),
        (first, "assistant", [{"type": "text", "text": "yes"}], False),
        (second, "user", [{"type": "text", "text": "[mailbox from calli] secret"}], True),
        (second, "user", "You have mail.", False),
        (second, "assistant", [use, other], False),
        (
            second,
            "user",
            [
                {"type": "tool_result", "tool_use_id": "t1", "content": "secret two", "is_error": False},
                {"type": "tool_result", "tool_use_id": "t2", "content": "a file", "is_error": False},
            ],
            False,
        ),
    ]
    for turn, role, content, mail in rows:
        commit(database, AppendHistory(session.id, turn, role, content, at(), mail=mail))
    commit(database, ForgetCarriedMail(session.id, second))
    found = history_of(database, session.id)
    assert [row.seq for row in found] == [0, 1, 2, 3, 4]
    assert [row.role for row in found] == ["user", "assistant", "user", "assistant", "user"]
    assert "secret" not in str([row.content for row in found])
    assert [block["content"] for block in found[-1].content] == [MAIL_TAKEN_BACK, "a file"]
    commit(database, AppendHistory(session.id, second, "user", "next", at()))
    assert history_of(database, session.id)[-1].seq == 5


def test_idle_sessions_are_the_open_ones_of_their_mode(database: apsw.Connection):
    stored_session(database, "a:ws:old", last_activity=at(0))
    stored_session(database, "a:ws:exactly", last_activity=at(10))
    stored_session(database, "a:ws:new", last_activity=at(11))
    stored_session(database, "a:ws:closed", state="closed", last_activity=at(0))
    stored_session(database, "a:cli:kept", mode="persistent", last_activity=at(0))
    assert sorted(idle_session_keys(database, at(10))) == ["a:ws:exactly", "a:ws:old"]
    assert (count_open_sessions(database), count_open_sessions(database, running=True)) == (4, 0)
    assert [row.session_key for row in list_sessions(database, state="closed")] == ["a:ws:closed"]
    assert list_sessions(database)[0].session_key == "a:ws:new"


def test_tokens_are_counted_per_agent_and_day(database: apsw.Connection):
    commit(database, AddUsage("reed", "2026-11-22", 10, 5), AddUsage("reed", "2026-11-22", 1, 2))
    commit(database, AddUsage("reed", "2026-11-23", 100, 0), AddUsage("calli", "2026-11-22", 7, 0))
    assert spending_of_day(database, "2026-11-22") == {"calli": 7, "reed": 18}
    assert spending_of_day(database, "2026-11-24") == {}


def test_the_last_wake_of_an_agent_is_kept(database: apsw.Connection):
    commit(database, RecordWake("reed", at(1)), RecordWake("reed", at(2)), RecordWake("calli", at(1)))
    assert last_wakes(database) == {"reed": at(2), "calli": at(1)}
