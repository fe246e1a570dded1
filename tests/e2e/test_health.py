"""Faults of the machine under a real daemon: what `status` says before, during and after, without a restart."""

from __future__ import annotations

import resource
import signal
from typing import Any

import apsw
import pytest
import trio

from actors.client import Client
from protocol.errors import RequestError
from tests.support.daemon import Daemon, edit, open_session, run_turn
from tests.support.model_server import ModelServer, status

QUIET = ("--backend", "rehearsal", "--no-heartbeat")
EXPECTED_OF_THE_MACHINE = {"disk_low", "memory_low", "disk_slow", "clock_jumped", "clock_behind"}
"""What may be so on the machine that the tests run on."""


async def conditions(client: Client) -> dict[str, dict[str, Any]]:
    """Return what is wrong, less what the test's own machine may have."""
    health = (await client.call("runner.status"))["health"]
    assert health["state"] == (health["conditions"][0]["severity"] if health["conditions"] else "ok")
    return {one["name"]: one for one in health["conditions"] if one["name"] not in EXPECTED_OF_THE_MACHINE}


async def until(house: Daemon, client: Client, *names: str) -> dict[str, dict[str, Any]]:
    """Wait until exactly these conditions are there, and return them."""
    found: dict[str, dict[str, Any]] = {}

    async def look() -> bool:
        nonlocal found
        found = await conditions(client)
        return set(found) == set(names)

    await house.until(look, within_s=30)
    return found


async def test_a_disk_that_takes_nothing_is_seen_and_its_healing_too_with_nobody_writing(house: Daemon):
    await house.start(*QUIET)
    async with house.operator() as client:
        assert await conditions(client) == {}
        unlimited = resource.RLIM_INFINITY
        resource.prlimit(house.pid, resource.RLIMIT_FSIZE, (4096, unlimited))
        with pytest.raises(RequestError, match="did not take a commit"):
            await client.call("board.post", {"text": "a line"})
        [found] = (await conditions(client)).values()
        assert found["name"] in ("disk_full", "disk_io_error")
        assert found["severity"] == "failing"
        assert "did not take a commit" in found["what"]
        assert "Free some space" in found["to_do"]
        resource.prlimit(house.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        await until(house, client)
        assert (await client.call("runner.status"))["ledger"]["failing"] is None
    assert house.log.count("condition_began") == house.log.count("condition_ended") == 1
    assert await house.terminate() == 0


async def test_files_that_run_out_cost_newcomers_their_place_and_nobody_else(house: Daemon):
    await house.start(*QUIET)
    async with house.operator() as client:
        key = await open_session(client, "calli")
        assert await conditions(client) == {}
        used = await house_files(house)
        hard = resource.prlimit(house.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(house.pid, resource.RLIMIT_NOFILE, (used + 1, hard))
        async with trio.open_nursery() as nursery:
            # Those that come wait before the door; what is inside goes on.
            waiting = [await trio.open_tcp_stream("127.0.0.1", house.port) for _ in range(5)]
            found = await until(house, client, "files_low")
            assert found["files_low"]["severity"] == "failing"
            assert (await run_turn(client, key, "say still here")).text == "still here"
            before = house.log.count("client_not_accepted")
            await trio.sleep(1)
            assert house.log.count("client_not_accepted") == before <= 1  # it neither spins nor fills the log
            resource.prlimit(house.pid, resource.RLIMIT_NOFILE, (hard, hard))
            await until(house, client)
            for stream in waiting:
                await stream.aclose()
            nursery.cancel_scope.cancel()
        async with house.guest() as guest:
            await open_session(guest, "cora")
    assert await house.terminate() == 0


async def house_files(house: Daemon) -> int:
    return len(list(await trio.Path(f"/proc/{house.pid}/fd").iterdir()))


async def refusal(client: Client, key: str) -> RequestError:
    """Return what a turn on a damaged history is refused with, whether the session can be opened or not."""
    try:
        await open_session(client, "calli", session_key=key)
        seen = await run_turn(client, key, "say hello")
    except RequestError as error:
        return error
    assert seen.error is not None
    return seen.error


async def test_a_damaged_page_is_an_error_that_says_so_and_the_daemon_lives_on(house: Daemon):
    await house.start(*QUIET)
    async with house.operator() as client:
        for number in range(3):
            key = await open_session(client, "calli", session_key=f"calli:test:{number}")
            await run_turn(client, key, "say " + "many words " * 300)
    assert await house.terminate() == 0
    database = apsw.Connection(str(house.root.database))
    [(root_page,)] = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'history'")
    database.close()
    with house.root.database.open("r+b") as file:
        file.seek((root_page - 1) * 4096)
        file.write(b"\xde\xad" * 2048)
    await house.start(*QUIET)
    async with house.operator() as client:
        refused = await refusal(client, "calli:test:0")
        assert refused.code == "internal"
        assert "the database is damaged" in refused.message
        assert "restore a backup" in refused.message
        found = await until(house, client, "database_damaged")
        assert found["database_damaged"]["severity"] == "failing"
        assert (await client.call("session.init", {"agent_id": "cora"}))[
            "session_key"
        ]  # other pages are whole
    assert await house.terminate() == 0


async def test_a_model_server_that_is_down_is_left_alone_and_heals_by_itself(
    house: Daemon, model: ModelServer
):
    house.environment |= {"ANTHROPIC_API_KEY": "test-key", "ANTHROPIC_BASE_URL": model.url}
    await house.start("--backend", "anthropic", "--no-heartbeat")
    model._fallback = lambda _: status(500, {"retry-after": "0"})
    async with house.operator() as client:
        key = await open_session(client, "calli")
        for _ in range(5):
            seen = await run_turn(client, key)
            assert seen.error is not None
            assert seen.error.code == "backend_error"
        asked = len(model.requests)
        refused = await run_turn(client, key)
        assert refused.error is not None
        assert (refused.error.code, "was not sent" in refused.error.message) == ("backend_overloaded", True)
        assert len(model.requests) == asked
        found = await until(house, client, "backend_down")
        assert "5 times in a row" in found["backend_down"]["what"]
        assert (await client.call("runner.status"))["backend"]["breaker"]["state"] == "open"
        model._fallback = ModelServer()._fallback

        async def answered() -> bool:
            return (await run_turn(client, key)).text == "Hello from the model server."

        await house.until(answered, within_s=20)
        assert await until(house, client) == {}
    # A refused turn never began: nothing of it is in the history.
    assert await house.rows("SELECT count(*) FROM turns WHERE status = 'failed'") == [(5,)]
    assert house.log.count("model_server_given_up") == house.log.count("model_server_answers_again") == 1


async def test_a_refused_constitution_is_shown_as_long_as_it_is_refused(house: Daemon):
    await house.start(*QUIET)
    rules = house.root.platform / "constitution.yaml"
    async with house.operator() as client:
        edit(rules, "queued_turns: 8", "queued_turns: eight")
        house.signal(signal.SIGHUP)
        found = await until(house, client, "constitution_refused")
        assert "constitution.yaml" in found["constitution_refused"]["what"]
        edit(rules, "queued_turns: eight", "queued_turns: 8")
        house.signal(signal.SIGHUP)
        await until(house, client)
