"""A daemon is killed in mid-turn and started again: nothing that was promised is lost, nothing is done twice."""

import random
import signal
from contextlib import suppress

import pytest
import trio

from actors.client import Client, DisconnectedError, UnreachableError
from protocol.errors import RequestError
from tests.support.daemon import Daemon, open_session, orphans, run_turn
from tests.support.model_server import ModelServer, Response, Stall, calls, message_start, says, text_block

QUIET = ("--backend", "rehearsal", "--no-heartbeat")
NOTICE = "a turn of yours was interrupted"


def stalled(*words: str) -> Response:
    return Response((message_start(), *text_block(0, *words), Stall()))


async def start_governed(house: Daemon, model: ModelServer) -> None:
    house.environment |= {"ANTHROPIC_API_KEY": "test-key", "ANTHROPIC_BASE_URL": model.url}
    await house.start("--backend", "anthropic", "--no-heartbeat")


async def turns_of(house: Daemon, key: str) -> list[tuple]:
    return await house.rows(
        "SELECT t.status FROM turns t JOIN sessions s ON s.id = t.session_id WHERE session_key = ? ORDER BY t.seq",
        key,
    )


async def test_mail_of_a_turn_that_was_killed_is_delivered_again_and_completed_once(
    house: Daemon, model: ModelServer
):
    model.script(calls("read_file", {"path": "platform/index.md"}), stalled("I was about to"))
    await start_governed(house, model)
    async with house.operator() as client:
        mail = await client.call(
            "mail.send", {"to": "reed", "subject": "disk", "body": "The disk is nearly full."}
        )
        with trio.fail_after(15):
            await model.wait_for(lambda server: len(server.requests) == 2)
        await house.until(lambda: house.entries(entity_id="reed:cli:local", quality="tool_result"))
        await house.kill()

    assert (await house.verify()).ok
    assert await turns_of(house, "reed:cli:local") == [("running",)]
    assert await house.rows("SELECT count(*) FROM mail_receipts") == [(0,)]

    await start_governed(house, model)

    async def settled() -> bool:
        receipts = await house.rows(
            "SELECT 1 FROM mail_receipts WHERE mail_id = ? AND reader = 'reed'", mail["id"]
        )
        return bool(receipts)

    await house.until(settled)
    async with house.operator() as client:
        # The runner has looked at the mailbox again behind the turn: nothing wakes reed a second time.
        agents = (await client.call("agents.list"))["agents"]
        [reed] = [agent for agent in agents if agent["id"] == "reed"]
        assert (reed["unread"], reed["parked"]) == (0, False)
        seen = await run_turn(client, "reed:cli:local", "are you well?")
        assert seen.text == "Hello from the model server."

    assert await turns_of(house, "reed:cli:local") == [("interrupted",), ("complete",), ("complete",)]
    entries = await house.entries(entity_id="reed:cli:local")
    by_status = [entry.payload["status"] for entry in entries if entry.quality == "turn"]
    assert by_status == ["interrupted", "complete", "complete"]
    assert [entry.payload["event"] for entry in entries if entry.quality == "session_lifecycle"] == [
        "opened",
        "interrupted",
    ]
    carried = [
        entry
        for entry in entries
        if entry.quality == "mailbox_inject" and entry.payload["message_id"] == mail["id"]
    ]
    assert len(carried) == 2

    kept = await house.rows(
        "SELECT t.status FROM history h JOIN turns t ON t.id = h.turn_id WHERE h.content LIKE '%nearly full%'"
    )
    assert kept == [("complete",)]
    woken = model.requests[2].body["messages"]
    assert orphans(woken) == []
    assert str(woken).count("[mailbox from operator] disk") == 1
    assert str(woken).count(f"[mailbox from runner] {NOTICE}") == 1
    assert "I was about to" not in str(woken)  # it was not complete, so it was not kept
    assert [len(orphans(request.body["messages"])) for request in model.requests] == [0] * len(model.requests)
    assert (await house.verify()).ok


async def test_a_call_that_was_running_is_recorded_as_unknown_and_answered_in_the_history(
    house: Daemon, model: ModelServer
):
    model.script(
        says("First answer."), calls("spawn_subagent", {"prompt": "count the stars"}), stalled("One, two")
    )
    await start_governed(house, model)
    async with house.operator() as client:
        opened = await client.call("session.init", {"agent_id": "kavi", "session_key": "kavi:test:1"})
        await run_turn(client, "kavi:test:1", "say something")
        with suppress(DisconnectedError):
            async for event in client.turn({"session_key": "kavi:test:1", "message": "have it counted"}):
                if event.get("entry", {}).get("quality") == "tool_call":
                    await model.wait_for(lambda server: len(server.requests) == 3)
                    house.signal(signal.SIGKILL)
        await house.ended()
    assert (await house.verify()).ok

    await start_governed(house, model)
    entries = await house.entries(entity_id="kavi:test:1")
    [call] = [entry for entry in entries if entry.quality == "tool_call"]
    [result] = [entry for entry in entries if entry.quality == "tool_result"]
    assert result.payload["outcome"] == "unknown"
    assert result.parents == [call.cid]
    interrupted = [entry for entry in entries if entry.quality == "turn"][-1]
    assert interrupted.payload["status"] == "interrupted"
    assert result.cid in interrupted.parents
    [(subject, body)] = await house.rows(
        "SELECT subject, body FROM mail WHERE sender = 'runner' AND recipient = 'kavi' AND body LIKE '%kavi:test:1%'"
    )
    assert subject == NOTICE
    assert "spawn_subagent" in body

    async with house.guest() as stranger:  # the token of before the crash still proves whose session it is
        known = {"session_key": "kavi:test:1", "session_token": opened["session_token"]}
        assert await stranger.call("session.status", known) == {"state": "idle"}
        seen = await run_turn(
            stranger, "kavi:test:1", "where were we?", session_token=opened["session_token"]
        )
        assert seen.result is not None
    [asked] = [
        one.body["messages"] for one in model.requests if "where were we?" in str(one.body["messages"][-1])
    ]
    assert orphans(asked) == []
    assert "First answer." in str(asked)
    assert "not known" in str(asked)
    assert [row for (row,) in await turns_of(house, "kavi:test:1")] == ["complete", "interrupted", "complete"]
    ended = await house.rows(
        "SELECT cid, prev_cid FROM turns WHERE session_id = ? ORDER BY seq", opened["session_id"]
    )
    assert [prev for _, prev in ended] == [None, ended[0][0], ended[1][0]]
    assert await house.rows("SELECT count(*) FROM sessions WHERE state = 'running'") == [(0,)]
    assert (await house.verify()).ok


async def work_until_lost(client: Client, name: str) -> None:
    """Keep a session busy with everything that writes, until the daemon is gone."""
    with suppress(DisconnectedError, UnreachableError, RequestError):
        key = await open_session(client, name, session_key=f"{name}:test:busy")
        while True:
            await run_turn(
                client, key, f"read platform/index.md and also post: {name} was here then mail reed: hello"
            )


async def test_killed_at_any_moment_the_ledger_holds_and_every_session_goes_on(house: Daemon):
    rng = random.Random(2)
    names = ("kavi", "lina", "veda", "rune")
    for _ in range(3):
        await house.start(*QUIET)
        async with house.operator() as client, trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(work_until_lost, client, name)
            await trio.sleep(rng.uniform(0.05, 0.4))  # the moment is the point: any will do
            house.signal(signal.SIGKILL)
        assert await house.ended() == -signal.SIGKILL
        assert (await house.verify()).ok

    await house.start(*QUIET)
    async with house.operator() as client:
        for name in names:
            assert (
                await run_turn(client, await open_session(client, name, session_key=f"{name}:test:busy"))
            ).result
    assert await house.rows(
        "SELECT count(*) FROM turns WHERE status = 'running' AND session_id IN "
        "(SELECT id FROM sessions WHERE session_key LIKE '%:test:busy')"
    ) == [(0,)]
    entries = await house.entries()
    calls_made = {entry.cid for entry in entries if entry.quality == "tool_call"}
    answered = [
        entry.parents[0] for entry in entries if entry.quality == "tool_result" and ":busy" in entry.entity_id
    ]
    assert len(answered) == len(set(answered))
    assert set(answered) <= calls_made
    # A post stands on the board exactly where its call is recorded as completed: they are one commit.
    completed = [
        entry
        for entry in entries
        if entry.quality == "tool_result"
        and entry.payload["tool"] == "post_board"
        and entry.payload["outcome"] == "completed"
    ]
    assert await house.rows("SELECT count(*) FROM board") == [(len(completed),)]
    for (session,) in await house.rows("SELECT id FROM sessions"):
        numbers = [
            number
            for (number,) in await house.rows(
                "SELECT seq FROM history WHERE session_id = ? ORDER BY seq", session
            )
        ]
        assert numbers == list(range(len(numbers)))
    assert (await house.verify()).ok


async def test_a_stop_lets_the_running_turn_finish_and_tells_the_clients(house: Daemon):
    await house.start(*QUIET)
    async with house.operator() as client:
        key = await open_session(client, "calli")
        turn = client.turn({"session_key": key, "message": "slow 20 20"})
        async for event in turn:
            if event["type"] == "text_delta" and event["text"] == "word1 ":
                house.signal(signal.SIGTERM)
        assert turn.result["status"] == "complete"
        assert [notice["type"] for notice in client.notices] == ["shutdown"]
    assert await house.ended() == 0
    assert house.root.read_runner() is None
    assert not house.root.runner_file.exists()
    assert await house.rows("SELECT status FROM turns") == [("complete",)]


async def test_a_second_signal_ends_at_once_and_records_the_turn_as_interrupted(house: Daemon):
    await house.start(*QUIET)
    async with house.operator() as client:
        key = await open_session(client, "calli")
        told = 0
        with pytest.raises(RequestError) as refused:  # noqa: PT012 - the turn is left by its end
            async for event in client.turn({"session_key": key, "message": "slow 5000 20"}):
                if event["type"] == "text_delta" and told < 2:
                    told += 1
                    house.signal(signal.SIGTERM)
        assert refused.value.code == "shutting_down"
        assert await house.ended() == 0
    assert await house.rows("SELECT status FROM turns") == [("interrupted",)]
    assert (await house.verify()).ok
