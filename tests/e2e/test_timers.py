"""Heartbeats are due after a kill when they were due before it; a root of an earlier version goes on."""

from pathlib import Path
from typing import Any

import apsw
import trio

from store.database import SCHEMA_VERSION
from tests.support.daemon import Daemon

FIRST = Path(__file__).parents[1] / "store" / "schema_version_1.sql"


async def timers_of(house: Daemon) -> dict[str, dict[str, Any]]:
    """Return the timers of a running daemon once they are stored, by name."""

    async def found() -> dict[str, dict[str, Any]]:
        async with house.operator() as client:
            status = await client.call("runner.status", {})
        agents = {agent["id"]: agent["next_heartbeat"] for agent in status["agents"]}
        timers = {timer["name"]: timer for timer in status["timers"]}
        beats = {name: timer for name, timer in timers.items() if name.startswith("heartbeat/")}
        assert {agent: due for agent, due in agents.items() if due is not None} == {
            name.removeprefix("heartbeat/"): timer["due_at"] for name, timer in beats.items()
        }
        return timers if "retention" in timers else {}

    timers: dict[str, dict[str, Any]] = await house.until(found)
    return timers


async def test_heartbeats_are_due_after_a_kill_when_they_were_before(house: Daemon):
    arguments = ("--backend", "rehearsal", "--heartbeat-interval", "3600")
    await house.start(*arguments)
    before = await timers_of(house)
    assert len(before) == 27
    assert before["heartbeat/reed"]["interval_s"] == 3600.0
    assert before["heartbeat/reed"]["target"] == "standing/reed"
    await house.kill()
    await house.start(*arguments)
    after = await timers_of(house)
    assert {name: timer for name, timer in after.items() if name != "retention"} == {
        name: timer for name, timer in before.items() if name != "retention"
    }
    assert await house.terminate() == 0
    await house.start(*arguments, "--no-heartbeat")
    assert set(await timers_of(house)) == {"retention"}


async def test_heartbeat_that_was_due_while_the_daemon_was_down_comes_once_at_the_start(house: Daemon):
    arguments = ("--backend", "rehearsal", "--heartbeat-interval", "3600")
    await house.start(*arguments)
    due_at = (await timers_of(house))["heartbeat/reed"]["due_at"]
    await house.kill()
    long_ago = "2020-01-01T00:00:00.000000Z"
    connection = apsw.Connection(str(house.root.database))
    connection.execute("UPDATE timers SET due_at = ? WHERE name = 'heartbeat/reed'", (long_ago,))
    connection.close()
    await house.start(*arguments)

    async def ticked() -> str:
        due = (await timers_of(house))["heartbeat/reed"]["due_at"]
        return due if due != long_ago else ""

    # The rhythm is kept: whole hours from when it was due, the first that is still to come.
    assert (await house.until(ticked))[14:] == "00:00.000000Z"
    assert (await timers_of(house))["heartbeat/calli"]["due_at"] == due_at


async def test_root_of_the_first_version_is_taken_over_by_a_daemon_of_this_one(house: Daemon):
    connection = apsw.Connection(str(house.root.database))
    connection.execute(FIRST.read_text(encoding="utf-8"))
    connection.execute("INSERT INTO board VALUES (1, 'reed', 'from before', '2026-01-01T00:00:00.000000Z')")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    await house.start("--backend", "rehearsal")
    assert len(await timers_of(house)) == 27
    assert await house.rows("SELECT text FROM board") == [("from before",)]
    async with house.database() as database:
        assert database.pragma("user_version") == SCHEMA_VERSION
    with trio.fail_after(15):
        assert await house.terminate() == 0
