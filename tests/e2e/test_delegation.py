"""Delegation over the wire, seen by a small client that shares no code with the runner: a WebSocket and JSON."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from tests.support.daemon import Daemon, edit, orphans
from tests.support.model_server import ModelServer, Response, message_end, message_start, says, tool_block

Frame = dict[str, Any]

SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}}
EXEC = {"name": "exec", "description": "Runs a command on the desk.", "input_schema": SCHEMA}
LIGHTS = {"name": "mcp__lights__set", "description": "Sets the lights.", "input_schema": SCHEMA}
READ_FILE = {"name": "read_file", "description": "Not what the runner says.", "input_schema": SCHEMA}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


class DeskClient:
    """One connection: sends requests, and keeps every frame that arrives, in order."""

    def __init__(self, stream: trio.SocketStream, socket: WebSocketConnection) -> None:
        self.frames: list[Frame] = []
        self._stream = stream
        self._socket = socket
        self._ids = itertools.count(1)
        self._arrived = trio.Condition()

    async def listen(self) -> None:
        try:
            while True:
                frame = json.loads(await self._socket.get_message())
                async with self._arrived:
                    self.frames.append(frame)
                    self._arrived.notify_all()
        except ConnectionClosed:
            return

    async def send(self, method: str, **params: Any) -> int:
        """Send a request; return its id."""
        number = next(self._ids)
        await self._socket.send_message(json.dumps({"id": number, "method": method, "params": params}))
        return number

    async def seen(self, wanted: Callable[[Frame], bool], count: int = 1) -> list[Frame]:
        """Wait for so many frames of a kind, and return those that are there."""
        with trio.fail_after(20):
            async with self._arrived:
                while len(found := [frame for frame in self.frames if wanted(frame)]) < count:
                    await self._arrived.wait()
        return found

    async def reply(self, number: int) -> Any:
        """Wait for the reply to a request: its result, or the code of its error."""
        [frame] = await self.seen(lambda frame: frame.get("id") == number and "event" not in frame)
        return frame["error"]["code"] if "error" in frame else frame["result"]

    async def ask(self, method: str, **params: Any) -> Any:
        """Send a request and wait for its reply."""
        return await self.reply(await self.send(method, **params))

    async def orders(self, count: int = 1) -> list[Frame]:
        """Wait for so many orders to execute a call, and return them."""
        found = await self.seen(lambda frame: frame.get("event", {}).get("type") == "tool_execute", count)
        return [frame["event"] for frame in found]

    def events(self, number: int) -> list[Frame]:
        """Return the events of a request so far."""
        return [frame["event"] for frame in self.frames if frame.get("id") == number and "event" in frame]

    async def vanish(self) -> None:
        """Be gone without a word, as when a cable is pulled."""
        await trio.aclose_forcefully(self._stream)


@asynccontextmanager
async def dial(daemon: Daemon, *, proved: bool = True) -> AsyncIterator[DeskClient]:
    """Connect as the operator, or prove nothing."""
    headers = [("authorization", f"Bearer {daemon.token}".encode())] if proved else []
    async with await trio.open_tcp_stream("127.0.0.1", daemon.port) as stream, trio.open_nursery() as nursery:
        socket = await wrap_client_stream(
            nursery, stream, "127.0.0.1", "/ws", extra_headers=headers, message_queue_size=1000
        )
        client = DeskClient(stream, socket)
        nursery.start_soon(client.listen)
        try:
            yield client
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await socket.aclose()
            nursery.cancel_scope.cancel()


_keys = itertools.count(1)


async def open_session(client: DeskClient, agent: str = "calli", **params: Any) -> Frame:
    opened: Frame = await client.ask(
        "session.init", agent_id=agent, session_key=f"{agent}:desk:{next(_keys)}", **params
    )
    return opened


async def delegate(client: DeskClient, key: str, *tools: Frame, **params: Any) -> int:
    """Begin a turn whose client executes tools; return its request."""
    return await client.send(
        "turn.run", session_key=key, message="go", tools=list(tools), execute="client", **params
    )


def calling(*calls: tuple[str, str, dict[str, Any]]) -> Response:
    """Let the model call tools (id, name, input) in one message."""
    blocks = [
        part
        for index, (call_id, name, value) in enumerate(calls)
        for part in tool_block(index, call_id, name, json.dumps(value))
    ]
    return Response((message_start(), *blocks, *message_end("tool_use")))


def given(model: ModelServer) -> list[tuple[str, Any, bool]]:
    """Return what the model was given as the results of its last calls."""
    return [
        (block["tool_use_id"], block["content"], block.get("is_error", False))
        for block in model.requests[-1].body["messages"][-1]["content"]
        if block["type"] == "tool_result"
    ]


async def outcomes(daemon: Daemon, key: str) -> dict[str, str]:
    """Return the recorded outcome of each call."""
    found = await daemon.entries(entity_id=key, quality="tool_result")
    return {entry.target: entry.payload["outcome"] for entry in found}


async def ended(daemon: Daemon, key: str) -> str:
    """Wait until the last turn of a session has ended; return how."""

    async def status() -> str | None:
        rows = await daemon.rows(
            "SELECT t.status FROM turns t JOIN sessions s ON s.id = t.session_id "
            "WHERE session_key = ? ORDER BY t.seq DESC LIMIT 1",
            key,
        )
        return str(rows[0][0]) if rows and rows[0][0] != "running" else None

    return str(await daemon.until(status))


async def test_the_client_runs_its_tool_and_the_runner_gates_and_records(
    governed: Daemon, model: ModelServer
):
    model.script(calling(("t1", "exec", {"command": "make tea"})), says("Tea is ready."))
    async with dial(governed) as client:
        key = (await open_session(client))["session_key"]
        turn = await delegate(client, key, EXEC)
        [order] = await client.orders()
        assert (order["id"], order["name"], order["input"]) == ("t1", "exec", {"command": "make tea"})

        # At this moment the verdict and the call are in the database, and nothing is answered.
        entries = await governed.entries(entity_id=key)
        [made] = [entry for entry in entries if entry.quality == "tool_call"]
        [verdict] = [entry for entry in entries if entry.cid in made.parents]
        assert made.payload["executor"] == "client"
        assert (verdict.quality, verdict.payload["verdict"]) == ("policy_verdict", "allowed")
        assert await outcomes(governed, key) == {}
        assert await client.ask("session.status", session_key=key) == {"state": "running"}

        answered = await client.ask("tool.result", session_key=key, id="t1", content="a pot of tea")
        assert answered == {"ok": True}
        assert (await client.reply(turn))["status"] == "complete"
        events = client.events(turn)
        assert [event["seq"] for event in events] == list(range(len(events)))
        kinds = [
            (event["type"], event.get("entry", {}).get("quality"))
            for event in events
            if event["type"] in ("tool_call", "policy_gate", "ledger_append", "tool_execute", "tool_result")
        ]
        assert kinds[1:] == [
            ("tool_call", None),
            ("policy_gate", "policy_verdict"),
            ("ledger_append", "tool_call"),
            ("tool_execute", None),
            ("tool_result", None),
            ("ledger_append", "tool_result"),
            ("ledger_append", "turn"),
        ]
    assert [tool["name"] for tool in model.requests[0].body["tools"]] == ["exec"]
    assert given(model) == [("t1", "a pot of tea", False)]
    assert await outcomes(governed, key) == {"t1": "completed"}
    assert (await governed.verify()).ok


async def test_two_calls_are_out_at_once_and_come_back_in_any_order(governed: Daemon, model: ModelServer):
    model.script(calling(("t1", "exec", {}), ("t2", LIGHTS["name"], {})))
    async with dial(governed) as client:
        key = (await open_session(client))["session_key"]
        turn = await delegate(client, key, EXEC, LIGHTS)
        assert [order["id"] for order in await client.orders(2)] == ["t1", "t2"]
        await client.ask("tool.result", session_key=key, id="t2", content="two")
        assert len(model.requests) == 1
        await client.ask("tool.result", session_key=key, id="t1", content="one")
        assert (await client.reply(turn))["status"] == "complete"
    assert given(model) == [("t1", "one", False), ("t2", "two", False)]
    assert list(await outcomes(governed, key)) == ["t2", "t1"]


async def test_standard_tools_are_the_runners_own_beside_those_of_the_client(
    governed: Daemon, model: ModelServer
):
    model.script(
        calling(
            ("t1", "exec", {}),
            ("t2", "read_file", {"path": "platform/index.md"}),
            ("t3", LIGHTS["name"], {}),
        )
    )
    async with dial(governed) as client:
        key = (await open_session(client))["session_key"]
        turn = await delegate(client, key, READ_FILE, EXEC, LIGHTS)
        assert [order["id"] for order in await client.orders(2)] == ["t1", "t3"]
        # The runner's own is done while the client still works.
        await client.seen(lambda frame: frame.get("event", {}).get("type") == "tool_result")
        assert await client.ask("tool.result", session_key=key, id="t2", content="x") == "unknown_tool_call"
        for call in ("t3", "t1"):
            await client.ask("tool.result", session_key=key, id=call, content=call)
        assert (await client.reply(turn))["status"] == "complete"
    [offered] = [tool for tool in model.requests[0].body["tools"] if tool["name"] == "read_file"]
    assert offered["description"] != READ_FILE["description"]
    assert offered["input_schema"]["required"] == ["path"]
    results = given(model)
    assert [call for call, _, _ in results] == ["t1", "t2", "t3"]
    assert (results[0][1], results[2][1]) == ("t1", "t3")
    assert (governed.root.platform / "index.md").read_text(encoding="utf-8").splitlines()[0] in results[1][1]
    made = await governed.entries(entity_id=key, quality="tool_call")
    assert [entry.payload["executor"] for entry in made] == ["client", "runner", "client"]


async def test_another_connection_may_answer(governed: Daemon, model: ModelServer):
    model.script(calling(("t1", "exec", {})))
    async with dial(governed) as client, dial(governed) as hand:
        key = (await open_session(client))["session_key"]
        turn = await delegate(client, key, EXEC)
        await client.orders()
        assert await hand.ask("tool.result", session_key=key, id="t1", content="by hand") == {"ok": True}
        assert (await client.reply(turn))["status"] == "complete"
    assert given(model) == [("t1", "by hand", False)]


@pytest.mark.parametrize("abruptly", [False, True])
async def test_who_lost_the_connection_answers_over_a_new_one(
    governed: Daemon, model: ModelServer, *, abruptly: bool
):
    model.script(calling(("t1", "exec", {})), calling(("t2", "exec", {})), says("done"))
    async with dial(governed) as client:
        opened = await open_session(client)
        key = opened["session_key"]
        await delegate(client, key, EXEC)
        await client.orders()
        if abruptly:
            await client.vanish()
    known = {"session_key": key, "session_token": opened["session_token"]}
    async with dial(governed, proved=False) as back:
        assert await back.ask("session.status", **known) == {"state": "running"}
        assert await back.ask("tool.result", id="t1", content="I am back", **known) == {"ok": True}
        with trio.fail_after(20):
            await model.wait_for(lambda server: len(server.requests) == 2)
        assert given(model) == [("t1", "I am back", False)]

        # The second order went to a connection that is gone: it can be answered as soon as it is durable.
        async def answered() -> bool:
            return await back.ask("tool.result", id="t2", content="again", **known) == {"ok": True}

        await governed.until(answered)
    assert await ended(governed, key) == "complete"
    assert await outcomes(governed, key) == {"t1": "completed", "t2": "completed"}
    assert given(model) == [("t2", "again", False)]


async def test_a_result_is_taken_once_and_only_for_a_call_that_waits(governed: Daemon, model: ModelServer):
    model.script(calling(("t1", "exec", {}), ("t2", "exec", {})))
    async with dial(governed) as client:
        key = (await open_session(client))["session_key"]
        assert await client.ask("tool.result", session_key=key, id="t1", content="x") == "unknown_tool_call"
        turn = await delegate(client, key, EXEC)
        await client.orders(2)
        assert await client.ask("tool.result", session_key=key, id="t9", content="x") == "unknown_tool_call"
        # Sent in one breath: the first is taken.
        first, second = [
            await client.send("tool.result", session_key=key, id="t1", content=text) for text in ("a", "b")
        ]
        assert (await client.reply(first), await client.reply(second)) == ({"ok": True}, "unknown_tool_call")
        await client.ask("tool.result", session_key=key, id="t2", content="c")
        assert (await client.reply(turn))["status"] == "complete"
        assert await client.ask("tool.result", session_key=key, id="t2", content="x") == "unknown_tool_call"
    assert given(model) == [("t1", "a", False), ("t2", "c", False)]


async def test_a_stranger_cannot_answer_and_learns_nothing(governed: Daemon, model: ModelServer):
    model.script(calling(("t1", "exec", {})))
    async with dial(governed) as client, dial(governed, proved=False) as stranger:
        key = (await open_session(client))["session_key"]
        other = (await open_session(stranger, "nobody"))["session_token"]
        turn = await delegate(client, key, EXEC)
        await client.orders()
        forged = {"session_key": key, "id": "t1", "content": "forged"}
        assert await stranger.ask("tool.result", **forged) == "unknown_session"
        assert await stranger.ask("tool.result", session_token=other, **forged) == "unknown_session"
        assert await stranger.ask("tool.result", token="wrong", **forged) == "unauthorized"
        missing = {**forged, "session_key": "no:such:session"}
        assert await stranger.ask("tool.result", **missing) == "unknown_session"
        await client.ask("tool.result", session_key=key, id="t1", content="true")
        assert (await client.reply(turn))["status"] == "complete"
    assert given(model) == [("t1", "true", False)]


async def test_a_result_that_is_too_large_is_refused_and_a_smaller_one_follows(
    governed: Daemon, model: ModelServer
):
    model.script(calling(("t1", "exec", {})))
    async with dial(governed) as client:
        key = (await open_session(client))["session_key"]
        turn = await delegate(client, key, EXEC)
        await client.orders()
        number = await client.send("tool.result", session_key=key, id="t1", content="x" * 1_000_000)
        assert await client.reply(number) == "invalid_params"
        [refusal] = [frame for frame in client.frames if frame.get("id") == number]
        named = re.search(r"at most (\d+) characters", refusal["error"]["message"])
        assert named is not None
        longest = "x" * int(named[1])
        over = await client.ask("tool.result", session_key=key, id="t1", content=longest + "x")
        assert over == "invalid_params"
        assert await client.ask("session.status", session_key=key) == {"state": "running"}
        fitting = await client.ask("tool.result", session_key=key, id="t1", content=longest)
        assert fitting == {"ok": True}
        assert (await client.reply(turn))["status"] == "complete"
    assert given(model) == [("t1", longest, False)]
    assert await outcomes(governed, key) == {"t1": "completed"}


async def test_an_error_of_the_client_is_an_error_for_the_model(governed: Daemon, model: ModelServer):
    model.script(calling(("t1", "exec", {})), says("I see."))
    async with dial(governed) as client:
        key = (await open_session(client))["session_key"]
        turn = await delegate(client, key, EXEC)
        await client.orders()
        failed = await client.ask(
            "tool.result", session_key=key, id="t1", content="no such command", is_error=True
        )
        assert failed == {"ok": True}
        assert (await client.reply(turn))["status"] == "complete"
        [result] = [event for event in client.events(turn) if event["type"] == "tool_result"]
        assert (result["content"], result["is_error"]) == ("no such command", True)
    assert given(model) == [("t1", "no such command", True)]
    assert await outcomes(governed, key) == {"t1": "error"}


async def test_blocks_reach_the_model_as_they_were_sent(governed: Daemon, model: ModelServer):
    model.script(calling(("t1", "exec", {})))
    blocks = [{"type": "text", "text": "a picture 🦊"}, IMAGE]
    async with dial(governed) as client:
        key = (await open_session(client))["session_key"]
        turn = await delegate(client, key, EXEC)
        await client.orders()
        wrong = {"session_key": key, "id": "t1"}
        assert await client.ask("tool.result", content=blocks, is_error=True, **wrong) == "invalid_params"
        assert await client.ask("tool.result", content=[{"type": "tool_use"}], **wrong) == "invalid_params"
        assert await client.ask("tool.result", content={"text": "x"}, **wrong) == "invalid_params"
        assert await client.ask("tool.result", **wrong) == "invalid_params"
        assert await client.ask("tool.result", session_key=key, id="t1", content=blocks) == {"ok": True}
        assert (await client.reply(turn))["status"] == "complete"
        [result] = [event for event in client.events(turn) if event["type"] == "tool_result"]
        assert result["content"] == blocks

        again = await client.send("turn.run", session_key=key, message="and now?")
        assert (await client.reply(again))["status"] == "complete"
    assert given_anywhere(model, "t1") == blocks


def given_anywhere(model: ModelServer, call: str) -> Any:
    """Return what the last request says that a call gave."""
    [content] = [
        block["content"]
        for message in model.requests[-1].body["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
        if block.get("tool_use_id") == call
    ]
    return content


async def test_cancel_in_mid_call_ends_the_turn_and_the_wait(governed: Daemon, model: ModelServer):
    model.script(calling(("t1", "exec", {}), ("t2", "exec", {})))
    async with dial(governed) as client, dial(governed) as hand:
        key = (await open_session(client))["session_key"]
        turn = await delegate(client, key, EXEC)
        await client.orders(2)
        await client.ask("tool.result", session_key=key, id="t2", content="two")
        await client.seen(lambda frame: frame.get("event", {}).get("type") == "tool_result")
        assert await hand.ask("session.cancel", session_key=key) == {"ok": True}
        assert (await client.reply(turn))["status"] == "cancelled"
        assert client.events(turn)[-1]["type"] == "done"
        assert await client.ask("tool.result", session_key=key, id="t1", content="x") == "unknown_tool_call"
        assert await outcomes(governed, key) == {"t2": "completed", "t1": "cancelled"}
        after = await client.send("turn.run", session_key=key, message="and now?")
        assert (await client.reply(after))["status"] == "complete"
    assert orphans(model.requests[-1].body["messages"]) == []
    assert given_anywhere(model, "t2") == "two"
    assert (await governed.verify()).ok


async def test_without_execute_a_tool_of_the_client_is_an_error_result(governed: Daemon, model: ModelServer):
    model.script(calling(("t1", "exec", {})), says("Then not."))
    async with dial(governed) as client:
        key = (await open_session(client))["session_key"]
        turn = await client.send("turn.run", session_key=key, message="go", tools=[EXEC])
        assert (await client.reply(turn))["status"] == "complete"
        assert not [event for event in client.events(turn) if event["type"] == "tool_execute"]
        odd = await client.ask("turn.run", session_key=key, message="go", tools=[EXEC], execute="server")
        assert odd == "invalid_params"
    [(_, content, is_error)] = given(model)
    assert is_error
    assert "not executed by the runner" in content


async def test_a_guest_brings_no_tools_under_the_shipped_constitution(governed: Daemon, model: ModelServer):
    model.script(calling(("t1", "exec", {})), says("Then not."))
    async with dial(governed, proved=False) as guest:
        key = (await open_session(guest, "visitor"))["session_key"]
        turn = await delegate(guest, key, EXEC, READ_FILE)
        assert (await guest.reply(turn))["status"] == "complete"
        assert not [event for event in guest.events(turn) if event["type"] == "tool_execute"]
    assert [tool["name"] for tool in model.requests[0].body["tools"]] == ["read_file"]
    [(_, content, is_error)] = given(model)
    assert is_error
    assert content.startswith("Denied: ")
    assert await outcomes(governed, key) == {}


# --- with a constitution of its own


RULES = """\
  - name: guests-may-light
    condition: {agent_trust: unknown, tool_name_matches: ["mcp__lights__*"], argument_matches: {colour: green}}
    verdict: allowed
    reason: Guests may have green.
"""


@pytest.fixture
def strict_house(tmp_path: Path, model_port: int) -> Iterator[Daemon]:
    """A root whose clients have a second for their tools, and whose guests may bring one."""
    environment = {"ANTHROPIC_API_KEY": "test-key", "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{model_port}"}
    with Daemon(tmp_path / "root", environment) as daemon:
        constitution = daemon.root.platform / "constitution.yaml"
        edit(constitution, r"^  delegated_tool_timeout_s: \d+", "  delegated_tool_timeout_s: 1")
        edit(constitution, r"^tool_rules:\n", f"tool_rules:\n{RULES}")
        daemon.start_now("--backend", "anthropic", "--no-heartbeat")
        yield daemon


async def test_a_missing_answer_is_an_error_result_and_the_turn_goes_on(
    strict_house: Daemon, model: ModelServer
):
    model.script(calling(("t1", "exec", {})), says("I go on."), calling(("t2", "exec", {})), says("Alone."))
    async with dial(strict_house) as client:
        key = (await open_session(client))["session_key"]
        turn = await delegate(client, key, EXEC)
        await client.orders()
        assert (await client.reply(turn))["status"] == "complete"
        assert await client.ask("tool.result", session_key=key, id="t1", content="x") == "unknown_tool_call"
        [(_, content, is_error)] = given(model)
        assert is_error
        assert "no result within 1 s" in content
        assert await outcomes(strict_house, key) == {"t1": "timeout"}

        # Who is gone in mid-call is waited for as long, and no longer.
        await delegate(client, key, EXEC)
        await client.orders(2)
        await client.vanish()
    assert await ended(strict_house, key) == "complete"
    assert await outcomes(strict_house, key) == {"t1": "timeout", "t2": "timeout"}
    assert given(model)[0][2]
    assert (await strict_house.verify()).ok


async def test_a_guest_brings_what_the_constitution_lets_it(strict_house: Daemon, model: ModelServer):
    name = LIGHTS["name"]
    model.script(calling(("t1", name, {"colour": "red"}), ("t2", name, {"colour": "green"})))
    async with dial(strict_house, proved=False) as guest:
        key = (await open_session(guest, "visitor"))["session_key"]
        turn = await delegate(guest, key, EXEC, LIGHTS)
        [order] = await guest.orders()
        assert order["id"] == "t2"
        assert await guest.ask("tool.result", session_key=key, id="t1", content="x") == "unknown_tool_call"
        assert await guest.ask("tool.result", session_key=key, id="t2", content="lit") == {"ok": True}
        assert (await guest.reply(turn))["status"] == "complete"
    assert [tool["name"] for tool in model.requests[0].body["tools"]] == [name]
    (_, denied, is_error), lit = given(model)
    assert is_error
    assert denied.startswith("Denied: ")
    assert lit == ("t2", "lit", False)


async def test_killed_in_mid_call_the_call_is_recorded_as_unknown(strict_house: Daemon, model: ModelServer):
    edit(
        strict_house.root.platform / "constitution.yaml",
        r"^  delegated_tool_timeout_s: \d+",
        "  delegated_tool_timeout_s: 600",
    )
    model.script(calling(("t1", "exec", {}), ("t2", "exec", {})))
    await strict_house.kill()
    await strict_house.start("--backend", "anthropic", "--no-heartbeat")
    async with dial(strict_house) as client:
        opened = await open_session(client, "kavi")
        key = opened["session_key"]
        await delegate(client, key, EXEC)
        await client.orders(2)
        await client.ask("tool.result", session_key=key, id="t2", content="two")
        await client.seen(lambda frame: frame.get("event", {}).get("type") == "tool_result")
        await strict_house.kill()
    assert (await strict_house.verify()).ok

    await strict_house.start("--backend", "anthropic", "--no-heartbeat")
    assert await outcomes(strict_house, key) == {"t1": "unknown", "t2": "completed"}
    [(body,)] = await strict_house.rows(
        "SELECT body FROM mail WHERE sender = 'runner' AND recipient = 'kavi' AND body LIKE ?", f"%{key}%"
    )
    assert "exec" in body
    known = {"session_key": key, "session_token": opened["session_token"]}
    async with dial(strict_house, proved=False) as back:
        late = await back.ask("tool.result", id="t1", content="too late", **known)
        assert late == "unknown_tool_call"
        turn = await back.send("turn.run", message="where were we?", **known)
        assert (await back.reply(turn))["status"] == "complete"
    asked = next(
        one.body["messages"] for one in model.requests if "where were we?" in str(one.body["messages"][-1])
    )
    assert orphans(asked) == []
    assert "not known" in str(asked)
    assert (await strict_house.verify()).ok
