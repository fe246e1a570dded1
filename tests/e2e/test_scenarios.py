"""The seven scenarios: a real daemon process, a real socket, a real model server on loopback."""

import json
import sys

import trio

from tests.support.daemon import PROJECT, Daemon, Seen, check_stream, open_session, run_turn
from tests.support.model_server import ModelServer, Response, Stall, calls, message_start, says, text_block


def system_text(body: dict) -> str:
    return "\n\n".join(part["text"] for part in body["system"])


def tool_names(body: dict) -> list[str]:
    return [tool["name"] for tool in body["tools"]]


async def test_happy_path_streams_once_and_leaves_its_rows(governed: Daemon, model: ModelServer):
    model.script(says("Good ", "morning."))
    async with governed.operator() as client:
        opened = await client.call("session.init", {"agent_id": "calli"})
        key, session = opened["session_key"], opened["session_id"]
        seen = await run_turn(client, key, "hello there")
        assert await client.call("session.status", {"session_key": key}) == {"state": "idle"}

    assert opened["protocol"] == 1
    assert key.startswith("calli:ws:")
    assert seen.text == "Good morning."
    assert [event["seq"] for event in seen.events] == list(range(len(seen.events)))
    assert seen.types.count("done") == 1
    assert seen.events[-1] == {"type": "done", "seq": len(seen.events) - 1, "stop_reason": "end_turn"}
    assert seen.result == {"status": "complete", "turn_id": seen.events[0]["turn_id"]}
    assert seen.of("usage_update")[-1]["output_tokens"] == 5
    assert len(model.requests) == 1
    assert model.requests[0].headers["x-api-key"] == "test-key"

    turn = seen.events[0]["turn_id"]
    assert await governed.rows(
        "SELECT agent_id, session_key, owner, backend, mode, state FROM sessions WHERE id = ?", session
    ) == [("calli", key, "operator", "anthropic", "domain", "idle")]
    [row] = await governed.rows(
        "SELECT id, seq, status, cid, prev_cid, stop_reason, input_hash IS NULL, output_hash IS NULL, "
        "completed_at >= started_at FROM turns WHERE session_id = ?",
        session,
    )
    assert row == (turn, 0, "complete", row[3], None, "end_turn", 0, 0, 1)
    assert await governed.rows(
        "SELECT seq, turn_id, role, content FROM history WHERE session_id = ? ORDER BY seq", session
    ) == [
        (0, turn, "user", '"hello there"'),
        (1, turn, "assistant", '[{"text":"Good morning.","type":"text"}]'),
    ]
    entries = await governed.entries(entity_id=key)
    assert entries[0].quality == "session_lifecycle"
    assert entries[0].payload["event"] == "opened"
    assert entries[0].parents == []
    assert {entry.quality for entry in entries[1:-1]} == {"policy_verdict"}
    assert (entries[-1].quality, entries[-1].cid, entries[-1].payload["turn_id"]) == ("turn", row[3], turn)
    assert {entry.actor for entry in entries} == {"calli"}
    streamed = [event["entry"]["cid"] for event in seen.of("policy_gate", "ledger_append")]
    assert streamed == [entry.cid for entry in entries[1:]]


async def test_a_blocked_tool_is_kept_from_the_model_of_a_guest_and_denied_when_called(
    governed: Daemon, model: ModelServer
):
    model.script(calls("post_board", {"content": "look at me"}), says("I may not."))
    async with governed.guest() as client:
        opened = await client.call("session.init", {"agent_id": "reed"})
        seen = await run_turn(client, opened["session_key"], "post something")

    guest = f"guest:{opened['session_id'][:16]}"
    assert seen.gate("post_board")["verdict"] == "blocked"
    assert seen.gate("post_board")["trust"] == "unknown"
    assert seen.gate("post_board", "call")["verdict"] == "blocked"
    assert seen.gate("read_file")["verdict"] == "allowed"
    for request in model.requests:
        assert "post_board" not in tool_names(request.body)
        assert "spawn_subagent" not in tool_names(request.body)
        assert "read_file" in tool_names(request.body)
    prompt = system_text(model.requests[0].body)
    assert seen.gate("post_board")["reason"] in prompt
    assert seen.gate("post_board")["rule"] not in prompt

    entries = await governed.entries(entity_id=opened["session_key"])
    assert {entry.actor for entry in entries} == {guest}
    assert entries[0].payload["claimed_agent_id"] == "reed"
    verdicts = [
        entry
        for entry in entries
        if entry.quality == "policy_verdict" and entry.payload["tool"] == "post_board"
    ]
    assert [(entry.payload["phase"], entry.payload["verdict"]) for entry in verdicts] == [
        ("offer", "blocked"),
        ("call", "blocked"),
    ]
    assert not [entry for entry in entries if entry.quality in ("tool_call", "tool_result")]
    assert verdicts[1].cid in entries[-1].parents
    assert seen.results == [(True, f"Denied: {verdicts[1].payload['reason']}")]
    assert await governed.rows("SELECT count(*) FROM board WHERE text = 'look at me'") == [(0,)]
    told = model.requests[1].body["messages"][-1]["content"][0]
    assert (told["tool_use_id"], told["is_error"]) == ("toolu_scripted_1", True)


async def test_the_request_of_reed_carries_the_mandate_of_reed_and_that_of_a_guest_does_not(
    governed: Daemon, model: ModelServer
):
    mandate = (governed.root.platform / "mandates" / "reed.md").read_text(encoding="utf-8").strip()
    async with governed.operator() as operator, governed.guest() as guest:
        await run_turn(
            operator, await open_session(operator, "reed"), "who are you", system="Answer in French."
        )
        await run_turn(guest, await open_session(guest, "reed"))
        [status] = [(await operator.call("runner.status"))["constitution"]]
    reed, stranger = (system_text(request.body) for request in model.requests)
    assert mandate in reed
    assert "trust tier in this turn is: standing" in reed
    assert (
        reed.index(mandate)
        < reed.index(f"[constitution: {status['constitution_hash']}]")
        < reed.index("Answer in French.")
    )
    assert mandate not in stranger
    assert "trust tier in this turn is: unknown" in stranger
    assert f"[constitution: {status['constitution_hash']}]" in stranger


async def test_turns_are_chained_by_their_entries(daemon: Daemon):
    async with daemon.operator() as client:
        opened = await client.call("session.init", {"agent_id": "kavi"})
        key = opened["session_key"]
        for message in ("say one", "read platform/README.md then say two"):
            await run_turn(client, key, message)

    first, second = await daemon.rows(
        "SELECT cid, prev_cid, input_hash, output_hash FROM turns WHERE session_id = ? ORDER BY seq",
        opened["session_id"],
    )
    assert first[1] is None
    assert second[1] == first[0]
    entries = await daemon.entries(entity_id=key)
    turns = [entry for entry in entries if entry.quality == "turn"]
    [result] = [entry for entry in entries if entry.quality == "tool_result"]
    [call] = [entry for entry in entries if entry.quality == "tool_call"]
    [verdict] = [entry for entry in entries if entry.payload.get("phase") == "call"]
    assert [entry.cid for entry in turns] == [first[0], second[0]]
    assert turns[0].parents == [entries[0].cid]
    assert turns[1].parents == [first[0], result.cid]
    assert verdict.parents == [first[0]]
    assert call.parents == [verdict.cid]
    assert result.parents == [call.cid]
    for row, entry in zip((first, second), turns, strict=True):
        assert (entry.payload["inputs_hash"], entry.payload["outputs_hash"]) == row[2:]
    found = await daemon.verify()
    assert found.ok
    assert found.entries == len(await daemon.entries())
    command = [
        sys.executable,
        "-m",
        "actors.commands",
        "ledger",
        "verify",
        "--json",
        "--root",
        str(daemon.root.path),
    ]
    answer = await trio.run_process(command, cwd=PROJECT, capture_stdout=True)
    assert json.loads(answer.stdout) == {"ok": True, "entries": found.entries, "first_bad": None}


async def test_read_file_runs_and_the_model_is_given_the_text(governed: Daemon, model: ModelServer):
    (governed.root.platform / "greeting.md").write_text("Bonjour.\n")
    model.script(calls("read_file", {"path": "platform/greeting.md"}), says("It says Bonjour."))
    async with governed.operator() as client:
        key = await open_session(client, "rune")
        seen = await run_turn(client, key, "what does the greeting say?")

    [call] = seen.of("tool_call")
    assert (call["name"], call["input"]) == ("read_file", {"path": "platform/greeting.md"})
    [(is_error, content)] = seen.results
    assert not is_error
    assert "Bonjour." in content
    order = [
        (event["type"], event.get("entry", {}).get("quality"))
        for event in seen.events
        if event.get("id") == call["id"] or event.get("entry", {}).get("target") == call["id"]
    ]
    assert [step for step in order if step[0] != "tool_call_update"] == [
        ("tool_call", None),
        ("policy_gate", "policy_verdict"),
        ("ledger_append", "tool_call"),
        ("tool_result", None),
        ("ledger_append", "tool_result"),
    ]
    answered = model.requests[1].body["messages"][-1]["content"][0]
    assert (answered["type"], answered["tool_use_id"], answered["content"]) == (
        "tool_result",
        call["id"],
        content,
    )
    roles = await governed.rows(
        "SELECT role FROM history h JOIN sessions s ON s.id = session_id WHERE session_key = ?", key
    )
    assert [role for (role,) in roles] == ["user", "assistant", "user", "assistant"]


async def test_the_session_key_is_echoed_exactly_and_never_becomes_a_file_name(daemon: Daemon):
    key = "agent:telegram:@someone"
    async with daemon.guest() as client:
        opened = await client.call("session.init", {"agent_id": "agent", "session_key": key})
        assert opened["session_key"] == key
        assert (await run_turn(client, key, "write workspaces/guests/x/a.txt: hello")).result is not None
        again = await client.call("session.init", {"agent_id": "agent", "session_key": key})
        assert again == opened
    assert await daemon.rows("SELECT session_key FROM sessions WHERE id = ?", opened["session_id"]) == [
        (key,)
    ]
    assert {entry.target for entry in await daemon.entries(entity_id=key, quality="turn")} == {
        opened["session_id"]
    }
    names = [path.name for path in daemon.root.path.rglob("*")]
    assert not [name for name in names if "someone" in name or "telegram" in name]


async def test_cancel_from_another_connection_stops_the_stream(governed: Daemon, model: ModelServer):
    model.script(Response((message_start(), *text_block(0, "I begin"), Stall())))
    seen = Seen()
    async with governed.guest() as streaming, governed.guest() as other, governed.operator() as operator:
        opened = await streaming.call("session.init", {"agent_id": "agent"})
        key, token = opened["session_key"], opened["session_token"]
        turn = streaming.turn({"session_key": key, "message": "tell me everything"})
        with trio.fail_after(20):
            async for event in turn:
                seen.events.append(event)
                if event["type"] == "text_delta":
                    assert await operator.call("session.status", {"session_key": key}) == {"state": "running"}
                    assert await other.call(
                        "session.cancel", {"session_key": key, "session_token": token}
                    ) == {"ok": True}
            seen.result = turn.result
            await model.wait_for(lambda server: server.open_streams == 0)
        check_stream(seen)
        assert seen.result["status"] == "cancelled"
        assert await streaming.call("session.status", {"session_key": key}) == {"state": "idle"}
        after = await run_turn(streaming, key, "and now?")
        assert after.result["status"] == "complete"

    rows = await governed.rows(
        "SELECT status, stop_reason FROM turns WHERE session_id = ? ORDER BY seq", opened["session_id"]
    )
    assert rows == [("cancelled", "cancelled"), ("complete", "end_turn")]
    last = [entry.payload["status"] for entry in await governed.entries(entity_id=key, quality="turn")]
    assert last == ["cancelled", "complete"]
    texts = [message["content"] for message in model.requests[1].body["messages"]]
    assert "I begin" in str(texts)
    assert (await governed.verify()).ok


async def test_cancel_from_another_connection_stops_a_running_tool(daemon: Daemon):
    running = (
        "SELECT 1 FROM turns WHERE status = 'running' "
        "AND session_id != (SELECT id FROM sessions WHERE session_key = ?)"
    )
    async with daemon.operator() as streaming, daemon.operator() as other:
        key = await open_session(streaming, "kavi", session_key="kavi:test:cancelled-tool")
        turn = streaming.turn({"session_key": key, "message": "spawn: slow 5000 20"})
        seen = Seen()
        with trio.fail_after(20):
            async for event in turn:
                seen.events.append(event)
                if event.get("entry", {}).get("quality") == "tool_call":
                    await daemon.until(lambda: daemon.rows(running, key))
                    await other.call("session.cancel", {"session_key": key})
            seen.result = turn.result
        check_stream(seen)
        assert seen.result["status"] == "cancelled"

        async def child_ended() -> bool:
            return not await daemon.rows(running, key)

        await daemon.until(child_ended)
    [result] = await daemon.entries(entity_id=key, quality="tool_result")
    assert result.payload["outcome"] == "cancelled"
    child = "kavi:subagent:" + seen.events[0]["turn_id"] + ":1"
    rows = await daemon.rows(
        "SELECT session_key, status FROM turns t JOIN sessions s ON s.id = session_id WHERE session_key IN (?, ?)",
        key,
        child,
    )
    assert sorted(rows) == [(child, "cancelled"), (key, "cancelled")]
    assert (await daemon.verify()).ok
