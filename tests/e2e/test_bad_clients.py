"""Clients that do not listen, go away or ask for too much: their sessions and everybody else's go on."""

import json
import socket
from contextlib import suppress

import pytest
import trio
import trio.testing

from protocol.errors import RequestError
from tests.support.daemon import Daemon, open_session, run_turn, upgrade_request
from tests.support.model_server import (
    ModelServer,
    Pause,
    Response,
    message_end,
    message_start,
    says,
    text_block,
)


def frame(text: str) -> bytes:
    """Return a masked text frame of less than 126 bytes."""
    data = text.encode()
    assert len(data) < 126
    return bytes((0x81, 0x80 | len(data), 0, 0, 0, 0)) + data


async def test_a_client_that_never_reads_holds_up_neither_its_turn_nor_anybody_else(
    governed: Daemon, model: ModelServer
):
    piece, pieces = "x" * 65_536, 320  # twice what the outbox and the kernel hold
    model.script(
        Response((message_start(), *text_block(0, *[piece] * pieces), *message_end("end_turn"))),
        says("Here."),
    )
    key = "calli:test:deaf"
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with deaf:
        deaf.connect(("127.0.0.1", governed.port))
        deaf.sendall(upgrade_request("/ws", f"Authorization: Bearer {governed.token}"))
        assert deaf.recv(4096).startswith(b"HTTP/1.1 101")
        deaf.sendall(
            frame(
                json.dumps(
                    {"id": 1, "method": "session.init", "params": {"agent_id": "calli", "session_key": key}}
                )
            )
        )
        deaf.sendall(
            frame(
                json.dumps({"id": 2, "method": "turn.run", "params": {"session_key": key, "message": "go"}})
            )
        )
        async with governed.operator() as client:
            with trio.fail_after(20):
                await model.wait_for(lambda server: len(server.requests) == 1)
            assert (await run_turn(client, await open_session(client, "lina"))).text == "Here."
            statement = (
                "SELECT length(content) FROM history h JOIN turns t ON t.id = turn_id "
                "JOIN sessions s ON s.id = t.session_id WHERE session_key = ? "
                "AND t.status = 'complete' AND role = 'assistant'"
            )
            [(size,)] = await governed.until(lambda: governed.rows(statement, key))
            assert size > len(piece) * pieces


async def test_the_turn_of_a_client_that_vanishes_completes_and_its_history_is_kept(
    governed: Daemon, model: ModelServer
):
    words = [f"word{number} " for number in range(20)]
    model.script(
        Response(
            (
                message_start(),
                *text_block(0, *words)[:2],
                Pause(0.2),
                *text_block(0, *words)[2:],
                *message_end("end_turn"),
            )
        )
    )
    async with governed.raw(governed.token) as raw:
        opened = await raw.exchange({"id": 1, "method": "session.init", "params": {"agent_id": "calli"}})
        key, session = opened["result"]["session_key"], opened["result"]["session_id"]
        await raw.send(
            json.dumps({"id": 2, "method": "turn.run", "params": {"session_key": key, "message": "tell me"}})
        )
        while (await raw.receive())["event"]["type"] != "text_delta":
            pass
        await trio.aclose_forcefully(raw.socket._stream)
    [(status, stop_reason)] = await governed.until(
        lambda: governed.rows(
            "SELECT status, stop_reason FROM turns WHERE session_id = ? AND cid IS NOT NULL", session
        )
    )
    assert (status, stop_reason) == ("complete", "end_turn")
    [(said,)] = await governed.rows(
        "SELECT content FROM history WHERE session_id = ? AND role = 'assistant'", session
    )
    assert json.loads(said)[0]["text"] == "".join(words)
    async with governed.operator() as client:
        await run_turn(client, key, "and?")
    assert "".join(words) in str(model.requests[-1].body["messages"])


async def test_nine_turns_are_taken_in_order_and_the_tenth_is_refused(daemon: Daemon):
    key = "calli:test:queue"
    async with daemon.operator() as client:
        await open_session(client, "calli", session_key=key)
        answers: list[tuple[int, str]] = []

        async def send(number: int, message: str) -> None:
            with suppress(RequestError):
                result = await client.call("turn.run", {"session_key": key, "message": message})
                answers.append((number, result["status"]))

        async with trio.open_nursery() as nursery:
            started = client.turn({"session_key": key, "message": "slow 5000 20"})
            await started.__anext__()
            for number in range(1, 9):
                nursery.start_soon(send, number, f"say {number}")
                await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(RequestError) as refused:
                await client.call("turn.run", {"session_key": key, "message": "say 9"})
            assert refused.value.code == "queue_full"
            assert "8 turns wait" in refused.value.message
            await client.call("session.cancel", {"session_key": key})
            async for _ in started:
                pass
            assert started.result["status"] == "cancelled"
    assert answers == [(number, "complete") for number in range(1, 9)]
    said = await daemon.rows(
        "SELECT t.status, content FROM history h JOIN turns t ON t.id = h.turn_id "
        "JOIN sessions s ON s.id = t.session_id WHERE session_key = ? AND role = 'user' ORDER BY h.seq",
        key,
    )
    assert said == [
        ("cancelled", '"slow 5000 20"'),
        *(("complete", f'"say {number}"') for number in range(1, 9)),
    ]


async def test_closing_a_session_answers_the_turns_that_wait_and_cancels_the_one_that_runs(daemon: Daemon):
    key = "calli:test:closed-queue"
    async with daemon.operator() as client, daemon.operator() as other:
        await open_session(client, "calli", session_key=key)
        running = client.turn({"session_key": key, "message": "slow 5000 20"})
        await running.__anext__()
        waiting: list[tuple[str, int]] = []

        async def wait_in_line() -> None:
            seen = await run_turn(client, key, "say never")
            assert seen.error is not None
            waiting.append((seen.error.code, len(seen.events)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_in_line)
            nursery.start_soon(wait_in_line)
            await trio.testing.wait_all_tasks_blocked()
            assert await other.call("session.close", {"session_key": key, "reason": "enough"}) == {"ok": True}
            async for _ in running:
                pass
        assert running.result["status"] == "cancelled"
        assert waiting == [("session_closed", 0)] * 2
        assert await other.call("session.status", {"session_key": key}) == {"state": "closed"}
        for method, params in (("turn.run", {"message": "say hello"}), ("session.cancel", {})):
            with pytest.raises(RequestError) as refused:
                await client.call(method, {"session_key": key, **params})
            assert refused.value.code == "session_closed"
        # Opened again it goes on where it was.
        await open_session(client, "calli", session_key=key)
        assert (await run_turn(client, key, "say hello")).text == "hello"
    events = [entry.payload for entry in await daemon.entries(entity_id=key, quality="session_lifecycle")]
    assert [(one["event"], one["reason"]) for one in events] == [
        ("opened", None),
        ("closed", "enough"),
        ("reopened", None),
    ]
