"""A connection drops in mid-turn, or the daemon does: no character is lost; the same turn is never run twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from actors.client import Client, DisconnectedError, Reply
from protocol.errors import RequestError
from tests.support.daemon import Daemon, Seen, check_stream, open_session, run_turn
from tests.support.model_server import (
    ModelServer,
    Response,
    Stall,
    calls,
    message_start,
    says,
    status,
    text_block,
)

QUIET = ("--backend", "rehearsal", "--no-heartbeat")


async def follow(reply: Reply, *, stop_at: int | None = None) -> Seen:
    """Take events to the end, or until there were `stop_at`."""
    seen = Seen()
    with trio.fail_after(30):
        try:
            async for event in reply:
                seen.events.append(event)
                if len(seen.events) == stop_at:
                    return seen
            seen.result = reply.result
        except RequestError as error:
            seen.error = error
    return seen


def resumed(client: Client, key: str, turn_id: str, from_seq: int) -> Reply:
    return client.resume({"session_key": key, "turn_id": turn_id, "from_seq": from_seq})


async def test_events_missed_over_a_dropped_connection_are_replayed_and_the_rest_follows(daemon: Daemon):
    async with daemon.operator() as client:
        key = await open_session(client, "calli", session_key="calli:resume:1")
        turn = client.turn({"session_key": key, "message": "slow 60 20ms"})
        first = await follow(turn, stop_at=40)
    turn_id = first.events[0]["turn_id"]
    async with daemon.operator() as client:
        rest = await follow(resumed(client, key, turn_id, 40))
        whole = await follow(resumed(client, key, turn_id, 0))
    together = Seen([*first.events, *rest.events], rest.result)
    check_stream(together)
    assert together.events == whole.events
    assert together.result == whole.result == {"status": "complete", "turn_id": turn_id}
    [row] = await daemon.rows("SELECT content FROM history WHERE turn_id = ? AND role = 'assistant'", turn_id)
    assert together.text in row[0]


async def test_what_was_shown_before_a_kill_is_shown_again_after_it_and_the_turn_has_an_end(house: Daemon):
    await house.start(*QUIET)
    seen = Seen()
    async with house.operator() as client:
        key = await open_session(client, "calli", session_key="calli:resume:2")
        turn = client.turn({"session_key": key, "message": "slow 400 10ms"})
        with trio.fail_after(30), pytest.raises(DisconnectedError):  # noqa: PT012 - until it breaks
            async for event in turn:
                seen.events.append(event)
                if len(seen.events) == 100:
                    await house.kill()
    await house.start(*QUIET)
    async with house.operator() as client:
        turn_id = seen.events[0]["turn_id"]
        whole = await follow(resumed(client, key, turn_id, 0))
        assert whole.events[: len(seen.events)] == seen.events
        assert [event["seq"] for event in whole.events] == list(range(len(whole.events)))
        assert whole.events[-1]["type"] == "error"
        assert whole.error is not None
        assert "in the middle" in whole.error.message
        rest = await follow(resumed(client, key, turn_id, len(seen.events)))
        assert [*seen.events, *rest.events] == whole.events
        # And it goes on: the next turn of the session completes.
        assert (await run_turn(client, key)).result is not None
    assert (await house.verify()).ok


async def test_one_idempotency_key_sent_five_times_at_once_is_one_turn_that_all_five_see(daemon: Daemon):
    found: list[Seen] = []

    async def ask(client: Client) -> None:
        params = {"session_key": key, "message": "slow 20 5ms", "idempotency_key": "order-17"}
        found.append(await follow(client.turn(params)))

    async with daemon.operator() as one, daemon.operator() as other:
        key = await open_session(one, "calli", session_key="calli:resume:3")
        async with trio.open_nursery() as nursery:
            for client in (one, other, one, other, one):
                nursery.start_soon(ask, client)
        again = await follow(
            one.turn({"session_key": key, "message": "slow 20 5ms", "idempotency_key": "order-17"})
        )
    for seen in found:
        check_stream(seen)
    assert len(found) == 5
    assert [seen.events for seen in found] == [again.events] * 5
    assert [seen.result for seen in found] == [again.result] * 5
    count = "SELECT count(*) FROM turns JOIN sessions ON sessions.id = session_id WHERE session_key = ?"
    assert await daemon.rows(count, key) == [(1,)]


async def test_a_key_that_waits_in_line_is_attached_to_and_one_used_for_another_turn_is_refused(
    daemon: Daemon,
):
    async with daemon.operator() as client:
        key = await open_session(client, "calli", session_key="calli:resume:4")
        found: dict[str, Seen] = {}

        async def ask(name: str, **params: Any) -> None:
            found[name] = await follow(client.turn({"session_key": key, **params}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: ask("first", message="slow 40 10ms"))
            await daemon.until(lambda: daemon.rows("SELECT 1 FROM sessions WHERE state = 'running'"))
            nursery.start_soon(lambda: ask("second", message="hello", idempotency_key="k"))
            nursery.start_soon(lambda: ask("again", message="hello", idempotency_key="k"))
        assert found["second"].events == found["again"].events
        check_stream(found["again"])
        await ask("other", message="something else", idempotency_key="k")
        assert found["other"].error is not None
        assert found["other"].error.code == "invalid_params"
        assert "idempotency_key" in found["other"].error.message


async def test_a_key_finds_its_turn_after_a_kill_and_never_runs_it_again(house: Daemon):
    await house.start(*QUIET)
    asked = {"message": "say it once", "idempotency_key": "once"}
    async with house.operator() as client:
        key = await open_session(client, "calli", session_key="calli:resume:5")
        before = await follow(client.turn({"session_key": key, **asked}))
        running = client.turn({"session_key": key, "message": "slow 400 10ms", "idempotency_key": "cut"})
        await follow(running, stop_at=60)
        await house.kill()
    await house.start(*QUIET)
    async with house.operator() as client:
        after = await follow(client.turn({"session_key": key, **asked}))
        assert (after.events, after.result) == (before.events, before.result)
        cut = await follow(
            client.turn({"session_key": key, "message": "slow 400 10ms", "idempotency_key": "cut"})
        )
        assert cut.error is not None
        assert "in the middle" in cut.error.message
    states = "SELECT status FROM turns JOIN sessions s ON s.id = session_id WHERE session_key = ? ORDER BY turns.seq"
    assert await house.rows(states, key) == [("complete",), ("interrupted",)]


async def test_a_failed_turn_is_replayed_as_it_failed(governed: Daemon, model: ModelServer):
    model.script(status(400), says("Fine."))
    async with governed.operator() as client:
        key = await open_session(client, "calli", session_key="calli:resume:6")
        failed = await run_turn(client, key, idempotency_key="fails")
        again = await follow(
            client.turn({"session_key": key, "message": "hello", "idempotency_key": "fails"})
        )
        assert failed.error is not None
        assert again.error is not None
        assert (again.error.code, again.error.message) == (failed.error.code, failed.error.message)
        assert again.events == failed.events
        assert len(model.requests) == 1
        turn_id = failed.events[0]["turn_id"]
        late = await follow(resumed(client, key, turn_id, len(failed.events)))
        assert late.events == []
        assert late.error is not None


async def test_what_cannot_be_resumed_is_refused_and_says_why(house: Daemon):
    await house.start(*QUIET)
    async with house.operator() as client:
        key = await open_session(client, "calli", session_key="calli:resume:7")
        mine = await run_turn(client, key, idempotency_key="kept")
        turn_id = mine.events[0]["turn_id"]
        other = await open_session(client, "calli", session_key="calli:resume:8")
        for params, words in (
            ({"session_key": other, "turn_id": turn_id}, "no such turn"),
            ({"session_key": key, "turn_id": "ab" * 16}, "no such turn"),
            ({"session_key": key, "turn_id": "../../etc/passwd"}, "turn_id"),
            ({"session_key": key, "turn_id": turn_id, "from_seq": -1}, "from_seq"),
            ({"session_key": key}, "turn_id"),
        ):
            seen = await follow(client.resume(params))
            assert seen.error is not None
            assert seen.error.code == "invalid_params"
            assert words in seen.error.message
        async with house.guest() as guest:
            stranger = await follow(resumed(guest, key, turn_id, 0))
            assert stranger.error is not None
            assert stranger.error.code == "unknown_session"
        [file] = [path for path in events_of(house) if path.stem == turn_id]
        file.unlink()
        gone = await follow(resumed(client, key, turn_id, 0))
        assert gone.error is not None
        assert "not kept any more" in gone.error.message
        # Who asks for the same turn again still learns how it ended.
        result = await follow(
            client.turn({"session_key": key, "message": "hello", "idempotency_key": "kept"})
        )
        assert (result.events, result.result) == ([], mine.result)


@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("words", ["say it to the end", "slow 400 10ms"])
async def test_a_kill_between_the_record_of_the_end_and_its_last_events_loses_none_of_them(
    house: Daemon, missing: int, words: str
):
    await house.start(*QUIET)
    async with house.operator() as client:
        key = await open_session(client, "calli", session_key="calli:resume:10")
        asked = {"session_key": key, "message": words, "idempotency_key": "end"}
        turn, seen = client.turn(asked), Seen()
        async for event in turn:
            seen.events.append(event)
            if event["type"] == "text_delta" and words.startswith("slow"):
                await client.call("session.cancel", {"session_key": key})
        await house.kill()
    # What a kill in that moment leaves: the end is in the store, and the events stop just before it.
    [file] = events_of(house)
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-missing]))
    await house.start(*QUIET)
    async with house.operator() as client:
        whole = await follow(resumed(client, key, seen.events[0]["turn_id"], 0))
        again = await follow(client.turn(asked))
    assert whole.error is None
    assert (whole.events, whole.result) == (seen.events, turn.result)
    assert (again.events, again.result) == (seen.events, turn.result)


async def test_events_that_lack_more_than_the_end_are_not_passed_off_as_the_turn(house: Daemon):
    await house.start(*QUIET)
    async with house.operator() as client:
        key = await open_session(client, "calli", session_key="calli:resume:11")
        seen = await run_turn(client, key, "slow 20 1ms")
        [file] = events_of(house)
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-10]))
        cut = await follow(resumed(client, key, seen.events[0]["turn_id"], 0))
    assert cut.events == []
    assert cut.error is not None
    assert "not kept" in cut.error.message


def events_of(house: Daemon) -> list[Path]:
    return sorted((house.root.state / "events").iterdir())


async def test_a_folder_that_takes_no_events_fails_no_turn(house: Daemon):
    house.root.state.mkdir(parents=True, exist_ok=True)
    (house.root.state / "events").write_text("a file where a folder should be")
    await house.start(*QUIET)
    async with house.operator() as client:
        key = await open_session(client, "calli", session_key="calli:resume:9")
        seen = await run_turn(client, key)
        assert seen.result is not None
        gone = await follow(resumed(client, key, seen.events[0]["turn_id"], 0))
        assert gone.error is not None
        assert "not kept" in gone.error.message


async def test_a_turn_cut_off_between_calls_is_gone_on_with_once_and_its_client_learns_where(
    house: Daemon, model: ModelServer
):
    house.environment |= {"ANTHROPIC_API_KEY": "test-key", "ANTHROPIC_BASE_URL": model.url}
    arguments = ("--backend", "anthropic", "--no-heartbeat", "--resume-turns")
    stalled = Response((message_start(), *text_block(0, "I was about to"), Stall()))
    model.script(calls("write_file", {"path": "workspaces/shared/note.txt", "content": "one"}), stalled)
    await house.start(*arguments)
    async with house.operator() as client:
        key = await open_session(client, "calli", session_key="calli:resume:10")
        reply = client.turn({"session_key": key, "message": "write a note, then report"})
        seen = Seen()
        with trio.fail_after(30), pytest.raises(DisconnectedError):  # noqa: PT012 - until it breaks
            async for event in reply:
                seen.events.append(event)
                if event["type"] == "text_delta":
                    await house.kill()
    # Its agent is woken as well, by the notice that a turn of its was interrupted.
    model.script(says("The note is written."), says("The note is written."))
    await house.start(*arguments)
    states = "SELECT status FROM turns JOIN sessions s ON s.id = session_id WHERE session_key = ? ORDER BY turns.seq"
    await house.until(lambda: _is(house, states, key, [("interrupted",), ("complete",)]))
    [asked] = [
        request.body["messages"] for request in model.requests[2:] if "[from the runner]" in str(request.body)
    ]
    assert [block["type"] for message in asked[1:3] for block in message["content"]] == [
        "tool_use",
        "tool_result",
    ]
    assert "write_file (completed)" in str(asked[-1]["content"])
    async with house.operator() as client:
        cut = await follow(resumed(client, key, seen.events[0]["turn_id"], 0))
        assert cut.events[: len(seen.events)] == seen.events
        assert cut.error is not None
        continued = cut.error.message.rpartition(" ")[2]
        whole = await follow(resumed(client, key, continued, 0))
        check_stream(whole)
        assert whole.text == "The note is written."
    assert (await house.verify()).ok


async def _is(house: Daemon, statement: str, key: str, wanted: list[tuple[Any, ...]]) -> bool:
    return await house.rows(statement, key) == wanted


async def test_without_the_option_nothing_is_gone_on_with(house: Daemon):
    await house.start(*QUIET)
    async with house.operator() as client:
        key = await open_session(client, "calli", session_key="calli:resume:11")
        await follow(client.turn({"session_key": key, "message": "slow 400 10ms"}), stop_at=60)
        await house.kill()
    await house.start(*QUIET)
    async with house.operator() as client:
        await run_turn(client, key)
    states = "SELECT status FROM turns JOIN sessions s ON s.id = session_id WHERE session_key = ? ORDER BY turns.seq"
    assert await house.rows(states, key) == [("interrupted",), ("complete",)]


async def test_a_turn_with_its_clients_own_tools_is_not_gone_on_with(house: Daemon):
    await house.start(*QUIET, "--resume-turns")
    async with house.operator() as client:
        key = await open_session(client, "calli", session_key="calli:resume:12")
        tool = {"name": "look", "description": "looks", "input_schema": {"type": "object"}}
        await follow(
            client.turn({"session_key": key, "message": "slow 400 10ms", "tools": [tool]}), stop_at=40
        )
        await house.kill()
    await house.start(*QUIET, "--resume-turns")
    async with house.operator() as client:
        await run_turn(client, key)
    states = "SELECT status FROM turns JOIN sessions s ON s.id = session_id WHERE session_key = ? ORDER BY turns.seq"
    assert await house.rows(states, key) == [("interrupted",), ("complete",)]


async def test_mail_that_comes_again_says_so_with_the_calls_that_had_run(house: Daemon, model: ModelServer):
    house.environment |= {"ANTHROPIC_API_KEY": "test-key", "ANTHROPIC_BASE_URL": model.url}
    arguments = ("--backend", "anthropic", "--no-heartbeat")
    stalled = Response((message_start(), *text_block(0, "I was about to"), Stall()))
    model.script(calls("post_board", {"content": "looking"}), stalled)
    await house.start(*arguments)
    async with house.operator() as client:
        await client.call("mail.send", {"to": "reed", "subject": "disk", "body": "It is full."})
        with trio.fail_after(15):
            await model.wait_for(lambda server: len(server.requests) == 2)
        await house.until(lambda: house.entries(entity_id="reed:cli:local", quality="tool_result"))
        await house.kill()
    first = str(model.requests[0].body["messages"])
    assert "delivered again" not in first
    model.script(says("Done."))
    await house.start(*arguments)
    with trio.fail_after(15):
        await model.wait_for(lambda server: len(server.requests) == 3)
    [mail] = [
        block["text"]
        for message in model.requests[2].body["messages"]
        for block in message["content"]
        if isinstance(block, dict) and "It is full." in block.get("text", "")
    ]
    assert "delivered again" in mail
    assert "post_board (completed)" in mail
    await house.until(lambda: house.rows("SELECT 1 FROM mail_receipts WHERE reader = 'reed'"))
    assert await house.rows("SELECT * FROM mail_again") == []
