"""Disks that are full and databases that somebody else holds: requests are answered, and all is well when they are."""

from __future__ import annotations

import resource
import signal
from contextlib import contextmanager

import apsw
import orjson
import pytest
import trio

from actors.client import Client
from protocol.errors import RequestError
from tests.support.daemon import Daemon, edit, open_session, orphans, run_turn

QUIET = ("--backend", "rehearsal", "--no-heartbeat")


@contextmanager
def full_disk(daemon: Daemon):
    """Let the daemon write no file beyond 4 KiB, its log included."""
    unlimited = resource.RLIM_INFINITY
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (4096, unlimited))
    yield
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))


async def refusal(client: Client, method: str, **params: object) -> str:
    try:
        await client.call(method, params)
    except RequestError as error:
        return f"{error.code}: {error.message}"
    return "ok"


async def test_while_the_disk_is_full_everything_is_answered_and_afterwards_all_goes_on(house: Daemon):
    await house.start(*QUIET, "--ttl", "0.02")  # sessions are to be evicted meanwhile, too
    rules = house.root.platform / "constitution.yaml"
    requests = {
        "session.init": {"agent_id": "calli", "session_key": "calli:test:new"},
        "turn.run": {"session_key": "calli:cli:local", "message": "say hello"},
        "mail.send": {"to": "reed", "subject": "s", "body": "list platform"},
        "board.post": {"text": "a line"},
    }
    async with house.operator() as client, house.guest() as guest:
        await run_turn(client, await open_session(client, "calli", session_key="calli:cli:local"), "say hi")
        with full_disk(house):
            edit(rules, "queued_turns: 8", "queued_turns: 7")
            for _ in range(7):  # oftener than an actor that crashed is started again
                for method, params in requests.items():
                    answer = await refusal(client, method, **params)
                    assert answer.startswith("internal: the database did not take a commit"), method
            house.signal(signal.SIGHUP)
            reloaded = await client.call("runner.reload")
            assert reloaded["changed"] is False
            assert "waits until the ledger can take it" in reloaded["problem"]
            status = await client.call("runner.status")
            assert "did not take a commit" in status["ledger"]["failing"]
            assert status["constitution"]["problem"] == reloaded["problem"]
            await trio.sleep(1.5)  # for the eviction to come by
        for method, params in requests.items():
            assert await refusal(client, method, **params) == "ok", method
        assert (await client.call("runner.status"))["ledger"]["failing"] is None
        assert (await run_turn(guest, await open_session(guest, "cora"), "say hello")).text == "hello"

        async def enacted() -> bool:
            found = (await client.call("runner.status"))["constitution"]
            return found["problem"] is None and found["rules_hash"] != status["constitution"]["rules_hash"]

        await house.until(enacted)

        async def woken() -> bool:
            return bool(await house.rows("SELECT 1 FROM mail_receipts WHERE reader = 'reed'"))

        await house.until(woken)
        # These are the connections of before: nothing above them was started again.
        assert await refusal(guest, "session.status", session_key="calli:cli:local") == (
            "unknown_session: there is no session 'calli:cli:local'; open one with session.init"
        )
    enacting = await house.entries(entity_id="runner", quality="configuration")
    assert [entry.payload["event"] for entry in enacting] == ["enacted", "enacted"]
    assert (await house.verify()).ok
    assert await house.terminate() == 0


async def test_a_database_that_somebody_else_holds_costs_a_turn_and_nothing_more(house: Daemon):
    await house.start(*QUIET)
    holder = apsw.Connection(str(house.root.database))
    held = trio.Event()

    async def hold() -> None:
        await held.wait()
        holder.execute("BEGIN IMMEDIATE")
        await trio.sleep(6)  # longer than the daemon waits for one commit, shorter than for two
        holder.execute("ROLLBACK")

    async with house.operator() as client, trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        key = await open_session(client, "calli", session_key="calli:test:held")
        text = "slow 20 20 then write workspaces/held.md: too early then say done"
        with trio.fail_after(20):
            turn = client.turn({"session_key": key, "message": text})
            with pytest.raises(RequestError, match="database is locked"):  # noqa: PT012 - the turn is left by its end
                async for event in turn:
                    if event["type"] == "turn_started":
                        held.set()
        assert not (house.root.workspaces / "held.md").exists()
        assert (await run_turn(client, key, "say well again")).text == "well again"
    holder.close()
    assert (await house.verify()).ok
    rows = await house.rows("SELECT role, content FROM history ORDER BY session_id, seq")
    assert orphans([{"role": role, "content": orjson.loads(content)} for role, content in rows]) == []
