"""Model servers that are down, slow, broken or without end: the turn ends in one way, the session goes on."""

import itertools
import json

import pytest

from tests.support.daemon import Daemon, open_session, orphans, run_turn
from tests.support.model_server import (
    Cut,
    ModelServer,
    Response,
    Stall,
    calls,
    event,
    message_end,
    message_start,
    raw,
    says,
    status,
    text_block,
    tool_block,
)

SOON = {"retry-after": "0"}
BROKEN = {
    "refused key": (status(401), "backend_error", "ANTHROPIC_API_KEY"),
    "html": (Response((b"<html>oops</html>",), 200, {"content-type": "text/html"}), "backend_error", ""),
    "no events": (raw(b"data: what\n\n"), "backend_error", ""),
    "event of another shape": (
        raw(b'event: message_start\ndata: {"type": "message_start"}\n\n'),
        "backend_error",
        "",
    ),
    "cut in mid-stream": (
        Response((message_start(), *text_block(0, "I begin"), Cut())),
        "backend_error",
        "middle",
    ),
    "end in mid-stream": (Response((message_start(), *text_block(0, "I begin"))), "backend_error", ""),
    "error in mid-stream": (
        Response(
            (message_start(), event("error", error={"type": "overloaded_error", "message": "Overloaded"}))
        ),
        "backend_overloaded",
        "Overloaded",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_answer_fails_the_turn_and_the_session_goes_on(
    governed: Daemon, model: ModelServer, name: str
):
    response, code, words = BROKEN[name]
    model.script(response)
    async with governed.operator() as client:
        opened = await client.call("session.init", {"agent_id": "calli"})
        failed = await run_turn(client, opened["session_key"], "hello")
        assert failed.error is not None
        assert failed.error.code == code
        assert words in failed.error.message
        assert "test-key" not in failed.error.message
        after = await run_turn(client, opened["session_key"], "again")
        assert after.text == "Hello from the model server."
    rows = await governed.rows(
        "SELECT status FROM turns WHERE session_id = ? ORDER BY seq", opened["session_id"]
    )
    assert rows == [("failed",), ("complete",)]
    assert orphans(model.requests[-1].body["messages"]) == []
    assert (await governed.verify()).ok


async def test_a_server_that_is_busy_for_a_moment_is_asked_again(governed: Daemon, model: ModelServer):
    model.script(status(429, SOON), status(529, SOON), says("At last."))
    async with governed.operator() as client:
        seen = await run_turn(client, await open_session(client, "calli"))
    assert seen.text == "At last."
    assert len(model.requests) == 3


@pytest.mark.parametrize(
    ("number", "code"), [(429, "rate_limited"), (529, "backend_overloaded"), (500, "backend_error")]
)
async def test_a_server_that_stays_busy_is_given_up(
    governed: Daemon, model: ModelServer, number: int, code: str
):
    model.script(*[status(number, SOON)] * 4)
    async with governed.operator() as client:
        seen = await run_turn(client, await open_session(client, "calli"))
    assert seen.error is not None
    assert seen.error.code == code
    assert len(model.requests) == 4


async def test_a_server_that_falls_silent_fails_the_turn_in_time(house: Daemon, model: ModelServer):
    house.environment |= {
        "ANTHROPIC_API_KEY": "test-key",
        "ANTHROPIC_BASE_URL": model.url,
        "AGENT_RUNNER_READ_TIMEOUT": "1",
    }
    await house.start("--backend", "anthropic", "--no-heartbeat")
    silent = Response((message_start(), *text_block(0, "I begin"), Stall()))
    model.script(silent, Response(says("late").chunks, head_delay_s=30))
    async with house.operator() as client:
        key = await open_session(client, "calli")
        for _ in range(2):
            seen = await run_turn(client, key)
            assert seen.error is not None
            assert (seen.error.code, "silent for 1 s" in seen.error.message) == ("backend_error", True)
        assert (await run_turn(client, key)).text == "Hello from the model server."


async def test_a_server_that_is_down_fails_the_turn_and_shows_in_status(model_daemon: Daemon):
    async with model_daemon.operator() as client:
        seen = await run_turn(client, await open_session(client, "calli"))
        assert seen.error is not None
        assert (seen.error.code, "no connection" in seen.error.message) == ("backend_error", True)
        assert "no connection" in (await client.call("runner.status"))["backend"]["health"]


BAD_INPUTS = {
    "invalid json": '{"path": "platform/index.md", oh',
    "not an object": '["platform/index.md"]',
    "lone surrogate": r'{"path": "\ud800"}',
    "a number that canonical json cannot hold": '{"path": "a", "n": 123456789012345678901234567890}',
}


@pytest.mark.parametrize("name", BAD_INPUTS)
async def test_tool_input_that_cannot_be_used_is_an_error_result_and_the_turn_goes_on(
    governed: Daemon, model: ModelServer, name: str
):
    block = tool_block(0, "toolu_bad", "read_file", BAD_INPUTS[name])
    model.script(Response((message_start(), *block, *message_end("tool_use"))), says("I see."))
    async with governed.operator() as client:
        key = await open_session(client, "calli")
        seen = await run_turn(client, key, "read something")
        assert seen.text == "I see."
        [(is_error, content)] = seen.results
        assert is_error
        assert content
        # The history that is kept of it can be sent again.
        assert (await run_turn(client, key, "go on")).result is not None
    assert not await governed.entries(entity_id=key, quality="tool_call")
    for request in model.requests:
        assert orphans(request.body["messages"]) == []
        json.dumps(request.body, ensure_ascii=False).encode()
    assert (await governed.verify()).ok


async def test_text_that_is_no_unicode_is_mended_on_its_way_and_can_be_sent_again(
    governed: Daemon, model: ModelServer
):
    block = text_block(0, "half \ud83d of a pair")  # as JSON an escape, which a server may well send
    model.script(Response((message_start(), *block, *message_end("end_turn"))))
    async with governed.operator() as client:
        key = await open_session(client, "calli")
        seen = await run_turn(client, key)
        assert seen.text == "half \ufffd of a pair"
        assert (await run_turn(client, key, "go on")).result is not None
    assert "half \ufffd of a pair" in str(model.requests[-1].body["messages"])
    assert (await governed.verify()).ok


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("read_file", {}, "needs the argument 'path'"),
        ("read_file", {"path": 7}, "must be a path as text"),
        ("read_file", {"path": "platform/index.md", "mode": "r"}, "has no argument 'mode'"),
        ("read_file", {"path": "../../etc/passwd"}, ""),
        ("read_file", {"path": "/etc/passwd"}, ""),
        ("read_file", {"path": "workspaces/.state/operator.token"}, ""),
        ("write_file", {"path": "platform/constitution.yaml", "content": "tool_rules: []"}, ""),
        ("no_such_tool", {}, ""),
    ],
)
async def test_a_call_that_cannot_be_carried_out_is_an_error_result(
    governed: Daemon, model: ModelServer, tool: str, arguments: dict, words: str
):
    rules = (governed.root.platform / "constitution.yaml").read_bytes()
    model.script(calls(tool, arguments), says("Then not."))
    async with governed.operator() as client:
        seen = await run_turn(client, await open_session(client, "calli"))
    assert seen.text == "Then not."
    [(is_error, content)] = seen.results
    assert is_error
    assert words in content
    assert governed.token not in content
    assert "root:" not in content
    assert (governed.root.platform / "constitution.yaml").read_bytes() == rules


async def test_a_model_that_calls_tools_for_ever_is_stopped_at_the_limit(
    governed: Daemon, model: ModelServer
):
    numbers = itertools.count()
    model._fallback = lambda _: calls("read_board", {}, f"toolu_{next(numbers)}")
    async with governed.operator() as client:
        key = await open_session(client, "calli")
        seen = await run_turn(client, key, "never stop")
        assert seen.result is not None
        assert seen.events[-1]["stop_reason"] == "max_turn_requests"
        assert seen.types.count("done") == 1
        assert len(model.requests) == 50
        assert len(seen.results) == 50
        model._fallback = lambda _: says("Enough.")
        assert (await run_turn(client, key, "stop now")).text == "Enough."
    assert orphans(model.requests[-1].body["messages"]) == []
    first, _ = await governed.entries(entity_id=key, quality="turn")
    assert first.payload["stop_reason"] == "max_turn_requests"
