"""Timers as they are stored."""

import apsw

from store.timers import DeleteTimers, SaveTimers, TimerRow, next_heartbeats, stored_timers
from tests.support.storage import at, commit


def row(name: str, due_s: float = 0.0, interval_s: float | None = 300.0) -> TimerRow:
    return TimerRow(name, "standing/reed", "", at(due_s), interval_s)


def test_timers_are_saved_by_name_and_come_back_by_due_time(database: apsw.Connection):
    commit(database, SaveTimers([row("a", 30), row("b", 10), row("once", 20, None)]))
    assert stored_timers(database) == [row("b", 10), row("once", 20, None), row("a", 30)]
    commit(database, SaveTimers([TimerRow("b", "retention", "more", at(99), 1.5)]))
    assert stored_timers(database)[-1] == TimerRow("b", "retention", "more", at(99), 1.5)
    commit(database, DeleteTimers(["a", "b", "nobody"]))
    assert stored_timers(database) == [row("once", 20, None)]


def test_heartbeats_are_found_by_agent_and_nothing_else_is_one(database: apsw.Connection):
    names = [("heartbeat/reed", 10), ("heartbeat/haak-00", 20), ("retention", 0), ("heartbeats", 0)]
    commit(database, SaveTimers([row(name, due_s) for name, due_s in names]))
    assert next_heartbeats(database) == {"reed": at(10), "haak-00": at(20)}
